"""Figures of a group, from the offsets that the brokers know: requests without bodies, all under way at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from brokerkit.errors import BrokerError, TopicNotFound
from brokerkit.spi import Clock, GroupStats
from brokerkit_rocketmq.asking import Asking
from brokerkit_rocketmq.making import Making, brokers_of
from brokerkit_rocketmq.marks import Mark
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.remoting.messages import BadMessages, decode_messages
from brokerkit_rocketmq.routes import MessageQueue
from brokerkit_rocketmq.topology import Topology

__all__ = ["Figures", "Position", "Positions", "Standing"]

#: Queues of which the oldest ready message is read at once.
_READS = 16
#: Bytes of messages after which no more of them are read.
_READ_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Position:
    """How far a group is in one queue."""

    queue: MessageQueue
    #: Where the next message will be.
    end: int
    #: Where the group goes on; messages below are settled.
    committed: int
    #: Messages below were handed out; `committed` where that is not recorded.
    handed_out: int

    @property
    def behind(self) -> int:
        """Messages that are not settled."""
        return self.end - self.committed


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a group is."""

    #: In the queues of its topic and of its retry topic.
    positions: tuple[Position, ...]
    #: Dead letters.
    dead: int
    #: Client ids.
    members: frozenset[str]

    @property
    def starts(self) -> list[tuple[Position, int]]:
        """The positions, each with the offset of the first message that nobody holds."""
        # Without a member nobody holds what was handed out.
        return [(one, one.handed_out if self.members else one.committed) for one in self.positions]

    def by_queue(self, native_topic: str) -> dict[str, Position]:
        """Return the positions in the queues of the topic: by number, or ``broker:number`` where brokers share it."""
        own = [one for one in self.positions if one.queue.topic == native_topic]
        several = len({one.queue.broker for one in own}) > 1
        return {f"{one.queue.broker}:{one.queue.queue_id}" if several else str(one.queue.queue_id): one for one in own}


class Positions:
    """Reads the positions of groups."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def read(self, group: str, shadow: str | None, queues: Iterable[MessageQueue]) -> list[Position]:
        """Return the position of the group in each queue; ``shadow`` is the group whose offsets are the marks."""
        return await asyncio.gather(*(self._read(group, shadow, queue) for queue in queues))

    async def _read(self, group: str, shadow: str | None, queue: MessageQueue) -> Position:
        asking = self._asking
        end, committed, mark = await asyncio.gather(
            asking.max_offset(queue),
            asking.committed(group, queue),
            asking.committed(shadow, queue) if shadow is not None else _nothing(),
        )
        # What was committed after the end was read lies behind it.
        start = min(await self._from(committed, queue), end)
        return Position(queue, end, start, min(max(Mark.of(mark).high if mark else 0, start), end))

    async def _from(self, committed: int | None, queue: MessageQueue) -> int:
        """Return where a group with this offset goes on: messages that the broker has deleted are behind it."""
        # The oldest message is asked for only where it may matter: 0 may stand for "none" (4.9.4).
        return committed if committed else await self._asking.min_offset(queue)


class Figures:
    """The figures of a group, as of now."""

    def __init__(self, topology: Topology, making: Making, names: Names, clock: Clock) -> None:
        self._topology = topology
        self._making = making
        self._names = names
        self._clock = clock
        self._positions = Positions(making.asking)

    async def stats(self, topic: str, group: str) -> GroupStats:
        """Return the figures of the group; raise `TopicNotFound` when it is missing.

        A message counts from some milliseconds after its send was confirmed.  ``ready`` goes by offsets: messages that
        the tag filter of the group leaves out count until a member has passed them.  ``unsettled`` is what lies between
        the oldest unsettled message and the last one that was handed out, so settled messages above an unsettled one
        count too.  Delays are kept for all topics together: None.
        ``oldest_age`` is None where the messages may not be read, and may be too small where they are very large.
        """
        standing = await self.standing(topic, group)
        return GroupStats(
            topic=topic,
            group=group,
            ready=sum(one.end - start for one, start in standing.starts),
            unsettled=sum(start - one.committed for one, start in standing.starts),
            delayed=None,
            dead=standing.dead,
            consumers=len(standing.members),
            oldest_age=await self.oldest_age(topic, group, standing),
            source="broker offsets",
            as_of=self._clock.time(),
            queues={name: one.behind for name, one in standing.by_queue(self._names.topic(topic)).items()},
        )

    async def standing(self, topic: str, group: str) -> Standing:
        """Return where the group is now; raise `TopicNotFound` when it is missing."""
        names, making = self._names, self._making
        route = await self._topology.require(topic, group)
        # What was sent before the question counts.
        await making.asking.caught_up(brokers_of(route))
        native = names.group(topic, group)
        retry, dead = await asyncio.gather(
            making.route(names.retry(topic, group)), making.route(names.dead(topic, group))
        )
        queues = (*route.readable, *(retry.readable if retry is not None else ()))
        positions, letters, members = await asyncio.gather(
            self._positions.read(native, names.shadow(topic, group), queues),
            self._letters(topic, group, dead.readable if dead is not None else ()),
            self.members(native, brokers_of(route) | brokers_of(retry)),
        )
        return Standing(tuple(positions), letters, members)

    async def members(self, native: str, brokers: Iterable[str]) -> frozenset[str]:
        """Return the client ids of all members that any of the brokers knows."""
        found = await asyncio.gather(*(self._making.asking.members(native, broker) for broker in brokers))
        return frozenset().union(*found)

    async def _letters(self, topic: str, group: str, queues: Sequence[MessageQueue]) -> int:
        found = await self._positions.read(self._names.dead_reader(topic, group), None, queues)
        return sum(one.behind for one in found)

    async def oldest_age(self, topic: str, group: str, standing: Standing) -> float | None:
        """Return how long the oldest ready message has waited; None when none is ready, or none may be read."""
        # Not as the group: 5.x tells the first who pulls after a reset of offsets, and nobody else.
        reader = self._names.dead_reader(topic, group)
        ready = [(one, start) for one, start in standing.starts if start < one.end]
        ready.sort(key=lambda pair: -pair[0].behind)
        oldest: float | None = None
        size = 0
        for first in range(0, len(ready), _READS):
            some = ready[first : first + _READS]
            try:
                found = await asyncio.gather(*(self._stored(reader, one.queue, start) for one, start in some))
            except TopicNotFound:
                raise
            except BrokerError:
                return None
            for stored, weight in found:
                size += weight
                if stored is not None and (oldest is None or stored < oldest):
                    oldest = stored
            if size > _READ_BYTES:
                break
        return None if oldest is None else max(0.0, self._clock.time() - oldest)

    async def _stored(self, reader: str, queue: MessageQueue, offset: int) -> tuple[float | None, int]:
        """Return when a message was stored, in seconds since the epoch, and how many bytes came."""
        frame, _ = await self._making.asking.pull(reader, queue, offset, count=1)
        try:
            messages = decode_messages(frame.body)
        except BadMessages as error:
            messages = error.messages
        return (messages[0].store_timestamp / 1000 if messages else None), len(frame.body)


async def _nothing() -> None:
    return None
