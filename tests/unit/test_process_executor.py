from __future__ import annotations

import asyncio
import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from brokerkit.errors import Closed, ConfigurationError, PayloadError, Reject
from brokerkit.process_executor import HandlerFailure, ProcessExecutor, WorkerCrashed

PATIENCE = 30.0


@pytest.fixture
async def executor() -> AsyncIterator[ProcessExecutor]:
    one = ProcessExecutor(1)
    yield one
    one.close(wait=False)


# --- what runs in the children ----------------------------------------------------------------------------------


def pid() -> int:
    return os.getpid()


def add(a: int, b: int) -> int:
    return a + b


async def add_async(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def fail(exc: BaseException) -> None:
    raise exc


class Stubborn(Exception):
    """Pickles, and cannot be unpickled: the constructor takes another number of arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_stubbornly() -> None:
    raise Stubborn(1, 2)


def give_what_cannot_travel() -> object:
    return threading.Lock()


def die(code: int) -> None:
    os._exit(code)


def kill_yourself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note_pid_and_hang(path: str) -> None:
    note_pid(path, os.getpid())
    time.sleep(PATIENCE * 10)


def start_a_program_and_hang(path: str) -> None:
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note_pid(path, program.pid)
    time.sleep(PATIENCE * 10)


def note_pid(path: str, number: int) -> None:
    part = Path(path + ".part")
    part.write_text(str(number))
    part.rename(path)


def wait_for_file(path: str) -> str:
    deadline = time.monotonic() + PATIENCE
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)
    return "seen"


def fork_a_survivor_and_die(path: str) -> None:
    if os.fork() == 0:
        with contextlib.suppress(TimeoutError):
            wait_for_file(path)
        os._exit(0)
    os._exit(9)


def terminate_a_forked_process() -> int | None:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(PATIENCE * 10,))
    process.start()
    process.terminate()
    process.join(PATIENCE)
    return process.exitcode


# --- helpers ----------------------------------------------------------------------------------------------------


def exists(number: int) -> bool:
    try:
        os.kill(number, 0)
        # A killed process of which nobody asked the exit code yet is a zombie, and no longer runs.
        stat = Path(f"/proc/{number}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def number_in(path: Path) -> int:
    numbers: list[int] = []

    def read() -> bool:
        if path.exists():
            numbers.extend(map(int, path.read_text().split()))
        return bool(numbers)

    await eventually(read)
    return numbers[0]


# --- tests ------------------------------------------------------------------------------------------------------


async def test_a_function_runs_in_another_process_that_is_used_again(executor: ProcessExecutor) -> None:
    first = await executor.submit(pid, (), None)
    second = await executor.submit(pid, (), None)
    assert first == second != os.getpid()


async def test_sync_and_async_functions_return_their_results(executor: ProcessExecutor) -> None:
    assert await executor.submit(add, (1, 2), None) == 3
    assert await executor.submit(add_async, (3, 4), 30.0) == 7


async def test_an_exception_travels_with_its_type_and_its_traceback(executor: ProcessExecutor) -> None:
    with pytest.raises(Reject) as caught:
        await executor.submit(fail, (Reject("negative total"),), None)
    assert caught.value.reason == "negative total"
    assert "in fail" in str(caught.value.__cause__)


async def test_an_exception_that_cannot_travel_keeps_its_name_and_text(executor: ProcessExecutor) -> None:
    with pytest.raises(HandlerFailure, match="Stubborn: 1 and 2") as caught:
        await executor.submit(fail_stubbornly, (), None)
    assert caught.value.type_name.endswith(".Stubborn")
    assert "in fail_stubbornly" in caught.value.traceback
    assert await executor.submit(add, (1, 1), None) == 2


async def test_a_system_exit_is_a_failure_and_not_the_end_of_the_child(executor: ProcessExecutor) -> None:
    before = await executor.submit(pid, (), None)
    failed = executor.submit(fail, (SystemExit(3),), None)
    await asyncio.wait((failed,))
    assert isinstance(failed.exception(), SystemExit)
    assert await executor.submit(pid, (), None) == before


async def test_a_result_that_cannot_be_pickled_is_a_failure(executor: ProcessExecutor) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        await executor.submit(give_what_cannot_travel, (), None)


async def test_arguments_that_cannot_be_pickled_are_refused(executor: ProcessExecutor) -> None:
    with pytest.raises(PayloadError, match="cannot be sent"):
        executor.submit(add, (threading.Lock(), 1), None)


@pytest.mark.parametrize(("fn", "args", "how"), [(die, (7,), "exit code 7"), (kill_yourself, (), "signal SIGKILL")])
async def test_a_dead_child_is_reported_and_replaced(
    executor: ProcessExecutor, fn: Callable[..., Any], args: tuple[Any, ...], how: str
) -> None:
    with pytest.raises(WorkerCrashed, match=how):
        await executor.submit(fn, args, None)
    assert await executor.submit(add, (1, 1), None) == 2


async def test_a_child_that_died_idle_is_replaced_without_a_failure(executor: ProcessExecutor) -> None:
    victim = await executor.submit(pid, (), None)
    os.kill(victim, signal.SIGKILL)
    # Its main thread is a zombie first; it is dead for its parent when the last thread went.
    await asyncio.to_thread(os.waitid, os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    assert await executor.submit(pid, (), None) != victim


async def test_a_dead_child_is_noticed_although_a_process_that_it_forked_lives(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    try:
        with pytest.raises(WorkerCrashed, match="exit code 9"):
            await executor.submit(fork_a_survivor_and_die, (str(release),), None)
    finally:
        release.touch()


async def test_processes_that_a_handler_forks_can_be_terminated(executor: ProcessExecutor) -> None:
    assert await executor.submit(terminate_a_forked_process, (), None) == -signal.SIGTERM


async def test_a_timeout_kills_the_child_and_what_it_started(executor: ProcessExecutor, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(TimeoutError, match=r"timeout of 2 s"):
        await executor.submit(start_a_program_and_hang, (str(note),), 2.0)
    program = await number_in(note)
    await eventually(lambda: not exists(program))
    assert await executor.submit(add, (1, 1), None) == 2


async def test_a_cancelled_future_kills_the_child(executor: ProcessExecutor, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    future = executor.submit(note_pid_and_hang, (str(note),), None)
    child = await number_in(note)
    future.cancel()
    await eventually(lambda: not exists(child))
    assert await executor.submit(add, (1, 1), None) == 2


async def test_signals_that_stop_the_parent_do_not_stop_a_child(executor: ProcessExecutor, tmp_path: Path) -> None:
    child = await executor.submit(pid, (), None)
    release = tmp_path / "release"
    future = executor.submit(wait_for_file, (str(release),), None)
    await eventually(lambda: executor.running() == 1)
    os.kill(child, signal.SIGINT)
    os.kill(child, signal.SIGTERM)
    release.touch()
    assert await future == "seen"
    assert await executor.submit(pid, (), None) == child


async def test_close_waits_for_what_runs_and_then_ends_the_children() -> None:
    executor = ProcessExecutor(2)
    child = await executor.submit(pid, (), None)
    future = executor.submit(add, (1, 2), None)
    executor.close(wait=True, timeout=PATIENCE)
    assert await future == 3
    assert not exists(child)
    with pytest.raises(Closed):
        executor.submit(add, (1, 2), None)
    executor.close(wait=True)


def exit_slowly(seconds: float, meeting: str, jobs: int) -> None:
    """Return when all jobs run, so that each has a child of its own."""
    atexit.register(time.sleep, seconds)
    Path(meeting, str(os.getpid())).touch()
    deadline = time.monotonic() + PATIENCE
    while len(os.listdir(meeting)) < jobs:
        if time.monotonic() > deadline:
            raise TimeoutError(meeting)
        time.sleep(0.01)


async def test_idle_children_end_at_the_same_time(tmp_path: Path) -> None:
    executor = ProcessExecutor(4)
    await asyncio.gather(*(executor.submit(exit_slowly, (2.0, str(tmp_path), 4), None) for _ in range(4)))
    began = time.monotonic()
    executor.close(wait=True)
    # One after the other they would need 8 s.
    assert time.monotonic() - began < 7.0


async def test_an_event_loop_goes_on_while_children_end(tmp_path: Path) -> None:
    executor = ProcessExecutor(1)
    await executor.submit(exit_slowly, (1.0, str(tmp_path), 1), None)
    closing = asyncio.ensure_future(executor.aclose())
    turns = 0
    while not closing.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 20
    with pytest.raises(Closed):
        executor.submit(add, (1, 2), None)


async def test_aclose_kills_what_runs_after_its_timeout(tmp_path: Path) -> None:
    executor = ProcessExecutor(1)
    future = executor.submit(note_pid_and_hang, (str(tmp_path / "pid"),), None)
    number = await number_in(tmp_path / "pid")
    await executor.aclose(0.0)
    with pytest.raises(WorkerCrashed, match="the executor closed"):
        await future
    await eventually(lambda: not exists(number))


async def test_close_kills_what_runs_after_its_timeout(tmp_path: Path) -> None:
    executor = ProcessExecutor(1)
    note = tmp_path / "pid"
    running = executor.submit(note_pid_and_hang, (str(note),), None)
    waiting = executor.submit(add, (1, 2), None)
    child = await number_in(note)
    executor.close(wait=True, timeout=0.1)
    with pytest.raises(WorkerCrashed, match="SIGKILL because the job was cancelled or the executor closed"):
        await running
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    assert not exists(child)


async def test_children_die_with_the_parent(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = tmp_path / "parent.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import asyncio, os, pathlib, time
            from brokerkit.process_executor import ProcessExecutor

            def hang():
                part = pathlib.Path({str(note)!r} + ".part")
                part.write_text(str(os.getpid()))
                part.rename({str(note)!r})
                time.sleep(600)

            async def main():
                await ProcessExecutor(1).submit(hang, (), None)

            if __name__ == "__main__":
                asyncio.run(main())
            """
        )
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, str(program))
    try:
        child = await number_in(note)
    finally:
        parent.kill()
        await parent.wait()
    await eventually(lambda: not exists(child))


def test_functions_of_main_run_when_it_can_be_imported_again(tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(
        textwrap.dedent(
            """
            import asyncio
            from brokerkit.process_executor import ProcessExecutor

            class Order:
                def __init__(self, number):
                    self.number = number

            def double(order):
                print("handled")
                return Order(order.number * 2)

            async def main():
                executor = ProcessExecutor(1)
                executor.check(double)
                print((await executor.submit(double, (Order(21),), None)).number)
                executor.close(wait=True)

            if __name__ == "__main__":
                asyncio.run(main())
            """
        )
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stderr == ""
    assert sorted(done.stdout.split()) == ["42", "handled"]


def test_functions_that_a_child_cannot_find_are_refused_with_advice() -> None:
    executor = ProcessExecutor(1)

    def nested() -> None: ...

    for fn in (nested, lambda: None):
        with pytest.raises(ConfigurationError, match="at the top level of a module"):
            executor.check(fn)
    executor.check(add)


def test_functions_that_were_typed_in_are_refused() -> None:
    code = (
        "from brokerkit.process_executor import ProcessExecutor\n"
        "def typed(): ...\n"
        "try: ProcessExecutor(1).check(typed)\n"
        "except Exception as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "defined interactively" in done.stdout


def test_the_number_of_processes_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="processes is 0"):
        ProcessExecutor(0)


def test_the_errors_can_be_pickled_again() -> None:
    again = pickle.loads(pickle.dumps(HandlerFailure("text", type_name="a.B", text="t", traceback="tb")))
    assert (str(again), again.type_name, again.traceback) == ("text", "a.B", "tb")
