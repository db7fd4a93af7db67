from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from brokerkit.clock import SystemClock, TimeIsUp, Timer, wait, within
from brokerkit.testing import VirtualClock

LONG = 60.0


class _Counted:
    """A timer of the loop that knows whether it still waits."""

    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self.timer = timer

    def cancel(self) -> None:
        self.timer.cancel()


class CountingClock(SystemClock):
    """The clock of the machine, which remembers the timers it gave out."""

    def __init__(self) -> None:
        self.timers: list[_Counted] = []

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        timer = _Counted(asyncio.get_running_loop().call_later(seconds, callback))
        self.timers.append(timer)
        return timer

    @property
    def pending(self) -> int:
        return sum(not counted.timer.cancelled() for counted in self.timers)


def a_future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def callbacks_of(future: asyncio.Future[Any]) -> list[Any]:
    return list(future._callbacks or ())


async def started(task: asyncio.Task[Any]) -> None:
    """Let ``task`` come to its first wait."""
    await asyncio.sleep(0)
    assert not task.done()


@pytest.mark.parametrize("timeout", [None, LONG, 0.0, -1.0])
async def test_a_future_that_is_done_is_reported_without_a_timer(timeout: float | None) -> None:
    clock, future = CountingClock(), a_future()
    future.set_exception(ValueError("not consumed"))
    assert await wait(clock, future, timeout) is True
    assert not clock.timers
    assert isinstance(future.exception(), ValueError)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
async def test_without_time_left_the_answer_is_immediate(timeout: float) -> None:
    clock = CountingClock()
    assert await wait(clock, a_future(), timeout) is False
    assert not clock.timers


@pytest.mark.parametrize("timeout", [None, LONG])
async def test_the_end_of_the_future_ends_the_wait_and_its_timer(timeout: float | None) -> None:
    clock, future = CountingClock(), a_future()
    task = asyncio.create_task(wait(clock, future, timeout))
    await started(task)
    future.set_result(7)
    assert await task is True
    assert clock.pending == 0 and not callbacks_of(future)


async def test_after_the_timeout_the_future_is_left_alone() -> None:
    clock, future = VirtualClock(), a_future()
    task = asyncio.create_task(wait(clock, future, 5.0))
    await clock.advance(4.999)
    assert not task.done()
    await clock.advance(0.001)
    assert await task is False
    assert not future.done() and not callbacks_of(future)


@pytest.mark.parametrize("timeout", [None, LONG])
async def test_a_cancellation_while_waiting_leaves_no_timer_and_no_callback(timeout: float | None) -> None:
    clock, future = CountingClock(), a_future()
    task = asyncio.create_task(wait(clock, future, timeout))
    await started(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.pending == 0 and not callbacks_of(future) and not future.cancelled()


@pytest.mark.parametrize("timeout", [None, LONG])
@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_cancellation_wins_when_the_future_ends_in_the_same_turn(
    timeout: float | None, cancel_first: bool
) -> None:
    clock, future = CountingClock(), a_future()
    task = asyncio.create_task(wait(clock, future, timeout))
    await started(task)
    steps: list[Callable[[], object]] = [task.cancel, lambda: future.set_result(None)]
    for step in steps if cancel_first else reversed(steps):
        step()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.pending == 0 and not callbacks_of(future)


async def test_a_cancellation_is_not_swallowed_when_the_timer_rang_already() -> None:
    future = a_future()
    rung: list[Callable[[], object]] = []

    class ByHand(CountingClock):
        def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
            rung.append(callback)
            return super().call_later(seconds, callback)

    clock = ByHand()
    task = asyncio.create_task(wait(clock, future, LONG))
    await started(task)
    rung[0]()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.pending == 0


async def test_many_may_wait_for_one_future() -> None:
    clock, future = CountingClock(), a_future()
    tasks = [asyncio.create_task(wait(clock, future, LONG)) for _ in range(5)]
    await started(tasks[-1])
    tasks[0].cancel()
    future.set_result(None)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError) and results[1:] == [True] * 4
    assert clock.pending == 0


async def test_what_takes_too_long_is_cancelled_and_what_is_in_time_returns_or_raises() -> None:
    clock = VirtualClock()
    ended: list[str] = []

    async def work(seconds: float) -> str:
        try:
            await clock.sleep(seconds)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return "done"

    async def fail() -> str:
        raise TimeoutError("its own")

    in_time = asyncio.create_task(within(clock, work(1), 2))
    late = asyncio.create_task(within(clock, work(3), 2))
    given_up = asyncio.create_task(within(clock, work(30), 20))
    await clock.advance(2.5)
    assert await in_time == "done"
    with pytest.raises(TimeIsUp):
        await late
    assert ended == ["cancelled"]
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert ended == ["cancelled"] * 2
    with pytest.raises(TimeoutError, match="its own"):
        await within(clock, fail(), 2)
    with pytest.raises(TimeIsUp):
        await within(clock, work(0), 0)
