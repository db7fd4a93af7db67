"""What a file needs in the background: checkpoints, retention, the removal of deleted groups, and its space back.

Everything is done in small steps, each a short transaction, so that senders and consumers hardly notice.  Nothing
runs while nothing is written, but for one look a minute.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from brokerkit.embedded.transaction import Transaction
from brokerkit.errors import BrokerError
from brokerkit.spi import Clock
from brokerkit.sqlite_forks import FORKS

__all__ = ["Janitor", "collect_garbage", "expire_messages", "give_space_back", "lengthen"]

#: Seconds between two checkpoints while there is writing (speed.md: a commit then takes at most 5 ms).
_CHECKPOINT = 0.1
#: Frames of the WAL that make it worth to stop writers for the time of a short checkpoint.
_LONG = 1000
#: Bytes of the WAL that are written before they are needed, and in one step.
_AHEAD = 8 << 20
_AHEAD_STEP = 2 << 20
#: Bytes of free disk below which nothing is written ahead: the file itself needs what is left.
_AHEAD_SPARE = 64 << 20
#: Seconds between two sweeps while there is writing, and at rest.
_SWEEP = 2.0
_IDLE = 60.0
#: Rows that one step looks at.
STEP = 1000
#: Steps of the log that one sweep makes, and how many in a row may find nothing to remove.
_STEPS = 200
_BARREN = 10
#: Pages that one step gives back to the file system.
_PAGES = 500
#: Free pages worth giving back: fewer are soon used again.
_SPARE_PAGES = 16_384

#: Run a function in a transaction; return its result.
Call = Callable[[Callable[[Transaction], Any]], Any]
#: Keep everybody from writing.
Exclusive = Callable[[], AbstractContextManager[None]]


class Janitor:
    """A thread of one store that cleans up after it."""

    def __init__(self, path: Path, call: Call, exclusive: Exclusive, clock: Clock, *, age: float, size: int) -> None:
        self._path = path
        self._log = path.with_name(path.name + "-wal")
        self._call = call
        self._exclusive = exclusive
        self._clock = clock
        self._age = age
        self._size = size
        # Where the next sweep goes on in the log, how many sweeps leave it alone, and how many did the last time.
        self._cursor = 0
        self._rest = 0
        self._rested = 0
        self._wake = threading.Event()
        self._halt = threading.Event()
        self._connection: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._work, name=f"brokerkit janitor {path.name}", daemon=True)
        self._thread.start()

    def note_write(self) -> None:
        """Something was committed.  Called after every commit, so it must cost next to nothing."""
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout: float) -> None:
        """End the thread; returns when the step that runs has ended, after ``timeout`` at the latest."""
        self._halt.set()
        self._wake.set()
        self._thread.join(timeout)

    def _work(self) -> None:
        try:
            busy = 0.0
            while not self._halt.is_set():
                if not self._wake.wait(_IDLE):
                    self._sweep_safely()
                    continue
                if self._halt.wait(_CHECKPOINT):
                    return
                self._wake.clear()
                self._checkpoint()
                self._lengthen()
                busy += _CHECKPOINT
                if busy >= _SWEEP:
                    busy = 0.0
                    self._sweep_safely()
        finally:
            with FORKS:
                self.let_go()

    def let_go(self) -> None:
        """Close the connection, within ``with FORKS:`` or where nobody else uses it; it is opened again when needed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            # A fork closes it in another thread.
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=0.0, check_same_thread=False)
            try:
                connection.execute("PRAGMA synchronous = FULL")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _checkpoint(self) -> None:
        if self._copy() > _LONG:
            # Copied while others went on writing.  Only a log that was copied to its end is written again from its
            # beginning, and that is faster than to append: a file that grows costs the file system a journal entry.
            try:
                with self._exclusive():
                    self._copy()
            except BrokerError:
                # Somebody has the file for longer: the next one comes in a moment.
                return

    def _copy(self) -> int:
        """Copy what can be copied from the WAL into the file; return its frames, 0 when all of them were copied."""
        try:
            with FORKS:
                _, frames, copied = self._connected().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error:
            # Another process checkpoints, the disk is full, or as many files are open as the process may have: the
            # next one comes in a moment.
            return 0
        return int(frames) if copied < frames else 0

    def _sweep_safely(self) -> None:
        try:
            self.sweep()
        except (BrokerError, sqlite3.Error):
            # A full or damaged file: senders and consumers are told, and the next sweep tries again.
            return

    def sweep(self, *, thorough: bool = False) -> None:
        """Do what is due now; ``thorough``: all of it.  For any thread that is not an event loop's."""
        while not self._halt.is_set() and self._call(collect_garbage):
            continue
        if thorough:
            self._cursor = self._rest = 0
        if self._rest:
            self._rest -= 1
        else:
            self._expire(thorough=thorough)
        while not self._halt.is_set() and self._call(give_space_back):
            continue

    def _expire(self, *, thorough: bool) -> None:
        cutoff = self._clock.time() - self._age
        # The beginning first, because the oldest are settled first; then where the last sweep ended.
        place, steps, removed = self._walk(0, cutoff, thorough=thorough)
        if place is not None:
            place, further, more = self._walk(max(place, self._cursor), cutoff, thorough=thorough)
            steps += further
            removed += more
        self._cursor = place or 0
        # What some group still wants need not be looked at all the time.
        self._rested = 0 if removed or not steps else min(2 * self._rested + 1, int(_IDLE / _SWEEP))
        self._rest = self._rested

    def _walk(self, after: int, cutoff: float, *, thorough: bool) -> tuple[int | None, int, int]:
        """Remove what is old from ``after`` on; return where to go on, None at the end, the steps, and how many."""
        steps = removed = barren = 0
        place: int | None = after
        while not self._halt.is_set() and (thorough or (steps < _STEPS and barren < _BARREN)):
            begin = after
            place, count = self._call(lambda tx: expire_messages(tx, begin, cutoff, self._size))  # noqa: B023
            if place is None:
                break
            after = place
            steps += 1
            removed += count
            barren = 0 if count else barren + 1
        return place, steps, removed

    def _lengthen(self) -> None:
        try:
            if self._log.stat().st_size < _AHEAD and _has_room(self._log):
                with self._exclusive(), FORKS:
                    lengthen(self._connected(), self._log)
        except (BrokerError, OSError, sqlite3.Error):
            # It only saves time; whoever writes will meet the same fault and report it.
            return


def _has_room(path: Path) -> bool:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize >= _AHEAD_SPARE


def lengthen(connection: sqlite3.Connection, log: Path) -> None:
    """Write zeros behind the end of the WAL; the caller keeps brokerkit's own processes from writing.

    They are what SQLite takes for the remains of an older log.  A commit that makes a file longer costs an entry
    in the journal of the file system, and half as much time again.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        with log.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(bytes(_AHEAD_STEP))
            file.flush()
            os.fsync(file.fileno())
    finally:
        connection.execute("ROLLBACK")


def expire_messages(tx: Transaction, after: int, cutoff: float, max_bytes: int) -> tuple[int | None, int]:
    """Remove a step of old messages of the log; return where to go on and how many were removed.

    Old is what was stored before ``cutoff``, or anything while the file holds more than ``max_bytes``.  What a
    group still has is never removed.  None: nothing older is left.
    """
    execute = tx.connection.execute
    oldest = execute("SELECT stored FROM message WHERE seq > ? ORDER BY seq LIMIT 1", (after,)).fetchone()
    too_large = used_bytes(tx.connection) > max_bytes
    if oldest is None or (oldest[0] >= cutoff and not too_large):
        return None, 0
    (last,) = execute(
        "SELECT max(seq) FROM (SELECT seq FROM message WHERE seq > ? ORDER BY seq LIMIT ?)", (after, STEP)
    ).fetchone()
    removed = execute(
        "DELETE FROM message AS m WHERE m.seq > ? AND m.seq <= ? AND m.topic_id IS NOT NULL AND (? OR m.stored < ?)"
        " AND NOT EXISTS (SELECT 1 FROM scheduled s"
        "                 WHERE s.topic_id = m.topic_id AND s.due = m.due AND s.seq = m.seq)"
        " AND NOT EXISTS (SELECT 1 FROM grp g CROSS JOIN ready r ON r.group_id = g.id AND r.rank = -m.priority"
        "                 AND r.seq = m.seq WHERE g.topic_id = m.topic_id)"
        " AND m.seq NOT IN (SELECT seq FROM leased)",
        (after, last, too_large, cutoff),
    ).rowcount
    return int(last), removed


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return how much of the file is in use."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


def collect_garbage(tx: Transaction) -> bool:
    """Remove a step of what belonged to a deleted group or topic; return whether there may be more."""
    execute = tx.connection.execute
    found = execute("SELECT kind, id FROM garbage LIMIT 1").fetchone()
    if found is None:
        return False
    kind, number = found
    places = (("scheduled", "topic_id", "due, seq"),)
    if kind == "group":
        places = (
            ("ready", "group_id", "rank, seq"),
            ("later", "group_id", "due, seq"),
            ("dead", "group_id", "seq"),
        )  # type: ignore[assignment]
    removed = 0
    for table, owner, place in places:
        step = f"SELECT {place} FROM {table} WHERE {owner} = ?1 ORDER BY {place} LIMIT {STEP}"
        if kind == "group":
            # What was sent to this group alone goes with it.
            execute(f"DELETE FROM message WHERE topic_id IS NULL AND seq IN (SELECT seq FROM ({step}))", (number,))
        removed += execute(f"DELETE FROM {table} WHERE {owner} = ?1 AND ({place}) IN ({step})", (number,)).rowcount
    if not removed:
        execute("DELETE FROM garbage WHERE kind = ? AND id = ?", (kind, number))
    return True


def give_space_back(tx: Transaction) -> bool:
    """Shrink the file by a step when much of it is free; return whether there is more to give."""
    (pages,) = tx.connection.execute("PRAGMA page_count").fetchone()
    (free,) = tx.connection.execute("PRAGMA freelist_count").fetchone()
    if free < max(_SPARE_PAGES, pages // 4):
        return False
    tx.connection.execute(f"PRAGMA incremental_vacuum({_PAGES})").fetchall()
    return True
