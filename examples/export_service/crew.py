"""`Crew`: the workers of the demo, which are ``brokerkit worker`` with its supervisor and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from brokerkit.state_files import WorkerState, read_states

__all__ = ["Crew", "CrewFailed", "command_line", "handlers_elsewhere"]

#: What is imported from here.
ROOT = Path(__file__).parents[2]
APPLICATION = "examples.export_service.app:manager"

#: Seconds for the workers to load the application, on a slow machine.
_LOADING = 60.0
#: Seconds beyond the stop timeout of the workers (30 s unless configured) before they are killed.
_STOPPING = 60.0
_STEP = 0.1


class CrewFailed(Exception):
    """The workers cannot work; the text says why."""


class Crew:
    """Worker processes under one supervisor, on one broker.

    name: of this crew; its workers are called ``name-1``, ``name-2`` …
    log:  where all of them write
    """

    def __init__(self, name: str, processes: int, log: Path) -> None:
        self.name = name
        self.log = log
        self._processes = processes
        self._supervisor: subprocess.Popen[bytes] | None = None

    def start(self, environment: dict[str, str]) -> None:
        """Start the supervisor; raise `CrewFailed` where the command line is not installed."""
        path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
        command = [command_line(), "worker", APPLICATION, "--processes", str(self._processes), "--id", self.name]
        with self.log.open("ab") as log:
            self._supervisor = subprocess.Popen(
                command,
                env={**environment, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C in the terminal is for the demo, which stops the workers in good order.
                process_group=0,
            )

    def wait_until_ready(self) -> None:
        """Return when all workers run; raise `CrewFailed`, with the last thing that they said, when they do not."""
        deadline = time.monotonic() + _LOADING
        while len(self.workers()) < self._processes:
            self.check()
            if time.monotonic() > deadline:
                raise CrewFailed(f"the workers were not ready after {_LOADING:g} s; they said: {self._last_words()}")
            time.sleep(_STEP)

    def check(self) -> None:
        """Raise `CrewFailed` when the supervisor is gone."""
        if self._supervisor is None or self._supervisor.poll() is not None:
            raise CrewFailed(f"the workers ended by themselves; they said: {self._last_words()}")

    def workers(self) -> list[WorkerState]:
        """Return the workers that live now."""
        return [one for one in _living() if one.id.startswith(f"{self.name}-")]

    @staticmethod
    def kill(worker: WorkerState) -> None:
        """End a worker as a power cut would: it cannot finish, give back or say anything."""
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it was faster

    def stop(self) -> Iterator[None]:
        """Stop the workers, each of which finishes what it has begun; yield while they do."""
        supervisor = self._supervisor
        if supervisor is None:
            return
        supervisor.terminate()
        deadline = time.monotonic() + _STOPPING
        while supervisor.poll() is None:
            if time.monotonic() > deadline:
                self.kill_all()
            time.sleep(_STEP)
            yield

    def hurry(self) -> None:
        """Tell workers that are stopping not to wait for what they have begun."""
        if self._supervisor is not None and self._supervisor.poll() is None:
            self._supervisor.terminate()

    def kill_all(self) -> None:
        """End the supervisor and the workers now."""
        if self._supervisor is None:
            return
        for worker in self.workers():
            self.kill(worker)
        self._supervisor.kill()
        self._supervisor.wait()
        # What the supervisor had started again meanwhile; without it they would stop by themselves, but later.
        for worker in self.workers():
            self.kill(worker)

    def _last_words(self) -> str:
        # What is indented says where in the code; the line above it says what.
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith(" ")]
        last = lines[-1].removeprefix("brokerkit: ") if lines else "nothing"
        return f"{last} (all of it: {self.log})"


def command_line() -> str:
    """Return the path of the command ``brokerkit`` of this environment; raise `CrewFailed` when there is none."""
    found = shutil.which("brokerkit", path=sysconfig.get_path("scripts")) or shutil.which("brokerkit")
    if found is None:
        raise CrewFailed(f"the command brokerkit is not installed: {sys.executable} -m pip install -e '.[cli]'")
    return found


def handlers_elsewhere(broker: str, topic: str, group: str) -> list[int]:
    """Return the processes to be stopped so that nobody else on this host handles the same tasks of the same broker."""
    rivals = [one.pid for one in _living() if one.broker == broker and (topic, group) in one.groups]
    return sorted({_supervisor_of(pid) or pid for pid in rivals})


def _supervisor_of(pid: int) -> int | None:
    """Return the supervisor of a worker, which would start it again; None where it has none."""
    parent = _ps("ppid", pid).strip()
    return int(parent) if parent.isdecimal() and "brokerkit worker" in _ps("args", int(parent)) else None


def _ps(field: str, pid: int) -> str:
    try:
        return subprocess.run(["ps", "-o", f"{field}=", "-p", str(pid)], capture_output=True, text=True).stdout
    except OSError:
        return ""  # a container without ps


def _living() -> list[WorkerState]:
    return [one for one in read_states() if one.condition(time.time()) != "stale"]
