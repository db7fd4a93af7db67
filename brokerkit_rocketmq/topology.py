"""`Topology`: declaring, verifying and deleting the topics and groups of the application.

A group is complete on a broker when its retry topic is there: that is made last, after the offsets are committed.
The same sign is left by a group that somebody else has used (its first heartbeat makes the topic), so it is adopted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from zlib import crc32

from brokerkit.errors import AccessRefused, TopicNotFound, TopologyConflict
from brokerkit.spi import GroupSpec, TopicSpec
from brokerkit_rocketmq.errors import NAME
from brokerkit_rocketmq.making import Make, Making, brokers_of, together
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.pinning import Pinning, Start
from brokerkit_rocketmq.remoting.names import dead_topic, retry_topic
from brokerkit_rocketmq.routes import MessageQueue, Route

__all__ = ["Topology"]

#: Seconds; members commit within 0.1 s.
_LATE_COMMITS = 0.3


class Topology:
    """The topics and groups of one cluster, as the configuration declares them."""

    def __init__(self, making: Making, names: Names) -> None:
        self._making = making
        self._names = names
        self._pinning = Pinning(making.asking)

    # --- declaring ---

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        """Create the topic on every broker (an ordered one on one of them), and the group if one is given.

        What exists is verified and left as it is; a broker that was added gets the topic too.  Two processes that do
        this at once do it together.  Raise `TopologyConflict` that names the property, or `AccessRefused` that says
        what an administrator has to do.
        """
        making, native = self._making, self._names.topic(topic.name)
        route, masters = await asyncio.gather(making.route(native), making.masters())
        if route is not None:
            self._check(topic, native, route)
        missing = self._missing(topic, native, route, masters)
        if missing or route is None:
            await making.topics(missing, topic.name)
            route = await making.visible(native, {one.broker for one in missing})
            self._check(topic, native, route)
        if group is not None:
            await self._declare_group(topic, group, route, masters)

    def _missing(self, topic: TopicSpec, native: str, route: Route | None, masters: Sequence[str]) -> list[Make]:
        queues = self._names.queues(topic.name)
        if topic.ordered:
            # On one broker: with each further one, and whenever one is away, keys would change their queues.
            broker = masters[crc32(native.encode()) % len(masters)]
            return [Make(broker, native, queues, True)] if route is None else []
        if route is not None and len(route.writable) == 1:
            return []  # somebody wants one queue, for its order
        there = brokers_of(route)
        return [Make(broker, native, queues) for broker in masters if broker not in there]

    async def _declare_group(self, topic: TopicSpec, group: GroupSpec, route: Route, masters: Sequence[str]) -> None:
        making, names = self._making, self._names
        native = names.group(topic.name, group.name)
        retry, dead = retry_topic(native), dead_topic(native)
        retry_route, dead_route = await asyncio.gather(making.route(retry), making.route(dead))
        lacking = [broker for broker in masters if broker not in brokers_of(retry_route)]
        await together(
            making.group(broker, one, topic.name, ordered=group.ordered)
            for broker in lacking
            for one in (native, names.shadow(topic.name, group.name), names.dead_reader(topic.name, group.name))
        )
        # With both topics a declaration was completed once: offsets that are missing then were lost by a broker that
        # was killed (it writes them down every 5 s), and whoever begins at the end would skip what is stored.
        if retry_route is None or (dead_route is None and await self._is_unused(native, route)):
            start = Start(group.start == "earliest", names.start_instant(topic.name, group.name))
            # Before the question whether somebody else pinned it meanwhile: see Pinning.
            offsets = await self._pinning.look(route.readable, start)
            # A group that is there already begins at the beginning of queues that are new.
            if await making.route(retry) is None or await self._is_unused(native, route):
                await self._pinning.pin(native, offsets)
        undead = [broker for broker in masters if broker not in brokers_of(dead_route)]
        if undead:
            await making.topics((Make(broker, dead, 1) for broker in undead), topic.name)
            await making.visible(dead, undead)
        if lacking:
            queues = names.retry_queues(topic.name, group.name)
            await making.topics((Make(broker, retry, queues) for broker in lacking), topic.name)
            await making.visible(retry, lacking)

    async def _is_unused(self, native: str, route: Route) -> bool:
        """Return whether a group that exists has certainly not begun with this topic."""
        try:
            return await self._pinning.is_unknown(native, route.readable)
        except AccessRefused:
            return False  # who may only send does not decide where others begin

    def _check(self, topic: TopicSpec, native: str, route: Route) -> None:
        """Raise `TopologyConflict` unless the topic can serve as it is declared."""
        demanded = self._names.topic_keys(topic.name).queues
        if not route.writable or not route.readable:
            what = "written" if not route.writable else "read"
            raise _conflict(topic, f"its perm lets no queue be {what}", f"mqadmin updateTopicPerm -t '{native}' -p 6")
        unread = set(route.writable) - set(route.readable)
        if unread:
            raise _conflict(
                topic,
                f"its readQueueNums is smaller than its writeQueueNums: nobody would read {len(unread)} of its queues",
                f"mqadmin updateTopic -t '{native}' with as many -r as -w",
            )
        if topic.ordered and demanded is None and len(route.writable) != 1:
            raise _conflict(
                topic,
                f"it is declared ordered and exists with {len(route.writable)} queues; one order needs one queue",
                f"declare it with ordered=False, or, if the order of each key is enough, say how many queues it has: "
                f"topics.{topic.name}.{NAME}.queues",
            )
        per_broker = _counts(route.writable)
        least = len(route.writable) if topic.ordered else min(per_broker.values())
        if demanded is not None and least < demanded and (topic.ordered or len(route.writable) > 1 or demanded > 1):
            fewest = min(per_broker, key=per_broker.__getitem__)
            raise _conflict(
                topic,
                f"the configuration asks for {demanded} queues, and it has {least} on {fewest}",
                f"set topics.{topic.name}.{NAME}.queues to {least}, or mqadmin updateTopic -t '{native}' -r {demanded} "
                f"-w {demanded}",
            )

    # --- verifying ---

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        """Raise `TopicNotFound` or `TopologyConflict` unless it exists as given.  Creates nothing."""
        route = await self.require(topic.name, group.name if group is not None else None)
        self._check(topic, self._names.topic(topic.name), route)

    async def require(self, topic: str, group: str | None = None) -> Route:
        """Return the route of the topic; raise `TopicNotFound` unless it exists, and the group if one is given."""
        making = self._making
        if group is None:
            route = await making.route(self._names.topic(topic))
        else:
            native = self._names.group(topic, group)
            route, retry = await asyncio.gather(
                making.route(self._names.topic(topic)), making.route(retry_topic(native))
            )
        if route is None:
            raise TopicNotFound(f"topic {topic!r} does not exist on RocketMQ", topic=topic, backend=NAME)
        if group is not None and retry is None and not await self._is_configured(native, brokers_of(route)):
            raise TopicNotFound(
                f"group {group!r} of topic {topic!r} does not exist on RocketMQ; its name there is {native!r}",
                topic=topic,
                backend=NAME,
            )
        return route

    async def _is_configured(self, group: str, brokers: Iterable[str]) -> bool:
        """Return whether a broker knows a group that nobody has used yet."""
        for broker in brokers:
            if group in await self._making.groups_on(broker):
                return True
        return False

    # --- deleting ---

    async def delete(self, topic: str, group: str | None, groups: Collection[str] = ()) -> None:
        """Delete the group with its messages and dead letters, or the topic with all groups.

        ``groups`` are those that the application knows; others are found by their native names.
        """
        making, names = self._making, self._names
        masters = await making.masters()
        if group is not None:
            natives = {names.group(topic, group)}
            topics = []
        else:
            natives = {names.group(topic, one) for one in groups}
            for found in await asyncio.gather(*(making.groups_on(broker) for broker in masters)):
                natives |= {one for one in found if names.is_group_of(topic, one)}
            topics = [names.topic(topic)]
        for native in sorted(natives):
            topics += [retry_topic(native), dead_topic(native)]
        await making.delete_topics(topics, masters, topic)
        # Members that are connected commit a moment later what they handled last; offsets that stay behind would be
        # taken for those of the topic when it is made anew.
        await making.asking.client.clock.sleep(_LATE_COMMITS)
        derived = [one for native in sorted(natives) for one in names.beside(native)]
        await making.delete_groups(derived, masters, topic)


def _conflict(topic: TopicSpec, what: str, cure: str) -> TopologyConflict:
    return TopologyConflict(f"topic {topic.name!r}: {what}; {cure}", topic=topic.name, backend=NAME)


def _counts(queues: Iterable[MessageQueue]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in queues:
        found[one.broker] = found.get(one.broker, 0) + 1
    return found
