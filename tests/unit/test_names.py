from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brokerkit.errors import BrokerError, ConfigurationError, PayloadError
from brokerkit.names import MAX_NAME, TagFilter, check_group, check_headers, check_tag, check_text, check_topic
from brokerkit.topic import Group, Topic

GRAMMAR = re.compile(r"\A[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")
TAG = re.compile(r"\A[A-Za-z0-9_.-]+\Z")

near_names = st.text(alphabet="ab.Z9_-k\n é٣*#/", max_size=8) | st.from_regex(GRAMMAR) | st.text()
tags = st.from_regex(r"\A[A-Za-z0-9_.-]{1,8}\Z")


@given(near_names)
def test_a_topic_name_is_accepted_exactly_when_it_matches_the_grammar(name: str) -> None:
    legal = GRAMMAR.match(name) and len(name) <= MAX_NAME and not name.startswith("bk.")
    if legal:
        assert check_topic(name) == name
    else:
        with pytest.raises(ConfigurationError, match=r"letters, digits|at most 100|reserved") as caught:
            check_topic(name)
        assert len(str(caught.value)) < 1200


@given(st.integers(1, 99), st.integers(1, 99))
@example(60, 40)
@example(60, 41)
def test_a_topic_and_its_group_share_one_hundred_characters(topic: int, group: int) -> None:
    if topic + group <= MAX_NAME:
        assert check_group("t" * topic, "g" * group) == "g" * group
    else:
        with pytest.raises(ConfigurationError, match="at most 100"):
            check_group("t" * topic, "g" * group)


def test_a_topic_alone_has_at_most_one_hundred_characters() -> None:
    assert check_topic("t" * 100)
    with pytest.raises(ConfigurationError, match="101 characters"):
        check_topic("t" * 101)


@pytest.mark.parametrize("value", [None, 5, b"orders", ["orders"]])
def test_a_name_that_is_no_text_is_refused_by_its_type(value: object) -> None:
    with pytest.raises(ConfigurationError, match=type(value).__name__):
        check_topic(value)  # type: ignore[arg-type]


@given(st.text(alphabet="ab-._|* \né", max_size=6) | tags)
def test_a_tag_is_accepted_exactly_when_it_is_a_label(tag: str) -> None:
    if TAG.match(tag):
        assert check_tag(tag) == tag
    else:
        with pytest.raises(PayloadError, match="letters, digits"):
            check_tag(tag)


@given(st.lists(tags, min_size=1, max_size=6), st.randoms(), st.sampled_from(["||", " || "]))
def test_equal_filters_have_one_normal_form_however_they_are_written(
    labels: list[str], rng: object, joint: str
) -> None:
    shuffled = [*labels, labels[0]]
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = TagFilter("||".join(labels)), TagFilter(joint.join(shuffled))
    assert one == other and hash(one) == hash(other) and one.expression == other.expression
    assert TagFilter(one.expression).expression == one.expression
    assert all(one.matches(label) for label in labels)
    assert not one.matches(None) and not one.matches("".join(labels) + ".else")


def test_the_open_filter_matches_messages_without_a_tag() -> None:
    assert TagFilter(" * ").expression == "*"
    assert TagFilter().matches(None) and TagFilter().matches("a")


@pytest.mark.parametrize("expression", ["", "||", "a||", "a|b", "a||*", "**", "a,b", "a" * 101, "é", None, 3])
def test_a_malformed_filter_is_refused(expression: object) -> None:
    with pytest.raises(ConfigurationError, match="tag filter"):
        TagFilter(expression)  # type: ignore[arg-type]


@given(st.text(alphabet=st.characters(categories=["Cs"]) | st.characters(), min_size=1))
def test_a_text_is_accepted_exactly_when_utf_8_carries_it(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        with pytest.raises(PayloadError, match="surrogate"):
            check_text("key", value)
    else:
        assert check_text("key", value) == value


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"bk-attempt": "1"}, "reserved"),
        ({"BK-Attempt": "1"}, "reserved"),
        ({"": "x"}, "must not be empty"),
        ({"n": 1}, "header 'n' must be a str, not int"),
        ({1: "x"}, "a header name must be a str, not int"),
        ({"\ud800": "x"}, "surrogate"),
        ([("n", "x")], "a mapping of str to str, not list"),
        ("n", "a mapping of str to str, not str"),
    ],
)
def test_headers_that_cannot_travel_are_refused(headers: object, said: str) -> None:
    with pytest.raises(PayloadError, match=said):
        check_headers(headers)  # type: ignore[arg-type]


def test_the_value_of_a_refused_header_is_not_shown() -> None:
    with pytest.raises(PayloadError) as caught:
        check_headers({"authorization": "token-77\udcff"})
    assert "authorization" in str(caught.value) and "token-77" not in str(caught.value)


@pytest.mark.parametrize("groups", ["billing", Group("billing")])
def test_a_single_group_in_place_of_a_list_is_refused_with_the_cure(groups: object) -> None:
    with pytest.raises(ConfigurationError, match=r"groups is a list, as in groups=\["):
        Topic("orders", groups=groups)  # type: ignore[call-overload]


def test_a_topic_checks_its_groups() -> None:
    with pytest.raises(ConfigurationError, match="lists a group twice"):
        Topic("orders", groups=["a", Group("a")])
    with pytest.raises(ConfigurationError, match="illegal group name 'a b'"):
        Topic("orders", groups=["a b"])
    with pytest.raises(ConfigurationError, match="'latest' or 'earliest', not 'first'"):
        Group("a", start="first")
    assert issubclass(ConfigurationError, BrokerError)
