"""Operations that wait for their transaction, and how long they may.

Whoever submitted an operation gets an answer in time whatever happens to the file.  Until its transaction begins an
operation can be taken out again, so it is surely not done; after that nobody knows before the commit returned.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from brokerkit.embedded.operation import MAX_BYTES, MAX_WEIGHT, Queued
from brokerkit.errors import BrokerError, BrokerUnavailable, SendTimeout
from brokerkit.spi import Clock, Timer

__all__ = ["WaitingRoom", "deliver", "locked"]


class WaitingRoom:
    """The operations of one file that were submitted and are not done."""

    def __init__(self, path: Path, clock: Clock, timeout: float) -> None:
        self.pending: deque[Queued] = deque()
        self._path = path
        self._clock = clock
        self._timeout = timeout
        # Held by who takes operations off the queue; they are appended without it.
        self._taking = threading.Lock()
        #: What the writer thread has taken, and whether its transaction has begun.
        self._running: list[Queued] = []
        self._begun = False
        self._watchdogs: dict[asyncio.AbstractEventLoop, Timer] = {}

    def take(self, *, prepare: bool = False) -> list[Queued]:
        """Take the next operations off the queue, as many as fit into one transaction; `prepare` them."""
        batch: list[Queued] = []
        weight = size = 0
        pending = self.pending
        with self._taking:
            while pending:
                operation = pending.popleft()
                weight += operation.weight
                size += operation.size
                if batch and (weight > MAX_WEIGHT or size > MAX_BYTES):
                    pending.appendleft(operation)
                    break
                if operation.future is None or not operation.future.done():
                    batch.append(operation)
            if prepare:
                # At once, because between the two nobody would see to their time.
                self._running, self._begun = batch, False
        return batch

    def put_back(self, batch: Sequence[Queued]) -> None:
        """Let the operations be the next again."""
        with self._taking:
            self.pending.extendleft(reversed(batch))
            if self._running is batch:
                self._running = []

    def prepare(self, batch: list[Queued]) -> None:
        """Note what the writer thread is about to run; it can still be taken out of ``batch``."""
        with self._taking:
            self._running, self._begun = batch, False

    def begin(self, batch: list[Queued]) -> None:
        """Note that the transaction of the thread has begun; remove from ``batch`` what nobody waits for any more."""
        with self._taking:
            self._begun = True
            batch[:] = [operation for operation in batch if operation.future is None or not operation.future.done()]

    def end(self) -> None:
        """Note that the transaction is over."""
        with self._taking:
            self._running, self._begun = [], False

    # --- the limit of the time ------------------------------------------------------------------------------------

    def watch(self, loop: asyncio.AbstractEventLoop, seconds: float | None = None) -> None:
        """See to it that what waits on the running ``loop`` is answered in time."""
        if loop not in self._watchdogs:
            seconds = self._timeout if seconds is None else seconds
            self._watchdogs[loop] = self._clock.call_later(seconds, lambda: self._bark(loop))

    def watch_others(self, batch: Sequence[Queued], loop: asyncio.AbstractEventLoop) -> None:
        """Watch what waits on other loops: they believed it to be under way."""
        for other in {operation.loop for operation in batch} - {loop}:
            if other is not None:
                call_threadsafe(other, partial(self.watch, other))

    def unwatch(self) -> None:
        """Cancel the timer of the running loop."""
        timer = self._watchdogs.pop(asyncio.get_running_loop(), None)
        if timer is not None:
            timer.cancel()

    def _bark(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer what waited too long."""
        del self._watchdogs[loop]
        end = self._clock.monotonic() - self._timeout
        overdue: list[Queued] = []
        oldest: float | None = None
        with self._taking:
            while self.pending:
                if self.pending[0].since > end:
                    oldest = self.pending[0].since
                    break
                operation = self.pending.popleft()
                operation.error = locked(self._path, self._timeout)
                overdue.append(operation)
            for operation in self._running:
                future = operation.future
                if operation.loop is not loop or future is None or future.done():
                    continue
                if operation.since > end:
                    oldest = operation.since if oldest is None else min(oldest, operation.since)
                else:
                    future.set_result(self._late(operation) if self._begun else locked(self._path, self._timeout))
        deliver(overdue, loop)
        if oldest is not None:
            self.watch(loop, oldest - end)

    def _late(self, operation: Queued) -> BrokerError:
        kind = SendTimeout if operation.durable else BrokerUnavailable
        return kind(
            f"{self._path} was not written within {self._timeout:g} s; whether it will be is unknown",
            backend="embedded",
        )


def locked(path: Path, seconds: float) -> BrokerUnavailable:
    """Return the error of who did not get the file in time."""
    return BrokerUnavailable(
        f"{path} was locked by another process for more than {seconds:g} s; nothing was done", backend="embedded"
    )


def deliver(done: Sequence[Queued], running: asyncio.AbstractEventLoop | None) -> None:
    """Tell everybody on their loops; ``running`` is that of the caller, None in a thread."""
    away: dict[asyncio.AbstractEventLoop, list[Queued]] = {}
    for operation in done:
        loop = operation.loop
        if loop is running or loop is None:
            operation.deliver()
        else:
            away.setdefault(loop, []).append(operation)
    for loop, operations in away.items():
        call_threadsafe(loop, partial(deliver, operations, loop))


def call_threadsafe(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    """Call on ``loop``, unless it was closed with calls under way: nobody waits for them."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return
