"""State files, without a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from brokerkit import ConfigurationError
from brokerkit.state_files import SILENT_AFTER, StateFile, WorkerState, read_states, runtime_directories


def state(**changes: Any) -> WorkerState:
    values: dict[str, Any] = {
        "id": "w1",
        "pid": os.getpid(),
        "target": "app",
        "directory": "here",
        "broker": "sqlite:///x.db",
        "groups": (("jobs", "crew"),),
        "started": 100.0,
        "beat": 200.0,
    }
    return WorkerState(**{**values, **changes})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = StateFile("w1", tmp_path / "run")
    file.write(state(stuck={"app.work": 3.0}))
    assert read_states([tmp_path / "run"]) == [state(stuck={"app.work": 3.0})]
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0
    file.remove()
    assert read_states([tmp_path / "run"]) == []


def test_a_file_that_is_torn_or_foreign_is_passed_over(tmp_path: Path) -> None:
    for number, text in enumerate(("", "{", "[]", '{"id": 1}', "\x00")):
        (tmp_path / f"{number}.worker.json").write_text(text)
    assert read_states([tmp_path, tmp_path / "missing"]) == []


def test_a_worker_whose_process_is_gone_is_stale_also_when_its_pid_is_used_again() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert state(pid=ended.pid).condition(200.0) == "stale"
    assert state(process_started=1).condition(200.0) == ("stale" if sys.platform == "linux" else "running")
    assert state().condition(200.0) == "running"
    assert state().condition(200.0 + SILENT_AFTER + 1) == "silent"


def test_the_file_of_another_process_is_not_removed(tmp_path: Path) -> None:
    file = StateFile("w1", tmp_path)
    file.write(state(pid=os.getppid()))
    holder = file.holder()
    assert holder is not None and holder.pid == os.getppid()
    file.remove()
    assert len(read_states([tmp_path])) == 1


@pytest.mark.parametrize("worker_id", ["", "a/b", "..", "a b", "x" * 81])
def test_an_id_that_is_no_file_name_is_refused(worker_id: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="worker id"):
        StateFile(worker_id, tmp_path)


def test_the_directory_of_the_session_comes_first() -> None:
    named, fallback = runtime_directories({"XDG_RUNTIME_DIR": "/session"})
    assert named == Path("/session/brokerkit")
    assert runtime_directories({}) == [fallback]


def test_what_a_crashed_worker_without_an_id_left_goes_with_the_next_start_of_its_application(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kept: dict[str, dict[str, Any]] = {
        "chosen": {"unnamed": False},
        "other": {"unnamed": True, "target": "shop"},
        "alive": {"unnamed": True},
    }
    for name, changes in {**kept, "crashed": {"unnamed": True}}.items():
        pid = os.getpid() if name == "alive" else gone.pid
        StateFile(name, tmp_path).write(state(id=name, pid=pid, **changes))

    StateFile("w2", tmp_path).remove_replaced(state(id="w2"))

    assert {one.id for one in read_states([tmp_path])} == set(kept)
