from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from brokerkit.errors import Closed, ConfigurationError
from brokerkit.executors import ThreadExecutor

PATIENCE = 30.0

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
async def executor() -> AsyncIterator[ThreadExecutor]:
    one = ThreadExecutor(4, "test")
    yield one
    assert one.close(wait=True, timeout=PATIENCE)


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)


def fail(exc: BaseException) -> None:
    raise exc


async def test_results_come_back_to_the_loop(executor: ThreadExecutor) -> None:
    futures = [executor.submit(divmod, n, 7) for n in range(1000)]
    assert await asyncio.gather(*futures) == [divmod(n, 7) for n in range(1000)]


async def test_functions_run_in_named_daemon_threads_and_not_in_the_caller(executor: ThreadExecutor) -> None:
    thread = await executor.submit(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.name == "test-1"
    assert thread.daemon


async def test_threads_start_when_they_are_needed_up_to_the_limit(executor: ThreadExecutor) -> None:
    def mine() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("test-")]

    assert mine() == []
    for _ in range(10):
        await executor.submit(int)
    assert len(mine()) == 1
    everybody = threading.Barrier(4)
    await asyncio.gather(*(executor.submit(everybody.wait, PATIENCE) for _ in range(4)))
    release = threading.Event()
    futures = [executor.submit(release.wait, PATIENCE) for _ in range(10)]
    await eventually(lambda: executor.running() == 4)
    assert len(mine()) == 4
    release.set()
    assert await asyncio.gather(*futures) == [True] * 10
    await eventually(lambda: executor.running() == 0)


async def test_the_loop_is_woken_once_for_a_burst_of_results() -> None:
    loop = asyncio.get_running_loop()
    wakes = 0
    original = loop.call_soon_threadsafe

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal wakes
        wakes += 1
        return original(*args, **kwargs)

    loop.call_soon_threadsafe = counting  # type: ignore[assignment, method-assign]
    executor = ThreadExecutor(1, "burst")
    futures = [executor.submit(int, "7") for _ in range(500)]
    executor.close(wait=True, timeout=PATIENCE)  # the loop is held up until all results are there
    assert await asyncio.gather(*futures) == [7] * 500
    assert wakes == 1


async def test_exceptions_become_the_exception_of_the_future(executor: ThreadExecutor) -> None:
    with pytest.raises(ValueError, match="no"):
        await executor.submit(fail, ValueError("no"))


@pytest.mark.parametrize("exc", [SystemExit(3), KeyboardInterrupt()])
async def test_exits_of_a_function_stop_neither_thread_nor_loop(executor: ThreadExecutor, exc: BaseException) -> None:
    future = executor.submit(fail, exc)
    await asyncio.wait((future,))
    assert future.exception() is exc
    assert await executor.submit(int, "7") == 7


@pytest.mark.parametrize("exc", [StopIteration(3), asyncio.CancelledError()])
async def test_exceptions_that_mean_something_to_a_future_are_wrapped(
    executor: ThreadExecutor, exc: BaseException
) -> None:
    with pytest.raises(RuntimeError, match=type(exc).__name__) as caught:
        await executor.submit(fail, exc)
    assert caught.value.__cause__ is exc


async def test_a_traceback_begins_with_the_function(executor: ThreadExecutor) -> None:
    with pytest.raises(ValueError) as caught:
        await executor.submit(fail, ValueError())
    assert caught.traceback[-1].name == "fail"
    assert "run" not in [entry.name for entry in caught.traceback]


async def test_the_result_of_a_cancelled_future_is_dropped_and_its_thread_goes_on(executor: ThreadExecutor) -> None:
    release = threading.Event()
    future = executor.submit(release.wait, PATIENCE)
    await eventually(lambda: executor.running() == 1)
    future.cancel()
    assert executor.running() == 1
    release.set()
    await eventually(lambda: executor.running() == 0)
    assert await executor.submit(threading.current_thread) is not None


async def test_a_call_that_was_cancelled_before_it_started_is_not_made() -> None:
    executor = ThreadExecutor(1, "test")
    release = threading.Event()
    made: list[int] = []
    first = executor.submit(release.wait, PATIENCE)
    second = executor.submit(made.append, 2)
    third = executor.submit(made.append, 3)
    second.cancel()
    release.set()
    await asyncio.gather(first, third)
    assert made == [3]
    executor.close(wait=True)


async def test_a_function_sees_the_context_variables_of_its_caller(executor: ThreadExecutor) -> None:
    variable.set("set")
    assert await executor.submit(variable.get) == "set"
    await executor.submit(variable.set, "changed in the thread")
    assert variable.get() == "set"


async def test_an_idle_thread_keeps_nothing_alive(executor: ThreadExecutor) -> None:
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    assert await executor.submit(id, thing) == id(thing)
    del thing
    gc.collect()
    await eventually(lambda: gone() is None)


async def test_close_runs_what_waits_and_refuses_more() -> None:
    executor = ThreadExecutor(1, "test")
    futures = [executor.submit(int, str(n)) for n in range(20)]
    assert executor.close(wait=True, timeout=PATIENCE)
    assert await asyncio.gather(*futures) == list(range(20))
    with pytest.raises(Closed, match="test"):
        executor.submit(int)
    assert executor.close(wait=True)


async def test_close_without_waiting_cancels_what_has_not_started() -> None:
    executor = ThreadExecutor(1, "test")
    release = threading.Event()
    running = executor.submit(release.wait, PATIENCE)
    await eventually(lambda: executor.running() == 1)
    waiting = executor.submit(int)
    assert not executor.close(wait=True, timeout=0.01)
    assert not executor.close(wait=False)
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    release.set()
    assert await running
    assert executor.close(wait=True, timeout=PATIENCE)


@pytest.fixture
def two_loops() -> Iterator[tuple[asyncio.Runner, asyncio.Runner]]:
    with asyncio.Runner() as one, asyncio.Runner() as two:
        yield one, two


def test_each_loop_gets_its_own_results(two_loops: tuple[asyncio.Runner, asyncio.Runner]) -> None:
    executor = ThreadExecutor(2, "test")

    async def use() -> list[int]:
        futures = [executor.submit(int, "7") for _ in range(100)]
        assert all(future.get_loop() is asyncio.get_running_loop() for future in futures)
        return await asyncio.gather(*futures)

    for runner in (*two_loops, *two_loops):
        assert runner.run(use()) == [7] * 100
    executor.close(wait=True)


def test_a_loop_that_was_closed_meanwhile_does_not_stop_the_thread() -> None:
    executor = ThreadExecutor(1, "test")
    release = threading.Event()

    async def leave() -> None:
        executor.submit(release.wait, PATIENCE)
        await eventually(lambda: executor.running() == 1)

    async def use() -> int:
        return await executor.submit(int, "7")

    asyncio.run(leave())
    release.set()
    assert asyncio.run(use()) == 7
    executor.close(wait=True)


def test_the_number_of_threads_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="threads is 0"):
        ThreadExecutor(0, "test")
