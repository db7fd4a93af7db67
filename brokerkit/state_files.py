"""State files: what the worker processes of this host say about themselves, one small JSON file per worker id.

A running worker writes its file about once a second and removes it at its end.  A file whose process is gone was
left by a crash: it is shown as stale, and the next worker with that id replaces it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from brokerkit.errors import ConfigurationError

__all__ = ["SILENT_AFTER", "StateFile", "WorkerState", "read_states", "runtime_directories"]

#: Seconds without a beat after which a living worker counts as silent: it is suspended, or its host is overloaded.
SILENT_AFTER = 15.0

_SUFFIX = ".worker.json"
_LEGAL_ID = re.compile(r"[A-Za-z0-9_.@-]{1,80}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """One worker process, as of its last beat.  Instants are seconds since the epoch, durations seconds."""

    id: str
    #: Nobody chose the id: it is made of a pid, so that no later worker will have it.
    unnamed: bool = False
    pid: int
    #: Tells this process from a later one with the same pid; None where the system does not say.
    process_started: int | None = None
    #: What it was started with, e.g. ``app:manager``.
    target: str
    directory: str
    #: The broker, without credentials.
    broker: str
    #: ``topic`` and ``group`` of each consumer.
    groups: tuple[tuple[str, str], ...] = ()
    in_flight: int = 0
    #: Handlers that outlived their timeout: name -> seconds since.
    stuck: Mapping[str, float] = field(default_factory=dict)
    #: Handlers at work: name -> seconds that its oldest message has been in work.
    longest: Mapping[str, float] = field(default_factory=dict)
    started: float
    beat: float

    def condition(self, now: float) -> Literal["running", "silent", "stale"]:
        """Return ``stale`` when its process is gone, ``silent`` when the last beat is old, else ``running``."""
        if not _is_alive(self.pid, self.process_started):
            return "stale"
        return "silent" if now - self.beat > SILENT_AFTER else "running"


class StateFile:
    """The file of one worker id.  Only the process that made it writes and removes it."""

    def __init__(self, worker_id: str, directory: Path | None = None) -> None:
        """Raise `ConfigurationError` for an id that is no file name."""
        if not _LEGAL_ID.fullmatch(worker_id) or worker_id.startswith("."):
            raise ConfigurationError(
                f"the worker id {worker_id!r} cannot be used: take up to 80 letters, digits and any of _ . @ -"
            )
        self.path = (directory or runtime_directories()[0]) / f"{worker_id}{_SUFFIX}"

    def holder(self) -> WorkerState | None:
        """Return the state of another living process that uses this id."""
        state = _read(self.path)
        if state is None or state.pid == os.getpid() or not _is_alive(state.pid, state.process_started):
            return None
        return state

    def write(self, state: WorkerState) -> None:
        """Replace the file in one step.  Raise `OSError`, e.g. for a full disk."""
        _prepare(self.path.parent)
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            fresh.write_text(json.dumps(asdict(state)), encoding="utf-8")
            os.replace(fresh, self.path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    def remove_replaced(self, state: WorkerState) -> None:
        """Remove what crashed workers without a chosen id left, and which ``state`` takes the place of."""
        for path in _files(self.path.parent):
            old = _read(path)
            if old is None or not old.unnamed or _is_alive(old.pid, old.process_started):
                continue
            if (old.target, old.directory, old.broker) == (state.target, state.directory, state.broker):
                with contextlib.suppress(OSError):
                    path.unlink()

    def remove(self) -> None:
        """Remove the file unless it belongs to another process by now.  Never raises for a missing one."""
        state = _read(self.path)
        if state is None or state.pid == os.getpid():
            self.path.unlink(missing_ok=True)


def runtime_directories(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return where state files are: the first is written to, all are read.

    A service has no ``XDG_RUNTIME_DIR`` where the shell of the same user has one, hence the second.
    """
    directories = []
    if environ.get("XDG_RUNTIME_DIR"):
        directories.append(Path(environ["XDG_RUNTIME_DIR"]) / "brokerkit")
    directories.append(Path(tempfile.gettempdir()) / f"brokerkit-{os.getuid()}")
    return directories


def read_states(directories: list[Path] | None = None) -> list[WorkerState]:
    """Return the states of all workers of this user on this host, by id; what cannot be read is left out."""
    found: dict[str, WorkerState] = {}
    for directory in runtime_directories() if directories is None else directories:
        for path in _files(directory):
            state = _read(path)
            if state is not None:
                found.setdefault(state.id, state)
    return [found[worker_id] for worker_id in sorted(found)]


def process_started(pid: int) -> int | None:
    """Return when a process was started, in ticks since the boot; None where the system does not say."""
    try:
        # Field 22 of proc(5); the name in parentheses before it may hold spaces.
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _files(directory: Path) -> Iterator[Path]:
    try:
        # Where others may write, anybody could have made the directory; theirs is not ours to believe.
        if directory.stat().st_uid != os.getuid():
            return
        yield from sorted(directory.glob(f"*{_SUFFIX}"))
    except OSError:
        return


def _prepare(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to somebody else")


def _read(path: Path) -> WorkerState | None:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        known = {one.name for one in fields(WorkerState)}
        values = {key: value for key, value in values.items() if key in known}
        values["groups"] = tuple((str(topic), str(group)) for topic, group in values.get("groups", ()))
        return WorkerState(**values)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _is_alive(pid: int, started: int | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = process_started(pid)
    return started is None or now is None or now == started
