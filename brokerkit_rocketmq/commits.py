"""`Commits`: tells the brokers of progress, a moment after it was made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from brokerkit.errors import BrokerError, BrokerUnavailable
from brokerkit_rocketmq.errors import NAME

if TYPE_CHECKING:
    from brokerkit.spi import Clock, Timer
    from brokerkit_rocketmq.offsets import Offsets
    from brokerkit_rocketmq.reader import Reader
    from brokerkit_rocketmq.routes import MessageQueue

__all__ = ["Commits"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds after progress until it is committed: what comes meanwhile goes along.
_DELAY = 0.05
#: Seconds until a commit that failed is tried again.
_PAUSE = 0.5
#: Seconds for which nobody else is expected to have committed something.
_CHECK = 1.0


class Commits:
    """The commits of one consumer.  One round at a time: a broker handles what comes together in any order."""

    def __init__(self, offsets: Offsets, clock: Clock) -> None:
        self._offsets = offsets
        self._clock = clock
        self._due: set[Reader] = set()
        #: Queues whose reader was lost with progress that the broker does not have, and whether the next reader of
        #: this consumer may still commit it.
        self._lost: dict[MessageQueue, bool] = {}
        self._timer: Timer | None = None
        self._round: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._closed = False
        #: Asked before a commit, about once a second for each reader, whether it may be.
        self.before: Callable[[Reader], Awaitable[bool]] | None = None

    def soon(self, reader: Reader) -> None:
        """Commit the progress of ``reader`` within 100 ms."""
        self._due.add(reader)
        if self._timer is None and self._round is None:
            self._later(_DELAY)

    async def now(self) -> None:
        """Return when all progress that was made before is committed; raise `BrokerError` when it cannot be.

        Progress that was lost with a connection counts until it is committed on another one.  Where others read the
        queue now it never is: that is said once.
        """
        await self._commit_due()
        if self._lost:
            lost, self._lost = self._lost, {queue: True for queue, returns in self._lost.items() if returns}
            raise BrokerUnavailable(
                f"settlements in {len(lost)} queues had not reached their brokers when the connection was lost",
                backend=NAME,
            )

    async def _commit_due(self) -> None:
        async with self._turn:
            due = tuple(self._due)
            self._due.clear()
            failures = await self._commit_all(due)
        if failures:
            raise failures[0]

    async def commit(self, reader: Reader) -> None:
        """Commit the progress of one reader, and return when the broker has it."""
        async with self._turn:
            self._due.discard(reader)
            await self._commit(reader)

    def forget(self, reader: Reader) -> None:
        """Commit nothing more for a reader, and need not."""
        self._due.discard(reader)

    def lose(self, reader: Reader, *, returns: bool) -> None:
        """Commit nothing more for a reader; ``returns``: the next one of its queue may go on where it was."""
        self._due.discard(reader)
        if reader.is_behind:
            self._lost[reader.queue] = returns

    def give_up(self, queue: MessageQueue) -> None:
        """Note that a queue is not read here any more: what was lost stays so."""
        if queue in self._lost:
            self._lost[queue] = False

    def close(self) -> None:
        """Commit nothing more."""
        self._closed = True
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._round is not None:
            self._round.cancel()

    def _later(self, seconds: float) -> None:
        if not self._closed:
            self._timer = self._clock.call_later(seconds, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._round = asyncio.get_running_loop().create_task(self._run(), name="brokerkit-rocketmq-commit")

    async def _run(self) -> None:
        failed = False
        try:
            await self._commit_due()
        except BrokerError as error:
            failed = True
            log.info("offsets could not be committed, it is tried again: %s", error)
        finally:
            self._round = None
            if self._due:
                self._later(_PAUSE if failed else _DELAY)

    async def _commit_all(self, readers: Iterable[Reader]) -> list[BrokerError]:
        outcomes = await asyncio.gather(*map(self._try, readers))
        return [outcome for outcome in outcomes if outcome is not None]

    async def _try(self, reader: Reader) -> BrokerError | None:
        try:
            await self._commit(reader)
        except BrokerError as error:
            if reader.live:
                self._due.add(reader)
            return error
        return None

    async def _commit(self, reader: Reader) -> None:
        if reader.progress.low == reader.committed:
            return
        if reader.home.error is not None:
            if reader.is_behind:
                raise BrokerUnavailable(f"the connection to {reader.queue.broker} is lost", backend=NAME)
            return
        now = self._clock.monotonic()
        if self.before is not None and now - reader.checked >= _CHECK:
            # A topic that was deleted and created anew has its first offsets again, and a smaller one committed: ours
            # would skip what is stored there.
            reader.checked = now
            if not await self.before(reader):
                return
        low = reader.progress.low
        await self._offsets.commit(reader.queue, low)
        reader.committed = low
        if self._lost.get(reader.queue):
            del self._lost[reader.queue]
