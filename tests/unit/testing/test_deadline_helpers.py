from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from brokerkit.clock import SystemClock
from brokerkit.testing.clock import VirtualClock
from brokerkit.testing.deadlines import eventually, eventually_sync, within

LONG = 30.0


async def test_eventually_returns_the_first_true_value() -> None:
    values: Iterator[object] = iter([0, None, [], "there"])
    assert await eventually(lambda: next(values), LONG) == "there"


async def test_eventually_awaits_an_async_predicate() -> None:
    calls = 0

    async def thrice() -> int:
        nonlocal calls
        calls += 1
        return calls if calls == 3 else 0

    assert await eventually(thrice, LONG) == 3


async def test_eventually_names_what_it_waited_for_and_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: five rows; the last value was \[\]"):
        await eventually(lambda: [], 0.05, "five rows")


async def test_eventually_takes_an_assertion_as_not_yet_and_shows_the_last_one() -> None:
    def check() -> bool:
        raise AssertionError("only 3 of 5")

    with pytest.raises(AssertionError, match="the last check failed with only 3 of 5"):
        await eventually(check, 0.05)


async def test_eventually_lets_other_errors_through() -> None:
    def check() -> bool:
        raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        await eventually(check, LONG)


async def test_eventually_bounds_a_predicate_that_hangs() -> None:
    with pytest.raises(AssertionError, match="the predicate itself did not return"):
        await eventually(lambda: asyncio.get_running_loop().create_future(), 0.05)


def test_eventually_sync_waits_for_another_thread() -> None:
    done = threading.Event()
    timer = threading.Timer(0.05, done.set)
    timer.start()
    assert eventually_sync(done.is_set, LONG)
    timer.join()


def test_eventually_sync_fails_with_the_last_value() -> None:
    with pytest.raises(AssertionError, match="a row; the last value was 0"):
        eventually_sync(lambda: 0, 0.05, "a row")


async def test_within_returns_the_result_or_the_error() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> int:
        raise LookupError("its own")

    assert await within(LONG, answer(), "the answer") == 42
    with pytest.raises(LookupError, match="its own"):
        await within(LONG, fail(), "the answer")


async def test_within_cancels_what_is_late_and_shows_where_it_hung() -> None:
    cancelled = False

    async def the_slow_part() -> None:
        nonlocal cancelled
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled = True
            raise

    with pytest.raises(AssertionError, match=r"not within 0\.05 s: the slow part") as raised:
        await within(0.05, the_slow_part(), "the slow part")
    assert cancelled
    cause = raised.value.__cause__
    assert isinstance(cause, asyncio.CancelledError)
    frames = []
    trace = cause.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "the_slow_part" in frames


async def test_within_fails_even_if_the_late_work_swallows_its_cancellation() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            pass
        return "too late"

    with pytest.raises(AssertionError, match="stubborn work"):
        await within(0.05, stubborn(), "stubborn work")


async def test_within_propagates_a_cancellation_after_the_work_ended() -> None:
    steps: list[str] = []
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    task = asyncio.create_task(within(LONG, work(), "the work"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["cleaned up"]


async def test_within_does_not_swallow_a_cancellation_that_meets_the_result() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(within(LONG, future, "the future"))
    await asyncio.sleep(0)
    future.set_result(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_virtual_clock_can_bound_the_wait() -> None:
    clock = VirtualClock()
    real = SystemClock().monotonic()
    task = asyncio.create_task(within(3600, asyncio.get_running_loop().create_future(), "an hour", clock=clock))
    await clock.advance(3600)
    with pytest.raises(AssertionError, match="not within 3600 s: an hour"):
        await task
    assert SystemClock().monotonic() - real < LONG
