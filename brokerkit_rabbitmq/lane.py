"""`Lane`: the messages for one exchange, in their order, on a channel that is opened again when it is lost."""

from __future__ import annotations

import asyncio
from collections import deque

from brokerkit.errors import BrokerError
from brokerkit.spi import Clock, Outbound
from brokerkit_rabbitmq.errors import fresh
from brokerkit_rabbitmq.link import Link
from brokerkit_rabbitmq.publishing import Batch, PublishChannel, Route

__all__ = ["Lane"]

#: Seconds that a channel is used on which the broker refused a message; a full queue refuses on every channel.
_TRUST = 1.0


class Lane:
    """Writes at once what there is room for; the rest waits here, and leaves when there is room or when its time is up.

    There is no room while the link is down, while the broker blocks publishers, while the socket is full, and
    while ``window`` messages are not confirmed.
    """

    def __init__(self, name: str, link: Link, window: int, timeout: float, clock: Clock) -> None:
        self.name = name
        self._link = link
        self._window = window
        self._timeout = timeout
        self._clock = clock
        #: When the channel was opened.
        self._since = 0.0
        #: A quarter of the window is filled at a time, not one place after the other.
        self._resume = window - max(1, window // 4)
        self._channel: PublishChannel | None = None
        self._waiting: deque[tuple[Outbound, Route, Batch, int]] = deque()
        self._opening: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        channel = self._channel
        return not self._waiting and self._opening is None and (channel is None or not channel.unconfirmed)

    def add(self, message: Outbound, route: Route, batch: Batch, index: int) -> None:
        """Write the message now or later.  Raise `BrokerError` for one that AMQP cannot carry."""
        channel = self._channel
        if (
            channel is not None
            and not self._waiting
            and len(channel.unconfirmed) < self._window
            and channel.error is None
            and channel.connection.may_write
        ):
            channel.publish(message, route, batch, index)
            return
        self._waiting.append((message, route, batch, index))
        if channel is None or channel.error is not None:
            self.stir()

    def stir(self) -> None:
        """Go on as far as possible: the link, the channel or its window have changed."""
        channel = self._channel
        if channel is not None and channel.error is not None:
            channel = self._channel = None
        elif channel is not None and channel.refused and self._clock.monotonic() - self._since >= _TRUST:
            # 3.10 refuses all that comes on a channel that met a quorum queue while its leader was gone.
            channel.retire()
            channel = self._channel = None
        if not self._waiting or self._closed:
            return
        if channel is None:
            amqp = self._link.amqp
            if self._opening is None and amqp is not None and amqp.may_write:
                self._opening = asyncio.get_running_loop().create_task(self._open(), name=f"brokerkit-lane-{self.name}")
        elif channel.connection.may_write and len(channel.unconfirmed) <= self._resume:
            self._write_waiting(channel)

    def _write_waiting(self, channel: PublishChannel) -> None:
        waiting = self._waiting
        while waiting and len(channel.unconfirmed) < self._window and channel.connection.may_write:
            message, route, batch, index = waiting.popleft()
            if batch.done.done():
                continue
            try:
                channel.publish(message, route, batch, index)
            except BrokerError as error:
                batch.settle(index, error)

    async def _open(self) -> None:
        amqp = None
        try:
            amqp = await self._link.ready(self._timeout)
            channel = await amqp.open_channel(PublishChannel, self._window, self.stir)
            await channel.select()
        except BrokerError as error:
            if not error.retryable or (amqp is not None and amqp.error is None):
                # The link is up and gives no channel: trying again at once would not help.
                self._fail(error)
            # Otherwise the link comes up again, or the time of what waits is up.
        else:
            self._channel = channel
            self._since = self._clock.monotonic()
        finally:
            self._opening = None
            # The link may have come up again while this one failed.
            self.stir()

    def _fail(self, error: BrokerError) -> None:
        waiting, self._waiting = self._waiting, deque()
        for _, _, batch, index in waiting:
            if not batch.done.done():
                batch.settle(index, fresh(error))

    def drop_expired(self) -> None:
        """Forget what waited and is given up."""
        waiting = self._waiting
        while waiting and waiting[0][2].done.done():
            waiting.popleft()

    def close(self) -> None:
        """Close the channel of an idle lane, without waiting for it."""
        self._closed = True
        if self._channel is not None:
            self._channel.close_soon()

    async def aclose(self) -> None:
        """Close the channel, whose answers are all there; a broker that blocks us would not answer."""
        self._closed = True
        opening = self._opening
        if opening is not None:
            opening.cancel()
            await asyncio.wait((opening,))
        if self._channel is not None:
            self._channel.close_soon()
