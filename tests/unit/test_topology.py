from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.errors import ConfigurationError
from brokerkit.settings import TopicSettings
from brokerkit.topic import Group, Topic
from brokerkit.topology import Topology


@pytest.fixture
def topology() -> Topology:
    return Topology("embedded")


def settings(**fields: Any) -> TopicSettings:
    return TopicSettings.model_validate(fields)


ORDER_THE_TOPIC = {
    "Topic": lambda topology: topology.add_topic(Topic("t", ordered=True)),
    "configuration": lambda topology: topology.configure("t", settings(ordered=True)),
}


@pytest.mark.parametrize("source", ORDER_THE_TOPIC)
def test_an_ordered_topic_orders_the_groups_that_were_entered_before_it(topology: Topology, source: str) -> None:
    topology.add_group("t", "before")
    ORDER_THE_TOPIC[source](topology)
    topology.add_group("t", "after")
    assert {name: group.ordered for name, group in topology["t"].groups.items()} == {"before": True, "after": True}


declarations = st.lists(
    st.sampled_from(
        [
            lambda topology: topology.add_group("t", "a"),
            lambda topology: topology.add_group("t", "a", tag="x||y"),
            lambda topology: topology.add_group("t", "a", tag="y || x"),
            lambda topology: topology.add_group("t", "b", ordered=True, start="earliest"),
            lambda topology: topology.add_topic(Topic("t", groups=[Group("a", tag="y||x"), Group("c")])),
            lambda topology: topology.add_topic(Topic("t", ordered=True)),
            lambda topology: topology.configure("t", settings(groups={"b": {"start": "earliest"}})),
            lambda topology: topology.configure("t", settings(ordered=True, groups={"a": {"tag": "x||y"}})),
        ]
    ),
    min_size=1,
)


@given(declarations, st.randoms())
def test_the_order_of_declarations_does_not_matter_and_repetition_changes_nothing(calls: list[Any], rng: Any) -> None:
    one, other = Topology("embedded"), Topology("embedded")
    for call in calls:
        call(one)
    shuffled = calls * 2
    rng.shuffle(shuffled)
    for call in shuffled:
        call(other)
    assert one["t"].groups == other["t"].groups and one["t"].ordered == other["t"].ordered


@pytest.mark.parametrize(
    ("first", "second", "values"),
    [
        ({"tag": "a"}, {"tag": "b"}, ("tag='a'", "tag='b'")),
        ({"ordered": True}, {"ordered": False}, ("ordered=True", "ordered=False")),
        ({"start": "latest"}, {"start": "earliest"}, ("start='latest'", "start='earliest'")),
    ],
)
def test_two_sources_that_contradict_each_other_are_refused_by_both_values(
    topology: Topology, first: dict[str, Any], second: dict[str, Any], values: tuple[str, str]
) -> None:
    topology.add_group("t", "g", **first)
    with pytest.raises(ConfigurationError) as caught:
        topology.add_group("t", "g", **second)
    assert all(value in str(caught.value) for value in (*values, "'g'", "'t'"))


@pytest.mark.parametrize("topic_first", [True, False])
def test_a_group_that_says_unordered_contradicts_an_ordered_topic(topology: Topology, topic_first: bool) -> None:
    steps: list[Callable[[], object]] = [
        lambda: topology.add_topic(Topic("t", ordered=True)),
        lambda: topology.add_group("t", "g", ordered=False),
    ]
    first, second = steps if topic_first else reversed(steps)
    first()
    with pytest.raises(ConfigurationError, match=r"ordered=False.*ordered=True"):
        second()


def test_a_configured_unordered_topic_contradicts_an_ordered_one(topology: Topology) -> None:
    topology.configure("t", settings(ordered=False))
    topology.add_topic(Topic("t"))
    with pytest.raises(ConfigurationError, match=r"ordered=False and with ordered=True"):
        topology.add_topic(Topic("t", ordered=True))


@pytest.mark.parametrize(
    "refused",
    [
        lambda topology: topology.add_group("t", "g", tag="new", start="earliest"),
        lambda topology: topology.add_group("t", "g", tag="new", start="never"),
        lambda topology: topology.add_group("t", "g", tag="||"),
        lambda topology: topology.add_group("t", "no group"),
        lambda topology: topology.add_topic(Topic("t", ordered=True, groups=["x", Group("g", start="earliest")])),
        lambda topology: topology.configure("t", settings(ordered=True, groups={"x": {}, "g": {"start": "earliest"}})),
        lambda topology: topology.add_group("new", "no group"),
        lambda topology: topology.ensure("no topic"),
    ],
)
def test_a_declaration_that_is_refused_changes_nothing(topology: Topology, refused: Any) -> None:
    topology.add_group("t", "g", start="latest")
    before, spec, version = dict(topology), topology["t"], topology.version
    with pytest.raises(ConfigurationError):
        refused(topology)
    assert dict(topology) == before and topology["t"] is spec and topology.version == version
    assert topology.settings("t") is None
    assert topology.add_group("t", "g").tag == "*"


def test_the_spec_is_the_same_object_until_something_changes(topology: Topology) -> None:
    versions, specs = [topology.version], []
    for call in (
        lambda: topology.ensure("t"),
        lambda: topology.add_group("t", "g"),
        lambda: topology.add_group("t", "g", tag="x"),
        lambda: topology.add_topic(Topic("t", ordered=True)),
        lambda: topology.configure("t", settings(embedded={"a": 1})),
        lambda: topology.configure("t", settings(declare="verify", embedded={"a": 1})),
    ):
        for _ in range(2):
            call()
            versions.append(topology.version)
            specs.append(topology["t"])
    assert versions == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert [one is other for one, other in pairwise(specs)] == [True, False] * 5 + [True]


def test_what_belongs_to_the_backend_survives_other_declarations(topology: Topology) -> None:
    configured = settings(embedded={"a": 1}, rabbitmq={"b": 2}, groups={"g": {"embedded": {"c": 3}}}, unroutable="drop")
    topology.configure("t", configured)
    topology.add_topic(Topic("t", groups=["g"]))
    topology.add_group("t", "g")
    spec = topology["t"]
    assert (spec.native, spec.groups["g"].native, spec.unroutable) == ({"a": 1}, {"c": 3}, "drop")
    assert topology.settings("t") is configured


def test_the_only_group_is_known_as_long_as_it_is_the_only_one(topology: Topology) -> None:
    assert topology.only_group("t") is None
    topology.add_group("t", "a")
    assert topology.only_group("t") == "a"
    topology.add_group("t", "b")
    assert topology.only_group("t") is None


def test_the_mapping_is_live_and_ends_where_the_names_end(topology: Topology) -> None:
    assert len(topology) == 0 and "t" not in topology
    topology.ensure("t")
    assert list(topology) == ["t"] and topology["t"].name == "t"
