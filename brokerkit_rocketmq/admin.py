"""`RocketMQAdmin`: what only RocketMQ has, beyond the portable administration.

Reached through ``manager.admin.native(…)``.  Topics and groups are named as the application names them; methods that
take a native name, for what other clients use, say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.spi import Clock, Inbound
from brokerkit_rocketmq.admin_data import BrokerInfo, GroupLag, Member, QueueInfo, QueueLag, Rate, Throughput
from brokerkit_rocketmq.asking import Asking
from brokerkit_rocketmq.errors import NAME, refused
from brokerkit_rocketmq.making import Make, Making, brokers_of, together
from brokerkit_rocketmq.mapping import Codec
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.pinning import Pinning, Start
from brokerkit_rocketmq.purge import Resetting
from brokerkit_rocketmq.remoting.bodies import parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.ids import parse_offset_id
from brokerkit_rocketmq.remoting.messages import StoredMessage, decode_messages
from brokerkit_rocketmq.stats import Figures, Position
from brokerkit_rocketmq.topology import Topology

__all__ = ["RocketMQAdmin"]

#: The end of time, as Java has it.
_LAST = str((1 << 63) - 1)


class RocketMQAdmin:
    """Administrative calls of one connection.  Each raises `BrokerError`.

    With the ACL of 5.x, figures need the action Get on the topic or the group; whatever changes something needs the
    rights of an administrator.
    """

    def __init__(
        self, making: Making, topology: Topology, figures: Figures, names: Names, codec: Codec, clock: Clock
    ) -> None:
        self._making = making
        self._topology = topology
        self._figures = figures
        self._names = names
        self._codec = codec
        self._clock = clock
        self._asking: Asking = making.asking

    # --- lag and figures ------------------------------------------------------------------------------------------

    async def lag(self, topic: str, group: str) -> GroupLag:
        """Return how far the group is behind in each queue; raise `TopicNotFound` when it is missing."""
        standing = await self._figures.standing(topic, group)
        native = self._names.topic(topic)
        return GroupLag(
            topic=topic,
            group=group,
            queues={name: _queue_lag(one) for name, one in standing.by_queue(native).items()},
            retries=sum(one.behind for one in standing.positions if one.queue.topic != native),
            oldest_age=await self._figures.oldest_age(topic, group, standing),
            as_of=self._clock.time(),
        )

    async def topic_stats(self, topic: str) -> list[QueueInfo]:
        """Return the queues of a topic with what they hold."""
        route = await self._topology.require(topic)
        fields = {"topic": route.topic}
        code = RequestCode.GET_TOPIC_STATS_INFO
        brokers = sorted(brokers_of(route))
        answers = await asyncio.gather(
            *(self._asking.ask(broker, code, fields, f"asking for the figures of {topic!r}") for broker in brokers)
        )
        found = []
        for broker, answer in zip(brokers, answers, strict=True):
            for key, queue in ((answer or {}).get("offsetTable") or {}).items():
                updated = queue.get("lastUpdateTimestamp") or 0
                found.append(
                    QueueInfo(
                        broker=broker,
                        queue_id=int(dict(key)["queueId"]),
                        first=int(queue["minOffset"]),
                        end=int(queue["maxOffset"]),
                        updated=updated / 1000 if updated > 0 else None,
                    )
                )
        return sorted(found, key=lambda one: (one.broker, one.queue_id))

    async def stored_rate(self, topic: str) -> Throughput:
        """Return how many messages of the topic were stored lately."""
        return await self.throughput("TOPIC_PUT_NUMS", self._names.topic(topic))

    async def delivered_rate(self, topic: str, group: str) -> Throughput:
        """Return how many messages the group received lately."""
        names = self._names
        return await self.throughput("GROUP_GET_NUMS", f"{names.topic(topic)}@{names.group(topic, group)}")

    async def throughput(self, statistic: str, key: str) -> Throughput:
        """Return one of the statistics of ``BrokerStatsManager``, added up over all masters.

        ``key`` is a native topic, or ``topic@group``, as the statistic wants it.  What has seen no traffic is 0.
        """
        fields = {"statsName": statistic, "statsKey": key}
        code = RequestCode.VIEW_BROKER_STATS_DATA
        client, timeout = self._asking.client, self._asking.timeout
        masters = await self._making.masters()
        frames = await asyncio.gather(*(client.call(broker, code, fields, timeout=timeout) for broker in masters))
        tables: list[Mapping[str, Any]] = []
        for frame in frames:
            if frame.code == ResponseCode.SUCCESS:
                tables.append(parse_body(frame.body) or {})
            elif frame.code != ResponseCode.SYSTEM_ERROR or "not exist" not in (frame.remark or ""):
                raise refused(frame, f"asking for the statistic {statistic}")
        return Throughput(
            minute=_rate(tables, "statsMinute"), hour=_rate(tables, "statsHour"), day=_rate(tables, "statsDay")
        )

    # --- brokers --------------------------------------------------------------------------------------------------

    async def brokers(self) -> list[BrokerInfo]:
        """Return all brokers, masters and copies, with what they say about themselves."""
        client = self._asking.client
        known, clusters = await asyncio.gather(client.brokers(refresh=True), self._making.clusters())
        cluster_of = {name: cluster for cluster, names in clusters.items() for name in names}
        return await asyncio.gather(
            *(
                self._broker(name, number, cluster_of.get(name, ""), address)
                for name, addresses in sorted(known.items())
                for number, address in sorted(addresses.items())
            )
        )

    async def _broker(self, name: str, number: int, cluster: str, address: str) -> BrokerInfo:
        info: Mapping[str, str] = {}
        problem = None
        try:
            info = await self.runtime_info(name, number)
        except BrokerError as error:
            problem = error.message
        return BrokerInfo(
            name=name,
            id=number,
            cluster=cluster,
            address=address,
            version=info.get("brokerVersionDesc"),
            info=info,
            problem=problem,
        )

    async def runtime_info(self, broker: str, number: int = 0) -> dict[str, str]:
        """Return what a broker says about itself; ``number`` is 0 for the master."""
        client, timeout = self._asking.client, self._asking.timeout
        link = await client.link(broker, broker_id=number)
        connection = await link.connected(timeout)
        frame = await connection.call(RequestCode.GET_BROKER_RUNTIME_INFO, timeout=timeout)
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, f"asking {broker} for its state")
        return {str(key): str(value) for key, value in ((parse_body(frame.body) or {}).get("table") or {}).items()}

    # --- topics and groups, by their native names -----------------------------------------------------------------

    async def topics(self) -> list[str]:
        """Return the native names of all topics, system topics included."""
        client = self._asking.client
        frame = await client.call_name_server(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, "asking for all topics")
        return sorted(map(str, (parse_body(frame.body) or {}).get("topicList") or ()))

    async def groups(self) -> list[str]:
        """Return the native names of all groups."""
        masters = await self._making.masters()
        found = await asyncio.gather(*(self._making.groups_on(broker) for broker in masters))
        return sorted(frozenset().union(*found))

    async def create_topic(self, native: str, *, queues: int = 8) -> None:
        """Make a topic with so many queues on each broker; one that exists gets that many."""
        masters = await self._making.masters()
        await self._making.topics(Make(broker, native, queues) for broker in masters)
        await self._making.visible(native, masters)

    async def delete_topic(self, native: str) -> None:
        """Delete a topic with its messages.  No-op when it does not exist."""
        await self._making.delete_topics([native], await self._making.masters())

    async def create_group(self, native: str) -> None:
        """Make a group; where it begins in a topic is decided by its first member."""
        await together(self._making.group(broker, native) for broker in await self._making.masters())

    async def delete_group(self, native: str) -> None:
        """Delete a group with its offsets; its retries and dead letters stay.  No-op when it does not exist."""
        await self._making.delete_groups([native], await self._making.masters())

    # --- offsets --------------------------------------------------------------------------------------------------

    async def reset_offsets(self, topic: str, group: str, to: float | str) -> dict[str, int]:
        """Let the group go on at an instant, or at ``"earliest"`` or ``"latest"``; return the offset by queue.

        ``to`` is in seconds since the epoch; on 4.9.x the last message before it may come too.  Keys are
        ``"<broker>:<queue id>"``.  Messages that members have at work are finished by them.  Members of a 5.x learn of
        it with their next request, so within some 20 s.
        """
        native = self._names.group(topic, group)
        standing = await self._figures.standing(topic, group)
        positions = [one for one in standing.positions if one.queue.topic == self._names.topic(topic)]
        if isinstance(to, str) and to not in ("earliest", "latest"):
            raise ConfigurationError(f"to is an instant, 'earliest' or 'latest', not {to!r}", backend=NAME)
        instant = None if isinstance(to, str) else to
        start = Start(earliest=to == "earliest", instant=instant)
        targets = await Pinning(self._asking).look([one.queue for one in positions], start)
        timestamp = -1 if to == "latest" else 0 if instant is None else int(instant * 1000)
        resetting = Resetting(self._making, self._figures, self._clock)
        offsets = [targets[one.queue] for one in positions]
        await resetting.reset(native, positions, offsets, timestamp, shadow=self._names.shadow(topic, group))
        return {f"{queue.broker}:{queue.queue_id}": offset for queue, offset in targets.items()}

    # --- members --------------------------------------------------------------------------------------------------

    async def members(self, topic: str, group: str) -> list[Member]:
        """Return the consumers that are connected as members of the group, of whatever client."""
        route = await self._topology.require(topic, group)
        return await self.members_of(self._names.group(topic, group), sorted(brokers_of(route)))

    async def members_of(self, native: str, brokers: Sequence[str] | None = None) -> list[Member]:
        """Return the members of a native group, as all masters, or some, know them."""
        masters = await self._making.masters() if brokers is None else brokers
        found: dict[str, Member] = {}
        for one in await asyncio.gather(*(self._members_on(broker, native) for broker in masters)):
            for member in one:
                found.setdefault(member.client_id, member)
        return [found[client_id] for client_id in sorted(found)]

    async def _members_on(self, broker: str, native: str) -> list[Member]:
        client, timeout = self._asking.client, self._asking.timeout
        code = RequestCode.GET_CONSUMER_CONNECTION_LIST
        frame = await client.call(broker, code, {"consumerGroup": native}, timeout=timeout)
        if frame.code == ResponseCode.CONSUMER_NOT_ONLINE:
            return []
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, f"asking for the members of group {native!r}")
        connections = (parse_body(frame.body) or {}).get("connectionSet") or ()
        return await asyncio.gather(*(self._member(broker, native, one) for one in connections))

    async def _member(self, broker: str, native: str, connection: Mapping[str, Any]) -> Member:
        client_id = str(connection["clientId"])
        info: Mapping[str, Any] = {}
        try:
            info = await self._running_info(broker, native, client_id)
        except BrokerError:
            pass  # a member that does not answer is a member
        subscriptions = {str(one["topic"]): str(one["subString"]) for one in info.get("subscriptionSet") or ()}
        return Member(
            client_id=client_id,
            address=str(connection.get("clientAddr", "")),
            language=str(connection.get("language", "")),
            version=int(connection.get("version", 0)),
            subscriptions=subscriptions,
        )

    async def running_info(self, topic: str, group: str, client_id: str) -> Mapping[str, Any]:
        """Return what a member says about itself (``ConsumerRunningInfo``): its queues, offsets, rates."""
        route = await self._topology.require(topic, group)
        errors: list[BrokerError] = []
        for broker in sorted(brokers_of(route)):
            try:
                return await self._running_info(broker, self._names.group(topic, group), client_id)
            except BrokerError as error:
                errors.append(error)
        raise errors[0]

    async def _running_info(self, broker: str, native: str, client_id: str) -> Mapping[str, Any]:
        fields = {"consumerGroup": native, "clientId": client_id, "jstackEnable": "false"}
        code = RequestCode.GET_CONSUMER_RUNNING_INFO
        found: Mapping[str, Any] = await self._asking.ask(broker, code, fields, f"asking the member {client_id}") or {}
        return found

    # --- messages -------------------------------------------------------------------------------------------------

    async def message(self, topic: str, message_id: str) -> Inbound | None:
        """Return a message that is still stored, by its id or by the id that its broker made; None when there is none.

        Its token is None: it cannot be settled.
        """
        try:
            place = parse_offset_id(message_id)
        except ValueError:
            pass
        else:
            found = await self._at(topic, place.address, place.offset)
            if found is not None:
                return self._codec.decode(found, topic, "")
        by_id = await self._query(topic, message_id, 64, unique=True)
        return by_id[0] if by_id else None

    async def messages_by_key(
        self, topic: str, key: str, *, limit: int = 32, since: float = 0.0, until: float | None = None
    ) -> list[Inbound]:
        """Return up to ``limit`` stored messages with this key, oldest first; ``since`` and ``until`` bound their time.

        A key is found a moment after its message was stored.
        """
        return await self._query(topic, key, limit, since=since, until=until)

    async def _query(
        self,
        topic: str,
        key: str,
        limit: int,
        *,
        since: float = 0.0,
        until: float | None = None,
        unique: bool = False,
    ) -> list[Inbound]:
        route = await self._topology.require(topic)
        fields = {
            "topic": route.topic,
            "key": key,
            "maxNum": str(limit),
            "beginTimestamp": str(int(since * 1000)),
            "endTimestamp": _LAST if until is None else str(int(until * 1000)),
        }
        if unique:
            fields["_UNIQUE_KEY_QUERY"] = "true"
        client, timeout = self._asking.client, self._asking.timeout
        code = RequestCode.QUERY_MESSAGE
        frames = await asyncio.gather(
            *(client.call(broker, code, fields, timeout=timeout, slaves=True) for broker in sorted(brokers_of(route)))
        )
        found: list[StoredMessage] = []
        for frame in frames:
            if frame.code == ResponseCode.SUCCESS:
                found += decode_messages(frame.body)
            elif frame.code != ResponseCode.QUERY_NOT_FOUND:
                raise refused(frame, f"looking for {key[:80]!r}", topic=topic)
        found.sort(key=lambda one: (one.store_timestamp, one.commit_log_offset))
        messages = [self._codec.decode(one, topic, "") for one in found]
        # The broker compares hashes of keys.
        wanted = [one for one in messages if key in (one.message_id, one.key) or key in _words(one)]
        return wanted[:limit]

    async def _at(self, topic: str, address: str, offset: int) -> StoredMessage | None:
        """Return the message at an offset of a broker's log; None when it is not of this topic, or not there."""
        client = self._asking.client
        known = await client.brokers()
        for name, addresses in known.items():
            if address in addresses.values():
                fields = {"offset": str(offset), "topic": self._names.topic(topic)}
                frame = await client.call(
                    name, RequestCode.VIEW_MESSAGE_BY_ID, fields, timeout=self._asking.timeout, slaves=True
                )
                found = decode_messages(frame.body) if frame.code == ResponseCode.SUCCESS else []
                return found[0] if found and found[0].topic == self._names.topic(topic) else None
        return None


def _queue_lag(position: Position) -> QueueLag:
    return QueueLag(
        broker=position.queue.broker,
        queue_id=position.queue.queue_id,
        end=position.end,
        committed=position.committed,
        unsettled=position.handed_out - position.committed,
    )


def _rate(tables: Sequence[Mapping[str, Any]], name: str) -> Rate:
    parts = [table.get(name) or {} for table in tables]
    return Rate(
        count=sum(int(part.get("sum") or 0) for part in parts),
        per_second=sum(float(part.get("tps") or 0.0) for part in parts),
    )


def _words(message: Inbound) -> Sequence[str]:
    stored = message.native
    return str(stored.properties.get("KEYS", "")).split() if isinstance(stored, StoredMessage) else ()
