"""`Purging`: a group goes on behind everything that is ready.  The messages stay for other groups."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from brokerkit.errors import BrokerUnavailable
from brokerkit.spi import Clock
from brokerkit_rocketmq.errors import NAME
from brokerkit_rocketmq.making import Making, brokers_of, together
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.routes import MessageQueue
from brokerkit_rocketmq.stats import Figures, Position, Positions
from brokerkit_rocketmq.topology import Topology

__all__ = ["Purging", "Resetting"]

#: Seconds in which the members of a group must have taken up their new offsets: Java's commit every 5 s.
_TAKEN_UP = 20.0
_PAUSE = 0.05
#: ``timestamp`` of a reset to the end of the queues.
_END = -1


class Resetting:
    """Moves groups to other offsets, whether members are connected or not."""

    def __init__(self, making: Making, figures: Figures, clock: Clock) -> None:
        self._making = making
        self._figures = figures
        self._clock = clock

    async def reset(
        self,
        native: str,
        positions: Sequence[Position],
        targets: Sequence[int],
        timestamp: int,
        *,
        shadow: str | None = None,
    ) -> None:
        """Let the group go on at ``targets``, one for each of ``positions``; return when it does.

        Members are told to go there by ``timestamp``, in milliseconds since the epoch, -1 for the end: the broker finds
        the offset of that by itself, so ``targets`` must be what it will find.  With ``shadow`` what comes again does
        so as if it had never been handed out.
        """
        asking = self._making.asking
        if shadow is not None:
            await together(
                self._unmark(shadow, one.queue, target) for one, target in zip(positions, targets, strict=True)
            )
        brokers = {one.queue.broker for one in positions}
        if await self._figures.members(native, brokers):
            # A member would commit its own offset again; the broker tells it (220), if it knows an offset of every
            # queue (4.9.4: AdminBrokerProcessor.resetOffset).
            await together(asking.commit(native, one.queue, one.committed) for one in positions if not one.committed)
            await together(
                self._tell(broker, native, topic, timestamp)
                for broker in brokers
                for topic in {one.queue.topic for one in positions if one.queue.broker == broker}
            )
        else:
            await together(
                asking.commit(native, one.queue, target) for one, target in zip(positions, targets, strict=True)
            )
        await self._taken_up(native, positions, targets)

    async def _unmark(self, shadow: str, queue: MessageQueue, target: int) -> None:
        """Let nothing from ``target`` on count as handed out."""
        mark = await self._making.asking.committed(shadow, queue)
        # None: nobody marks this queue.  One with a trial is larger than any offset.
        if mark is not None and mark > target:
            await self._making.asking.commit(shadow, queue, target)

    async def _tell(self, broker: str, native: str, topic: str, timestamp: int) -> None:
        fields = {
            "topic": topic,
            "group": native,
            "timestamp": str(timestamp),
            "isForce": "true",
            # 5.x: all queues, and no offset but that of the timestamp.
            "queueId": "-1",
        }
        code = RequestCode.INVOKE_BROKER_TO_RESET_OFFSET
        await self._making.asking.ask(broker, code, fields, f"resetting the offsets of group {native!r}")

    async def _taken_up(self, native: str, positions: Sequence[Position], targets: Sequence[int]) -> None:
        asking, clock = self._making.asking, self._clock
        deadline = clock.monotonic() + _TAKEN_UP
        while True:
            known = await asyncio.gather(*(asking.committed(native, one.queue) for one in positions))
            # A member that has gone there goes on from there at once.
            open_ = [
                one.queue
                for one, offset, target in zip(positions, known, targets, strict=True)
                if not _is_at(offset or 0, one.committed, target)
            ]
            if not open_:
                return
            if clock.monotonic() >= deadline:
                raise BrokerUnavailable(
                    f"group {native!r} did not take up its new offsets in {len(open_)} queues within {_TAKEN_UP:g} s; "
                    f"its members have messages in work, or are cut off: stop them and try again",
                    backend=NAME,
                )
            await clock.sleep(_PAUSE)


def _is_at(offset: int, before: int, target: int) -> bool:
    # One that goes back may be on its way again when it is looked at.
    return offset >= target if target >= before else offset != before


class Purging:
    """Removes what is ready in a group."""

    def __init__(self, topology: Topology, making: Making, figures: Figures, names: Names, clock: Clock) -> None:
        self._topology = topology
        self._making = making
        self._figures = figures
        self._names = names
        self._positions = Positions(making.asking)
        self._resetting = Resetting(making, figures, clock)

    async def purge(self, topic: str, group: str) -> int:
        """Let the group go on behind what is stored now, its retries included; return how many were ready.

        Exact while no member is connected.  With members, what they took or finished meanwhile may count too.
        """
        names = self._names
        route = await self._topology.require(topic, group)
        retry = await self._making.route(names.retry(topic, group))
        native, shadow = names.group(topic, group), names.shadow(topic, group)
        await self._making.asking.caught_up(brokers_of(route) | brokers_of(retry))
        count = 0
        for one in filter(None, (route, retry)):
            members = await self._figures.members(native, brokers_of(one))
            positions = await self._positions.read(native, shadow, one.readable)
            waiting = [each for each in positions if each.behind]
            if not waiting:
                continue
            count += sum(each.end - (each.handed_out if members else each.committed) for each in waiting)
            # The broker resets all queues of a topic, so all must be told apart from those that go back.
            await self._resetting.reset(native, positions, [each.end for each in positions], _END)
        return count
