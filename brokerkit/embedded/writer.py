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
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brokerkit.embedded.filelock import FileLock
from brokerkit.embedded.operation import MAX_BYTES, MAX_WEIGHT, Operation
from brokerkit.embedded.transaction import Transaction
from brokerkit.errors import BrokerError, BrokerUnavailable, Closed
from brokerkit.spi import Clock, Timer

__all__ = ["GroupCommit"]

#: Seconds between two tries to get SQLite's own lock, which programs take that do not know about ours.
_RETRY = 0.002
#: Seconds that an average commit may take on the event loop's thread.
_FAST = 0.002


class GroupCommit:
    """Runs operations on one connection, one transaction at a time, in the order they were submitted."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        lock: FileLock,
        *,
        begin: Callable[[], Transaction],
        committed: Callable[[Transaction], None],
        full_sync: bool,
        clock: Clock,
        attempt_timeout: float,
    ) -> None:
        self.lock = lock
        #: Transactions that were committed so far.
        self.commits = 0
        self._connection = connection
        self._path = path
        self._begin = begin
        self._committed = committed
        self._full_sync = full_sync
        self._synchronous: bool | None = None
        self._clock = clock
        self._timeout = attempt_timeout
        self._pending: deque[Operation] = deque()
        self._scheduled: set[asyncio.AbstractEventLoop] = set()
        #: Held by whoever uses the connection.
        self.mutex = threading.Lock()
        # Average seconds of a commit that waits for the disk.
        self._cost = 0.0
        self._state = threading.Condition()
        self._handed_over = False
        self._closed = False
        self._thread: threading.Thread | None = None
        #: Since when the thread waits for the file.
        self._waiting: float | None = None
        self._watchdogs: dict[asyncio.AbstractEventLoop, Timer] = {}
        # Never set: a thread rests on it between two tries.
        self._pause = threading.Event()
        self._pid = os.getpid()

    # --- submitting ---------------------------------------------------------------------------------------------

    def submit(self, operation: Operation) -> asyncio.Future[Any]:
        """Queue the operation; its result comes through the future, on the running loop."""
        if os.getpid() != self._pid:
            raise Closed(
                "this store was opened by the parent process; open a connection of your own after a fork",
                backend="embedded",
            )
        if self._closed:
            raise Closed("the embedded broker's file was closed", backend="embedded")
        loop = asyncio.get_running_loop()
        operation.loop = loop
        operation.future = loop.create_future()
        self._pending.append(operation)
        if loop not in self._scheduled:
            self._scheduled.add(loop)
            # At the end of this turn of the loop: all who send in the same turn share the transaction.
            loop.call_soon(self._flush, loop)
        return operation.future

    def call(self, apply: Callable[[Transaction], Any], *, timeout: float | None = None) -> Any:
        """Run one operation in the calling thread, which is not an event loop's.

        With a ``timeout`` raise `BrokerUnavailable` when the file was not free in that time.
        """
        operation = Operation(apply, durable=False)
        with self._use(timeout):
            self._acquire(timeout)
            self._run_and_unlock([operation], patient=True)
        if operation.error is not None:
            raise operation.error
        return operation.result

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep everybody from writing.  For a thread that is not an event loop's."""
        with self._use(None):
            self._acquire(None)
            try:
                yield
            finally:
                self.lock.release()

    @contextmanager
    def _use(self, timeout: float | None) -> Iterator[None]:
        """Hold the connection; raise `BrokerUnavailable` when it was not free in time."""
        if not self.mutex.acquire(timeout=-1 if timeout is None else timeout):
            raise self._locked(timeout or 0.0)
        try:
            yield
        finally:
            self.mutex.release()

    def _acquire(self, timeout: float | None) -> None:
        if timeout is None:
            self.lock.acquire()
            return
        tries_left = int(timeout / _RETRY)
        while not self.lock.try_acquire():
            if not tries_left:
                raise self._locked(timeout)
            tries_left -= 1
            self._pause.wait(_RETRY)

    def _locked(self, seconds: float) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"{self._path} was locked by another process for more than {seconds:g} s", backend="embedded"
        )

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled.discard(loop)
        with self._state:
            handed_over = self._handed_over
        if handed_over:
            self._watch(loop, self._timeout)
            return
        if not self._pending:
            return
        slow = self._cost > _FAST and any(operation.durable for operation in self._pending)
        if slow or not self.mutex.acquire(blocking=False):
            self._hand_over(loop)
            return
        done: list[Operation] = []
        free = True
        try:
            batch = self._probe(self._take(), done)
            if batch:
                free = self.lock.try_acquire()
                if free:
                    free = self._run_and_unlock(batch, patient=False)
                if free:
                    done += batch
                else:
                    self._pending.extendleft(reversed(batch))
        finally:
            self.mutex.release()
        self._deliver(done, loop)
        if not free:
            self._hand_over(loop)
        elif self._pending and loop not in self._scheduled:
            self._scheduled.add(loop)
            loop.call_soon(self._flush, loop)

    # --- the writer thread --------------------------------------------------------------------------------------

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._state:
            self._handed_over = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"brokerkit {self._path.name}", daemon=True)
                self._thread.start()
            self._state.notify()
        self._watch(loop, self._timeout)

    def _work(self) -> None:
        while True:
            with self._state:
                while not self._pending:
                    self._handed_over = False
                    if self._closed:
                        return
                    self._state.wait()
            done: list[Operation] = []
            with self.mutex:
                batch = self._probe(self._take(), done)
                if batch:
                    # What waits for the file can still be cancelled or time out, and more gathers meanwhile.
                    self._pending.extendleft(reversed(batch))
                    self._waiting = self._clock.monotonic()
                    self.lock.acquire()
                    self._waiting = None
                    batch = self._take()
                    self._run_and_unlock(batch, patient=True)
                    done += batch
            self._deliver(done, None)

    def _watch(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        if loop not in self._watchdogs:
            self._watchdogs[loop] = self._clock.call_later(seconds, lambda: self._bark(loop))

    def _bark(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail what is pending when the thread has waited too long for the file."""
        del self._watchdogs[loop]
        waiting = self._waiting
        if waiting is None:
            return
        left = waiting + self._timeout - self._clock.monotonic()
        if left > 0:
            self._watch(loop, left)
            return
        overdue: list[Operation] = []
        while self._pending:
            try:
                operation = self._pending.popleft()
            except IndexError:
                break
            operation.error = self._locked(self._timeout)
            overdue.append(operation)
        self._deliver(overdue, loop)

    def unwatch(self) -> None:
        """Cancel the timer of the running loop."""
        timer = self._watchdogs.pop(asyncio.get_running_loop(), None)
        if timer is not None:
            timer.cancel()

    def close(self) -> bool:
        """Finish what is pending and end the thread; return whether it ended.  Blocks: not for an event loop."""
        with self._state:
            self._closed = True
            self._state.notify()
        if self._thread is not None:
            self._thread.join(self._timeout)
        return self._thread is None or not self._thread.is_alive()

    # --- transactions -------------------------------------------------------------------------------------------

    def _take(self) -> list[Operation]:
        """Take the next operations off the queue, as many as fit into one transaction."""
        batch: list[Operation] = []
        weight = size = 0
        pending = self._pending
        while pending:
            try:
                operation = pending.popleft()
            except IndexError:
                break
            weight += operation.weight
            size += operation.size
            if batch and (weight > MAX_WEIGHT or size > MAX_BYTES):
                pending.appendleft(operation)
                break
            if operation.future is None or not operation.future.cancelled():
                batch.append(operation)
        return batch

    def _probe(self, batch: list[Operation], done: list[Operation]) -> list[Operation]:
        """Move to ``done`` what needs no transaction, and return the rest; all or nothing, to keep the order."""
        if any(operation.probe is None for operation in batch):
            return batch
        results = []
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

    def _run_and_unlock(self, batch: list[Operation], *, patient: bool) -> bool:
        """Run the operations and give the file to the next; return whether another program allowed it."""
        finished: list[Transaction] = []
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

    def _run(self, batch: list[Operation], finished: list[Transaction], *, patient: bool) -> bool:
        """Run the operations in one transaction; when that fails, each in one of its own.

        Return False, with nothing done, when another program has SQLite's lock and the caller is not ``patient``.
        """
        connection = self._connection
        try:
            durable = self._full_sync and any(operation.durable for operation in batch)
            if durable is not self._synchronous:
                connection.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
                self._synchronous = durable
            transaction = self._begin_transaction(patient=patient)
            if transaction is None:
                return False
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
            if len(batch) > 1:
                for operation in batch:
                    if not self._run([operation], finished, patient=patient):
                        operation.error = BrokerUnavailable(f"{self._path} is locked by another program")
            else:
                batch[0].error = error
            return True
        finished.append(transaction)
        return True

    def _begin_transaction(self, *, patient: bool) -> Transaction | None:
        # Tries are counted, not timed: a thread cannot wait on a clock that a test stops.
        for tries_left in range(int(self._timeout / _RETRY), -1, -1):
            try:
                return self._begin()
            except sqlite3.OperationalError as error:
                if (error.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_BUSY or (patient and not tries_left):
                    raise
            if not patient:
                break
            self._pause.wait(_RETRY)
        return None

    def _deliver(self, done: Sequence[Operation], running: asyncio.AbstractEventLoop | None) -> None:
        away: dict[asyncio.AbstractEventLoop, list[Operation]] = {}
        for operation in done:
            if operation.loop is running or operation.loop is None:
                operation.deliver()
            else:
                away.setdefault(operation.loop, []).append(operation)
        for loop, operations in away.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, operations)
            except RuntimeError:
                # The loop was closed with calls under way: nobody waits for them.
                continue


def _deliver_all(operations: Sequence[Operation]) -> None:
    for operation in operations:
        operation.deliver()
