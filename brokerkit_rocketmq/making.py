"""`Making`: topics and groups as an administrator makes and deletes them on brokers, one step each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Collection, Iterable, Sequence
from dataclasses import dataclass

from brokerkit.errors import AccessRefused, BrokerUnavailable, TopicNotFound
from brokerkit_rocketmq.asking import Asking, first_error
from brokerkit_rocketmq.client import Client
from brokerkit_rocketmq.errors import NAME, refused
from brokerkit_rocketmq.remoting.bodies import parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.names import DEAD_PREFIX, retry_topic
from brokerkit_rocketmq.routes import MASTER, Route

__all__ = ["Make", "Making", "brokers_of", "together"]

#: ``PermName``: read and write.
_READ_WRITE = 6
#: Seconds until a topic that a broker has made must be known to the NameServer: it tells it within some 30 ms.
_VISIBLE = 15.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.2
#: ``retryMaxTimes`` of our groups: how often a message is tried is decided here, not by the broker.
_NEVER_GIVE_UP = 1_000_000


@dataclass(frozen=True, slots=True)
class Make:
    """A topic to be made on a broker."""

    broker: str
    topic: str
    queues: int
    ordered: bool = False


class Making:
    """The steps; each raises `AccessRefused` that says what an administrator has to do."""

    def __init__(self, client: Client, timeout: float, cluster: str | None = None) -> None:
        """``cluster``: on whose brokers; None: on all."""
        self.asking = Asking(client, timeout)
        self._client = client
        self._cluster = cluster

    # --- what is there ---

    async def masters(self) -> list[str]:
        """Return the names of all brokers with a master, sorted; raise `BrokerUnavailable` when there is none."""
        brokers = await self._client.brokers(refresh=True)
        masters = sorted(name for name, addresses in brokers.items() if MASTER in addresses)
        if self._cluster is not None:
            there = set((await self.clusters()).get(self._cluster, ()))
            masters = [name for name in masters if name in there]
        if not masters:
            where = "" if self._cluster is None else f" of the cluster {self._cluster!r}"
            raise BrokerUnavailable(f"the NameServer knows no master{where} at the moment", backend=NAME)
        return masters

    async def clusters(self) -> dict[str, list[str]]:
        """Return the names of the brokers of each cluster, sorted."""
        frame = await self._client.call_name_server(RequestCode.GET_BROKER_CLUSTER_INFO)
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, "asking for the clusters")
        table = (parse_body(frame.body) or {}).get("clusterAddrTable") or {}
        return {str(name): sorted(brokers) for name, brokers in table.items()}

    async def route(self, native: str) -> Route | None:
        """Return the route of a topic as the NameServer tells it now, None when it does not exist."""
        try:
            return await self._client.routes.route(native, refresh=True)
        except TopicNotFound:
            return None

    async def visible(self, native: str, brokers: Collection[str]) -> Route:
        """Return the route of a topic as soon as the NameServer tells it with these brokers."""
        clock = self._client.clock
        deadline = clock.monotonic() + _VISIBLE
        pause = _FIRST_PAUSE
        while True:
            route = await self.route(native)
            if route is not None and brokers_of(route).issuperset(brokers):
                return route
            if clock.monotonic() >= deadline:
                raise BrokerUnavailable(
                    f"{native!r} was created, and the NameServer does not tell it after {_VISIBLE:g} s", backend=NAME
                )
            await clock.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def groups_on(self, broker: str) -> frozenset[str]:
        """Return the native names of all groups that a broker knows."""
        code = RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG
        answer = await self.asking.ask(broker, code, {}, f"asking {broker} for its groups")
        return frozenset((answer or {}).get("subscriptionGroupTable") or ())

    # --- making ---

    async def topics(self, topics: Iterable[Make], topic: str | None = None) -> None:
        """Make topics; one that exists gets these properties."""
        await together(self._topic(one, topic) for one in topics)

    async def _topic(self, one: Make, topic: str | None) -> None:
        fields = {
            "topic": one.topic,
            "defaultTopic": "TBW102",
            "readQueueNums": str(one.queues),
            "writeQueueNums": str(one.queues),
            "perm": str(_READ_WRITE),
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": "0",
            "order": "true" if one.ordered else "false",
        }
        cure = f"mqadmin updateTopic -t '{one.topic}' -r {one.queues} -w {one.queues}"
        what = f"creating {one.topic!r} on {one.broker}"
        await self._administer(one.broker, RequestCode.UPDATE_AND_CREATE_TOPIC, fields, topic, what, cure=cure)

    async def group(self, broker: str, native: str, topic: str | None = None, *, ordered: bool = False) -> None:
        """Make a group; one that exists gets these properties."""
        config = {
            "groupName": native,
            "consumeEnable": True,
            "consumeFromMinEnable": True,
            "consumeBroadcastEnable": True,
            "consumeMessageOrderly": ordered,
            "retryQueueNums": 1,
            "retryMaxTimes": _NEVER_GIVE_UP,
            "brokerId": 0,
            "whichBrokerWhenConsumeSlowly": 1,
            "notifyConsumerIdsChangedEnable": True,
        }
        cure = f"mqadmin updateSubGroup -g '{native}' -r {_NEVER_GIVE_UP}"
        what = f"creating group {native!r} on {broker}"
        code = RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP
        await self._administer(broker, code, {}, topic, what, body=json.dumps(config).encode(), cure=cure)

    async def plain(self, native: str, queues: int, group: str) -> Route:
        """Return the route of a topic of our own and make it, and a group to read it with, where they are missing."""
        route, masters = await asyncio.gather(self.route(native), self.masters())
        missing = [broker for broker in masters if broker not in brokers_of(route)]
        if route is not None and not missing:
            return route
        await together(self.group(broker, group) for broker in missing)
        await self.topics(Make(broker, native, queues) for broker in missing)
        return await self.visible(native, missing)

    async def missing(self, native: str) -> None:
        """Make a topic that a send found missing, where that is ours to do; raise `TopicNotFound` for others.

        It is for the dead letters of a group that exists: members of other libraries leave them to the broker, which
        makes their topic with the first one.
        """
        group = native.removeprefix(DEAD_PREFIX)
        if group == native or await self.route(retry_topic(group)) is None:
            raise TopicNotFound("the topic does not exist", topic=native, backend=NAME)
        masters = await self.masters()
        await self.topics((Make(broker, native, 1) for broker in masters), native)
        await self.visible(native, masters)

    # --- deleting ---

    async def delete_topics(self, topics: Sequence[str], masters: Sequence[str], topic: str | None = None) -> None:
        """Delete topics with all messages, also from the NameServers."""
        code = RequestCode.DELETE_TOPIC_IN_BROKER
        await together(
            self._administer(broker, code, {"topic": one}, topic, f"deleting {one!r}")
            for one in topics
            for broker in masters
        )
        # Then only: a broker that still has a topic tells the NameServers of it again.
        await asyncio.gather(*(self._forget(one) for one in topics))

    async def _forget(self, topic: str) -> None:
        code = RequestCode.DELETE_TOPIC_IN_NAMESRV
        for frame in await self._client.name_servers.call_each(code, {"topic": topic}, timeout=self.asking.timeout):
            if frame.code != ResponseCode.SUCCESS:
                raise refused(frame, f"deleting {topic!r} from a NameServer")
        # What is remembered of it here goes too.
        await self.route(topic)

    async def delete_groups(self, groups: Iterable[str], masters: Sequence[str], topic: str | None = None) -> None:
        """Delete groups with their offsets."""
        code = RequestCode.DELETE_SUBSCRIPTIONGROUP
        await together(
            # 4.9.x calls the last one removeOffset, 5.x cleanOffset.
            self._administer(
                broker,
                code,
                {"groupName": one, "removeOffset": "true", "cleanOffset": "true"},
                topic,
                f"deleting group {one!r}",
            )
            for one in groups
            for broker in masters
        )

    async def _administer(
        self,
        broker: str,
        code: RequestCode,
        fields: dict[str, str],
        topic: str | None,
        what: str,
        *,
        body: bytes = b"",
        cure: str | None = None,
    ) -> None:
        try:
            await self.asking.ask(broker, code, fields, what, body=body)
        except AccessRefused as error:
            advice = f", or let an administrator do it: {cure}; and set declare: verify" if cure is not None else ""
            raise AccessRefused(
                f"{error.message}; grant the rights of an administrator (4.9.x: admin: true in plain_acl.yml; 5.x: "
                f"Create, Update and Delete on the topic and on the group){advice}",
                topic=topic,
                backend=NAME,
            ) from error


def brokers_of(route: Route | None) -> set[str]:
    """Return the brokers that a topic has queues on."""
    return set() if route is None else {one.broker for one in (*route.readable, *route.writable)}


async def together(calls: Iterable[Awaitable[None]]) -> None:
    """Wait for all calls, also when one fails; raise the first error."""
    error = first_error(await asyncio.gather(*calls, return_exceptions=True))
    if error is not None:
        raise error
