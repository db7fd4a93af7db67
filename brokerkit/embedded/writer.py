"""Group commit: operations that wait share one transaction.

Where it runs decides the speed.  SQLite gives Python's interpreter lock away at every step, and a thread that
competes with a busy event loop waits up to 5 ms to get it back.  So a transaction runs on the event loop's own
thread when the file is free and its disk is fast, and in a writer thread when somebody else has the file or the
disk is slow: then the loop goes on, and more operations gather meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brokerkit.embedded.filelock import FileLock
from brokerkit.embedded.operation import Operation, Queued
from brokerkit.embedded.transaction import Transaction
from brokerkit.embedded.waiting import WaitingRoom, deliver, locked
from brokerkit.errors import BrokerError, BrokerUnavailable, Closed
from brokerkit.spi import Clock
from brokerkit.sqlite_forks import FORKS

__all__ = ["GroupCommit"]

#: Seconds between two tries to get SQLite's own lock, which programs take that do not know about ours.
_RETRY = 0.002
#: Seconds that an average commit may take on the event loop's thread.
_FAST = 0.002


class GroupCommit:
    """Runs operations on one connection, one transaction at a time, in the order they were submitted."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        path: Path,
        lock: FileLock,
        *,
        begin: Callable[[sqlite3.Connection], Transaction],
        committed: Callable[[Transaction], None],
        full_sync: bool,
        clock: Clock,
        attempt_timeout: float,
    ) -> None:
        self.lock = lock
        #: Transactions that were committed so far.
        self.commits = 0
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._path = path
        self._begin = begin
        self._committed = committed
        self._full_sync = full_sync
        self._synchronous: bool | None = None
        self._clock = clock
        self._timeout = attempt_timeout
        self._waiting = WaitingRoom(path, clock, attempt_timeout)
        self._scheduled: set[asyncio.AbstractEventLoop] = set()
        #: When the latest turn began in which something was submitted.
        self._turn = 0.0
        #: Held by whoever uses the connection.
        self.mutex = threading.Lock()
        # Average seconds of a commit that waits for the disk.
        self._cost = 0.0
        self._state = threading.Condition()
        self._handed_over = False
        self._closed = False
        self._thread: threading.Thread | None = None
        # Never set: a thread rests on it between two tries.
        self._pause = threading.Event()
        self._pid = os.getpid()

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, for whoever holds `mutex`, within ``with FORKS:``; opened when there is none.

        Raise `sqlite3.Error` when it cannot be opened.
        """
        connection = self._connection
        if connection is None:
            connection = self._connection = self._connect()
            self._synchronous = None
        return connection

    def let_go(self) -> None:
        """Close the connection, within ``with FORKS:`` or where nobody else uses it; it is opened again when needed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # --- submitting ---------------------------------------------------------------------------------------------

    def submit(self, operation: Queued) -> asyncio.Future[BaseException | None]:
        """Queue the operation; the future gets its error, None when its result is there.

        It has an answer after ``attempt_timeout``: `BrokerUnavailable` when it surely was not done, `SendTimeout`
        for what was to be durable and may be done later.
        """
        if os.getpid() != self._pid:
            raise Closed(
                "this store was opened by the parent process; open a connection of your own after a fork",
                backend="embedded",
            )
        if self._closed:
            raise Closed("the embedded broker's file was closed", backend="embedded")
        loop = asyncio.get_running_loop()
        operation.loop = loop
        operation.future = future = loop.create_future()
        if loop not in self._scheduled:
            self._scheduled.add(loop)
            self._turn = self._clock.monotonic()
            # At the end of this turn of the loop: all who send in the same turn share the transaction.
            loop.call_soon(self._flush, loop)
        operation.since = self._turn
        self._waiting.pending.append(operation)
        return future

    def call(self, apply: Callable[[Transaction], Any], *, timeout: float | None = None) -> Any:
        """Run one operation in the calling thread, which is not an event loop's.

        Raise `BrokerUnavailable` when the file was not free in ``timeout`` seconds, ``attempt_timeout`` without one.
        """
        operation = Operation(apply, durable=False)
        self._acquire(timeout)
        try:
            self._run_and_unlock([operation], patient=True)
        finally:
            self.mutex.release()
        if operation.error is not None:
            raise operation.error
        return operation.result

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep everybody from writing.  For a thread that is not an event loop's; raise `BrokerUnavailable`."""
        self._acquire(None)
        try:
            yield
        finally:
            self.lock.release()
            self.mutex.release()

    def _acquire(self, timeout: float | None) -> None:
        """Take the connection and the file, both or none."""
        seconds = self._timeout if timeout is None else timeout
        # Never the connection alone for longer than a look: the event loops need it, to notice that they must wait.
        for _ in range(int(seconds / _RETRY) + 1):
            if self.mutex.acquire(timeout=_RETRY):
                if self.lock.try_acquire():
                    return
                self.mutex.release()
                self._pause.wait(_RETRY)
        raise locked(self._path, seconds)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled.discard(loop)
        with self._state:
            handed_over = self._handed_over
        if handed_over:
            self._waiting.watch(loop)
            return
        pending = self._waiting.pending
        if not pending:
            return
        slow = self._cost > _FAST and any(operation.durable for operation in tuple(pending))
        if slow or not self.mutex.acquire(blocking=False):
            self._hand_over(loop)
            return
        done: list[Queued] = []
        batch: list[Queued] = []
        free = True
        try:
            batch = self._probe(self._waiting.take(), done)
            if batch:
                free = self.lock.try_acquire()
                if free:
                    free = self._run_and_unlock(batch, patient=False)
                if free:
                    done += batch
                else:
                    self._waiting.put_back(batch)
        finally:
            self.mutex.release()
        deliver(done, loop)
        if not free:
            self._hand_over(loop)
            self._waiting.watch_others(batch, loop)
        elif pending and loop not in self._scheduled:
            self._scheduled.add(loop)
            loop.call_soon(self._flush, loop)

    def unwatch(self) -> None:
        """Cancel the timer of the running loop."""
        self._waiting.unwatch()

    # --- the writer thread --------------------------------------------------------------------------------------

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._state:
            self._handed_over = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"brokerkit {self._path.name}", daemon=True)
                self._thread.start()
            self._state.notify()
        self._waiting.watch(loop)

    def _work(self) -> None:
        while True:
            with self._state:
                while not self._waiting.pending:
                    self._handed_over = False
                    if self._closed:
                        return
                    self._state.wait()
            done: list[Queued] = []
            with self.mutex:
                batch = self._probe(self._waiting.take(prepare=True), done)
                if batch:
                    # What waits for the file can still be cancelled or time out, and more gathers meanwhile.
                    self._waiting.put_back(batch)
                    self.lock.acquire()
                    batch = self._waiting.take(prepare=True)
                    self._run_and_unlock(batch, patient=True)
                    done += batch
            deliver(done, None)

    def close(self) -> bool:
        """Finish what is pending and end the thread; return whether it ended.  Blocks: not for an event loop."""
        with self._state:
            self._closed = True
            self._state.notify()
        if self._thread is not None:
            self._thread.join(self._timeout)
        return self._thread is None or not self._thread.is_alive()

    # --- transactions -------------------------------------------------------------------------------------------

    def _probe(self, batch: list[Queued], done: list[Queued]) -> list[Queued]:
        """Move to ``done`` what needs no transaction, and return the rest; all or nothing, to keep the order."""
        if any(operation.probe is None for operation in batch):
            return batch
        results = []
        with FORKS:
            for operation in batch:
                try:
                    result = operation.probe() if operation.probe is not None else None
                except sqlite3.Error:
                    return batch  # the transaction will meet the same fault, and reports it
                if result is None:
                    return batch
                results.append(result)
        for operation, result in zip(batch, results, strict=True):
            operation.result = result
        done += batch
        return []

    def _run_and_unlock(self, batch: list[Queued], *, patient: bool) -> bool:
        """Run the operations and give the file to the next; return whether another program allowed it.

        A ``patient`` caller is not an event loop's thread: it waits for the other program, and what was taken out
        meanwhile is no longer in ``batch``.
        """
        finished: list[Transaction] = []
        with FORKS:
            try:
                if batch and not self._run(batch, finished, patient=patient):
                    return False
            finally:
                self.lock.release()
                # Only now: whom this wakes may want the file at once.
                for transaction in finished:
                    self.commits += 1
                    self._committed(transaction)
        return True

    def _run(self, batch: list[Queued], finished: list[Transaction], *, patient: bool) -> bool:
        if not patient:
            return self._run_together(batch, finished, patient=False)
        self._waiting.prepare(batch)
        try:
            return self._run_together(batch, finished, patient=True)
        finally:
            self._waiting.end()

    def _run_together(self, batch: list[Queued], finished: list[Transaction], *, patient: bool) -> bool:
        """Run the operations in one transaction; when that fails, each in one of its own.

        Return False, with nothing done, when another program has SQLite's lock and the caller is not ``patient``.
        """
        try:
            connection = self.connection
        except (sqlite3.Error, OSError) as error:
            for operation in batch:
                operation.error = error
            return True
        transaction: Transaction | None = None
        try:
            durable = self._full_sync and any(operation.durable for operation in batch)
            if durable is not self._synchronous:
                connection.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
                self._synchronous = durable
            transaction = self._begin_transaction(connection, patient=patient)
            if transaction is None:
                return False
            if patient:
                self._waiting.begin(batch)
            for operation in batch:
                try:
                    operation.result = operation.apply(transaction)
                    operation.error = None
                except BrokerError as error:
                    operation.error = error
            transaction.finish()
            begin = time.perf_counter()
            connection.execute("COMMIT")
            if durable:
                self._cost += (time.perf_counter() - begin - self._cost) / 8
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not isinstance(error, Exception):
                for operation in batch:
                    operation.error = Closed("the process was interrupted", backend="embedded")
                raise
            if len(batch) == 1 or transaction is None:
                for operation in batch:
                    operation.error = error
            else:
                self._run_each(batch, finished, patient=patient)
            return True
        finished.append(transaction)
        return True

    def _run_each(self, batch: list[Queued], finished: list[Transaction], *, patient: bool) -> None:
        for operation in batch:
            alone = [operation]
            if not self._run_together(alone, finished, patient=patient):
                operation.error = BrokerUnavailable(f"{self._path} is locked by another program")
            elif not alone:
                operation.error = locked(self._path, self._timeout)

    def _begin_transaction(self, connection: sqlite3.Connection, *, patient: bool) -> Transaction | None:
        # Tries are counted, not timed: a thread cannot wait on a clock that a test stops.
        for tries_left in range(int(self._timeout / _RETRY), -1, -1):
            try:
                return self._begin(connection)
            except sqlite3.OperationalError as error:
                if (error.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_BUSY or (patient and not tries_left):
                    raise
            if not patient:
                break
            self._pause.wait(_RETRY)
        return None
