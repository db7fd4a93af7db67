"""Where a new group begins: at what is there when it is declared, not when its first member comes.

A group without a committed offset begins wherever the age of the queue puts it: at 0 on a young queue, whatever it
asks for.  So its offsets are committed when it is declared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brokerkit_rocketmq.asking import Asking
from brokerkit_rocketmq.routes import MessageQueue

__all__ = ["Pinning", "Start"]


@dataclass(frozen=True, slots=True)
class Start:
    """Where a group begins: at the end of the queues, at their beginning, or at an instant."""

    earliest: bool = False
    #: Seconds since the epoch; wins over ``earliest``.
    instant: float | None = None


class Pinning:
    """Two steps with the question in between whether the group is pinned already.

    What is read before that question never lies behind a message that was sent after the group was pinned by
    somebody else, so committing it late, in a race of two declarations, skips nothing.
    """

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def look(self, queues: Sequence[MessageQueue], start: Start) -> Mapping[MessageQueue, int]:
        """Return the offset to begin at, for each queue."""
        if not start.earliest or start.instant is not None:
            await self._asking.caught_up(queue.broker for queue in queues)
        offsets = await asyncio.gather(*(self._offset(queue, start) for queue in queues))
        return dict(zip(queues, offsets, strict=True))

    async def _offset(self, queue: MessageQueue, start: Start) -> int:
        if start.instant is not None:
            return await self._at(queue, start.instant)
        if start.earliest:
            return await self._asking.min_offset(queue)
        return await self._asking.max_offset(queue)

    async def _at(self, queue: MessageQueue, instant: float) -> int:
        if instant >= self._asking.client.clock.time():
            # 4.9.4 answers with the last message for an instant that is still to come.
            return await self._asking.max_offset(queue)
        return await self._asking.offset_at(queue, instant)

    async def pin(self, group: str, offsets: Mapping[MessageQueue, int]) -> None:
        """Commit the offsets wherever the group has none that makes sense."""
        await asyncio.gather(*(self._pin(group, queue, offset) for queue, offset in offsets.items()))

    async def _pin(self, group: str, queue: MessageQueue, offset: int) -> None:
        known = await self._asking.committed(group, queue)
        # 0 may be the answer for "none" (4.9.4).
        if known and known <= await self._asking.max_offset(queue):
            return
        # A larger one is of a topic of this name that is gone; its group was not deleted with it.
        await self._asking.commit(group, queue, offset)

    async def is_unknown(self, group: str, queues: Sequence[MessageQueue]) -> bool:
        """Return whether the group has certainly never had an offset in any of the queues."""
        known = await asyncio.gather(*(self._asking.committed(group, queue) for queue in queues))
        return all(one is None for one in known)
