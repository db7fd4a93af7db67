from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from brokerkit_rabbitmq.names import Exchange, Queue
from brokerkit_rabbitmq.wheel import LONGEST, LOST, OUT, RADIX, UNIT, Binding, Target, Wheel, digits_of

#: Seconds; what floats of the size of ten years may differ by.
TOLERANCE = 1e-6
TEN_YEARS = 315_360_000.0

delays = st.one_of(
    st.floats(0, 100), st.floats(0, TEN_YEARS), st.integers(0, 3_153_600_000).map(lambda units: units / 10)
)
parts = st.text("abcXYZ019_-", min_size=1, max_size=20)
legal_names = st.lists(parts, min_size=1, max_size=4).map(".".join).filter(lambda name: len(name) <= 49)
#: Names of our own queues, and of any that configuration may name.
queue_names = st.one_of(
    st.tuples(legal_names, legal_names).map(":".join),
    st.tuples(legal_names, legal_names).map(lambda both: ":".join((*both, "dead"))),
    st.text(min_size=1, max_size=60),
    st.text(".*#~%", min_size=1, max_size=255),
    st.sampled_from(
        ["q" * 255, "ü" * 127, "." * 255, "q" * 198, "q" * 199, "q" * 229, "q" * 252, "a.b", "a%2Eb", "a~b", "#", "*"]
    ),
).filter(lambda name: len(name.encode()) <= 255)
targets = st.one_of(
    st.builds(Target, st.just(""), queue_names),
    st.builds(Target, queue_names),
)
#: Tags and further routing keys; those with a tilde the producer refuses.
keys = st.one_of(
    st.text("ab_-.", min_size=1, max_size=20),
    st.text("0123456789abcdef.*#%", min_size=1, max_size=30),
    st.sampled_from(["a.a.a.a.a.a.a.a.q%2Ea", "0.0.0.0.0.0.0.3.q%2Ea", "#", "*.*.*.*.*.*.*.*.*", "......."]),
)


def seconds(digits: tuple[int, ...]) -> float:
    units = 0
    for digit in digits:
        units = units * RADIX + digit
    return units / 10


# --- digits -----------------------------------------------------------------------------------------------------


@given(delays)
@example(0.1)
@example(0.3)
@example(0.7)
@example(TEN_YEARS)
def test_a_delay_is_never_shorter_and_at_most_100_ms_longer(delay: float) -> None:
    digits = digits_of(delay)

    assert len(digits) == 8
    assert all(0 <= digit < RADIX for digit in digits)
    assert delay - TOLERANCE <= seconds(digits) <= max(delay, 0) + UNIT + TOLERANCE


@given(st.integers(1, 3_153_600_000))
def test_whole_units_are_kept_exactly(units: int) -> None:
    assert seconds(digits_of(units / 10)) == units / 10


@given(delays)
def test_a_coarse_delay_is_at_most_seven_percent_longer_and_takes_two_queues(delay: float) -> None:
    digits = digits_of(delay, coarse=True)

    exact = seconds(digits_of(delay))
    assert exact <= seconds(digits) <= exact * 1.07
    if seconds(digits) < TEN_YEARS:
        assert sum(digit > 0 for digit in digits) <= 2


@pytest.mark.parametrize("delay", [0.0, -1.0, -1e9, 1e-12])
def test_what_is_due_already_waits_one_unit(delay: float) -> None:
    assert digits_of(delay) == (0, 0, 0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize("delay", [TEN_YEARS, TEN_YEARS + 1, 1e300, float("inf")])
@pytest.mark.parametrize("coarse", [True, False])
def test_ten_years_are_the_longest(delay: float, coarse: bool) -> None:
    assert LONGEST == TEN_YEARS
    assert seconds(digits_of(delay, coarse=coarse)) == TEN_YEARS


@given(delays, st.booleans(), st.sampled_from(["quorum", "classic"]))
def test_the_times_to_live_on_the_way_add_up_to_the_delay(delay: float, coarse: bool, kind: str) -> None:
    wheel, digits = Wheel(kind), digits_of(delay, coarse=coarse)
    lives = [wheel.step(*step)[0].arguments["x-message-ttl"] for step in wheel.steps(digits)]

    assert sum(lives) == round(seconds(digits) * 1000)
    assert all(type(life) is int and 0 < life <= 315_360_000_000 for life in lives)


def levels(wheel: Wheel, delay: float, priority: int) -> list[Queue]:
    return [wheel.step(*step)[0] for step in wheel.steps(wheel.digits(delay, priority=priority))]


@given(delays, st.integers(0, 9), st.booleans())
def test_high_priorities_wait_as_long_in_other_levels_where_they_would_hold_others_up(
    delay: float, priority: int, coarse: bool
) -> None:
    wheel, digits = Wheel("quorum"), digits_of(delay, coarse=coarse)
    wheel.version = (4, 0, 5)
    own = wheel.digits(delay, coarse=coarse, priority=priority)

    assert seconds(tuple(digit % RADIX for digit in own)) == seconds(digits)
    assert wheel.steps(own) == [(place, digit + RADIX * (priority > 4)) for place, digit in wheel.steps(digits)]
    (low,), (high,) = levels(wheel, 0.3, 4), levels(wheel, 0.3, 5)
    assert (low.name, high.name) == ("bk.delay.0.3", "bk.delay.0.i")
    assert low.arguments == high.arguments


@pytest.mark.parametrize(
    ("kind", "version"), [("quorum", (3, 13, 7)), ("quorum", (4, 3)), ("classic", (4, 0, 5)), ("quorum", (0,))]
)
def test_elsewhere_all_priorities_wait_in_the_same_levels(kind: str, version: tuple[int, ...]) -> None:
    wheel = Wheel(kind)
    wheel.version = version

    assert levels(wheel, 1234.5, 9) == levels(wheel, 1234.5, 0)


# --- names ------------------------------------------------------------------------------------------------------


@given(delays, targets, st.booleans())
def test_every_routing_key_and_every_name_fits(delay: float, target: Target, coarse: bool) -> None:
    wheel, digits = Wheel("quorum"), digits_of(delay, coarse=coarse)
    exchange, key = wheel.entry(digits, target)
    queue, binding = wheel.due(target)

    assert len(key.encode()) <= 255
    assert len(binding.key.encode()) <= 255
    assert len(queue.name.encode()) <= 255
    assert exchange == f"bk.delay.{wheel.steps(digits)[0][0]}"


@given(st.lists(targets, min_size=2, max_size=8, unique=True))
def test_no_two_targets_share_a_word_or_a_queue(some: list[Target]) -> None:
    assert len({target.word for target in some}) == len(some)
    assert len({target.name for target in some}) == len(some)


@given(targets)
def test_the_word_of_a_target_is_one_word_that_no_key_of_a_sender_is(target: Target) -> None:
    assert not set(target.word) & set(".*#")
    assert target.word.startswith("~")


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_queues_of_the_wheel_have_the_arguments_of_the_reference(kind: str) -> None:
    wheel = Wheel(kind)
    own: dict[str, object] = {"x-queue-type": kind}
    if kind == "quorum":
        own |= {"x-delivery-limit": 1_000_000, "x-overflow": "reject-publish"}
    moves = {**own, "x-dead-letter-strategy": "at-least-once"} if kind == "quorum" else own

    _, (lost,), _ = wheel.frame()
    assert dict(lost.arguments) == own
    level, _ = wheel.step(2, 11)
    assert level == Queue("bk.delay.2.b", arguments=level.arguments)
    assert dict(level.arguments) == {**moves, "x-message-ttl": 281_600, "x-dead-letter-exchange": "bk.delay.1"}
    lowest, _ = wheel.step(0, 1)
    assert dict(lowest.arguments) == {**moves, "x-message-ttl": 100, "x-dead-letter-exchange": OUT}
    queue, _ = wheel.due(Target("", "t:g"))
    assert dict(queue.arguments) == {
        **moves,
        "x-message-ttl": 0,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "t:g",
    }
    topic, _ = wheel.due(Target("t:due"))
    assert dict(topic.arguments) == {**moves, "x-message-ttl": 0, "x-dead-letter-exchange": "t:due"}


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_no_queue_of_the_wheel_goes_by_itself(kind: str) -> None:
    wheel = Wheel(kind)
    _, lost, _ = wheel.frame()
    for queue in (*lost, wheel.step(7, 11)[0], wheel.due(Target("", "t:g"))[0]):
        assert (queue.durable, queue.auto_delete, queue.exclusive) == (True, False, False)
        # It would delete the queue with its messages.
        assert "x-expires" not in queue.arguments


def test_nothing_in_the_wheel_is_ever_unroutable() -> None:
    exchanges, (lost,), bindings = Wheel("quorum").frame()

    assert Exchange(LOST, "fanout") in exchanges
    assert Binding(LOST, lost.name, "") in bindings
    for exchange in exchanges:
        if exchange.name != LOST:
            assert (exchange.type, exchange.durable) == ("topic", True)
            assert exchange.arguments["alternate-exchange"] == LOST


# --- the way of a message ---------------------------------------------------------------------------------------


def words_of(key: str) -> tuple[str, ...]:
    # rabbit_exchange_type_topic:split_topic_key: the empty key has no word at all.
    return tuple(key.split(".")) if key else ()


@cache
def matches(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Whether a topic exchange routes ``words`` to ``pattern``: * is one word, # any number of them."""
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(matches(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and matches(rest, words[1:])


class Router:
    """Routes as RabbitMQ does: topic and fanout exchanges, bindings between them, alternates, dead letters."""

    def __init__(self, exchanges: Iterable[Exchange], queues: Iterable[Queue], bindings: Iterable[Binding]) -> None:
        self.exchanges = {exchange.name: exchange for exchange in exchanges}
        self.queues = {queue.name: queue for queue in queues}
        self.bindings = list(bindings)

    def route(self, exchange: str, routing_keys: tuple[str, ...]) -> set[str]:
        """Return the queues that get a message."""
        if exchange == "":
            return {key for key in routing_keys if key in self.queues}
        found: set[str] = set()
        seen: set[str] = set()
        waiting = [exchange]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            here = [
                binding for binding in self.bindings if binding.source == name and self._fits(binding, routing_keys)
            ]
            if not here and "alternate-exchange" in self.exchanges[name].arguments:
                waiting.append(self.exchanges[name].arguments["alternate-exchange"])
            found |= {binding.destination for binding in here if not binding.to_exchange}
            waiting += (binding.destination for binding in here if binding.to_exchange)
        return found

    def _fits(self, binding: Binding, routing_keys: tuple[str, ...]) -> bool:
        if self.exchanges[binding.source].type == "fanout":
            return True
        return any(matches(words_of(binding.key), words_of(key)) for key in routing_keys)

    def way(self, exchange: str, routing_keys: tuple[str, ...]) -> list[set[str]]:
        """Return the queues that a message is in, one set after the other, until none moves it on."""
        steps = []
        here = self.route(exchange, routing_keys)
        while here:
            steps.append(here)
            onward: set[str] = set()
            for name in here:
                arguments = self.queues[name].arguments
                if "x-dead-letter-exchange" in arguments:
                    own = arguments.get("x-dead-letter-routing-key")
                    onward |= self.route(arguments["x-dead-letter-exchange"], routing_keys if own is None else (own,))
            here = onward
        return steps


def test_the_matcher_of_this_test_is_that_of_topic_exchanges() -> None:
    for pattern, key, fits in [
        ("#", "", True),
        ("#", "a.b", True),
        ("*", "", False),
        ("*.*", ".", True),
        ("*", "a.b", False),
        ("a.#", "a", True),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        ("a.*.c", "a.c", False),
        ("*.*", "a.", True),
    ]:
        assert matches(words_of(pattern), words_of(key)) is fits, (pattern, key)


def sink(target: Target) -> str:
    """The queue where messages of ``target`` end; for an exchange one that gets all that comes there."""
    return target.queue if target.queue is not None else f"sink {target.exchange}"


def broker(wheel: Wheel, some: Iterable[Target], steps: Iterable[tuple[int, int]]) -> Router:
    exchanges, queues, bindings = wheel.frame()
    for target in some:
        queues.append(Queue(sink(target)))
        if target.queue is None:
            exchanges.append(Exchange(target.exchange, "fanout"))
            bindings.append(Binding(target.exchange, sink(target), ""))
    for queue, binding in (*map(wheel.due, some), *(wheel.step(*step) for step in set(steps))):
        queues.append(queue)
        bindings.append(binding)
    return Router(exchanges, queues, bindings)


@given(
    st.lists(targets, min_size=1, max_size=4, unique=True),
    st.lists(st.tuples(delays, st.booleans(), st.integers(0, 3), st.lists(keys, max_size=2)), min_size=1, max_size=4),
    st.integers(0, 9),
)
@example([Target("", "a"), Target("", "b")], [(5.0, False, 1, ["a.a.a.a.a.a.a.a.q%2Ea", "a.a.a.a.a.a.a.a.~q%2Eb"])], 9)
@settings(max_examples=150)
def test_every_message_goes_through_the_queues_of_its_digits_to_its_target_and_nowhere_else(
    some: list[Target], messages: list[tuple[float, bool, int, list[str]]], priority: int
) -> None:
    wheel = Wheel("quorum")
    wheel.version = (4, 0, 5)
    ways = [wheel.digits(delay, coarse=coarse, priority=priority) for delay, coarse, _, _ in messages]
    router = broker(wheel, some, (step for digits in ways for step in wheel.steps(digits)))

    for digits, (_, _, chosen, further) in zip(ways, messages, strict=True):
        target = some[chosen % len(some)]
        exchange, key = wheel.entry(digits, target)
        expected = [wheel.step(*step)[0].name for step in wheel.steps(digits)]
        expected += [f"bk.due.{target.name}", sink(target)]

        way = router.way(exchange, (key, *further))
        assert way == [{name} for name in expected]
        # A queue twice on the way would look like a cycle, which brokers before 4.0 end by dropping the message.
        assert len(set(expected)) == len(expected)


@given(delays, targets, targets)
def test_a_message_whose_target_is_not_bound_is_with_the_lost_ones(delay: float, target: Target, other: Target) -> None:
    wheel, digits = Wheel("quorum"), digits_of(delay)
    exchange, key = wheel.entry(digits, target)
    router = broker(wheel, [other] if other != target else [], wheel.steps(digits))

    assert router.way(exchange, (key, "a-tag"))[-1] == {LOST}


@given(delays, targets)
def test_a_message_whose_level_is_missing_is_with_the_lost_ones(delay: float, target: Target) -> None:
    wheel, digits = Wheel("quorum"), digits_of(delay)
    exchange, key = wheel.entry(digits, target)
    router = broker(wheel, [target], wheel.steps(digits)[:-1])

    assert router.way(exchange, (key,))[-1] == {LOST}
