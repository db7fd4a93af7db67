"""Ctrl-C, SIGTERM and a terminal that is closed, at each stage: no traceback, no process and no state file stay."""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import subprocess
import termios

import pytest

from brokerkit import Manager
from brokerkit.testing import eventually_sync
from tests.cli.conftest import SCRIPT, Shell, done

STUCK = """
import asyncio
import time

from brokerkit import Manager, Topic

jobs = Topic("jobs", int, groups=["crew"])
manager = Manager(stop_timeout=60.0)


@manager.handler(jobs{options})
{kind} work(job: int) -> None:
    {body}
"""

#: Handlers that never return: what they are, how they hang, and the exit code after two signals.
HANGING = {
    "thread": ("def", "time.sleep(3600)", "", 0),
    "coroutine": ("async def", "await asyncio.sleep(3600)", "", 0),
    "process": ("def", "time.sleep(3600)", ', executor="process"', 0),
    "loop": ("async def", "time.sleep(3600)", "", 1),
}


def hang(shell: Shell, how: str) -> int:
    kind, body, options, code = HANGING[how]
    shell.write("app.py", STUCK.format(kind=kind, body=body, options=options))
    with Manager(shell.url) as manager:
        manager.admin.declare("jobs", "crew")
        manager.send("jobs", 1)
    return code


def in_work(shell: Shell, count: int) -> None:
    eventually_sync(lambda: sum(one.in_flight for one in shell.workers()) == count, within=60, what="it hangs")


def nothing_is_left(shell: Shell) -> None:
    assert list((shell.runtime / "brokerkit").iterdir()) == []
    with Manager(shell.url) as manager:
        eventually_sync(lambda: manager.monitor.lag("jobs", "crew").ready == 1, within=60, what="the message is back")


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("how", HANGING)
def test_the_second_signal_ends_a_worker_whatever_its_handler_does(shell: Shell, how: str, processes: str) -> None:
    code = hang(shell, how)
    worker = shell.start("worker", "app", "--processes", processes)
    in_work(shell, 1)

    worker.signal(signal.SIGINT)
    worker.says("once more stops without waiting")
    worker.signal(signal.SIGINT)

    # A supervisor stopped as it was asked to, however its children ended.
    assert worker.ends() == (code if processes == "1" else 0), worker.output
    assert ("ended by force" in worker.output) == (code == 1)
    assert "Traceback" not in worker.output
    nothing_is_left(shell)


def test_the_third_signal_waits_for_nothing(shell: Shell) -> None:
    hang(shell, "loop")
    worker = shell.start("worker", "app")
    in_work(shell, 1)
    for _ in range(2):
        worker.signal(signal.SIGTERM)
        worker.says("once more stops without waiting")
    worker.signal(signal.SIGINT)
    assert worker.ends() == 1
    assert "Traceback" not in worker.output
    nothing_is_left(shell)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_terminal_that_is_closed_stops_the_worker(app: Shell, processes: str) -> None:
    def take_terminal() -> None:
        # Whoever runs the tests may have left them a SIGHUP that is ignored, which would be respected.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    terminal, inner = os.openpty()
    worker = subprocess.Popen(
        [SCRIPT, "worker", "app", "--processes", processes],
        cwd=app.folder,
        env=app.environment,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(inner)
    try:
        eventually_sync(lambda: len(app.workers()) == int(processes), within=60, what="the workers run")
        with Manager(app.url) as manager:
            manager.admin.declare("jobs", "crew")
            manager.send("jobs", {"n": 1})
        eventually_sync(lambda: done(app), within=60, what="they work")
        os.close(terminal)
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()
    assert list((app.runtime / "brokerkit").iterdir()) == []


def test_a_worker_under_nohup_outlives_its_terminal(app: Shell) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        worker = app.start("worker", "app")
    finally:
        signal.signal(signal.SIGHUP, before)
    with Manager(app.url) as manager:
        manager.admin.declare("jobs", "crew")
        manager.send("jobs", {"n": 1})
        eventually_sync(lambda: done(app), within=60, what="the worker works")
        worker.signal(signal.SIGHUP)
        manager.send("jobs", {"n": 2})
        eventually_sync(lambda: done(app) == [1, 2], within=60, what="it goes on")
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0


# --- the other commands ---


def test_ctrl_c_ends_bench_with_130(shell: Shell) -> None:
    bench = shell.start("bench", shell.url, "--messages", "1000000")
    eventually_sync(lambda: (shell.folder / "work.db").exists(), within=60, what="it measures")
    bench.signal(signal.SIGINT)
    assert bench.ends() == 130
    assert "Traceback" not in bench.output


def test_ctrl_c_ends_conformance_with_130(shell: Shell) -> None:
    suite = shell.start("conformance", shell.url)
    suite.says("::test_")
    suite.signal(signal.SIGINT)
    assert suite.ends() == 130
    assert "Traceback" not in suite.output


def test_ctrl_c_ends_a_send_that_waits_for_the_file(shell: Shell) -> None:
    with Manager(shell.url) as manager:
        manager.send("jobs", 1)
    other = sqlite3.connect(shell.folder / "work.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        sender = shell.start("send", "jobs", "2")
        # Its store exists: it waits.
        eventually_sync(lambda: list((shell.folder / "work.db-run").iterdir()), within=60, what="it waits")
        sender.signal(signal.SIGINT)
        assert sender.ends() == 130
    finally:
        other.close()
    assert sender.output == ""


def test_ctrl_c_while_the_libraries_are_loaded_shows_no_traceback(shell: Shell) -> None:
    shell.write("typer.py", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    result = shell.run("status", PYTHONPATH=str(shell.folder))
    assert result.returncode == -signal.SIGINT
    assert result.stdout + result.stderr == ""
