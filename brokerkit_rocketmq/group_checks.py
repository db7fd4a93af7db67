"""`GroupChecks`: mistakes in the use of one group, as its members and the broker tell."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from brokerkit.errors import AccessRefused, BrokerError
from brokerkit.spi import Finding
from brokerkit_rocketmq.admin import RocketMQAdmin
from brokerkit_rocketmq.admin_data import Member
from brokerkit_rocketmq.errors import refused
from brokerkit_rocketmq.making import Making, brokers_of
from brokerkit_rocketmq.mapping import MAX_RECONSUME
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.remoting.bodies import parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.topology import Topology

__all__ = ["GroupChecks"]

#: A queue that no topic has: what is sent to it is refused when the permission was checked, and never stored.
_NO_QUEUE = 1_000_000


class GroupChecks:
    """Asks the brokers about groups.  Raises `BrokerError` where they do not tell."""

    def __init__(self, admin: RocketMQAdmin, making: Making, topology: Topology, names: Names, producer: str) -> None:
        """``producer``: the native producer group that sends."""
        self._admin = admin
        self._making = making
        self._topology = topology
        self._names = names
        self._producer = producer

    async def look(self, about: str, topic: str, group: str) -> list[Finding]:
        """Return what is good and wrong; raise `TopicNotFound` when topic or group are missing."""
        names = self._names
        route = await self._topology.require(topic, group)
        native, retry = names.group(topic, group), names.retry(topic, group)
        found = await self._permissions(about, topic, group)
        brokers = sorted(brokers_of(route))
        members = await self._admin.members_of(native, brokers)
        found += self._subscriptions(about, topic, native, members)
        tables = await asyncio.gather(*(self._table(broker, native) for broker in brokers))
        found += _other_topics(about, native, {route.topic, retry}, tables, members)
        if any(table.get("messageModel") == "BROADCASTING" for table in tables):
            found.append(
                Finding(
                    level="wrong",
                    about=about,
                    text=f"a member of {native!r} joined as BROADCASTING, which makes the whole group broadcast",
                    cure="give consumers that want every message a group of their own",
                )
            )
        if not any(one.level != "ok" for one in found):
            found.append(Finding(level="ok", about=about, text=f"{len(members)} members, all with one subscription"))
        return found

    # --- members --------------------------------------------------------------------------------------------------

    def _subscriptions(self, about: str, topic: str, native: str, members: Sequence[Member]) -> list[Finding]:
        native_topic = self._names.topic(topic)
        filters: dict[str, list[str]] = {}
        for member in members:
            expression = member.subscriptions.get(native_topic)
            if expression is not None:
                filters.setdefault(expression, []).append(member.client_id)
        if len(filters) < 2:
            return []
        listed = "; ".join(f"{expression!r}: {', '.join(ids)}" for expression, ids in sorted(filters.items()))
        return [
            Finding(
                level="wrong",
                about=about,
                text=f"members of {native!r} subscribe to {topic!r} with unequal filters ({listed}): the broker takes "
                f"the last one for all, and messages are lost to the others",
                cure="one filter for all members; another filter is another group",
            )
        ]

    async def _table(self, broker: str, native: str) -> Mapping[str, Any]:
        """Return what the broker says of the group's members together; nothing while there are none."""
        asking = self._making.asking
        code = RequestCode.GET_CONSUMER_CONNECTION_LIST
        frame = await asking.client.call(broker, code, {"consumerGroup": native}, timeout=asking.timeout)
        if frame.code == ResponseCode.CONSUMER_NOT_ONLINE:
            return {}
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, f"asking for the members of group {native!r}")
        return parse_body(frame.body) or {}

    # --- permissions ----------------------------------------------------------------------------------------------

    async def _permissions(self, about: str, topic: str, group: str) -> list[Finding]:
        names = self._names
        native, retry, dead = names.group(topic, group), names.retry(topic, group), names.dead(topic, group)
        checks = [
            self._may_read(names.topic(topic), native),
            self._may_read(retry, native),
            self._may_read(dead, names.dead_reader(topic, group)),
            self._may_write(names.topic(topic)),
            self._may_write(retry),
            self._may_write(dead),
        ]
        refusals = [text for text in await asyncio.gather(*checks) if text is not None]
        if not refusals:
            return []
        shadow = names.shadow(topic, group)
        return [
            Finding(
                level="wrong",
                about=about,
                text=f"the ACL refuses: {'; '.join(dict.fromkeys(refusals))}",
                cure=f"PUB and SUB on {names.topic(topic)!r} and {dead!r}, SUB on {retry!r} (5.x: PUB too), and SUB on "
                f"the groups {native!r}, {shadow!r} and {names.dead_reader(topic, group)!r}",
            )
        ]

    async def _may_read(self, native: str, group: str) -> str | None:
        """Return what is refused; a pull behind the end of a queue changes nothing, but on 5.x.

        There a pull would take the news of a reset offset away from the members; the offset needs the same permission.
        """
        route = await self._making.route(native)
        if route is None or not route.readable:
            return None
        asking, queue = self._making.asking, route.readable[0]
        try:
            if asking.client.is_five(queue.broker):
                await asking.committed(group, queue)
            else:
                await asking.pull(group, queue, await asking.max_offset(queue), count=1)
        except AccessRefused:
            return f"reading {native!r} as group {group!r}"
        except BrokerError:
            return None  # not a matter of permissions
        return None

    async def _may_write(self, native: str) -> str | None:
        """Return what is refused; a message for a queue that does not exist is stored nowhere."""
        route = await self._making.route(native)
        if route is None or not route.writable:
            return None
        asking, queue = self._making.asking, route.writable[0]
        fields = {
            "a": self._producer,
            "b": native,
            "c": "",
            "d": "1",
            "e": str(_NO_QUEUE),
            "f": "0",
            "g": "0",
            "h": "0",
            "i": "",
            "j": "0",
            "k": "false",
            "l": str(MAX_RECONSUME),
            "m": "false",
        }
        code = RequestCode.SEND_MESSAGE_V2
        try:
            frame = await asking.client.call(queue.broker, code, fields, b"\0", timeout=asking.timeout)
        except BrokerError:
            return None
        refusal = refused(frame, "sending") if frame.code != ResponseCode.SUCCESS else None
        return f"sending to {native!r}" if isinstance(refusal, AccessRefused) else None


def _other_topics(
    about: str, native: str, own: set[str], tables: Sequence[Mapping[str, Any]], members: Sequence[Member]
) -> list[Finding]:
    seen = {str(topic) for table in tables for topic in table.get("subscriptionTable") or ()}
    seen |= {topic for member in members for topic in member.subscriptions}
    others = sorted(seen - own)
    if not others:
        return []
    return [
        Finding(
            level="wrong",
            about=about,
            text=f"members of {native!r} consume {', '.join(map(repr, others))} too: members of one group must consume "
            f"the same topics, or they take queues from each other that nobody reads then",
            cure="give each topic a group of its own; brokerkit does, where no group is named in the configuration",
        )
    ]
