"""`Offsets`: how far a group is in its queues, as the brokers know it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from brokerkit.errors import BrokerError
from brokerkit_rocketmq.errors import refused
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.marks import Mark
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode

if TYPE_CHECKING:
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.remoting.connection import RemotingConnection
    from brokerkit_rocketmq.routes import MessageQueue
    from brokerkit_rocketmq.sources import Source

__all__ = ["Offsets", "both", "offset_fields"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds until a broker that kept no marks is tried again.
_DOUBT = 60.0


def offset_fields(group: str, queue: MessageQueue, offset: int) -> dict[str, str]:
    """Return the header that stores an offset (``UpdateConsumerOffsetRequestHeader``)."""
    return {
        "consumerGroup": group,
        "topic": queue.topic,
        "queueId": str(queue.queue_id),
        "commitOffset": str(offset),
    }


class Offsets:
    """Reads and writes the offsets of one source.  All calls raise `BrokerError`."""

    def __init__(self, client: Client, source: Source) -> None:
        self._client = client
        self._source = source
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
        return await self._query(self._source.native_group, queue)

    async def commit(self, queue: MessageQueue, offset: int) -> None:
        """Store the offset that the group goes on from; return when the broker has it."""
        fields = offset_fields(self._source.native_group, queue, offset)
        frame = await self._client.call(queue.broker, RequestCode.UPDATE_CONSUMER_OFFSET, fields, slaves=True)
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, f"committing offset {offset} of {queue.topic}", topic=self._source.topic)

    # --- what was handed out ---

    async def mark(self, queue: MessageQueue) -> Mark | None:
        """Return what was handed out; None when that is not recorded."""
        group = self._source.shadow_group
        if group is None or not self.marks(queue.broker):
            return None
        try:
            number = await self._query(group, queue)
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
        fields = offset_fields(group, queue, mark.number)
        frame = await self._client.call(broker, RequestCode.UPDATE_CONSUMER_OFFSET, fields, slaves=True)
        if frame.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST:
            # 5.x says so on a broker that came after the group was declared.
            try:
                await Making(self._client, self._client.options.timeout).group(broker, group, self._source.topic)
            except BrokerError as error:
                self._doubt(broker, error)
                return
            frame = await self._client.call(broker, RequestCode.UPDATE_CONSUMER_OFFSET, fields, slaves=True)
        if frame.code != ResponseCode.SUCCESS:
            what = f"marking what was handed out of {queue.topic}"
            self._doubt(broker, refused(frame, what, topic=self._source.topic))
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
        return await self._bound(queue, RequestCode.GET_MIN_OFFSET)

    async def end(self, queue: MessageQueue) -> int:
        """Return the offset that the next message will get."""
        return await self._bound(queue, RequestCode.GET_MAX_OFFSET)

    async def _bound(self, queue: MessageQueue, code: RequestCode) -> int:
        fields = {"topic": queue.topic, "queueId": str(queue.queue_id)}
        frame = await self._client.call(queue.broker, code, fields, slaves=True)
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, f"asking for the offsets of {queue.topic}", topic=self._source.topic)
        return max(0, int(frame.fields["offset"]))

    async def _query(self, group: str, queue: MessageQueue) -> int | None:
        fields = {
            "consumerGroup": group,
            "topic": queue.topic,
            "queueId": str(queue.queue_id),
            # 5.x answers 0 instead of "none" for a young queue without this, and 4.9 does so anyway.
            "setZeroIfNotFound": "false",
        }
        frame = await self._client.call(queue.broker, RequestCode.QUERY_CONSUMER_OFFSET, fields, slaves=True)
        if frame.code == ResponseCode.QUERY_NOT_FOUND:
            return None
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, f"asking for the offset of group {group}", topic=self._source.topic)
        offset = int(frame.fields["offset"])
        return offset if offset >= 0 else None


async def both(offsets: Offsets, queue: MessageQueue) -> tuple[int | None, Mark | None]:
    """Return what is committed and what is marked."""
    committed, mark = await asyncio.gather(offsets.committed(queue), offsets.mark(queue))
    return committed, mark
