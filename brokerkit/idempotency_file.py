"""The file of an sqlite idempotency store, and the one thread that does all the work on it.

The thread takes the calls that piled up while it was busy and makes them one transaction, so that a hundred handlers
share one fsync.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from brokerkit.clock import Clock, Timer, wait
from brokerkit.errors import BrokerError, BrokerUnavailable, ConfigurationError
from brokerkit.executors import Outbox
from brokerkit.sqlite_forks import FORKS

if sys.platform != "win32":
    import fcntl

__all__ = ["IdempotencyFile"]

T = TypeVar("T")

_APPLICATION_ID = 0x626B6964  # "bkid"
_VERSION = 1

#: Seconds.  How long a transaction waits for a process that does not take part in the file lock.
_BUSY_TIMEOUT = 10.0
#: Calls that go into one transaction at most.
_BATCH = 512
#: Pages in the write-ahead log before it is copied back; at SQLite's 1,000 many commits pay 10 ms for it.
_CHECKPOINT_PAGES = 8000

# Without an index on `expires`: it would be written with every claim.  The purge walks along the row ids instead.
_SCHEMA = (
    """
    CREATE TABLE keys (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        state INTEGER NOT NULL,       -- 0 free, 1 claimed, 2 done
        owner TEXT NOT NULL,
        starts INTEGER NOT NULL,
        lease_end REAL NOT NULL,      -- seconds since the epoch, as is expires
        expires REAL NOT NULL,
        sent INTEGER NOT NULL DEFAULT 0,
        result BLOB,
        follow_ups BLOB
    )
    """,
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)


class _Call:
    __slots__ = ("abandoned", "durable", "error", "future", "since", "value", "work")

    def __init__(
        self, work: Callable[[sqlite3.Connection], Any], durable: bool, future: asyncio.Future[Any], since: float
    ) -> None:
        self.work = work
        self.durable = durable
        self.future = future
        self.since = since
        #: Whether its time ended before it was begun.
        self.abandoned = False
        self.value: Any = None
        self.error: BaseException | None = None


class IdempotencyFile:
    """The open file, for the event loop on which it was made."""

    def __init__(
        self, path: Path, housekeeping: Callable[[sqlite3.Connection], None], clock: Clock, timeout: float
    ) -> None:
        """``housekeeping`` is the last work of each transaction; a call gets an answer within ``timeout`` seconds."""
        self._path = path
        self._housekeeping = housekeeping
        self._clock = clock
        self._timeout = timeout
        #: Calls in the order they were made; those in front may have their answers already.
        self._outstanding: deque[_Call] = deque()
        self._timer: Timer | None = None
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="brokerkit-idempotency", daemon=True)
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop)
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._lock_file = -1
        self._db: sqlite3.Connection | None = None
        #: Whether this process was forked from the one that opened the file: its thread is not here.
        self.inherited = False
        self._synchronous = ""

    async def start(self) -> None:
        """Open the file; raise `ConfigurationError` when it cannot serve, `BrokerUnavailable` when it is locked."""
        FORKS.check()
        self._thread.start()
        opened = False
        try:
            opened = await wait(self._clock, self._started, self._timeout)
        finally:
            if not opened:
                self._queue.put(None)
        if not opened:
            raise self._hangs()
        self._started.result()

    async def stop(self) -> None:
        """Finish the calls made so far, then close the file; leave it to the thread when that takes too long."""
        self._queue.put(None)
        try:
            await wait(self._clock, self._stopped, self._timeout)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._give_up(self._clock.monotonic())

    def call(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> asyncio.Future[T]:
        """Do ``work`` in a transaction; the future is done once it is committed, on disk if ``durable``."""
        future: asyncio.Future[T] = self._loop.create_future()
        call = _Call(work, durable, future, self._clock.monotonic())
        outstanding = self._outstanding
        while outstanding and outstanding[0].future.done():
            outstanding.popleft()
        outstanding.append(call)
        if self._timer is None:
            self._timer = self._clock.call_later(self._timeout, self._look)
        self._queue.put(call)
        return future

    def post(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do ``work`` in a transaction; nobody waits for it."""
        self.call(work).cancel()

    def _look(self) -> None:
        self._timer = None
        end = self._clock.monotonic() - self._timeout
        self._give_up(end)
        if self._outstanding:
            self._timer = self._clock.call_later(self._outstanding[0].since - end, self._look)

    def _give_up(self, end: float) -> None:
        """Fail the calls that were made until ``end`` and have no answer."""
        outstanding = self._outstanding
        while outstanding:
            call = outstanding[0]
            if not call.future.done():
                if call.since > end:
                    return
                call.abandoned = True
                call.future.set_exception(self._hangs())
            outstanding.popleft()

    def _hangs(self) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"the idempotency store {self._path} did not answer within {self._timeout:g} s: "
            "another process hangs while it writes, or the disk does"
        )

    def _run(self) -> None:
        try:
            self._open()
        except Exception as exc:  # of the file or the lock; ends as the error of `start`
            self._unlock(close=True)
            error = exc if isinstance(exc, BrokerError) else self._unusable(exc)
            self._outbox.deliver((self._started, None, error))
            return
        self._outbox.deliver((self._started, None, None))
        going = True
        while going:
            call = self._queue.get()
            batch: list[_Call] = []
            while call is not None and len(batch) < _BATCH:
                batch.append(call)
                try:
                    call = self._queue.get_nowait()
                except Empty:
                    break
            else:
                going = call is not None
                if call is not None:
                    batch.append(call)
            self._transact(batch)
            for done in batch:
                self._outbox.deliver((done.future, done.value, done.error))
        FORKS.discard(self)
        with FORKS:
            self.let_go()
        self._unlock(close=True)
        self._outbox.deliver((self._stopped, None, None))

    def let_go(self) -> None:
        """Close the connection, within ``with FORKS:`` or where nobody else uses it; it is opened again when needed."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def abandon(self) -> None:
        """In the child of a fork: give up the lock, which the child would hold on to when the parent dies with it."""
        self.inherited = True
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    def _transact(self, batch: list[_Call]) -> None:
        if not batch:
            return
        try:
            self._lock()
            try:
                with FORKS:
                    self._commit(self._connected(), batch)
            finally:
                self._unlock()
        except Exception as exc:  # whatever it is, the thread must go on: others wait for it
            for call in batch:
                call.error = BrokerUnavailable(f"the idempotency store {self._path} failed: {exc}")
                call.error.__cause__ = exc

    def _commit(self, db: sqlite3.Connection, batch: list[_Call]) -> None:
        self._synchronize(db, full=any(call.durable for call in batch))
        try:
            db.execute("BEGIN IMMEDIATE")
            for call in batch:
                self._do(db, call)
            self._housekeeping(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _do(self, db: sqlite3.Connection, call: _Call) -> None:
        if call.abandoned:
            return
        try:
            call.value = call.work(db)
        except sqlite3.OperationalError:
            raise  # the disk, the lock: nothing of this transaction can be stored
        except Exception as exc:  # e.g. a key that is not UTF-8: the other calls must not suffer
            call.error = exc

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            # A fork closes it in another thread.
            db = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
            self._db, self._synchronous = db, ""
            db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        return self._db

    def _open(self) -> None:
        self._lock_file = os.open(f"{self._path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        FORKS.add(self)
        self._lock()
        with FORKS:
            try:
                self._prepare(self._connected())
            except BaseException:
                self.let_go()
                raise
        self._unlock()

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if not application and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _SCHEMA:
                db.execute(statement)
        elif application != _APPLICATION_ID:
            text = f"{self._path} is not an idempotency store of brokerkit; give the store a file of its own"
            raise ConfigurationError(text)
        elif version != _VERSION:
            text = f"{self._path} was written by another version of brokerkit (format {version}, not {_VERSION})"
            raise ConfigurationError(f"{text}; use that version, or another file")
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")

    def _unusable(self, exc: Exception) -> ConfigurationError:
        error = ConfigurationError(
            f"the idempotency store {self._path} cannot be opened: {exc}; "
            "its directory must exist and be writable, and the file must be its own"
        )
        error.__cause__ = exc
        return error

    def _synchronize(self, db: sqlite3.Connection, full: bool) -> None:
        # In WAL mode the fsync of a FULL commit takes along the NORMAL ones before it.
        wanted = "FULL" if full else "NORMAL"
        if wanted != self._synchronous:
            db.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted

    def _lock(self) -> None:
        # SQLite's own waiting polls and is unfair: p99 55 ms and more among five processes, 9 ms behind this lock.
        if sys.platform != "win32":
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)

    def _unlock(self, *, close: bool = False) -> None:
        if self._lock_file < 0:
            return
        if sys.platform != "win32":
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)
        if close:
            os.close(self._lock_file)
            self._lock_file = -1
