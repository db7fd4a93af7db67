"""The journals: which process saw which message, and when.

A journal is a file of records of 16 bytes: the number of a message and the wall-clock time in seconds.  Each process
writes files of its own, by one ``write`` for each call, so what a SIGKILL ends is exactly what is missing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from brokerkit.clock import SystemClock

__all__ = ["COMPLETED", "CONFIRMED", "ENDED", "SENT", "STARTED", "Journal", "count", "read"]

#: Before a send; after it returned; a handler begins; it ends; the idempotency store recorded its completion.
SENT, CONFIRMED, STARTED, ENDED, COMPLETED = "sent", "confirmed", "started", "ended", "completed"

_RECORD = struct.Struct("<Qd")


class Journal:
    """One kind of event of this process."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._clock = SystemClock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(folder / f"{kind}-{os.getpid()}.journal", flags)

    def write(self, *numbers: int) -> None:
        """Enter the messages, all with the time of now."""
        now = self._clock.time()
        data = b"".join([_RECORD.pack(number, now) for number in numbers])
        if os.write(self._file, data) != len(data):
            raise OSError("a journal could not be written completely: is the disk full?")


def count(folder: Path, kind: str) -> int:
    """Return how many records all processes have written."""
    return sum(path.stat().st_size for path in _files(folder, kind)) // _RECORD.size


def read(folder: Path, kind: str) -> Iterator[tuple[int, float]]:
    """Yield number and time of each record of all processes; a torn one at the end of a file did not happen."""
    for path in _files(folder, kind):
        data = path.read_bytes()
        yield from _RECORD.iter_unpack(data[: len(data) - len(data) % _RECORD.size])


def _files(folder: Path, kind: str) -> Iterator[Path]:
    return folder.glob(f"{kind}-*.journal")
