"""`ConsumeChannel`: deliveries of one queue, and their acknowledgements."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pika import spec

from brokerkit.errors import BrokerError
from brokerkit_rabbitmq.channel import Channel
from brokerkit_rabbitmq.frames import DELIVER, ack_frame, nack_frame

if TYPE_CHECKING:
    from brokerkit_rabbitmq.protocol import Amqp

__all__ = ["IN_ORDER", "ConsumeChannel"]

_U64 = struct.Struct(">Q")
#: basic.qos counts in 16 bits; 0 would mean "no limit".
_MOST_PREFETCH = 65535
#: A quorum queue takes back so many messages of one nack in their order: more are in an Erlang map, which has none.
#: And of so many nacks: what comes while 32 of them are under way is put together in one (3.10.8).
_RETURNED = 32
IN_ORDER = _RETURNED * 16


class ConsumeChannel(Channel):
    """A channel with one consumer.

    deliver: called for each message with delivery tag, redelivered, exchange and routing key as they travel (two
        short strings), method, property list and body
    ended: done when the broker cancelled the consumer or the channel is gone
    """

    def __init__(
        self, connection: Amqp, number: int, deliver: Callable[[int, bool, bytes, bytes, bytes, bytes], None]
    ) -> None:
        super().__init__(connection, number)
        self.ended: asyncio.Future[None] = connection.loop.create_future()
        self._deliver = deliver
        self._consumer_tag = ""
        self._prefetch = 0
        #: All tags up to this one are settled, and of those above these.
        self._low = 0
        #: The tag of the latest delivery.
        self._last = 0
        self._settled: set[int] = set()

    async def consume(self, queue: str, prefetch: int) -> None:
        """Begin to receive.  Raise `TopicNotFound` when there is no such queue."""
        self._prefetch = min(prefetch, _MOST_PREFETCH)
        await self.synchronise()
        answer = await self.call(spec.Basic.Consume(0, queue), spec.Basic.ConsumeOk)
        self._consumer_tag = answer.consumer_tag

    @property
    def idle(self) -> bool:
        """Whether all that was delivered is settled."""
        return self._last == self._low

    async def synchronise(self) -> None:
        """Return when the broker has handled everything that was written before."""
        # The limit of a consumer that exists does not change by this.
        await self.call(spec.Basic.Qos(0, self._prefetch, False), spec.Basic.QosOk)

    async def cancel(self) -> None:
        """Receive nothing more; what is under way still comes before this returns."""
        if self._consumer_tag and not self.ended.done():
            await self.call(spec.Basic.Cancel(self._consumer_tag), spec.Basic.CancelOk)

    # --- settling ---

    def ack(self, tags: Iterable[int]) -> int:
        """Acknowledge deliveries; return how many of them were settled before.

        One frame covers all that is settled without a gap from the oldest on; whatever lies above an unsettled one
        has a frame of its own, so that it never comes back.
        """
        fresh, repeated = self._take(tags)
        if not fresh:
            return repeated
        low = self._low
        # The broker must still know the tag of a "multiple", so it is one of those that are settled now.
        covered = max((tag for tag in fresh if tag <= low), default=0)
        frames = [ack_frame(self.number, tag, False) for tag in fresh if tag > low]
        if covered:
            frames.append(ack_frame(self.number, covered, True))
        self.connection.write(b"".join(frames))
        return repeated

    def release(self, tags: Iterable[int]) -> int:
        """Give deliveries back; return how many of them were settled before."""
        fresh, repeated = self._take(tags)
        if fresh:
            self.connection.write(b"".join(nack_frame(self.number, tag) for tag in sorted(fresh)))
        return repeated

    def release_all(self) -> None:
        """Give back everything that is not settled."""
        if self.error is None:
            # Tag 0 stands for all of them (specification of basic.nack).
            self.connection.write(nack_frame(self.number, 0, multiple=True))
            self._low = self._last
            self._settled.clear()

    def release_oldest(self, count: int) -> int:
        """Give back up to ``count`` of the oldest deliveries that are not settled, in their order; return how many.

        ``count`` is at most `IN_ORDER`, and the queue must have taken back the ones before.
        """
        tags = []
        for tag in range(self._low + 1, self._last + 1):
            if tag not in self._settled:
                tags.append(tag)
                if len(tags) == count:
                    break
        frames = [nack_frame(self.number, tag, multiple=True) for tag in tags[_RETURNED - 1 :: _RETURNED]]
        if len(tags) % _RETURNED:
            frames.append(nack_frame(self.number, tags[-1], multiple=True))
        if frames:
            self.connection.write(b"".join(frames))
            self._take(tags)
        return len(tags)

    def is_settled(self, tag: int) -> bool:
        """Return whether the delivery was acknowledged or given back."""
        return tag <= self._low or tag in self._settled

    def _take(self, tags: Iterable[int]) -> tuple[list[int], int]:
        """Mark as settled and return what was not, and how many were."""
        fresh = []
        repeated = 0
        low, settled = self._low, self._settled
        for tag in tags:
            if tag > low and tag not in settled:
                settled.add(tag)
                fresh.append(tag)
            else:
                repeated += 1
        while low + 1 in settled:
            low += 1
            settled.discard(low)
        self._low = low
        return fresh, repeated

    # --- coming in ---

    def content(self, method_id: int, method: bytes, header: bytes, body: bytes) -> None:
        if method_id != DELIVER or self.error is not None:
            return
        start = 1 + method[0]
        (tag,) = _U64.unpack_from(method, start)
        self._last = tag
        self._deliver(tag, method[start + 8] & 1 == 1, method[start + 9 :], method, header, body)

    def event(self, method: Any) -> None:
        # The queue was deleted or its leader moved away.
        if isinstance(method, spec.Basic.Cancel) and method.consumer_tag == self._consumer_tag:
            self._end()

    def gone(self, error: BrokerError) -> None:
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
