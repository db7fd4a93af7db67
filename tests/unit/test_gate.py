"""The gate between blocking callers and one event loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from functools import partial

import pytest

from brokerkit.errors import Closed
from brokerkit.gate import Gate
from brokerkit.testing import eventually_sync

INSIDE = "use the async twin"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate("gate-under-test", inside=INSIDE)
    yield gate
    gate.close()


def gate_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gate-under-test"]


class Hanging:
    """A coroutine that waits until it is cancelled, and the thread that waits for it."""

    def __init__(self, gate: Gate) -> None:
        self.began = threading.Event()
        self.cancelled = threading.Event()
        self.error: BaseException | None = None
        self._gate = gate
        self.thread = threading.Thread(target=self._wait)

    async def hang(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def _wait(self) -> None:
        try:
            self._gate.call(self.hang)
        except BaseException as error:
            self.error = error

    def start(self) -> None:
        self.thread.start()
        assert self.began.wait(10)


async def answer(value: int) -> int:
    return value


def test_a_call_returns_what_the_coroutine_returns(gate: Gate) -> None:
    assert gate.call(partial(answer, 7)) == 7


def test_an_error_is_raised_in_the_callers_thread_with_both_sides_in_its_traceback(gate: Gate) -> None:
    async def deep_inside() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as caught:
        gate.call(deep_inside)

    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[0].startswith("test_an_error") and names[-1] == "deep_inside"


def test_no_thread_before_the_first_call_and_none_after_close(gate: Gate) -> None:
    assert gate_threads() == [] and not gate.running
    gate.call(partial(answer, 1))
    assert len(gate_threads()) == 1 and gate.running

    gate.close()

    assert gate_threads() == [] and not gate.running


def test_a_suspended_call_does_not_hold_up_the_others(gate: Gate) -> None:
    release = asyncio.Event()

    async def held() -> str:
        await release.wait()
        return "released"

    async def free() -> None:
        release.set()

    results: list[str] = []
    waiting = [threading.Thread(target=lambda: results.append(gate.call(held))) for _ in range(40)]
    for thread in waiting:
        thread.start()
    assert gate.call(partial(answer, 1)) == 1
    eventually_sync(lambda: all(thread.is_alive() for thread in waiting))
    gate.call(free)
    for thread in waiting:
        thread.join(10)

    assert results == ["released"] * 40


def test_many_threads_get_each_their_own_results(gate: Gate) -> None:
    async def sometimes_suspending(value: int) -> int:
        if value % 3 == 0:
            await asyncio.sleep(0)
        if value % 5 == 0:
            raise ValueError(value)
        return value

    wrong: list[object] = []

    def work(base: int) -> None:
        for value in range(base, base + 200):
            try:
                result = gate.call(partial(sometimes_suspending, value))
            except ValueError as error:
                result = -error.args[0]
            if result != (value if value % 5 else -value):
                wrong.append((value, result))

    threads = [threading.Thread(target=work, args=(base * 1000,)) for base in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()

    assert wrong == []


def test_the_loop_is_woken_once_for_a_burst_of_calls(gate: Gate) -> None:
    gate.call(partial(answer, 0))
    engine = gate._engine
    assert engine is not None
    wakes: list[object] = []
    wake = engine._loop.call_soon_threadsafe

    def counting(*args: object) -> object:
        wakes.append(args)
        return wake(*args)  # type: ignore[arg-type]

    engine._loop.call_soon_threadsafe = counting  # type: ignore[assignment,method-assign]
    block, blocked = threading.Event(), threading.Event()

    async def hold_up_the_loop() -> None:
        blocked.set()
        block.wait(10)

    threads = [threading.Thread(target=gate.call, args=(hold_up_the_loop,))]
    threads[0].start()
    assert blocked.wait(10)
    wakes.clear()
    threads += [threading.Thread(target=gate.call, args=(partial(answer, 1),)) for _ in range(20)]
    for thread in threads[1:]:
        thread.start()
    eventually_sync(lambda: len(engine._calls) == 20)
    block.set()
    for thread in threads:
        thread.join(10)

    assert len(wakes) == 1


def test_a_coroutine_sees_the_callers_context_variables(gate: Gate) -> None:
    trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="none")

    async def look() -> str:
        return trace.get()

    def with_trace(value: str) -> str:
        trace.set(value)
        return gate.call(look)

    assert contextvars.Context().run(with_trace, "one") == "one"
    assert contextvars.Context().run(with_trace, "two") == "two"
    assert contextvars.Context().run(gate.call, look) == "none"


def test_a_call_on_the_loops_own_thread_is_refused(gate: Gate) -> None:
    async def inside() -> int:
        return gate.call(partial(answer, 1))

    async def close_inside() -> None:
        gate.close()

    with pytest.raises(RuntimeError, match=INSIDE):
        gate.call(inside)
    with pytest.raises(RuntimeError, match=INSIDE):
        gate.call(close_inside)
    assert gate.call(partial(answer, 2)) == 2


def test_close_while_another_thread_waits_raises_closed_there(gate: Gate) -> None:
    hanging = Hanging(gate)
    hanging.start()

    gate.close()
    hanging.thread.join(10)

    assert isinstance(hanging.error, Closed)
    assert hanging.cancelled.is_set()


def test_closed_until_it_is_opened_again(gate: Gate) -> None:
    gate.call(partial(answer, 1))
    gate.close()
    gate.close()
    with pytest.raises(Closed):
        gate.call(partial(answer, 1))
    assert gate_threads() == []

    gate.open()

    assert gate.call(partial(answer, 3)) == 3


def test_calls_that_race_with_close_end_with_a_result_or_closed(gate: Gate) -> None:
    ends: list[object] = []

    def work() -> None:
        while True:
            try:
                gate.call(partial(answer, 1))
            except Closed as error:
                ends.append(error)
                return

    for _ in range(20):
        ends.clear()
        gate.open()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        gate.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert len(ends) == 4


def test_keyboard_interrupt_of_the_caller_cancels_the_call(gate: Gate) -> None:
    hanging = Hanging(gate)

    def interrupt() -> None:
        assert hanging.began.wait(10)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            gate.call(hanging.hang)
    finally:
        thread.join(10)
        signal.signal(signal.SIGINT, before)

    assert hanging.cancelled.wait(10)
    assert [gate.call(partial(answer, value)) for value in range(5)] == [0, 1, 2, 3, 4]


def test_system_exit_in_a_coroutine_belongs_to_the_caller(gate: Gate) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        gate.call(leave)
    assert gate.call(partial(answer, 1)) == 1


def test_system_exit_in_a_task_does_not_end_the_loop_of_all_callers(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def leave() -> None:
        raise SystemExit(3)

    async def begin() -> None:
        tasks.append(asyncio.get_running_loop().create_task(leave()))

    gate.call(begin)
    eventually_sync(lambda: tasks[0].done())

    assert gate.call(partial(answer, 1)) == 1
    assert isinstance(tasks[0].exception(), SystemExit)
    assert "the loop goes on" in caplog.text


SCRIPT_HEAD = """
import asyncio, os, sys, threading
from functools import partial
from brokerkit.gate import Gate

async def answer(value):
    return value

async def hang():
    await asyncio.Event().wait()
"""


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT_HEAD + body], capture_output=True, text=True, timeout=60, check=False
    )


def test_an_open_gate_neither_hangs_nor_disturbs_the_end_of_the_interpreter() -> None:
    done = run_script("""
async def farewell():
    os.write(1, b"farewell")

gate = Gate("g", inside="", farewell=farewell)
gate.call(partial(answer, 1))
waiting = threading.Thread(target=gate.call, args=(hang,), daemon=True)
waiting.start()
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "farewell", "")


def test_a_farewell_that_hangs_does_not_hold_up_the_end_of_the_interpreter() -> None:
    done = run_script("""
gate = Gate("g", inside="", farewell=hang)
gate.call(partial(answer, 1))
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_after_a_fork_the_child_has_a_loop_of_its_own() -> None:
    done = run_script("""
gate = Gate("g", inside="")
gate.call(partial(answer, 1))
pid = os.fork()
if pid == 0:
    assert not gate.running
    ok = gate.call(partial(answer, 2)) == 2
    gate.close()
    sys.exit(0 if ok else 1)
_, status = os.waitpid(pid, 0)
assert gate.call(partial(answer, 3)) == 3
gate.close()
sys.exit(os.waitstatus_to_exitcode(status))
""")
    assert (done.returncode, done.stderr) == (0, "")


# --- figures ---


def test_figures_are_read_by_the_thread_of_the_loop_while_there_is_one(gate: Gate) -> None:
    assert gate.read(threading.get_ident) == threading.get_ident()
    assert not gate.running

    gate.call(partial(answer, 7))
    on_the_loop = gate.read(threading.get_ident)

    assert on_the_loop != threading.get_ident()

    async def inside() -> int:
        return gate.read(threading.get_ident)

    assert gate.call(inside) == on_the_loop
    gate.close()
    assert gate.read(threading.get_ident) == threading.get_ident()


def test_a_signal_that_does_not_wake_the_main_thread_is_heard_all_the_same(gate: Gate) -> None:
    heard, over = threading.Event(), threading.Event()

    def told(number: int, frame: object) -> None:
        heard.set()
        gate.call_soon(asking.set)

    async def wait() -> None:
        await asking.wait()

    def signal_itself() -> None:
        # The system may give a signal of the process to any thread; Python runs its handler in the main one.
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        over.wait(60)

    asking = asyncio.Event()
    before = signal.signal(signal.SIGUSR1, told)
    other = threading.Timer(0.2, signal_itself)
    other.start()
    try:
        gate.call(wait, look=0.05)
    finally:
        over.set()
        other.join()
        signal.signal(signal.SIGUSR1, before)
    assert heard.is_set()
