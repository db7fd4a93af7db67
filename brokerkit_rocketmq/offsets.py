"""`Offsets`: how far a group is in its queues, as the brokers know it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from brokerkit.errors import BrokerError, TopicNotFound
from brokerkit_rocketmq.asking import Asking, offset_fields
from brokerkit_rocketmq.errors import refused, unreachable
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.marks import Mark
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.errors import RemotingError
from brokerkit_rocketmq.remoting.frames import HeadTemplate
from brokerkit_rocketmq.remoting.messages import decode_messages

if TYPE_CHECKING:
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.reader import Reader
    from brokerkit_rocketmq.remoting.frames import Frame
    from brokerkit_rocketmq.remoting.messages import StoredMessage
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
        return self._source.shadow_group is not None and broker not in self._doubtful

    def _may_mark(self, broker: str) -> bool:
        """Return whether a mark may be written: also where it was refused a while ago."""
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
        if group is None or not self._may_mark(queue.broker):
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
        if broker not in self._doubtful:
            group = self._source.native_group
            log.info("redelivered messages of %s on %s are not recognised: %s", group, broker, error)
        self._doubtful[broker] = self._client.clock.monotonic() + _DOUBT

    async def try_mark(self, queue: MessageQueue, mark: Mark) -> None:
        """Record what was handed out, and return when the broker has it; where it refuses that nothing is marked."""
        group = self._source.shadow_group
        broker = queue.broker
        if group is None or not self._may_mark(broker):
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

    # Once a queue is read its marks go through its own connection, so that they are on their way before any handler
    # starts on what is handed out.  A broker handles what comes together in any order (a pool of threads).

    def mark_soon(self, reader: Reader) -> None:
        """Record how far ``reader`` is with the next write."""
        if self._source.shadow_group is not None and self._may_mark(reader.queue.broker):
            self._write_mark(reader)

    async def mark_now(self, reader: Reader) -> None:
        """Record how far ``reader`` is, and return when the broker has it; where it refuses that nothing is marked."""
        # What is under way may come after it; what is written from now on says at least the same.
        await reader.all_marked()
        if self._source.shadow_group is None or not self._may_mark(reader.queue.broker):
            return
        try:
            frame = await asyncio.shield(self._write_mark(reader))
        except RemotingError as exc:
            raise unreachable(exc) from exc
        if frame.code != ResponseCode.SUCCESS:
            self._doubt(reader.queue.broker, self._refused(reader.queue, frame))

    def _write_mark(self, reader: Reader) -> asyncio.Future[Frame]:
        if reader.mark_head is None:
            fields = offset_fields(self._source.shadow_group or "", reader.queue, 0)
            reader.mark_head = HeadTemplate(RequestCode.UPDATE_CONSUMER_OFFSET, fields, "commitOffset")
        before, after = reader.mark_head.render(reader.progress.mark.number)
        reader.disordered = reader.disordered or bool(reader.marking)
        timeout = self._client.options.timeout
        answer = reader.home.request_rendered(before, after, b"", timeout=timeout)
        reader.marking.add(answer)
        answer.add_done_callback(lambda done: self._marked(reader, done))
        return answer

    def _marked(self, reader: Reader, answer: asyncio.Future[Frame]) -> None:
        reader.marking.discard(answer)
        if answer.cancelled() or answer.exception() is not None:
            # The connection is lost, and the reader with it, or will be.
            return
        queue, frame = reader.queue, answer.result()
        if frame.code == ResponseCode.SUCCESS:
            self._doubtful.pop(queue.broker, None)
        else:
            with suppress(BrokerError):
                self._doubt(queue.broker, self._refused(queue, frame))
        if reader.disordered and not reader.marking:
            reader.disordered = False
            if reader.live:
                self.mark_soon(reader)

    def _refused(self, queue: MessageQueue, frame: Frame) -> BrokerError:
        return refused(frame, f"marking what was handed out of {queue.topic}", topic=self._source.topic)

    # --- the queue ---

    async def first(self, queue: MessageQueue) -> int:
        """Return the offset of the oldest message there is."""
        return await self._asking.min_offset(queue)

    async def end(self, queue: MessageQueue) -> int:
        """Return the offset that the next message will get."""
        return await self._asking.max_offset(queue)

    async def holds(self, queue: MessageQueue, message: StoredMessage) -> bool:
        """Return whether the queue has this message where it was, or has deleted all that is so old."""
        frame, _ = await self._asking.pull(self._source.native_group, queue, message.queue_offset, count=1)
        if frame.code == ResponseCode.SUCCESS:
            for found in decode_messages(frame.body):
                if found.queue_offset == message.queue_offset:
                    place = (found.commit_log_offset, found.store_timestamp)
                    return place == (message.commit_log_offset, message.store_timestamp)
        return message.queue_offset < await self.first(queue)


async def both(offsets: Offsets, queue: MessageQueue) -> tuple[int | None, Mark | None]:
    """Return what is committed and what is marked."""
    committed, mark = await asyncio.gather(offsets.committed(queue), offsets.mark(queue))
    return committed, mark
