"""`Offsets`: how far a group is in its queues, as the brokers know it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from brokerkit.errors import BrokerError, TopicNotFound
from brokerkit_rocketmq.asking import Asking, offset_fields
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.marks import Mark
from brokerkit_rocketmq.remoting.codes import RequestCode

if TYPE_CHECKING:
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.remoting.connection import RemotingConnection
    from brokerkit_rocketmq.routes import MessageQueue
    from brokerkit_rocketmq.sources import Source

__all__ = ["Offsets", "both"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds until a broker that kept no marks is tried again.
_DOUBT = 60.0


class Offsets:
    """Reads and writes the offsets of one source.  All calls raise `BrokerError`."""

    def __init__(self, client: Client, source: Source) -> None:
        self._client = client
        self._source = source
        self._asking = Asking(client, client.options.timeout, slaves=True)
        #: Brokers that refuse marks, and until when they are not asked again; monotonic.
        self._doubtful: dict[str, float] = {}

    def marks(self, broker: str) -> bool:
        """Return whether marks are kept on a broker: not where it refuses them."""
        if self._source.shadow_group is None:
            return False
        until = self._doubtful.get(broker) if self._doubtful else None
        return until is None or self._client.clock.monotonic() >= until

    # --- what the group has done ---

    async def committed(self, queue: MessageQueue) -> int | None:
        """Return the offset that the group goes on from; None when the broker has none."""
        return await self._asking.committed(self._source.native_group, queue)

    async def commit(self, queue: MessageQueue, offset: int) -> None:
        """Store the offset that the group goes on from; return when the broker has it."""
        await self._asking.commit(self._source.native_group, queue, offset)

    # --- what was handed out ---

    async def mark(self, queue: MessageQueue) -> Mark | None:
        """Return what was handed out; None when that is not recorded."""
        group = self._source.shadow_group
        if group is None or not self.marks(queue.broker):
            return None
        try:
            number = await self._asking.committed(group, queue)
        except BrokerError as error:
            self._doubt(queue.broker, error)
            return None
        return Mark.of(number) if number is not None else None

    def _doubt(self, broker: str, error: BrokerError) -> None:
        """Keep no marks where the broker does not; raise what may pass."""
        if error.retryable:
            raise error
        log.info("redelivered messages of %s on %s are not recognised: %s", self._source.native_group, broker, error)
        self._doubtful[broker] = self._client.clock.monotonic() + _DOUBT

    async def try_mark(self, queue: MessageQueue, mark: Mark) -> None:
        """Record what was handed out, and return when the broker has it; where it refuses that nothing is marked."""
        group = self._source.shadow_group
        broker = queue.broker
        if group is None or not self.marks(broker):
            return
        try:
            try:
                await self._asking.commit(group, queue, mark.number)
            except TopicNotFound:
                # 5.x says so on a broker that came after the group was declared.
                await Making(self._client, self._client.options.timeout).group(broker, group, self._source.topic)
                await self._asking.commit(group, queue, mark.number)
        except BrokerError as error:
            self._doubt(broker, error)
        else:
            self._doubtful.pop(broker, None)

    def mark_soon(self, connection: RemotingConnection, queue: MessageQueue, mark: Mark) -> None:
        """Record it with the next write, before anything that is written later."""
        group = self._source.shadow_group
        if group is not None and self.marks(queue.broker):
            connection.send_oneway(RequestCode.UPDATE_CONSUMER_OFFSET, offset_fields(group, queue, mark.number))

    # --- the queue ---

    async def first(self, queue: MessageQueue) -> int:
        """Return the offset of the oldest message there is."""
        return await self._asking.min_offset(queue)

    async def end(self, queue: MessageQueue) -> int:
        """Return the offset that the next message will get."""
        return await self._asking.max_offset(queue)


async def both(offsets: Offsets, queue: MessageQueue) -> tuple[int | None, Mark | None]:
    """Return what is committed and what is marked."""
    committed, mark = await asyncio.gather(offsets.committed(queue), offsets.mark(queue))
    return committed, mark
