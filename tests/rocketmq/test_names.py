from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.errors import ConfigurationError
from brokerkit.spi import GroupSpec, TopicSpec
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.remoting import names as native
from brokerkit_rocketmq.settings import RocketMQSettings

part = st.text("abcXYZ019_-", min_size=1, max_size=6)
name = st.lists(part, min_size=1, max_size=4).map(".".join)


def names_of(*topics: TopicSpec, **section: object) -> Names:
    return Names({topic.name: topic for topic in topics}, RocketMQSettings.model_validate(section))


# --- the protocol's own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    # From Java: "…".hashCode().
    [("", 0), ("a", 97), ("TagA", 2598919), ("order.new", -392707328), ("polygenelubricants", -2147483648),
     ("\u5bfc\u51fa", 750974), ("\U0001f600", 1772899)],
)  # fmt: skip
def test_java_hash_is_that_of_java(text: str, number: int) -> None:
    assert native.java_hash(text) == number


@given(st.text())
def test_java_hash_is_a_signed_number_of_32_bits(text: str) -> None:
    units = text.encode("utf-16-be", "surrogatepass")
    expected = 0
    for at in range(0, len(units), 2):
        expected = (31 * expected + int.from_bytes(units[at : at + 2], "big")) % 2**32

    assert native.java_hash(text) % 2**32 == expected
    assert -(2**31) <= native.java_hash(text) < 2**31


@pytest.mark.parametrize(
    ("plain", "wrapped"),
    [
        ("orders", "ns%orders"),
        ("%RETRY%billing", "%RETRY%ns%billing"),
        ("%DLQ%billing", "%DLQ%ns%billing"),
        ("ns%orders", "ns%orders"),
        ("TBW102", "TBW102"),
        ("rmq_sys_x", "rmq_sys_x"),
        ("CID_RMQ_SYS_TRANS", "CID_RMQ_SYS_TRANS"),
    ],
)
def test_a_namespace_goes_where_java_puts_it(plain: str, wrapped: str) -> None:
    assert native.wrap("ns", plain) == wrapped
    assert native.wrap(None, plain) == plain


@given(part, st.sampled_from(["", "%RETRY%", "%DLQ%"]), part)
def test_a_namespace_comes_off_again(namespace: str, prefix: str, plain: str) -> None:
    assert native.unwrap(namespace, native.wrap(namespace, prefix + plain)) == prefix + plain


def test_a_name_of_another_namespace_stays_as_it_is() -> None:
    assert native.unwrap("ns", "other%orders") == "other%orders"


@pytest.mark.parametrize("text", ["", "a.b", "a b", "a/b", "caf\u00e9", "a\n", "x" * 128, "TBW102", "rmq_sys_trace"])
def test_a_topic_that_no_broker_takes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"topic|must not be empty"):
        native.check_topic(text)


@pytest.mark.parametrize("text", ["", "a.b", "x" * 121, "CID_RMQ_SYS_TRANS"])
def test_a_group_that_no_broker_takes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"group|must not be empty"):
        native.check_group(text)


def test_the_longest_group_has_a_legal_retry_topic() -> None:
    group = native.check_group("g" * native.MAX_GROUP)

    assert len(native.retry_topic(group)) == native.MAX_TOPIC
    assert native.check_topic(native.retry_topic(group)) == f"%RETRY%{group}"


# --- ours ---------------------------------------------------------------------------------------------------------


def test_the_names_of_a_topic_and_its_group() -> None:
    names = names_of()

    assert names.topic("shop.orders") == "shop|orders"
    assert names.group("shop.orders", "billing.eu") == "billing|eu||shop|orders"
    assert names.retry("orders", "billing") == "%RETRY%billing||orders"
    assert names.dead("orders", "billing") == "%DLQ%billing||orders"
    assert names.shadow("orders", "billing") == "billing||orders||h"
    assert names.dead_reader("orders", "billing") == "billing||orders||dead"
    assert names.broadcast("orders", "billing") == "billing||orders||b"
    assert names.inbox == "bk|inbox"


def test_all_names_are_within_the_namespace() -> None:
    names = names_of(namespace="prod")

    assert names.topic("orders") == "prod%orders"
    assert names.group("orders", "billing") == "prod%billing||orders"
    assert names.retry("orders", "billing") == "%RETRY%prod%billing||orders"
    assert names.dead("orders", "billing") == "%DLQ%prod%billing||orders"
    assert names.shadow("orders", "billing") == "prod%billing||orders||h"
    assert names.inbox == "prod%bk|inbox"


@given(name, name, name, name)
def test_no_two_groups_have_one_native_name(topic: str, group: str, other_topic: str, other_group: str) -> None:
    names = names_of()

    same = (topic, group) == (other_topic, other_group)
    assert (names.group(topic, group) == names.group(other_topic, other_group)) is same
    assert (names.topic(topic) == names.topic(other_topic)) is (topic == other_topic)


@given(name, name)
def test_legal_names_have_legal_native_ones(topic: str, group: str) -> None:
    names = names_of()

    native.check_topic(names.retry(topic, group))
    native.check_topic(names.dead(topic, group))
    for kind in (names.shadow, names.dead_reader, names.broadcast):
        native.check_group(kind(topic, group))


def test_the_longest_names_fit() -> None:
    names = names_of()

    assert len(names.retry("t" * 50, "g" * 50)) <= native.MAX_TOPIC
    assert len(names.dead_reader("t" * 50, "g" * 50)) <= native.MAX_GROUP


def test_a_name_that_the_namespace_makes_too_long_is_refused() -> None:
    names = names_of(namespace="n" * 30)

    with pytest.raises(ConfigurationError, match=r"133 characters; RocketMQ takes 120.*backend rocketmq"):
        names.group("t" * 50, "g" * 50)


def test_the_consumer_group_of_the_section_is_used_as_it_stands_on_its_topic_only() -> None:
    names = names_of(topic="export_tasks", consumer_group="export_consumer_group")

    assert names.group("export_tasks", "export_consumer_group") == "export_consumer_group"
    assert names.group("export_tasks", "other") == "other||export_tasks"
    assert names.group("orders", "export_consumer_group") == "export_consumer_group||orders"


def test_the_consumer_group_of_the_section_without_a_topic_is_that_of_the_export_tasks() -> None:
    assert names_of(consumer_group="workers").group("export_tasks", "workers") == "workers"


def test_a_group_and_a_topic_can_be_named_in_the_configuration() -> None:
    group = GroupSpec(name="billing", native={"group": "CID_BILLING", "retry_queues": 3})
    topic = TopicSpec(name="orders", groups={"billing": group}, native={"topic": "SHOP_ORDERS", "queues": 16})
    names = names_of(topic, namespace="prod")

    assert names.topic("orders") == "prod%SHOP_ORDERS"
    assert names.group("orders", "billing") == "prod%CID_BILLING"
    assert names.retry("orders", "billing") == "%RETRY%prod%CID_BILLING"
    assert names.retry_queues("orders", "billing") == 3
    assert names.queues("orders") == 16


@pytest.mark.parametrize(
    ("native_topic", "native_group", "text"),
    [
        ({"queue": 4}, {}, r"unknown key 'queue' in topics\.orders\.rocketmq: did you mean 'queues'"),
        ({"queues": 0}, {}, r"'queues' in topics\.orders\.rocketmq"),
        ({"topic": "a.b"}, {}, r"topic 'a\.b'.*letters"),
        ({"topic": "TBW102"}, {}, r"belongs to RocketMQ itself"),
        ({}, {"group": "x" * 121}, r"121 characters"),
        ({}, {"grup": "x"}, r"unknown key 'grup' in topics\.orders\.groups\.billing\.rocketmq"),
    ],
)
def test_a_wrong_key_of_a_topic_or_a_group_is_named(
    native_topic: dict[str, object], native_group: dict[str, object], text: str
) -> None:
    group = GroupSpec(name="billing", native=native_group)
    names = names_of(TopicSpec(name="orders", groups={"billing": group}, native=native_topic))

    with pytest.raises(ConfigurationError, match=text):
        (names.topic("orders"), names.group("orders", "billing"))


def test_what_a_topic_says_of_itself_later_counts() -> None:
    topics: dict[str, TopicSpec] = {}
    names = Names(topics, RocketMQSettings())
    assert names.topic("orders") == "orders"

    topics["orders"] = TopicSpec(name="orders", native={"topic": "SHOP"})

    assert names.topic("orders") == "SHOP"


def test_an_ordered_topic_has_one_queue_unless_more_are_asked_for() -> None:
    ordered = TopicSpec(name="a", ordered=True)
    by_key = TopicSpec(name="b", ordered=True, native={"queues": 4})
    by_group = TopicSpec(name="c", groups={"g": GroupSpec(name="g", ordered=True)})
    names = names_of(ordered, by_key, by_group, TopicSpec(name="d"), queues=6)

    assert [names.queues(topic) for topic in "abcd"] == [1, 4, 1, 6]
    assert [names.keeps_total_order(topic) for topic in "abcd"] == [True, False, True, False]
