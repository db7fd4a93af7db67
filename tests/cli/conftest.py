"""A shell in a directory of its own: runs and starts the real console script; nothing outlives the test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brokerkit.state_files import WorkerState, read_states
from brokerkit.testing import eventually_sync

SCRIPT = shutil.which("brokerkit", path=str(Path(sys.executable).parent)) or "brokerkit"


class Started:
    """A command in the background."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def says(self, text: str) -> None:
        """Wait until the output holds ``text``."""

        def said() -> bool:
            assert text in self.output, self.output
            return True

        eventually_sync(said, within=60, what=f"the output holds {text!r}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(timeout=60)


class Shell:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.url = f"sqlite:///{folder / 'work.db'}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BROKERKIT_", "RABBITMQ_"))}
        self.environment = {
            **kept,
            "BROKERKIT_URL": self.url,
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": str(folder),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }
        self.started: list[Started] = []

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def run(self, *arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [SCRIPT, *arguments],
            cwd=self.folder,
            env={**self.environment, **variables},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback (most recent call last)" not in result.stderr, result.stderr
        return result

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that works; return what it printed, without the end of the line."""
        result = self.run(*arguments, stdin=stdin)
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result.stdout.rstrip("\n")

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def start(self, *arguments: str) -> Started:
        log = self.folder / f"output-{len(self.started)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [SCRIPT, *arguments], cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        self.started.append(Started(process, log))
        return self.started[-1]

    def workers(self) -> list[WorkerState]:
        """Return the workers that run."""
        return [one for one in read_states([self.runtime / "brokerkit"]) if one.condition(one.beat) == "running"]

    def close(self) -> None:
        for one in self.started:
            one.process.kill()
            one.process.wait()
        for worker in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.close()


#: An application with one handler, which notes what it did.
APP = """
import os
import time

from brokerkit import Manager, Reject, RetryPolicy, Topic

jobs = Topic("jobs", dict, groups=["crew"])
manager = Manager(stop_timeout=20.0)


@manager.handler(jobs, timeout=60, retry=RetryPolicy(max_attempts=3, base_delay=0.05, max_delay=0.1))
def work(job: dict) -> None:
    if job.get("bad"):
        raise Reject("it is bad")
    time.sleep(job.get("seconds", 0))
    with open("done", "a") as file:
        file.write(f"{job['n']}\\n")
"""


@pytest.fixture
def app(shell: Shell) -> Shell:
    shell.write("app.py", APP)
    return shell


def done(shell: Shell) -> list[int]:
    """Return the numbers of the jobs that were done."""
    path = shell.folder / "done"
    return sorted(int(line) for line in path.read_text().split()) if path.exists() else []
