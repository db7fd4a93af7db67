from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.clock import Clock, wait
from brokerkit.testing.clock import VirtualClock
from brokerkit.testing.deadlines import eventually_sync


async def test_time_stands_still_until_it_is_advanced() -> None:
    clock: Clock = VirtualClock(5000.0)
    wall, steady = clock.time(), clock.monotonic()
    await asyncio.sleep(0.01)
    assert (clock.time(), clock.monotonic()) == (wall, steady) == (5000.0, steady)


async def test_timers_fire_at_their_instants_and_ties_in_order_of_creation() -> None:
    clock = VirtualClock(1000.0)
    fired: list[tuple[str, float]] = []
    for name, seconds in (("c", 3.0), ("a1", 1.0), ("b", 2.5), ("a2", 1.0)):
        clock.call_later(seconds, lambda name=name: fired.append((name, clock.time())))  # type: ignore[misc]
    await clock.advance(2.5)
    assert fired == [("a1", 1001.0), ("a2", 1001.0), ("b", 1002.5)]
    await clock.advance(0.5)
    assert fired[-1] == ("c", 1003.0)
    assert clock.pending == 0


async def test_work_that_a_timer_starts_runs_at_the_instant_of_the_timer() -> None:
    clock = VirtualClock(0.0)
    seen: list[float] = []

    async def tick() -> None:
        for _ in range(3):
            await clock.sleep(1)
            for _ in range(10):
                await asyncio.sleep(0)
            seen.append(clock.time())

    task = asyncio.create_task(tick())
    await clock.advance(3600)
    assert seen == [1.0, 2.0, 3.0]
    assert task.done()
    assert clock.time() == 3600.0


async def test_advance_ends_with_everything_runnable_done_and_nothing_after_it() -> None:
    clock = VirtualClock()
    order: list[str] = []

    async def chain(left: int) -> None:
        if left:
            await asyncio.create_task(chain(left - 1))
        else:
            order.append("chain done")

    clock.call_later(1, lambda: order.append("timer") or asyncio.ensure_future(chain(30)))  # type: ignore[func-returns-value]
    clock.call_later(1.5, lambda: order.append("next timer"))
    await clock.advance(2)
    assert order == ["timer", "chain done", "next timer"]


async def test_a_cancelled_timer_does_not_fire_even_when_its_tie_cancels_it() -> None:
    clock = VirtualClock()
    fired: list[str] = []
    later = clock.call_later(2, lambda: fired.append("cancelled before"))
    later.cancel()
    later.cancel()
    clock.call_later(1, lambda: tied.cancel())
    tied = clock.call_later(1, lambda: fired.append("cancelled by its tie"))
    await clock.advance(5)
    assert fired == []
    assert clock.pending == 0


async def test_cancelled_timers_do_not_pile_up() -> None:
    clock = VirtualClock()
    kept = clock.call_later(10, lambda: None)
    for _ in range(10_000):
        clock.call_later(3600, lambda: None).cancel()
    assert len(clock._heap) < 200
    assert clock.pending == 1
    kept.cancel()


async def test_a_timer_of_zero_fires_at_the_next_turn_without_advance() -> None:
    clock = VirtualClock()
    fired: list[str] = []
    clock.call_later(0, lambda: fired.append("now"))
    clock.call_later(-1, lambda: fired.append("past")).cancel()
    await clock.sleep(0)
    await clock.sleep(-1)
    assert fired == ["now"]


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    clock = VirtualClock()
    task = asyncio.create_task(clock.sleep(60))
    await clock.advance(0)
    assert clock.pending == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.pending == 0


async def test_the_wait_of_the_core_ends_on_virtual_time() -> None:
    clock = VirtualClock()
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(wait(clock, never, 30))
    await clock.advance(29.9)
    assert not task.done()
    await clock.advance(0.1)
    assert await task is False


async def test_advance_waits_for_threads_that_a_hook_reports() -> None:
    clock = VirtualClock()
    loop = asyncio.get_running_loop()
    running = 0
    results: list[str] = []
    release = threading.Event()

    def finish() -> None:
        nonlocal running
        results.append("handled")
        running -= 1

    def handle() -> None:
        release.wait(10)
        loop.call_soon_threadsafe(finish)

    def start() -> None:
        nonlocal running
        running += 1
        threads.append(threading.Thread(target=handle))
        threads[0].start()
        loop.call_later(0.05, release.set)

    threads: list[threading.Thread] = []
    unwatch = clock.watch(lambda: running > 0)
    clock.call_later(1, start)
    await clock.advance(1)
    assert results == ["handled"]
    threads[0].join()
    unwatch()


async def test_advance_fails_when_the_loop_never_becomes_idle() -> None:
    clock = VirtualClock(patience=0.1)

    loop = asyncio.get_running_loop()
    stopped = False

    def spin() -> None:
        if not stopped:
            loop.call_soon(spin)

    spin()
    with pytest.raises(AssertionError, match="callbacks stay ready"):
        await clock.advance(1)
    stopped = True
    stuck = VirtualClock(busy=lambda: True, patience=0.1)
    with pytest.raises(AssertionError, match="busy hook stayed true"):
        await stuck.advance(1)


async def test_two_advances_at_once_and_negative_ones_are_refused() -> None:
    clock = VirtualClock()
    clock.call_later(1, lambda: None)
    first = asyncio.create_task(clock.advance(1))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another advance"):
        await clock.advance(1)
    await first
    with pytest.raises(ValueError, match="-1"):
        await clock.advance(-1)
    await clock.advance(1)


async def test_a_timer_keeps_the_context_that_it_was_made_in() -> None:
    clock = VirtualClock()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")
    seen: list[str] = []
    contextvars.copy_context().run(
        lambda: (variable.set("inside"), clock.call_later(1, lambda: seen.append(variable.get())))
    )
    await clock.advance(1)
    assert seen == ["inside"]


def test_a_blocking_caller_advances_a_loop_in_another_thread() -> None:
    clock = VirtualClock(0.0)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    seen: list[float] = []

    async def sleep() -> None:
        await clock.sleep(5)
        seen.append(clock.time())

    future = asyncio.run_coroutine_threadsafe(sleep(), loop)
    clock.advance_threadsafe(loop, 10)
    assert seen == [5.0]
    assert clock.time() == 10.0
    future.result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def test_timers_of_another_loop_fire_there_and_are_waited_for() -> None:
    clock = VirtualClock(0.0)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    seen: list[int] = []

    async def sleep() -> None:
        await clock.sleep(5)
        await asyncio.sleep(0)
        seen.append(threading.get_ident())

    future = asyncio.run_coroutine_threadsafe(sleep(), loop)
    eventually_sync(lambda: clock.pending == 1)
    await clock.advance(5)
    assert seen == [thread.ident]
    future.result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def test_blocking_the_loop_that_should_advance_is_refused() -> None:
    clock = VirtualClock()
    with pytest.raises(RuntimeError, match="await advance"):
        clock.advance_threadsafe(asyncio.get_running_loop(), 1)


@given(
    offset=st.floats(0, 1e6),
    delays=st.lists(st.floats(0, 1e5), min_size=1, max_size=5),
)
def test_what_is_due_after_a_delay_is_reached_by_advancing_that_delay(offset: float, delays: list[float]) -> None:
    # The core stores due = time() + delay and arms call_later(due - time()): no rounding may make it early or late.
    async def check() -> None:
        clock = VirtualClock()
        await clock.advance(offset)
        for delay in delays:
            due = clock.time() + delay
            early: list[bool] = []
            clock.call_later(due - clock.time(), lambda due=due, early=early: early.append(clock.time() < due))  # type: ignore[misc]
            await clock.advance(delay)
            assert early == [False]

    asyncio.run(check())
