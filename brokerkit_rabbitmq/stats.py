"""Figures of a group: what AMQP says exactly, and what only the management API or Prometheus knows."""

from __future__ import annotations

from brokerkit.errors import TopicNotFound
from brokerkit.spi import Clock, GroupStats
from brokerkit_rabbitmq.management import Management, ManagementUnavailable
from brokerkit_rabbitmq.names import Names
from brokerkit_rabbitmq.topology import Topology

__all__ = ["Figures"]

#: Seconds for which an API that did not answer is not asked again.
_SILENCE = 30.0


class Figures:
    """Asks the sources in their order.  What none of them knows is None."""

    def __init__(self, topology: Topology, management: Management, names: Names, clock: Clock) -> None:
        self._topology = topology
        self._management = management
        self._names = names
        self._clock = clock
        self._silent_until = -1.0

    async def stats(self, topic: str, group: str) -> GroupStats:
        """Return the figures of the group; raise `TopicNotFound` when its queue is missing.

        Ready messages, dead letters and consumers are exact and of now.  Unsettled ones are those of the management
        API's last sample, some seconds ago.  What waits in the delay wheel cannot be told apart by group: None.
        """
        queue = self._names.queue_name(topic, group)
        ready, consumers = await self._topology.count(queue)
        dead = await self._dead(topic, group)
        unsettled, source = await self._unsettled(queue)
        return GroupStats(
            topic=topic,
            group=group,
            ready=ready,
            unsettled=unsettled,
            delayed=None,
            dead=dead,
            consumers=consumers,
            oldest_age=None,
            source=source,
            as_of=self._clock.time(),
        )

    async def _dead(self, topic: str, group: str) -> int | None:
        try:
            return (await self._topology.count(self._names.dead_queue_name(topic, group)))[0]
        except TopicNotFound:
            # Nothing died yet in a group that somebody else declared.
            return None

    async def _unsettled(self, queue: str) -> tuple[int | None, str]:
        plain = "AMQP"
        if self._clock.monotonic() < self._silent_until:
            return None, plain
        try:
            if self._management.offered:
                found = await self._management.queue(queue)
                value = found.get("messages_unacknowledged")
                return (int(value) if value is not None else None), "AMQP, management API"
        except ManagementUnavailable:
            pass
        try:
            figures = await self._management.prometheus_queue(queue)
            return figures.get("messages_unacked"), "AMQP, Prometheus"
        except ManagementUnavailable:
            self._silent_until = self._clock.monotonic() + _SILENCE
            return None, plain
