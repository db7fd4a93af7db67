from __future__ import annotations

from typing import Any

import pytest

from brokerkit.errors import ConfigurationError
from brokerkit.spi import GroupSpec, TopicSpec
from brokerkit_rabbitmq.names import Exchange, Names, Queue

#: What every queue of our own has from its first day (the delivery limit cannot be changed later).
OWN_QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000, "x-overflow": "reject-publish"}
OWN_CLASSIC = {"x-queue-type": "classic"}


def group(native: dict[str, Any] | None = None, **fields: Any) -> GroupSpec:
    return GroupSpec(**{"name": "billing", "native": native or {}, **fields})


def names(
    *groups: GroupSpec,
    native: dict[str, Any] | None = None,
    queue_type: str = "quorum",
    version: tuple[int, ...] = (3, 10, 8),
    max_priority: int | None = None,
) -> Names:
    spec = TopicSpec(name="orders", native=native or {}, groups={each.name: each for each in groups})
    made = Names({"orders": spec}, queue_type, max_priority)
    made.version = version
    return made


# --- our own ----------------------------------------------------------------------------------------------------


def test_a_topic_is_a_durable_topic_exchange_of_its_name() -> None:
    assert names().exchange("orders") == Exchange("orders", "topic", True, False, {})
    assert names().due_exchange("orders") == "orders:due"


def test_a_topic_that_was_never_declared_has_the_same_names() -> None:
    assert names().exchange("others") == Exchange("others", "topic", True, False, {})
    assert names().queue_name("others", "g") == "others:g"
    assert names().dead_queue_name("others", "g") == "others:g:dead"


@pytest.mark.parametrize(("kind", "arguments"), [("quorum", OWN_QUORUM), ("classic", OWN_CLASSIC)])
def test_a_group_is_a_durable_queue_with_a_queue_for_its_dead_letters(kind: str, arguments: dict[str, Any]) -> None:
    made = names(group(), queue_type=kind)

    assert made.queue("orders", group()) == Queue("orders:billing", True, False, False, arguments)
    assert made.dead_queue("orders", group()) == Queue("orders:billing:dead", True, False, False, arguments)
    assert made.queue_name("orders", "billing") == "orders:billing"
    assert made.dead_queue_name("orders", "billing") == "orders:billing:dead"


@pytest.mark.parametrize("kind", ["quorum", "classic"])
@pytest.mark.parametrize("ordered", [True, False])
def test_no_queue_of_ours_has_a_dead_letter_exchange_or_a_time_to_live(kind: str, ordered: bool) -> None:
    made = names(queue_type=kind)
    for queue in (made.queue("orders", group(ordered=ordered)), made.dead_queue("orders", group(ordered=ordered))):
        assert not {"x-dead-letter-exchange", "x-message-ttl", "x-expires"} & set(queue.arguments)


@pytest.mark.parametrize(("kind", "arguments"), [("quorum", OWN_QUORUM), ("classic", OWN_CLASSIC)])
def test_an_ordered_group_has_a_single_active_consumer(kind: str, arguments: dict[str, Any]) -> None:
    ordered = group(ordered=True)
    made = names(ordered, queue_type=kind)

    assert made.queue("orders", ordered).arguments == {**arguments, "x-single-active-consumer": True}
    assert made.dead_queue("orders", ordered).arguments == arguments
    assert made.can_order("orders")


def test_a_queue_of_ours_may_be_of_another_type_than_the_others() -> None:
    assert names().queue("orders", group({"queue_type": "classic"})).arguments == OWN_CLASSIC
    assert names(queue_type="classic").queue("orders", group({"queue_type": "quorum"})).arguments == OWN_QUORUM


@pytest.mark.parametrize("native", [{"exclusive": True}, {"auto_delete": True}, {"durable": False}], ids=str)
def test_a_queue_that_goes_by_itself_is_classic(native: dict[str, Any]) -> None:
    # The broker refuses a quorum queue of this kind with 406.
    queue = names().queue("orders", group(native))

    assert queue.arguments == OWN_CLASSIC
    assert (queue.durable, queue.auto_delete, queue.exclusive) == (
        native.get("durable", True),
        native.get("auto_delete", False),
        native.get("exclusive", False),
    )


# --- adopted ones -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
def test_an_adopted_queue_gets_no_argument_that_is_not_named(ordered: bool) -> None:
    """The queues of system C: durable, no arguments; an added one breaks its other peers."""
    adopted = group({"queue": "jm.llm"}, ordered=ordered)

    assert names(adopted).queue("orders", adopted) == Queue("jm.llm", True, False, False, {})
    assert names(adopted).queue_name("orders", "billing") == "jm.llm"


def test_an_adopted_queue_has_exactly_the_arguments_that_are_named() -> None:
    arguments = {"x-message-ttl": 5_000, "x-dead-letter-exchange": "dlx", "x-queue-mode": "lazy"}
    adopted = group({"queue": "q", "arguments": arguments, "durable": False, "auto_delete": True})

    assert names().queue("orders", adopted) == Queue("q", False, True, False, arguments)


def test_arguments_alone_adopt_a_queue_of_our_name() -> None:
    assert names().queue("orders", group({"arguments": {}})) == Queue("orders:billing", True, False, False, {})


def test_the_type_of_an_adopted_queue_is_named_only_where_it_must_be() -> None:
    made = names()

    assert made.queue("orders", group({"queue": "q", "queue_type": "quorum"})).arguments == {"x-queue-type": "quorum"}
    assert made.queue("orders", group({"queue": "q", "queue_type": "classic"})).arguments == {}
    named = {"x-queue-type": "quorum", "x-delivery-limit": 5}
    assert made.queue("orders", group({"arguments": named})).arguments == named


def test_the_dead_letters_of_an_adopted_queue_have_a_queue_of_ours() -> None:
    adopted = group({"queue": "jm.llm"})
    assert names().dead_queue("orders", adopted) == Queue("orders:billing:dead", arguments=OWN_QUORUM)

    adopted = group({"queue": "jm.llm", "dead_queue": "jm.dead"})
    assert names(adopted).dead_queue("orders", adopted).name == "jm.dead"
    assert names(adopted).dead_queue_name("orders", "billing") == "jm.dead"


def test_an_adopted_exchange_is_declared_as_it_is() -> None:
    native = {
        "exchange": "jm.llm",
        "exchange_type": "direct",
        "durable": False,
        "auto_delete": True,
        "arguments": {"alternate-exchange": "else"},
    }
    made = names(native=native)

    assert made.exchange("orders") == Exchange("jm.llm", "direct", False, True, {"alternate-exchange": "else"})
    # A second exchange beside it would be nothing that its peers bind.
    assert made.due_exchange("orders") is None


def test_the_default_exchange_can_be_adopted() -> None:
    made = names(native={"exchange": "", "routing_key": "diagnosis_tasks"})

    assert made.exchange("orders").name == ""
    assert made.due_exchange("orders") is None


# --- bindings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "native", "topic", "keys"),
    [
        ("*", {}, {}, ["#"]),
        ("eu", {}, {}, ["eu"]),
        ("asia||eu.west", {}, {}, ["asia", "eu.west"]),
        ("*", {"bindings": ["a.*", "b.#"]}, {}, ["a.*", "b.#"]),
        ("eu", {"bindings": []}, {}, []),
        ("*", {}, {"exchange_type": "direct"}, [""]),
        ("*", {}, {"exchange": "jm.llm", "exchange_type": "direct", "routing_key": "jm.llm"}, ["jm.llm"]),
        ("eu||us", {}, {"exchange_type": "direct", "routing_key": "jm.llm"}, ["eu", "us"]),
        ("*", {}, {"exchange_type": "fanout"}, ["#"]),
    ],
)
def test_the_binding_keys_of_a_group(tag: str, native: dict[str, Any], topic: dict[str, Any], keys: list[str]) -> None:
    assert names(native=topic).bindings("orders", group(native, tag=tag)) == keys


# --- priorities and order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(3, 10, 8), (3, 13, 7), (4, 0, 5), (4, 2)])
def test_priorities_make_a_queue_classic_before_4_3(version: tuple[int, ...]) -> None:
    wanted = group({"max_priority": 9})
    made = names(wanted, version=version)

    assert made.queue("orders", wanted).arguments == {**OWN_CLASSIC, "x-max-priority": 9}
    assert made.has_priorities("orders")
    assert not names(group(), version=version).has_priorities("orders")


@pytest.mark.parametrize("version", [(4, 3), (4, 3, 5), (5,)])
def test_quorum_queues_have_priorities_from_4_3_on_without_an_argument(version: tuple[int, ...]) -> None:
    wanted = group({"max_priority": 9})
    made = names(wanted, version=version)

    # x-max-priority on a quorum queue is a 406.
    assert made.queue("orders", wanted).arguments == OWN_QUORUM
    assert made.has_priorities("orders")
    assert names(group(), version=version).has_priorities("orders")


def test_a_topic_has_priorities_only_when_all_its_groups_have() -> None:
    with_them, without = group({"max_priority": 9}), group(name="audit")

    assert names(with_them).has_priorities("orders")
    assert not names(with_them, without).has_priorities("orders")
    assert not names().has_priorities("orders")
    assert not names(with_them).has_priorities("others")


def test_priorities_for_all_leave_alone_what_is_ordered_or_adopted_or_says_otherwise() -> None:
    plain, other = group(), group({"max_priority": 3})
    ordered, adopted = group(ordered=True), group({"queue": "q"})
    made = names(max_priority=9)

    assert made.queue("orders", plain).arguments == {**OWN_CLASSIC, "x-max-priority": 9}
    assert made.queue("orders", other).arguments == {**OWN_CLASSIC, "x-max-priority": 3}
    assert made.queue("orders", ordered).arguments == {**OWN_QUORUM, "x-single-active-consumer": True}
    assert made.queue("orders", adopted).arguments == {}
    # They come out in the order in which they died.
    assert made.dead_queue("orders", plain).arguments == OWN_QUORUM


def test_priorities_for_all_are_those_of_groups_to_come_too() -> None:
    assert names(max_priority=9).has_priorities("orders")
    assert names(max_priority=9).has_priorities("others")
    assert names(version=(4, 3)).has_priorities("orders")
    assert not names(group(ordered=True), max_priority=9).has_priorities("orders")
    assert not names(group({"queue": "q"}), max_priority=9).has_priorities("orders")


def test_one_ordered_group_is_enough_for_a_topic_to_keep_its_order() -> None:
    assert names(group(), group(name="audit", ordered=True)).keeps_order("orders")
    assert not names(group()).keeps_order("orders")
    assert not names(group()).keeps_order("others")


def test_an_adopted_queue_has_the_priorities_that_are_named() -> None:
    adopted = group({"queue": "q", "arguments": {"x-max-priority": 5}})
    assert names(adopted).has_priorities("orders")

    adopted = group({"queue": "q", "max_priority": 5})
    assert names(adopted).queue("orders", adopted).arguments == {"x-max-priority": 5}
    adopted = group({"queue": "q", "max_priority": 5, "arguments": {"x-max-priority": 7}})
    assert names(adopted).queue("orders", adopted).arguments == {"x-max-priority": 7}
    assert not names(group({"queue": "q"})).has_priorities("orders")


def test_an_adopted_queue_is_ordered_only_with_a_single_active_consumer() -> None:
    plain = group({"queue": "q"}, ordered=True)
    single = group({"queue": "q", "arguments": {"x-single-active-consumer": True}}, ordered=True)

    assert not names(plain).can_order("orders")
    assert names(single).can_order("orders")
    assert names(group({"queue": "q"})).can_order("orders")
    assert names().can_order("others")


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("native", "text"),
    [
        ({"ququ": "q"}, "unknown key 'ququ' in topics.orders.groups.billing.rabbitmq: did you mean 'queue'"),
        ({"max_prioritys": 1}, "did you mean 'max_priority'"),
        ({"zzz": 1}, "unknown key 'zzz' .*: known are queue, queue_type, arguments"),
        ({"max_priority": 0}, "'max_priority' in topics.orders.groups.billing.rabbitmq: .*greater than"),
        ({"max_priority": 256}, "'max_priority' .*less than"),
        ({"queue": "q" * 256}, "'queue' in .*255"),
        ({"bindings": "a"}, "'bindings' in .*list"),
    ],
)
def test_a_mistake_in_the_section_of_a_group_says_where_it_is(native: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        names(group(native)).queue("orders", group(native))


@pytest.mark.parametrize(
    ("native", "text"),
    [
        ({"exchnage": "x"}, "unknown key 'exchnage' in topics.orders.rabbitmq: did you mean 'exchange'"),
        ({"exchange": "x" * 256}, "'exchange' in topics.orders.rabbitmq: .*255"),
        ({"durable": "perhaps"}, "'durable' in topics.orders.rabbitmq"),
    ],
)
def test_a_mistake_in_the_section_of_a_topic_says_where_it_is(native: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        names(native=native).exchange("orders")


def test_a_key_that_is_null_is_not_there() -> None:
    assert names(native={"exchange": None}).exchange("orders").name == "orders"
    assert names().queue("orders", group({"queue": None, "arguments": None})).arguments == OWN_QUORUM
