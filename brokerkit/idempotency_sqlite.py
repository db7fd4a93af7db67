"""An idempotency store on a file, for any number of processes of one machine."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Collection
from pathlib import Path

from brokerkit.clock import Clock
from brokerkit.errors import BrokerUnavailable, Closed
from brokerkit.idempotency import RETENTION, Busy, Claim, Claimed, Done
from brokerkit.idempotency_file import IdempotencyFile

__all__ = ["SqliteIdempotencyStore"]

#: Seconds that a call may take.
_TIMEOUT = 15.0
#: Rows that one step of the purge looks at, and seconds between steps that found nothing.
_CHUNK, _PURGE_INTERVAL = 256, 1.0

_FREE, _CLAIMED, _DONE = range(3)

_INSERT = "INSERT INTO keys (key, state, owner, starts, lease_end, expires) VALUES (?, ?, ?, ?, ?, ?)"


class SqliteIdempotencyStore:
    """An `IdempotencyStore` in an SQLite file of its own, for one event loop a process.

    A completion survives the loss of power.  A claim, and with it the count of starts, survives the crash of every
    process, but the loss of power may take the last ones.

    A call that has no answer after ``timeout`` seconds, because another process hangs with the file or the disk does,
    raises `BrokerUnavailable`.
    """

    def __init__(
        self, path: str | Path, clock: Clock, retention: float = RETENTION, *, timeout: float = _TIMEOUT
    ) -> None:
        self._path = Path(path)
        self._clock = clock
        self._retention = retention
        self._timeout = timeout
        self._file: IdempotencyFile | None = None
        #: Where the walk of the purge has come to, and when its next step is due; for the thread of the file.
        self._purged_to = 0
        self._next_purge = 0.0

    async def open(self) -> None:
        if self._file is None or self._file.inherited:
            file = IdempotencyFile(self._path, self._purge, self._clock, self._timeout)
            await file.start()
            self._file = file

    async def aclose(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.stop()

    async def claim(self, key: str, owner: str, lease: float, attempt: int | None) -> Claim:
        file = self._opened()
        given: list[int] = []

        def work(db: sqlite3.Connection) -> Claim:
            outcome = self._claim(db, key, owner, lease, attempt)
            if isinstance(outcome, Claimed):
                given.append(outcome.token)
            return outcome

        try:
            return await file.call(work)
        except (asyncio.CancelledError, BrokerUnavailable):
            # Calls are done in their order, so by then it is known whether the claim was given.
            file.post(lambda db: _undo_claim(db, key, owner, given))
            raise

    async def renew(self, keys: Collection[str], owner: str, lease: float) -> frozenset[str]:
        wanted = tuple(keys)

        def work(db: sqlite3.Connection) -> frozenset[str]:
            now = self._clock.time()
            until = now + lease
            sql = "UPDATE keys SET lease_end = ?, expires = ? WHERE key = ? AND owner = ? AND state = ? AND expires > ?"
            values = (until, until + self._retention)
            return frozenset(
                key for key in wanted if not db.execute(sql, (*values, key, owner, _CLAIMED, now)).rowcount
            )

        return await self._opened().call(work)

    async def complete(self, key: str, owner: str, result: bytes | None, follow_ups: bytes | None) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            now = self._clock.time()
            cursor = db.execute(
                "UPDATE keys SET state = ?, expires = ?, sent = ?, result = ?, follow_ups = ?"
                " WHERE key = ? AND owner = ? AND state = ? AND expires > ?",
                (
                    *(_DONE, now + self._retention, result is None and follow_ups is None, result, follow_ups),
                    *(key, owner, _CLAIMED, now),
                ),
            )
            return cursor.rowcount == 1

        return await self._opened().call(work, durable=True)

    async def mark_sent(self, key: str, owner: str) -> None:
        sql = "UPDATE keys SET sent = 1 WHERE key = ? AND state = ?"
        await self._opened().call(lambda db: _execute(db, sql, key, _DONE))

    async def abandon(self, key: str, owner: str, *, uncount: bool = False) -> None:
        sql = (
            "UPDATE keys SET state = ?, expires = ?, starts = starts - ? "
            "WHERE key = ? AND owner = ? AND state = ? AND expires > ?"
        )

        def work(db: sqlite3.Connection) -> None:
            now = self._clock.time()
            _execute(db, sql, _FREE, now + self._retention, int(uncount), key, owner, _CLAIMED, now)

        await self._opened().call(work)

    async def starts(self, key: str) -> int:
        sql = "SELECT starts FROM keys WHERE key = ? AND expires > ?"

        def work(db: sqlite3.Connection) -> int:
            row = db.execute(sql, (key, self._clock.time())).fetchone()
            return 0 if row is None else int(row[0])

        return await self._opened().call(work)

    async def forget(self, key: str) -> None:
        await self._opened().call(lambda db: _execute(db, "DELETE FROM keys WHERE key = ?", key))

    def _opened(self) -> IdempotencyFile:
        if self._file is None:
            raise Closed("the idempotency store is not open")
        return self._file

    def _claim(self, db: sqlite3.Connection, key: str, owner: str, lease: float, attempt: int | None) -> Claim:
        now = self._clock.time()
        known = 0
        row = db.execute(
            "SELECT id, state, lease_end, expires, starts, sent, result, follow_ups FROM keys WHERE key = ?", (key,)
        ).fetchone()
        if row is not None:
            number, state, lease_end, expires, known, sent, result, follow_ups = row
            if expires <= now:
                db.execute("DELETE FROM keys WHERE id = ?", (number,))
                row, known = None, 0
            elif state == _DONE:
                return Done(result, follow_ups, bool(sent))
            elif state == _CLAIMED and lease_end > now:
                return Busy(lease_end)
        starts = max(known, (attempt or 1) - 1) + 1
        until = now + lease
        if row is None:
            db.execute(_INSERT, (key, _CLAIMED, owner, starts, until, until + self._retention))
        else:
            db.execute(
                "UPDATE keys SET state = ?, owner = ?, starts = ?, lease_end = ?, expires = ? WHERE id = ?",
                (_CLAIMED, owner, starts, until, until + self._retention, number),
            )
        return Claimed(starts)

    def _purge(self, db: sqlite3.Connection) -> None:
        now = self._clock.time()
        if now < self._next_purge:
            return
        rows = db.execute(
            "SELECT id, expires FROM keys WHERE id > ? ORDER BY id LIMIT ?", (self._purged_to, _CHUNK)
        ).fetchall()
        expired = [(number,) for number, expires in rows if expires <= now]
        db.executemany("DELETE FROM keys WHERE id = ?", expired)
        self._purged_to = rows[-1][0] if len(rows) == _CHUNK else 0
        if not expired:
            self._next_purge = now + _PURGE_INTERVAL


def _execute(db: sqlite3.Connection, sql: str, *values: object) -> None:
    db.execute(sql, values)


def _undo_claim(db: sqlite3.Connection, key: str, owner: str, given: list[int]) -> None:
    if given:
        sql = "UPDATE keys SET state = ?, starts = starts - 1 WHERE key = ? AND owner = ? AND state = ? AND starts = ?"
        db.execute(sql, (_FREE, key, owner, _CLAIMED, given[0]))
