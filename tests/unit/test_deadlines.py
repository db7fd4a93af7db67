from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from brokerkit.clock import SystemClock
from brokerkit.deadlines import Deadline, DeadlineTable
from brokerkit.errors import Closed


class ManualTimer:
    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualClock(SystemClock):
    """Time passes in `advance`, from timer to timer."""

    def __init__(self) -> None:
        self.now = 12_345.678
        self.timers: list[ManualTimer] = []
        self.armed_in_all = 0

    def monotonic(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], object]) -> ManualTimer:
        timer = ManualTimer(self.now + seconds, callback)
        self.timers.append(timer)
        self.armed_in_all += 1
        return timer

    def pending(self) -> list[ManualTimer]:
        self.timers = [timer for timer in self.timers if not timer.cancelled]
        return self.timers

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.pending() if timer.when <= end]:
            first = min(due, key=lambda timer: timer.when)
            self.timers.remove(first)
            self.now = max(self.now, first.when)
            first.callback()
        self.now = end


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def table(clock: ManualClock) -> DeadlineTable:
    return DeadlineTable(clock)


def allowed(seconds: float) -> float:
    # The margin of the timer, and what floats of this size round.
    return max(0.05, seconds / 100) + 1e-5


def test_deadlines_are_never_early_and_at_most_a_tick_late(table: DeadlineTable, clock: ManualClock) -> None:
    source = random.Random(3)
    fired: dict[int, float] = {}
    due: dict[int, tuple[float, float]] = {}
    for number in range(500):
        seconds = source.choice([0.0, 0.01, 0.3, 5.0, 30.0, 600.0, 3600.0]) + source.random() * 0.1
        due[number] = (clock.now, seconds)
        table.add(seconds, lambda number=number: fired.setdefault(number, clock.now))  # type: ignore[misc]
        clock.advance(source.random() * 0.2)
    clock.advance(4000)
    assert fired.keys() == due.keys()
    for number, (begin, seconds) in due.items():
        assert begin + seconds <= fired[number] <= begin + seconds + allowed(seconds)


def test_a_removed_deadline_does_not_fire(table: DeadlineTable, clock: ManualClock) -> None:
    fired: list[str] = []
    table.add(1.0, lambda: fired.append("kept"))
    gone = table.add(1.0, lambda: fired.append("removed"))
    table.remove(gone)
    table.remove(gone)
    assert len(table) == 1
    clock.advance(2)
    assert fired == ["kept"]
    assert len(table) == 0


def test_a_shorter_deadline_that_comes_later_is_not_held_up(table: DeadlineTable, clock: ManualClock) -> None:
    fired: list[float] = []
    table.add(3600.0, lambda: None)
    begin = clock.now
    table.add(0.1, lambda: fired.append(clock.now - begin))
    clock.advance(1)
    assert fired == [pytest.approx(0.125, abs=0.03)]


def test_nothing_stays_armed_without_deadlines(table: DeadlineTable, clock: ManualClock) -> None:
    assert not table.armed
    table.remove(table.add(3600.0, lambda: None))
    clock.advance(1.01)
    assert not table.armed
    assert clock.pending() == []
    table.add(0.1, lambda: None)
    clock.advance(0.2)
    assert not table.armed
    assert clock.pending() == []


def test_a_stream_of_short_handlers_shares_one_timer(table: DeadlineTable, clock: ManualClock) -> None:
    for _ in range(1000):
        entry = table.add(30.0, lambda: None)
        clock.advance(0.001)
        table.remove(entry)
    assert len(clock.pending()) == 1
    assert clock.armed_in_all <= 3


def test_a_callback_may_remove_and_add_deadlines(table: DeadlineTable, clock: ManualClock) -> None:
    fired: list[str] = []
    entries: list[Deadline] = []

    def first() -> None:
        fired.append("first")
        table.remove(entries[1])
        table.add(0.1, lambda: fired.append("third"))

    entries.append(table.add(1.0, first))
    entries.append(table.add(1.0, lambda: fired.append("second")))
    clock.advance(2)
    assert fired == ["first", "third"]


def test_close_forgets_everything_even_from_a_callback(table: DeadlineTable, clock: ManualClock) -> None:
    fired: list[str] = []
    table.add(1.0, table.close)
    table.add(1.0, lambda: fired.append("same slot"))
    table.add(5.0, lambda: fired.append("later"))
    clock.advance(10)
    assert fired == []
    assert clock.pending() == []
    table.close()
    with pytest.raises(Closed):
        table.add(1.0, lambda: None)


async def test_a_callback_that_fails_does_not_hold_up_the_others(table: DeadlineTable, clock: ManualClock) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    fired: list[str] = []
    table.add(1.0, lambda: 1 // 0)
    table.add(1.0, lambda: fired.append("other"))
    clock.advance(2)
    assert fired == ["other"]
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]


async def test_on_the_real_clock_deadlines_come_and_not_early() -> None:
    clock = SystemClock()
    table = DeadlineTable(clock)
    done = asyncio.get_running_loop().create_future()
    late: list[float] = []

    def begin(seconds: float) -> None:
        due = clock.monotonic() + seconds

        def fire() -> None:
            late.append(clock.monotonic() - due)
            if len(late) == 3:
                done.set_result(None)

        table.add(seconds, fire)

    for seconds in (0.02, 0.11, 0.3):
        begin(seconds)
    async with asyncio.timeout(30):
        await done
    assert all(one >= 0 for one in late)
    assert not table.armed
    table.close()
