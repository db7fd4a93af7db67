"""``worker``, alone and supervised: signals, restarts, reloads, and what is lost (nothing)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from brokerkit import Manager
from brokerkit.testing import eventually_sync
from tests.cli.conftest import Shell, Started, done


@pytest.fixture
def jobs(app: Shell) -> Iterator[Manager]:
    with Manager(app.url) as manager:
        manager.admin.declare("jobs", "crew")
        yield manager


def submit(manager: Manager, numbers: range, seconds: float = 0.0) -> None:
    manager.send_many("jobs", [{"n": number, "seconds": seconds} for number in numbers])


def running(shell: Shell, count: int) -> dict[str, int]:
    """Wait until so many workers run; return their pids by id."""

    def all_run() -> dict[str, int] | None:
        found = {one.id: one.pid for one in shell.workers()}
        return found if len(found) == count else None

    return eventually_sync(all_run, within=60, what=f"{count} workers run")


def all_done(shell: Shell, numbers: range) -> None:
    eventually_sync(lambda: set(done(shell)) == set(numbers), within=60, what="all jobs are done")


def all_gone(shell: Shell) -> None:
    eventually_sync(lambda: not shell.workers(), within=60, what="no worker runs")


FACTORY = """
from brokerkit import AsyncManager
from app import jobs

def make():
    mq = AsyncManager()

    @mq.handler(jobs)
    async def work(job: dict) -> None:
        with open("done", "a") as file:
            file.write(f"{job['n']}\\n")

    return mq
"""


@pytest.mark.parametrize("target", ["app", "app:manager", "factory:make"])
def test_a_worker_handles_until_a_signal_and_exits_with_0(app: Shell, jobs: Manager, target: str) -> None:
    app.write("factory.py", FACTORY)
    submit(jobs, range(5))
    worker = app.start("worker", target, "--id", "w1")
    all_done(app, range(5))
    assert running(app, 1) == {"w1": worker.pid}

    worker.signal(signal.SIGINT)

    assert worker.ends() == 0
    assert "Traceback" not in worker.output
    assert list((app.runtime / "brokerkit").iterdir()) == []


def test_two_workers_with_one_id_are_refused(app: Shell, jobs: Manager) -> None:
    app.start("worker", "app", "--id", "w1")
    running(app, 1)
    second = app.run("worker", "app", "--id", "w1")
    assert second.returncode == 2
    assert "another --id" in second.stderr


def test_the_second_signal_stops_without_waiting(app: Shell, jobs: Manager) -> None:
    submit(jobs, range(1), seconds=3600)
    worker = app.start("worker", "app")
    eventually_sync(lambda: [one.in_flight for one in app.workers()] == [1], within=60)
    worker.signal(signal.SIGINT)
    worker.says("once more stops without waiting")
    worker.signal(signal.SIGINT)
    assert worker.ends() == 0
    eventually_sync(lambda: jobs.monitor.lag("jobs", "crew").ready == 1, within=60)


def test_a_handler_that_does_not_return_is_shown_as_stuck(app: Shell, jobs: Manager) -> None:
    text = (app.folder / "app.py").read_text(encoding="utf-8").replace("timeout=60", "timeout=0.2")
    app.write("app.py", text)
    submit(jobs, range(1), seconds=3600)
    app.start("worker", "app", "--id", "w1")
    running(app, 1)

    def is_stuck() -> bool:
        (worker,) = app.json("status")["workers"]
        return "app.work" in worker["stuck"]

    eventually_sync(is_stuck, within=60, what="status shows the stuck handler")
    assert "STUCK" in app.ok("status", "jobs", "crew")
    found = app.run("doctor")
    assert found.returncode == 1
    assert "handler app.work is stuck" in found.stdout


def test_the_state_file_of_a_killed_worker_is_stale(app: Shell, jobs: Manager) -> None:
    worker = app.start("worker", "app", "--id", "w1")
    running(app, 1)
    worker.signal(signal.SIGKILL)
    worker.ends()

    (shown,) = app.json("status")["workers"]
    assert shown["condition"] == "stale"
    assert "w1" in app.run("doctor").stdout

    # The next one with its id takes its place.
    app.start("worker", "app", "--id", "w1")
    running(app, 1)


# --- supervised ---


def supervised(shell: Shell, *options: str) -> Started:
    return shell.start("worker", "app", "--processes", "2", "--id", "crew", *options)


def test_a_killed_child_is_started_again_and_nothing_is_lost(app: Shell, jobs: Manager) -> None:
    supervisor = supervised(app)
    before = running(app, 2)
    assert set(before) == {"crew-1", "crew-2"}
    submit(jobs, range(30), seconds=0.2)

    os.kill(before["crew-1"], signal.SIGKILL)
    supervisor.says("was ended by SIGKILL: restarting in 0.5 s")

    eventually_sync(lambda: running(app, 2)["crew-1"] != before["crew-1"], within=60)
    all_done(app, range(30))
    supervisor.signal(signal.SIGTERM)
    assert supervisor.ends() == 0
    assert app.workers() == []


def test_a_killed_supervisor_takes_its_children_along_and_nothing_is_lost(app: Shell, jobs: Manager) -> None:
    supervisor = supervised(app)
    running(app, 2)
    submit(jobs, range(40), seconds=0.3)
    eventually_sync(lambda: done(app), within=60)

    supervisor.signal(signal.SIGKILL)
    supervisor.ends()

    all_gone(app)
    left = jobs.monitor.lag("jobs", "crew")
    finished = done(app)
    assert len(finished) == len(set(finished))
    assert (left.ready, left.unsettled) == (40 - len(finished), 0)


def test_the_supervisor_passes_the_second_signal_on(app: Shell, jobs: Manager) -> None:
    submit(jobs, range(2), seconds=3600)
    supervisor = supervised(app)
    running(app, 2)
    eventually_sync(lambda: sum(one.in_flight for one in app.workers()) == 2, within=60)
    supervisor.signal(signal.SIGINT)
    supervisor.says("once more stops without waiting")
    supervisor.signal(signal.SIGINT)
    assert supervisor.ends() == 0
    assert app.workers() == []


def test_reload_takes_up_a_change_and_survives_a_broken_one(app: Shell, jobs: Manager) -> None:
    supervisor = app.start("worker", "app", "--reload", "--id", "w1")
    before = running(app, 1)
    text = (app.folder / "app.py").read_text(encoding="utf-8")

    app.write("app.py", text + "\ndef (\n")
    supervisor.says("app.py changed: restarting")
    supervisor.says("SyntaxError")
    supervisor.says("waiting for a change of its files")

    app.write("app.py", text.replace("{job['n']}", "{job['n'] + 100}"))
    eventually_sync(lambda: running(app, 1) != before, within=60)
    submit(jobs, range(3))
    all_done(app, range(100, 103))
    supervisor.signal(signal.SIGTERM)
    assert supervisor.ends() == 0


def test_concurrency_and_only_are_obeyed(app: Shell, jobs: Manager) -> None:
    text = (app.folder / "app.py").read_text(encoding="utf-8")
    app.write("app.py", text + '\n\n@manager.handler("other", group="g")\ndef other(job: dict) -> None: ...\n')
    submit(jobs, range(4), seconds=3600)
    app.start("worker", "app", "--only", "jobs", "--concurrency", "2", "--id", "w1")
    eventually_sync(lambda: [one.in_flight for one in app.workers()] == [2], within=60)
    (worker,) = app.workers()
    assert worker.groups == (("jobs", "crew"),)
    assert json.loads((app.runtime / "brokerkit" / "w1.worker.json").read_text())["in_flight"] == 2
