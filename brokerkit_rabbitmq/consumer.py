"""`RabbitMQConsumer`: the deliveries of one queue, over however many connections it takes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from brokerkit.errors import AccessRefused, BrokerError, Closed, TopicNotFound
from brokerkit.spi import Clock, Inbound, wait
from brokerkit_rabbitmq.consuming import ConsumeChannel
from brokerkit_rabbitmq.decoding import Decoder
from brokerkit_rabbitmq.errors import NAME, fresh
from brokerkit_rabbitmq.link import Link
from brokerkit_rabbitmq.sources import Source

__all__ = ["RabbitMQConsumer"]

log = logging.getLogger("brokerkit.rabbitmq")

#: Pauses before a consumer that the broker refuses is tried again, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: Seconds without a delivery after which the broker may have forgotten a consumer.
_SILENCE = 10.0


class RabbitMQConsumer:
    """A `brokerkit.spi.ConsumerDriver`.

    Its token is (generation, delivery tag): each channel is one generation, so what was delivered on an earlier one is
    stale.
    """

    def __init__(
        self,
        link: Link,
        source: Source,
        *,
        clock: Clock,
        timeout: float,
        on_close: Callable[[Any], None],
        hang_up: bool = False,
    ) -> None:
        """``hang_up``: the link belongs to this consumer, and closing drops it without cancelling the consumer."""
        self._link = link
        self._source = source
        self._clock = clock
        self._timeout = timeout
        self._on_close = on_close
        self._hang_up = hang_up
        self._generation = 0
        self._channel: ConsumeChannel | None = None
        self._buffer: deque[Inbound] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._failure: BrokerError | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed: asyncio.Future[None] | None = None
        self._decoder = Decoder(source)
        #: Whether nothing came since the last look.
        self._quiet = True
        #: Settlements of deliveries that were not ours any more.
        self.stale = 0

    # --- subscribing ---

    async def open(self) -> None:
        """Subscribe, and again whenever the link or the channel was lost.  Raise why it cannot be done."""
        await self._subscribe_first()
        self._keeper = asyncio.get_running_loop().create_task(
            self._keep(), name=f"brokerkit-consumer-{self._source.name}"
        )

    async def _subscribe_first(self) -> None:
        """Subscribe; try again for the timeout what may pass.

        A quorum queue that another connection declares right now is there before it can be consumed: the broker then
        answers 541 INTERNAL_ERROR and drops the connection (3.10.8: ``noproc`` in rabbit_quorum_queue:consume).
        """
        deadline = self._clock.monotonic() + self._timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._subscribe(deadline - self._clock.monotonic())
                return
            except BrokerError as error:
                if not error.retryable or self._clock.monotonic() + pause >= deadline:
                    raise
                log.debug("%s cannot be consumed yet: %s", self._source.name, error)
            await self._clock.sleep(pause)
            self._check()
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _subscribe(self, timeout: float) -> None:
        generation = self._generation + 1

        decode, take = self._decoder.decode, self._take

        def deliver(tag: int, redelivered: bool, address: bytes, method: bytes, header: bytes, body: bytes) -> None:
            # What still comes on an earlier channel goes back when that is closed.
            if self._generation == generation:
                take(decode((generation, tag), redelivered, address, method, header, body))

        channel = await self._link.open_channel(timeout, ConsumeChannel, deliver)
        try:
            # Before the first delivery, which may come with the answer.
            self._generation = generation
            self._buffer.clear()
            self._channel = channel
            await self._source.subscribe(channel)
        except BaseException:
            self._channel = None
            channel.close_soon()
            raise

    async def _keep(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            old = self._channel
            if old is not None:
                await self._watch(old)
                # What was delivered on it comes again, and so does what still comes on it.
                self._channel = None
                self._generation += 1
                self._buffer.clear()
            try:
                await self._subscribe(self._timeout)
                self._failure = None
                pause = _FIRST_PAUSE
                continue
            except Closed as error:
                self._fail(error)
                return
            except TopicNotFound as error:
                # Whoever knows the declaration opens another consumer.
                log.warning("%s is gone, and so is what was in it: %s", self._source.name, error)
                self._fail(error)
                return
            except AccessRefused as error:
                self._fail(error)
            except BrokerError as error:
                log.warning("%s cannot be consumed now: %s", self._source.name, error)
            finally:
                if old is not None:
                    # Only now: a queue that goes with its last consumer stays.
                    old.close_soon()
            await self._clock.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _watch(self, channel: ConsumeChannel) -> None:
        """Return when the consumer or its channel has ended, or when the broker may have forgotten it."""
        while not await wait(self._clock, channel.ended, _SILENCE):
            quiet, self._quiet = self._quiet, True
            if not quiet or not channel.idle:
                continue
            try:
                if await self._source.may_be_forgotten(channel):
                    return
            except BrokerError as error:
                # The channel is gone, and the consumer with it.
                log.debug("%s: %s", self._source.name, error)

    def _fail(self, error: BrokerError) -> None:
        self._failure = error
        self._wake()

    # --- receiving ---

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        """Return deliveries, as `brokerkit.spi.ConsumerDriver.receive` says."""
        buffer = self._buffer
        if not buffer:
            self._check()
            arrived = self._arrived = asyncio.get_running_loop().create_future()
            try:
                await wait(self._clock, arrived, timeout)
            finally:
                self._arrived = None
            if not buffer:
                self._check()
                return ()
        elif self._closed is not None:
            self._check()
        if len(buffer) <= max_messages:
            messages = list(buffer)
            buffer.clear()
            return messages
        return [buffer.popleft() for _ in range(max_messages)]

    def _check(self) -> None:
        if self._closed is not None or self._link.closed:
            raise Closed("the consumer is closed", backend=NAME)
        if self._failure is not None:
            raise fresh(self._failure)

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _take(self, inbound: Inbound) -> None:
        self._quiet = False
        self._buffer.append(inbound)
        arrived = self._arrived
        if arrived is not None and not arrived.done():
            arrived.set_result(None)

    # --- settling ---

    async def ack(self, messages: Sequence[Inbound]) -> None:
        """Acknowledge; stale ones are counted in `stale`."""
        channel = self._channel
        tags = self._tags_of(messages)
        if channel is not None and tags:
            self.stale += channel.ack(tags)

    async def release(self, messages: Sequence[Inbound]) -> None:
        """Give back; stale ones are counted in `stale`."""
        channel = self._channel
        tags = self._tags_of(messages)
        if channel is not None and tags:
            self.stale += channel.release(tags)

    async def settled(self) -> None:
        """Return when the broker has taken all acknowledgements: it handles the frames of a channel in their order."""
        channel = self._channel
        if channel is not None:
            await channel.synchronise()

    def _tags_of(self, messages: Sequence[Inbound]) -> list[int]:
        channel, generation = self._channel, self._generation
        if channel is None or channel.error is not None:
            self.stale += len(messages)
            return []
        tags: list[int] = [message.token[1] for message in messages if message.token[0] == generation]
        self.stale += len(messages) - len(tags)
        return tags

    def live(self, message: Inbound) -> bool:
        """Return whether the delivery is still ours, as far as is known here."""
        channel = self._channel
        generation, tag = message.token
        return (
            channel is not None
            and channel.error is None
            and not channel.ended.done()
            and generation == self._generation
            and not channel.is_settled(tag)
        )

    # --- closing ---

    async def aclose(self) -> None:
        """Stop receiving, give back what is not settled, close.  Idempotent."""
        if self._closed is not None:
            if not self._closed.done():
                await asyncio.wait((self._closed,))
            return
        self._closed = asyncio.get_running_loop().create_future()
        self._wake()
        try:
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.wait((self._keeper,))
            if self._hang_up:
                # The order survives only this way: the broker puts back in order what was not settled.
                await self._link.aclose(hang_up=True)
            elif self._channel is not None:
                await self._give_back(self._channel)
        finally:
            self._channel = None
            self._buffer.clear()
            self._on_close(self)
            self._closed.set_result(None)

    async def _give_back(self, channel: ConsumeChannel) -> None:
        try:
            await channel.cancel()
            channel.release_all()
        except BrokerError:
            pass  # the link broke: everything is given back by that
        finally:
            await channel.close()
