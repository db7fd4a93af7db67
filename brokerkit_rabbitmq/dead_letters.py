"""`DeadLetterReader`: the dead letters of one group, in their order, read without disturbing it.

Queues know no reading without taking.  Taking some and giving them back would put them behind the others (tried on
3.10.8), so a reader takes all of them, as the only reader there is, and gives all back at once what was not
acknowledged: then their order stays.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pika import spec

from brokerkit.errors import BrokerError, BrokerUnavailable, Closed
from brokerkit.spi import Clock, Inbound, wait
from brokerkit_rabbitmq.channel import Channel
from brokerkit_rabbitmq.consuming import IN_ORDER, ConsumeChannel
from brokerkit_rabbitmq.decoding import Decoder
from brokerkit_rabbitmq.errors import NAME
from brokerkit_rabbitmq.link import Link

__all__ = ["DeadLetterReader"]

#: Messages that one consumer takes: a quorum queue gives it no more before some are settled (3.10.8).
_SHARE = 2000
#: Seconds between two looks whether another reader is done, and whether what was given back is there again.
_PAUSE = 0.2
_SHORT_PAUSE = 0.01
_LOCKED = "RESOURCE_LOCKED"


class DeadLetterReader:
    """A `brokerkit.spi.ConsumerDriver` of dead letters; `open` before anything else.

    Readers exclude each other by a queue that belongs to one connection only; the link is the reader's own.
    """

    def __init__(
        self,
        link: Link,
        queue: str,
        decoder: Decoder,
        *,
        ids: frozenset[str] | None,
        clock: Clock,
        timeout: float,
        on_close: Callable[[Any], None],
    ) -> None:
        self._link = link
        self._queue = queue
        self._decoder = decoder
        self._ids = ids
        self._clock = clock
        self._timeout = timeout
        self._on_close = on_close
        #: Each holds up to `_SHARE` of the messages, the oldest ones first.
        self._channels: list[ConsumeChannel] = []
        self._arrived: asyncio.Future[None] | None = None
        #: All dead letters, the oldest first, and those of them that were asked for and not handed out.
        self._held: list[Inbound] = []
        self._chosen: deque[Inbound] = deque()
        self._closed: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Take all dead letters.  Raise `TopicNotFound`, or `BrokerUnavailable` when another reader does not end."""
        await self._link.open()
        await self._exclude_others()
        # One consumer after the other, until nothing is left; when the last one ends nobody receives any more.
        while ready := await self._ready():
            await self._take(min(ready, _SHARE))
        for channel in self._channels:
            await channel.cancel()
        ids = self._ids
        self._chosen.extend(one for one in self._held if ids is None or one.message_id in ids)

    async def _exclude_others(self) -> None:
        # Names of queues have 255 bytes at most; that of an adopted one may have as many.
        name = f"bk.reader.{hashlib.sha256(self._queue.encode()).hexdigest()[:32]}"
        declare = spec.Queue.Declare(0, name, exclusive=True, auto_delete=True)
        deadline = self._clock.monotonic() + self._timeout
        while True:
            channel = await self._link.open_channel(self._timeout, Channel)
            try:
                await channel.call(declare, spec.Queue.DeclareOk)
                return
            except BrokerError as error:
                if _LOCKED not in error.message:
                    raise
                if self._clock.monotonic() >= deadline:
                    raise BrokerUnavailable(
                        f"somebody else reads {self._queue!r} at the moment", backend=NAME
                    ) from error
            finally:
                await channel.close()
            await self._clock.sleep(_PAUSE)

    async def _ready(self) -> int:
        async with self._link.scratch(self._timeout) as channel:
            answer = await channel.call(spec.Queue.Declare(0, self._queue, passive=True), spec.Queue.DeclareOk)
        return int(answer.message_count)

    async def _take(self, count: int) -> None:
        number = len(self._channels)

        def deliver(tag: int, redelivered: bool, address: bytes, method: bytes, header: bytes, body: bytes) -> None:
            self._held.append(self._decoder.decode((number, tag), redelivered, address, method, header, body))
            if self._arrived is not None and not self._arrived.done():
                self._arrived.set_result(None)

        channel = await self._link.open_channel(self._timeout, ConsumeChannel, deliver)
        self._channels.append(channel)
        before = len(self._held)
        await channel.consume(self._queue, _SHARE)
        while len(self._held) < before + count:
            arrived = self._arrived = asyncio.get_running_loop().create_future()
            if not await wait(self._clock, arrived, self._timeout):
                raise BrokerUnavailable(f"{self._queue!r} could not be read to its end", backend=NAME)
            if channel.error is not None:
                raise channel.error

    def oldest(self, limit: int) -> Sequence[Inbound]:
        """Return up to ``limit`` of the dead letters."""
        return self._held[:limit]

    # --- the driver ---

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        """Return the next ones that were asked for; () when none is left."""
        if self._closed is not None:
            raise Closed("the dead letters are closed", backend=NAME)
        for channel in self._channels:
            if channel.error is not None:
                raise BrokerUnavailable(channel.error.message, backend=NAME)
        return [self._chosen.popleft() for _ in range(min(max_messages, len(self._chosen)))]

    async def ack(self, messages: Sequence[Inbound]) -> None:
        """Remove them for good."""
        for message in messages:
            number, tag = message.token
            if self.live(message):
                self._channels[number].ack([tag])

    async def release(self, messages: Sequence[Inbound]) -> None:
        """Leave them where they are: all that is not acknowledged goes back together."""

    def live(self, message: Inbound) -> bool:
        """Return whether the dead letter is still held."""
        number, tag = message.token
        if self._closed is not None:
            return False
        channel = self._channels[number]
        return channel.error is None and not channel.is_settled(tag)

    async def aclose(self) -> None:
        """Give back what was not acknowledged, in its order.  Idempotent."""
        if self._closed is not None:
            if not self._closed.done():
                await asyncio.wait((self._closed,))
            return
        self._closed = asyncio.get_running_loop().create_future()
        try:
            await self._give_back()
        except BrokerError:
            pass  # the link broke, which gives everything back too
        finally:
            self._held.clear()
            self._chosen.clear()
            await self._link.aclose()
            self._on_close(self)
            self._closed.set_result(None)

    async def _give_back(self) -> None:
        """Put back what is not acknowledged, the oldest first; return when it is there for the next reader."""
        for channel in self._channels:
            while channel.error is None:
                before = await self._ready()
                released = channel.release_oldest(IN_ORDER)
                if not released:
                    break
                # A quorum queue takes them back some time after it was told to.
                deadline = self._clock.monotonic() + self._timeout
                while await self._ready() < before + released and self._clock.monotonic() < deadline:
                    await self._clock.sleep(_SHORT_PAUSE)
