from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit_rocketmq.delays import DEFAULT_LEVELS, Delays, parse_levels

NOW = 1_732_300_000.0
levels = Delays()
timers = Delays(timers=True)

#: Seconds that a broker is late with timers, at least and at most (measured on 5.5.0).
LATE = (0.03, 1.12)


def test_the_levels_are_those_of_a_broker() -> None:
    seconds = parse_levels(DEFAULT_LEVELS)

    assert len(seconds) == 18
    assert seconds[:5] == (1, 5, 10, 30, 60)
    assert seconds[-1] == 7200


@pytest.mark.parametrize("text", ["", " ", "5", "5x", "s", "1s,5s", "-1s", "1.5s", "1s 5q", "9" * 12 + "s"])
def test_what_is_no_list_of_levels_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="level"):
        parse_levels(text)


@pytest.mark.parametrize(
    ("delay", "level"),
    [(0.5, None), (0.94, None), (0.999, "1"), (1, "1"), (4.9, "1"), (4.999, "2"), (29, "3"), (60, "5"), (9e9, "18")],
)
def test_the_longest_level_that_is_not_too_long_is_taken(delay: float, level: str | None) -> None:
    assert levels.of(NOW + delay, NOW) == (None if level is None else ("DELAY", level))


@given(st.floats(0.95, 1e9))
def test_a_level_delays_a_message_by_a_twentieth_of_a_second_too_long_at_most(delay: float) -> None:
    level = levels.level(delay)

    assert levels.levels[level - 1] <= delay + 0.05 + 1e-9


def test_levels_of_a_broker_need_not_be_in_order() -> None:
    odd = Delays(parse_levels("10s 1s 5s"))

    assert [odd.level(seconds) for seconds in (0.5, 1, 6, 100)] == [0, 2, 3, 1]


@given(st.floats(1.001, 3 * 86400 - 120))
def test_a_timer_is_late_by_a_tenth_of_a_second_at_most_and_the_consumer_waits_less_than_one(delay: float) -> None:
    due = NOW + delay
    found = timers.of(due, NOW)

    assert found is not None
    name, text = found
    deliver = max(int(text) / 1000, NOW)
    assert name == "TIMER_DELIVER_MS"
    assert deliver + LATE[1] <= due + 0.101 or deliver == NOW
    assert due - (deliver + LATE[0]) < 1


@pytest.mark.parametrize("delay", [0.2, 0.999])
def test_what_the_consumer_waits_for_needs_no_timer(delay: float) -> None:
    assert timers.of(NOW + delay, NOW) is None


def test_a_timer_is_never_farther_than_a_broker_takes() -> None:
    found = timers.of(NOW + 30 * 86400, NOW)

    assert found is not None
    assert 3 * 86400 - 120 < int(found[1]) / 1000 - NOW < 3 * 86400
