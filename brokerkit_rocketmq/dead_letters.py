"""`DeadLetterReader`: the dead letters of one group, taken out of it by one reader at a time."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from brokerkit.errors import BrokerError, BrokerUnavailable, Closed
from brokerkit.spi import Clock, Inbound
from brokerkit_rocketmq.dead_queue import DeadQueues, Letter
from brokerkit_rocketmq.errors import NAME, fresh
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.mapping import Codec
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.remoting.messages import StoredMessage
from brokerkit_rocketmq.routes import MessageQueue
from brokerkit_rocketmq.topology import Topology

__all__ = ["DeadLetterReader", "DeadLetters"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds between two tries to get the locks, and between two that keep them: a broker lets go after 60 s.
_PAUSE = 0.2
_RENEWAL = 20.0


class DeadLetters:
    """The dead letters of all groups of a connection."""

    def __init__(
        self, topology: Topology, making: Making, names: Names, codec: Codec, clock: Clock, *, producer: str
    ) -> None:
        """``producer``: the native producer group by which letters are stored again."""
        self._topology = topology
        self._making = making
        self._names = names
        self._codec = codec
        self._clock = clock
        self._producer = producer

    async def browse(self, topic: str, group: str, limit: int) -> Sequence[Inbound]:
        """Return up to ``limit`` dead letters, oldest first.  Changes nothing, and waits for no other reader."""
        queues, dead = await self._dead(topic, group)
        letters = await dead.find(queues)
        return [inbound for _, inbound in await dead.read(letters[:limit])]

    async def take(
        self, topic: str, group: str, ids: Sequence[str] | None, on_close: Callable[[Any], None]
    ) -> DeadLetterReader:
        """Return a reader that is not open yet of the dead letters with these message ids (None: of all)."""
        queues, dead = await self._dead(topic, group)
        lock = _Lock(self._making, self._names.dead_reader(topic, group), queues, self._clock)
        return DeadLetterReader(dead, lock, None if ids is None else frozenset(ids), on_close)

    async def _dead(self, topic: str, group: str) -> tuple[tuple[MessageQueue, ...], DeadQueues]:
        await self._topology.require(topic, group)
        # Nothing died yet in a group that somebody else declared: then there is no topic for it.
        route = await self._making.route(self._names.dead(topic, group))

        def decode(stored: StoredMessage) -> Inbound:
            return self._codec.decode(stored, topic, group)

        reader = self._names.dead_reader(topic, group)
        dead = DeadQueues(self._making.asking, reader, self._producer, decode)
        return route.readable if route is not None else (), dead


class _Lock:
    """Queues that one reader has for itself, by the locks that brokers keep for ordered groups."""

    def __init__(self, making: Making, group: str, queues: Sequence[MessageQueue], clock: Clock) -> None:
        self.queues = queues
        #: Why the locks are lost; None while they are held.
        self.lost: BrokerError | None = None
        self._asking = making.asking
        self._group = group
        self._clock = clock
        # Two readers of one process are two, too.
        self._owner = f"{self._asking.client.client_id}#{secrets.token_hex(6)}"
        self._by_broker: dict[str, list[MessageQueue]] = {}
        for queue in sorted(queues):
            self._by_broker.setdefault(queue.broker, []).append(queue)
        self._keeper: asyncio.Task[None] | None = None

    async def acquire(self) -> None:
        """Return when the queues are ours; raise `BrokerUnavailable` when another reader does not end."""
        deadline = self._clock.monotonic() + self._asking.timeout
        while not await self._try():
            await self._unlock()
            if self._clock.monotonic() >= deadline:
                raise BrokerUnavailable(
                    f"somebody else works on the dead letters of {self._group!r} at the moment; one that was killed "
                    f"at it is in the way for a minute",
                    backend=NAME,
                )
            await self._clock.sleep(_PAUSE)
        if self.queues:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=f"brokerkit-lock-{self._group}")

    async def release(self) -> None:
        """Let others have the queues."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))
        await self._unlock()

    async def _try(self) -> bool:
        # One broker after the other, in their order: two readers never wait for each other.
        for queues in self._by_broker.values():
            if await self._asking.locked(RequestCode.LOCK_BATCH_MQ, self._group, self._owner, queues) < len(queues):
                return False
        return True

    async def _unlock(self) -> None:
        for queues in self._by_broker.values():
            try:
                await self._asking.locked(RequestCode.UNLOCK_BATCH_MQ, self._group, self._owner, queues)
            except BrokerError as error:
                log.info("the lock of %s ends by itself in a minute: %s", queues[0].topic, error)

    async def _keep(self) -> None:
        while True:
            await self._clock.sleep(_RENEWAL)
            try:
                held = await self._try()
            except BrokerError as error:
                log.info("the lock for reading %s was not renewed: %s", self._group, error)
                continue
            if not held:
                self.lost = BrokerUnavailable(
                    f"somebody else works on the dead letters of {self._group!r} by now: the broker was out of reach "
                    f"for too long",
                    backend=NAME,
                )
                return


class DeadLetterReader:
    """A `brokerkit.spi.ConsumerDriver` of dead letters; `open` before anything else.

    Acknowledged ones that nothing is before are gone at once, the others when the reader is closed.
    """

    def __init__(
        self, dead: DeadQueues, lock: _Lock, ids: frozenset[str] | None, on_close: Callable[[Any], None]
    ) -> None:
        self._dead = dead
        self._lock = lock
        self._ids = ids
        self._on_close = on_close
        self._chosen: deque[Letter] = deque()
        self._opened = False
        self._closed: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Find all dead letters.  Raise `BrokerUnavailable` when another reader does not end."""
        await self._lock.acquire()
        self._opened = True
        letters = await self._dead.find(self._lock.queues)
        self._chosen.extend(one for one in letters if self._ids is None or one.message_id in self._ids)

    # --- the driver ---

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        """Return the next ones that were asked for; () when none is left."""
        self._check()
        chosen = self._chosen
        found: list[Inbound] = []
        while chosen and not found:
            letters = [chosen[at] for at in range(min(max_messages, len(chosen)))]
            for letter, inbound in await self._dead.read(letters):
                inbound.token = letter
                found.append(inbound)
            # Only now: a call that was cancelled has lost nothing.
            for _ in letters:
                chosen.popleft()
        return found

    def _check(self) -> None:
        if self._closed is not None:
            raise Closed("the dead letters are closed", backend=NAME)
        if self._lock.lost is not None:
            raise fresh(self._lock.lost)

    async def ack(self, messages: Sequence[Inbound]) -> None:
        """Remove them for good."""
        for message in messages:
            if self.live(message):
                message.token.gone = True
        await self._dead.advance()

    async def release(self, messages: Sequence[Inbound]) -> None:
        """Leave them where they are."""

    def live(self, message: Inbound) -> bool:
        """Return whether the dead letter is still ours to remove."""
        return self._closed is None and self._lock.lost is None and not message.token.gone

    async def aclose(self) -> None:
        """Give back what was not acknowledged, in its place.  Idempotent.

        Raise `BrokerError` when the broker did not take what it takes to remove acknowledged ones: they are dead
        letters again.
        """
        if self._closed is not None:
            if not self._closed.done():
                await asyncio.wait((self._closed,))
            return
        self._closed = asyncio.get_running_loop().create_future()
        try:
            if self._opened and self._lock.lost is None:
                await self._dead.settle()
        finally:
            self._chosen.clear()
            try:
                await self._lock.release()
            finally:
                self._on_close(self)
                self._closed.set_result(None)
