"""What the tests of administration share: a client with names, topology and figures, and a sender of raw messages."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from brokerkit.clock import SystemClock
from brokerkit.spi import ConnectOptions, GroupSpec, Outbound, TopicSpec
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.addresses import Address
from brokerkit_rocketmq.admin import RocketMQAdmin
from brokerkit_rocketmq.client import Client, ClientOptions
from brokerkit_rocketmq.dead_letters import DeadLetterReader, DeadLetters
from brokerkit_rocketmq.diagnosis import Diagnosis
from brokerkit_rocketmq.dialing import DialOptions
from brokerkit_rocketmq.group_checks import GroupChecks
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.mapping import Codec
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.purge import Purging
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.remoting.signing import Signer
from brokerkit_rocketmq.settings import RocketMQSettings, parse_settings
from brokerkit_rocketmq.stats import Figures
from brokerkit_rocketmq.topology import Topology

__all__ = ["CLOCK", "LONG", "Scene", "a_topic", "administering"]

CLOCK = SystemClock()
#: Seconds; a machine that runs other tests too is slow.
LONG = 60.0


def a_topic(*groups: str, ordered: bool = False, start: str = "latest", **native: Any) -> TopicSpec:
    """Return a topic that nobody else has."""
    specs = {name: GroupSpec(name=name, ordered=ordered, start=start) for name in groups}
    return TopicSpec(name=f"t.{secrets.token_hex(5)}", ordered=ordered, groups=specs, native=native)


@dataclass(frozen=True)
class Scene:
    """One client of a server, and what works through it."""

    client: Client
    settings: RocketMQSettings
    names: Names
    making: Making
    topology: Topology
    figures: Figures
    purging: Purging
    dead: DeadLetters
    codec: Codec
    admin: RocketMQAdmin
    diagnosis: Diagnosis
    topics: dict[str, TopicSpec]

    async def declare(self, *topics: TopicSpec) -> None:
        """Enter the topics and declare them with all their groups."""
        for topic in topics:
            self.topics[topic.name] = topic
            for group in topic.groups.values() or (None,):
                await self.topology.declare(topic, group)

    async def store(self, message: Outbound, *, queue: int = 0, broker: str = "broker-a") -> None:
        """Store one message in a queue."""
        wire = self.codec.encode(message, five=self.client.is_five(broker))
        await self.store_raw(wire.topic, wire.body, wire.properties, queue=queue, broker=broker)

    async def store_raw(
        self, topic: str, body: bytes, properties: str = "", *, queue: int = 0, broker: str = "broker-a"
    ) -> None:
        """Store what a foreign sender could."""
        fields = {
            "a": "tests",
            "b": topic,
            "c": "",
            "d": "1",
            "e": str(queue),
            "f": "0",
            "g": str(int(CLOCK.time() * 1000)),
            "h": "0",
            "i": properties,
            "j": "0",
            "k": "false",
            "l": "2000000000",
            "m": "false",
        }
        frame = await self.client.call(broker, RequestCode.SEND_MESSAGE_V2, fields, body)
        assert frame.code == 0, (frame.code, frame.remark)
        # It has its place in its queue a moment later only.
        await self.making.asking.caught_up([broker])

    async def commit(self, topic: str, group: str, offset: int, *, queue: int = 0, retry: bool = False) -> None:
        """Commit as a member of the group would."""
        native = self.names.retry(topic, group) if retry else self.names.topic(topic)
        route = await self.client.routes.route(native, refresh=True)
        await self.making.asking.commit(self.names.group(topic, group), route.readable[queue], offset)

    @asynccontextmanager
    async def taking(self, topic: str, group: str, ids: Iterable[str] | None = None) -> AsyncIterator[DeadLetterReader]:
        """Take dead letters inside the block."""
        reader = await self.dead.take(topic, group, None if ids is None else list(ids), lambda _: None)
        try:
            await reader.open()
            yield reader
        finally:
            await reader.aclose()


@asynccontextmanager
async def administering(
    server: RocketMQControl, *, url: str | None = None, timeout: float = 20.0, **section: Any
) -> AsyncIterator[Scene]:
    """Open a client of a server, as the administrator unless ``url`` says otherwise, and close it at the end."""
    settings, addresses = parse_settings(ConnectOptions(url=url or server.url, section=section))
    signer = None
    if settings.access_key is not None and settings.secret_key is not None:
        signer = Signer(settings.access_key.get_secret_value(), settings.secret_key.get_secret_value())
    servers = tuple(Address(one.host, one.port) for one in addresses)
    options = ClientOptions(
        name_servers=servers,
        dial=DialOptions(signer=signer, timeout=timeout, address_map=settings.address_map),
        timeout=timeout,
    )
    client = Client(options, CLOCK)
    topics: dict[str, TopicSpec] = {}
    names = Names(topics, settings)
    making = Making(client, timeout, settings.cluster)
    topology = Topology(making, names)
    figures = Figures(topology, making, names, CLOCK)
    codec = Codec(names, settings, CLOCK)
    purging = Purging(topology, making, figures, names, CLOCK)
    dead = DeadLetters(topology, making, names, codec, CLOCK, producer="tests")
    admin = RocketMQAdmin(making, topology, figures, names, codec, CLOCK)
    checks = GroupChecks(admin, making, topology, names, "tests")
    diagnosis = Diagnosis(admin, making, checks, topics, CLOCK)
    await client.open()
    try:
        yield Scene(client, settings, names, making, topology, figures, purging, dead, codec, admin, diagnosis, topics)
    finally:
        await client.aclose()
