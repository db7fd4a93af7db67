"""`Journal`: what the workers did, one line of JSON each, so that a run can be counted from facts afterwards."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Journal", "JournalReader"]


class Journal:
    """A file to which any number of processes and threads append."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, what: str, task_id: str, **facts: Any) -> None:
        """Append a line with the instant (seconds since the epoch), the process and ``facts``; raise `OSError`."""
        line = json.dumps({"at": time.time(), "what": what, "task_id": task_id, "pid": os.getpid(), **facts})
        # One write to a file opened for appending: the lines of two processes never mix.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)


class JournalReader:
    """Reads what was appended since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the new lines; one that is not whole yet comes with a later call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # a full disk cut it
