"""`DeadLetterReader`: the dead letters of one group, in their order, read without disturbing it.

Queues know no reading without taking.  Taking some and giving them back would put them behind the others (tried on
3.10.8), so a reader takes all of them, as the only reader there is, and gives all back at once what was not
acknowledged: then their order stays.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pika import spec

from brokerkit.errors import AccessRefused, BrokerError, BrokerUnavailable, Closed
from brokerkit.spi import Clock, Inbound, wait
from brokerkit_rabbitmq.consuming import ConsumeChannel
from brokerkit_rabbitmq.decoding import Decoder
from brokerkit_rabbitmq.errors import NAME
from brokerkit_rabbitmq.link import Link

__all__ = ["DeadLetterReader"]

#: Seconds between two looks whether another reader is done.
_PAUSE = 0.2


class DeadLetterReader:
    """A `brokerkit.spi.ConsumerDriver` of dead letters; `open` before anything else."""

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
        self._channel: ConsumeChannel | None = None
        #: All dead letters, the oldest first, and those of them that were asked for and not handed out.
        self._held: list[Inbound] = []
        self._chosen: deque[Inbound] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Take all dead letters.  Raise `TopicNotFound`, or `BrokerUnavailable` when another reader does not end."""
        deadline = self._clock.monotonic() + self._timeout
        while True:
            try:
                await self._take_all()
                break
            except AccessRefused as error:
                # That is how the broker refuses a second exclusive consumer.
                if "exclusive" not in error.message:
                    raise
                if self._clock.monotonic() >= deadline:
                    raise BrokerUnavailable(
                        f"somebody else reads {self._queue!r} at the moment: {error.message}", backend=NAME
                    ) from error
            await self._clock.sleep(_PAUSE)
        ids = self._ids
        self._chosen.extend(one for one in self._held if ids is None or one.message_id in ids)

    async def _take_all(self) -> None:
        channel = await self._link.open_channel(self._timeout, ConsumeChannel, self._deliver)
        try:
            declare = spec.Queue.Declare(0, self._queue, passive=True)
            # An exclusive consumer first: from then on nobody else takes or gives back.
            await channel.consume(self._queue, 0, exclusive=True)
            self._channel = channel
            # What is ready and what is on its way to us already.
            count = (await channel.call(declare, spec.Queue.DeclareOk)).message_count
            while len(self._held) < count or await self._more(channel, declare):
                await self._wait_for_one(channel)
        except BaseException:
            self._channel = None
            self._held.clear()
            await channel.close()
            raise

    async def _more(self, channel: ConsumeChannel, declare: Any) -> bool:
        """Return whether messages are still ready in the queue."""
        ready: int = (await channel.call(declare, spec.Queue.DeclareOk)).message_count
        return ready > 0

    async def _wait_for_one(self, channel: ConsumeChannel) -> None:
        arrived = self._arrived = asyncio.get_running_loop().create_future()
        try:
            came = await wait(self._clock, arrived, self._timeout)
        finally:
            self._arrived = None
        if channel.error is not None:
            raise channel.error
        if not came:
            raise BrokerUnavailable(f"{self._queue!r} could not be read to its end", backend=NAME)

    def _deliver(self, tag: int, redelivered: bool, address: bytes, method: bytes, header: bytes, body: bytes) -> None:
        self._held.append(self._decoder.decode((0, tag), redelivered, address, method, header, body))
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def oldest(self, limit: int) -> Sequence[Inbound]:
        """Return up to ``limit`` of the dead letters."""
        return self._held[:limit]

    # --- the driver ---

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        """Return the next ones that were asked for; () when none is left."""
        if self._closed is not None or self._channel is None:
            raise Closed("the dead letters are closed", backend=NAME)
        if self._channel.error is not None:
            raise BrokerUnavailable(self._channel.error.message, backend=NAME)
        return [self._chosen.popleft() for _ in range(min(max_messages, len(self._chosen)))]

    async def ack(self, messages: Sequence[Inbound]) -> None:
        """Remove them for good."""
        if self._channel is not None and self._channel.error is None:
            self._channel.ack([message.token[1] for message in messages])

    async def release(self, messages: Sequence[Inbound]) -> None:
        """Leave them where they are: all that is not acknowledged goes back together."""

    def live(self, message: Inbound) -> bool:
        """Return whether the dead letter is still held."""
        channel = self._channel
        return channel is not None and channel.error is None and not channel.is_settled(message.token[1])

    async def aclose(self) -> None:
        """Give back what was not acknowledged, in its order.  Idempotent."""
        if self._closed is not None:
            if not self._closed.done():
                await asyncio.wait((self._closed,))
            return
        self._closed = asyncio.get_running_loop().create_future()
        channel, self._channel = self._channel, None
        try:
            if channel is not None and channel.error is None:
                await channel.cancel()
                channel.release_all()
                await channel.close()
        except BrokerError:
            pass  # the link broke, which gives everything back too
        finally:
            self._held.clear()
            self._chosen.clear()
            self._on_close(self)
            self._closed.set_result(None)
