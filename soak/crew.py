"""The processes of the soak run: those that send and those that handle.

A message is known by its number, which is its id too.  Even numbers go to `PLAIN`, odd ones to `ONCE`, whose handler
is idempotent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brokerkit import AsyncManager, Message, RetryPolicy, Topic
from brokerkit.clock import Clock, SystemClock
from brokerkit.errors import BrokerError, BrokerUnavailable
from brokerkit.idempotency_sqlite import SqliteIdempotencyStore
from brokerkit.settings import Settings
from brokerkit.testing.processes import report
from soak.journal import COMPLETED, CONFIRMED, ENDED, SENT, STARTED, Journal

__all__ = ["GROUP", "ONCE", "PLAIN", "RETENTION", "STORE", "Order", "handle", "is_once", "manager_on", "send"]

GROUP = "crew"
PLAIN: Topic[bytes] = Topic("soak.plain", bytes, groups=[GROUP])
ONCE: Topic[bytes] = Topic("soak.once", bytes, groups=[GROUP])

#: The file of the idempotency store, and the seconds that it remembers: longer than any run.
STORE, RETENTION = "done.db", 30 * 86400.0

_BODY = b"x" * 256
#: Messages of one `send_many`, and sends that run at the same time beside it.
_BATCH, _SINGLES = 250, 50
_CONCURRENCY = 50
#: Seconds that a handler takes: long enough that every kill meets some.
_WORK = 0.002
#: Seconds after which the claim of a killed worker ends.
_LEASE = 5.0
#: Seconds until a worker that found no broker looks again.
_PAUSE = 0.5


def is_once(number: int) -> bool:
    """Return whether the message belongs to `ONCE`."""
    return number % 2 == 1


def manager_on(url: str, settings: Mapping[str, Any], store: SqliteIdempotencyStore | None = None) -> AsyncManager:
    """Return a manager that no variable and no file of this machine configures; ``settings`` are the stage's."""
    complete = {"url": url, "idempotency": {"lease": _LEASE}, **settings}
    return AsyncManager(settings=Settings.model_validate(complete), idempotency=store)


# --- sending --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """What one sender does: until so many messages are confirmed, or until so many seconds have passed."""

    #: The numbers are ``first``, ``first + step`` and so on.
    first: int
    step: int
    quota: int
    #: Messages a second at most.
    rate: float
    seconds: float


async def send(folder: str, url: str, settings: Mapping[str, Any], order: Order) -> None:
    """Send.  Messages that failed are reported and not sent again."""
    async with manager_on(url, settings) as manager:
        pace = _Pace(SystemClock(), order.quota, order.rate, order.seconds)
        sender = _Sender(manager, Path(folder), range(order.first, 1 << 62, order.step), pace)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(sender.batches())
                for _ in range(_SINGLES):
                    group.create_task(sender.singles())
        finally:
            report({"failed": dict(sender.failed)})


class _Pace:
    """Says when how many messages may leave, and when it is enough."""

    def __init__(self, clock: Clock, quota: int, rate: float, seconds: float) -> None:
        self._clock = clock
        self._left = quota
        self._rate = rate
        self._begin = clock.monotonic()
        self._end = self._begin + seconds
        self._taken = 0

    async def take(self, count: int) -> int:
        """Return how many of ``count`` messages to send, when it is their turn; 0: no more."""
        count = min(count, self._left)
        self._left -= count
        self._taken += count
        wait = self._begin + self._taken / self._rate - self._clock.monotonic()
        if wait > 0:
            await self._clock.sleep(wait)
        return count if self._clock.monotonic() < self._end else 0

    def again(self, count: int) -> None:
        """Let as many more leave, in place of those that failed."""
        self._left += count


class _Sender:
    def __init__(self, manager: AsyncManager, folder: Path, numbers: range, pace: _Pace) -> None:
        self.failed: Counter[str] = Counter()
        self._manager = manager
        self._numbers = iter(numbers)
        self._pace = pace
        self._sent = Journal(folder, SENT)
        self._confirmed = Journal(folder, CONFIRMED)
        self._failures = (folder / f"failures-{numbers.start}.txt").open("a", buffering=1)
        self._clock = SystemClock()

    async def batches(self) -> None:
        """Send by `send_many`."""
        while count := await self._pace.take(_BATCH):
            numbers = [next(self._numbers) for _ in range(count)]
            self._sent.write(*numbers)
            plain = [number for number in numbers if not is_once(number)]
            once = [number for number in numbers if is_once(number)]
            await asyncio.gather(self._batch(PLAIN, plain), self._batch(ONCE, once))

    async def _batch(self, topic: Topic[bytes], numbers: Sequence[int]) -> None:
        messages = [Message(body=_BODY, message_id=str(number)) for number in numbers]
        try:
            outcomes = await self._manager.send_many(topic, messages)
        except BrokerError as error:
            for number in numbers:
                self._fail(number, error)
            return
        confirmed = [number for number, outcome in zip(numbers, outcomes, strict=True) if outcome.error is None]
        self._confirmed.write(*confirmed)
        for number, outcome in zip(numbers, outcomes, strict=True):
            if outcome.error is not None:
                self._fail(number, outcome.error)

    async def singles(self) -> None:
        """Send by `send`, one after the other."""
        while await self._pace.take(1):
            number = next(self._numbers)
            self._sent.write(number)
            try:
                await self._manager.send(ONCE if is_once(number) else PLAIN, _BODY, message_id=str(number))
            except BrokerError as error:
                self._fail(number, error)
            else:
                self._confirmed.write(number)

    def _fail(self, number: int, error: BrokerError) -> None:
        self._pace.again(1)
        self.failed[type(error).__name__] += 1
        self._failures.write(f"{number} {self._clock.time():.3f} {type(error).__name__}: {error}\n")


# --- handling -------------------------------------------------------------------------------------------------


class _Store(SqliteIdempotencyStore):
    """The real store; each completion that it recorded is entered in a journal."""

    journal: Journal

    async def complete(self, key: str, owner: str, result: bytes | None, follow_ups: bytes | None) -> bool:
        recorded = await super().complete(key, owner, result, follow_ups)
        if recorded:
            self.journal.write(number_of(key))
        return recorded


def number_of(key: str) -> int:
    """Return the number of the message whose key in the store this is."""
    return int(key.rpartition("\x1f")[2])


async def handle(folder: str, url: str, settings: Mapping[str, Any]) -> None:
    """Handle messages until SIGTERM; begin again when the broker is down at the beginning."""
    while True:
        try:
            await _handle(Path(folder), url, settings)
        except BrokerUnavailable:
            await asyncio.sleep(_PAUSE)
        else:
            return


async def _handle(home: Path, url: str, settings: Mapping[str, Any]) -> None:
    store = _Store(home / STORE, SystemClock(), RETENTION)
    store.journal = Journal(home, COMPLETED)
    started, ended = Journal(home, STARTED), Journal(home, ENDED)
    manager = manager_on(url, settings, store)
    # No message fails here: whatever makes an attempt is a killed worker.
    retry = RetryPolicy(max_attempts=100, base_delay=0.05, max_delay=0.2)

    @manager.handler(PLAIN, concurrency=_CONCURRENCY, retry=retry)
    async def plain(message: Message) -> None:
        await asyncio.sleep(_WORK)
        ended.write(int(message.message_id or ""))

    @manager.handler(ONCE, concurrency=_CONCURRENCY, retry=retry, idempotent=True)
    async def once(message: Message) -> None:
        number = int(message.message_id or "")
        started.write(number)
        await asyncio.sleep(_WORK)
        ended.write(number)

    await manager.run()
