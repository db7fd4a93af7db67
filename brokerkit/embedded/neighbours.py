"""The other stores on the same file: who they are, whether they live, and what they had started."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from brokerkit.embedded.starts import OwnerFile, StartMarks
from brokerkit.spi import Clock
from brokerkit.sqlite_forks import FORKS

if TYPE_CHECKING:
    from brokerkit.embedded.writer import GroupCommit

__all__ = ["Grave", "Neighbours"]

_SUFFIX = ".owner"
#: What the file of a store is called; anything else in the directory is somebody else's.
_OWNER = re.compile(r"([0-9a-f]{16})\.owner")
#: Seconds between two looks at who died.
_LOOK = 1.0


class Grave(OwnerFile):
    """A dead store: its number in the database, and its file."""

    def __init__(self, number: int, path: Path) -> None:
        super().__init__(path)
        self.number = number


class Neighbours:
    """The run directory, seen from one store."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        #: What `claim.store` and `grp.store` hold; random, because numbers must not be used twice for ever.
        self.my_number = int.from_bytes(os.urandom(8), "big") >> 2
        self.my_name = f"{self.my_number:016x}"
        self.my_file = directory / (self.my_name + _SUFFIX)
        self._next_look = 0.0

    def marks(self, mine: StartMarks) -> Callable[[int], set[tuple[int, int]] | None]:
        """Return the function that tells what a store had started."""

        def find(number: int) -> set[tuple[int, int]] | None:
            return mine.started() if number == self.my_number else OwnerFile(self._file(number)).marks()

        return find

    def find_dead(self, clock: Clock, writer: GroupCommit) -> list[Grave]:
        """Return the stores that died, locked for this one to bury; looks at most once a second."""
        now = clock.monotonic()
        if now < self._next_look or not writer.mutex.acquire(blocking=False):
            return []
        self._next_look = now + _LOOK
        try:
            with FORKS:
                known = {
                    number
                    for (number,) in writer.connection.execute(
                        "SELECT store FROM claim UNION SELECT store FROM consumer"
                        " UNION SELECT store FROM grp WHERE store IS NOT NULL"
                    )
                }
        except sqlite3.Error:
            return []  # the next operation meets the same fault, and reports it
        finally:
            writer.mutex.release()
        try:
            names = os.listdir(self._directory)
        except OSError:
            return []
        present = {int(found[1], 16) for found in map(_OWNER.fullmatch, names) if found}
        graves = [Grave(number, self._file(number)) for number in (present | known) - {self.my_number}]
        # Without a file nobody can hold its lock: it was removed, or lost with the power.
        return [grave for grave in graves if grave.number not in present or grave.take_over()]

    def _file(self, number: int) -> Path:
        return self._directory / f"{number:016x}{_SUFFIX}"
