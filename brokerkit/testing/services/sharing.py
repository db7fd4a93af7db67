"""One service for all processes of a test run, started by the first that needs it and ended by that one."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SharedService", "share"]


@dataclass(frozen=True, slots=True)
class SharedService:
    """What the process that starts a service tells the others, and how it ends it."""

    description: str
    close: Callable[[], None]


@contextlib.contextmanager
def share(directory: Path, name: str, start: Callable[[], SharedService]) -> Iterator[str]:
    """Yield the description of the service ``name`` that all processes using ``directory`` share.

    The first process calls ``start``, and leaving the block waits there until all others left theirs or died.
    Where the process that started it died, the next one starts another.
    """
    record = directory / f"{name}.description"
    with _file(directory / f"{name}.users") as users, _file(directory / f"{name}.owner") as owner:
        service: SharedService | None = None
        with _file(directory / f"{name}.entrance") as entrance:
            fcntl.flock(entrance, fcntl.LOCK_EX)
            # Waits while an owner is ending its service: that one must not be joined any more.
            fcntl.flock(users, fcntl.LOCK_SH)
            if _taken(owner):
                service = start()
                record.write_text(service.description)
            description = record.read_text()
        try:
            yield description
        finally:
            if service is not None:
                fcntl.flock(users, fcntl.LOCK_EX)
                service.close()


@contextlib.contextmanager
def _file(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        # Closing ends the lock, as the death of the process does.
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
