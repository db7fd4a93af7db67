"""Worker processes with real processes; the targets are the functions of this module."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokerkit.testing.deadlines import eventually, eventually_sync
from brokerkit.testing.process_pool import ProcessPool
from brokerkit.testing.processes import WorkerProcess, report

LONG = 60.0


# --- what the processes run -----------------------------------------------------------------------------------


def say(*values: object) -> None:
    report({"values": values})


async def say_later(value: str) -> None:
    await asyncio.sleep(0)
    report({"value": value})


def tick() -> None:
    number = 0
    while True:
        number += 1
        report({"tick": number})
        time.sleep(0.005)


def report_and_die(number: int) -> None:
    for index in range(number):
        report({"index": index})
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    sys.stdout.write("printed before the crash\n")
    raise LookupError("the child's own error")


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.write("will not go\n")
    report({"ready": True})
    while True:
        time.sleep(1)


def stop_politely() -> None:
    def leave(*_: object) -> None:
        report({"stopped": True})
        sys.exit(3)

    signal.signal(signal.SIGTERM, leave)
    report({"ready": True})
    while True:
        time.sleep(1)


def survive_the_third_start(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")
    starts = len(Path(path).read_text())
    report({"start": starts})
    if starts < 3:
        os._exit(9)


def report_too_much() -> None:
    report({"body": "x" * 100_000})


def start_a_grandchild() -> None:
    subprocess.Popen([sys.executable, "-c", _GRANDCHILD % (sys.path,)])
    while True:
        time.sleep(1)


def get_stuck() -> None:
    report({"stuck": True})
    # Keeps the interpreter lock: no thread of this process runs Python any more.
    ctypes.PyDLL(None).sleep(600)


_GRANDCHILD = """
import sys, time
sys.path[:] = %r
from brokerkit.testing.processes import report
report({"grandchild": True})
time.sleep(600)
"""

_TEST_THAT_IS_KILLED = """
import sys, time
sys.path[:] = %r
from brokerkit.testing.processes import WorkerProcess
process = WorkerProcess("test_worker_processes:" + ("get_stuck" if sys.argv[1] == "stuck" else "tick"))
process.start()
while not process.events:
    time.sleep(0.01)
if sys.argv[1] == "suspended":
    process.suspend()
print(process.pid, flush=True)
time.sleep(600)
"""


# --- tests ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    with ProcessPool() as pool:
        yield pool


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


async def test_arguments_arrive_and_events_come_back(pool: ProcessPool) -> None:
    process = pool.start(say, 1, "ü\n", {"a": (1, 2)})
    pid = process.pid
    assert await process.ended(LONG) == 0
    assert process.events == [{"pid": pid, "values": [1, "ü\n", {"a": [1, 2]}]}]
    assert pool.events == process.events


async def test_a_coroutine_runs_to_its_end(pool: ProcessPool) -> None:
    process = pool.start(f"{__name__}:say_later", "done")
    assert [event["value"] async for event in process] == ["done"]


async def test_started_returns_for_a_running_and_for_a_quick_target(pool: ProcessPool) -> None:
    running, quick = pool.start(tick), pool.start(say)
    await running.started(LONG)
    assert running.alive
    await quick.ended(LONG)
    await quick.started(LONG)


async def test_started_shows_why_a_process_did_not_start() -> None:
    process = WorkerProcess("no_such_module:main")
    process.start()
    with pytest.raises(AssertionError, match=r"(?s)ended before it started.*No module named 'no_such_module'"):
        await process.started(LONG)
    process.close()


def test_events_that_were_reported_survive_the_kill_that_follows(pool: ProcessPool) -> None:
    process = pool.start(report_and_die, 500)
    eventually_sync(lambda: not process.alive, LONG, "the process to kill itself")
    assert [event["index"] for event in process.events] == list(range(500))
    assert process.exits[0].code == -signal.SIGKILL
    with pytest.raises(AssertionError, match="died with -9"):
        process.check()
    pool.processes.clear()
    process.close()


async def test_kill_returns_when_the_process_is_gone_and_its_events_are_there(pool: ProcessPool) -> None:
    process = pool.start(tick)
    await eventually(lambda: len(process.events) >= 3, LONG, "three ticks")
    pid = process.pid
    assert pid is not None
    process.kill()
    assert is_gone(pid)
    assert not process.alive
    ticks = [event["tick"] for event in process.events]
    assert ticks == list(range(1, len(ticks) + 1))
    process.kill()  # nothing runs: nothing to do


async def test_stop_asks_politely_and_returns_the_exit_code(pool: ProcessPool) -> None:
    process = pool.start(stop_politely)
    await eventually(lambda: process.events, LONG, "the handler to be set")
    assert await process.stop(LONG) == 3
    assert "stopped" in process.events[-1]


async def test_stop_reaches_a_suspended_process(pool: ProcessPool) -> None:
    process = pool.start(stop_politely)
    await eventually(lambda: process.events, LONG, "the handler to be set")
    process.suspend()
    assert await process.stop(LONG) == 3


async def test_stop_kills_what_does_not_go_and_shows_its_output(pool: ProcessPool) -> None:
    process = pool.start(ignore_sigterm)
    await eventually(lambda: process.events, LONG, "the signal to be ignored")
    with pytest.raises(AssertionError, match=r"(?s)to end by SIGTERM.*will not go"):
        await process.stop(0.2)
    assert not process.alive


async def test_a_suspended_process_does_nothing_until_it_goes_on(pool: ProcessPool) -> None:
    process = pool.start(tick)
    await eventually(lambda: process.events, LONG, "a tick")
    process.suspend()
    await asyncio.sleep(0.1)  # lets what was in the pipe arrive; what follows must be silence
    before = len(process.events)
    await asyncio.sleep(0.2)
    assert len(process.events) == before
    process.resume()
    await eventually(lambda: len(process.events) > before, LONG, "a tick after the pause")


async def test_restart_runs_the_same_target_again(pool: ProcessPool) -> None:
    process = pool.start(tick)
    await eventually(lambda: process.events, LONG, "a tick")
    first = process.pid
    process.restart()
    await process.started(LONG)
    assert process.pid != first
    await eventually(lambda: process.events[-1]["pid"] == process.pid, LONG, "a tick of the second process")
    assert process.restarts == 1


async def test_supervision_starts_a_crashing_process_until_it_succeeds(pool: ProcessPool, tmp_path: Path) -> None:
    process = WorkerProcess(survive_the_third_start, str(tmp_path / "starts"))
    pool.processes.append(process)
    process.supervise()
    process.start()
    assert await process.ended(LONG) == 0
    assert [event["start"] for event in process.events] == [1, 2, 3]
    assert process.restarts == 2


async def test_supervision_ends_at_its_limit_and_then_the_death_is_a_failure() -> None:
    process = WorkerProcess(crash)
    process.supervise(limit=2)
    process.start()
    assert await process.ended(LONG) == 1
    assert [end.expected for end in process.exits] == [True, True, False]
    with pytest.raises(AssertionError, match="died with 1"):
        process.check()
    process.close()


async def test_a_killed_process_is_started_again_under_supervision(pool: ProcessPool) -> None:
    process = pool.start(tick)
    process.supervise()
    for _ in range(2):
        await process.started(LONG)
        process.kill()
    await process.started(LONG)
    assert process.restarts == 2
    await process.stop(LONG)
    assert not process.alive


def test_a_crash_fails_the_block_and_shows_the_output() -> None:
    with (
        pytest.raises(
            AssertionError, match=r"(?s)printed before the crash.*LookupError: the child's own error"
        ) as raised,
        ProcessPool() as pool,
    ):
        process = pool.start(crash, name="the crashing one")
        eventually_sync(lambda: not process.alive, LONG, "the crash")
    assert "the crashing one" in str(raised.value)


def test_a_crash_does_not_hide_the_error_of_the_test() -> None:
    with pytest.raises(ZeroDivisionError) as raised, ProcessPool() as pool:
        process = pool.start(crash)
        eventually_sync(lambda: not process.alive, LONG, "the crash")
        raise ZeroDivisionError
    assert "the child's own error" in raised.value.__notes__[0]


def test_an_event_that_a_pipe_would_tear_is_refused() -> None:
    with pytest.raises(AssertionError, match="larger than the"), ProcessPool() as pool:
        process = pool.start(report_too_much)
        eventually_sync(lambda: not process.alive, LONG, "the refusal")


def test_report_outside_of_a_worker_process_says_so() -> None:
    with pytest.raises(RuntimeError, match="no pipe here"):
        report({})


def test_arguments_that_cannot_be_pickled_are_refused_at_once() -> None:
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        WorkerProcess(say, lambda: None)


def test_close_takes_the_processes_below_along_and_they_can_report() -> None:
    process = WorkerProcess(start_a_grandchild)
    process.start()
    eventually_sync(lambda: process.events, LONG, "the grandchild to report")
    grandchild = process.events[0]["pid"]
    assert grandchild != process.pid
    process.close()
    process.close()
    eventually_sync(lambda: is_gone(grandchild), LONG, "the grandchild to be gone")
    with pytest.raises(RuntimeError, match="closed"):
        process.start()


@pytest.mark.parametrize("state", ["running", "suspended", "stuck"])
def test_no_process_outlives_a_test_run_that_is_killed(state: str, tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", _TEST_THAT_IS_KILLED % ([os.path.dirname(__file__), *sys.path],), state],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # nobody is left to clean up
    )
    assert run.stdout is not None
    with run.stdout:
        pid = int(run.stdout.readline())
    assert not is_gone(pid)
    run.kill()
    run.wait()
    eventually_sync(lambda: is_gone(pid), LONG, f"the {state} child of a killed test to be gone")
