"""What the tests of consumers share: topics of their own, consumers of their own clients, a sender."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from brokerkit.clock import SystemClock
from brokerkit.spi import ConnectOptions, ConsumerOptions, GroupSpec, Inbound, Outbound, TopicSpec, ToTopic
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.addresses import Address
from brokerkit_rocketmq.asking import Asking
from brokerkit_rocketmq.client import Client, ClientOptions
from brokerkit_rocketmq.consumer import RocketMQConsumer
from brokerkit_rocketmq.dialing import DialOptions
from brokerkit_rocketmq.errors import is_stored as is_stored_code
from brokerkit_rocketmq.links import LinkOptions
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.mapping import Codec
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.producer import Limits, RocketMQProducer
from brokerkit_rocketmq.pulling import PullLimits
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.routes import MessageQueue
from brokerkit_rocketmq.settings import RocketMQSettings, parse_settings
from brokerkit_rocketmq.sources import Source, broadcast_source, group_source
from brokerkit_rocketmq.topology import Topology

__all__ = ["CLOCK", "LONG", "Scene", "bodies", "consuming", "drain", "take"]

CLOCK = SystemClock()
#: Seconds; a machine that runs other tests too is slow.
LONG = 60.0


@dataclass
class Scene:
    """One topic ``t`` with a group ``g`` on a server, and everything to send to it and to consume it."""

    client: Client
    client_options: ClientOptions
    settings: RocketMQSettings
    names: Names
    codec: Codec
    topology: Topology
    producer: RocketMQProducer
    topic: str
    asking: Asking
    topics: dict[str, TopicSpec]
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    # --- sending ---

    async def send(self, *bodies: bytes, **fields: Any) -> list[str]:
        """Store messages in the topic; return their ids."""
        ids = [secrets.token_hex(8) for _ in bodies]
        unsent = [
            Outbound(destination=ToTopic(self.topic), body=body, message_id=name, **fields)
            for name, body in zip(ids, bodies, strict=True)
        ]
        deadline = CLOCK.monotonic() + LONG
        while unsent:
            outcomes = await self.producer.send(unsent)
            errors = [outcome for outcome in outcomes if outcome is not None]
            assert all(error.retryable for error in errors), errors[:3]
            assert CLOCK.monotonic() < deadline, errors[:3]
            # A busy broker refuses some.
            unsent = [message for message, outcome in zip(unsent, outcomes, strict=True) if outcome is not None]
        return ids

    async def put(self, queue: int, *bodies: bytes, broker: str | None = None, **properties: str) -> None:
        """Store messages in one queue of the first broker, in this order, as a foreign sender."""
        broker = broker or (await self.queues())[0].broker
        for body in bodies:
            pairs = {"UNIQ_KEY": secrets.token_hex(8), **properties}
            fields = {
                "a": "tests",
                "b": self.names.topic(self.topic),
                "c": "",
                "d": "1",
                "e": str(queue),
                "f": "0",
                "g": str(int(CLOCK.time() * 1000)),
                "h": "0",
                "i": "\x02".join(f"{name}\x01{value}" for name, value in pairs.items()),
                "j": "0",
                "k": "false",
                "l": "16",
                "m": "false",
            }

            async def is_stored(fields: dict[str, str] = fields, body: bytes = body) -> bool:
                frame = await self.client.call(broker, RequestCode.SEND_MESSAGE_V2, fields, body)
                # A busy broker refuses some, and one without its copy stores them less safely.
                return frame.code == ResponseCode.SUCCESS or is_stored_code(frame.code)

            await eventually(is_stored, within=LONG, what="a message stored")

    async def widen(self, queues: int) -> None:
        """Give the topic more queues."""
        native = self.names.topic(self.topic)
        broker = (await self.queues())[0].broker
        fields = {
            "topic": native,
            "defaultTopic": "TBW102",
            "readQueueNums": str(queues),
            "writeQueueNums": str(queues),
            "perm": "6",
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": "0",
            "order": "false",
        }
        frame = await self.client.call(broker, RequestCode.UPDATE_AND_CREATE_TOPIC, fields)
        assert frame.code == ResponseCode.SUCCESS, (frame.code, frame.remark)

        async def is_visible() -> bool:
            return len((await self.client.routes.route(native, refresh=True)).readable) == queues

        await eventually(is_visible, within=LONG, what=f"{queues} queues of {native}")

    # --- consuming ---

    def source(self, **options: Any) -> Source:
        """Return what a consumer of the group reads."""
        spec = ConsumerOptions(**{"topic": self.topic, "group": "g", **options})
        return broadcast_source(self.names, spec) if spec.broadcast else group_source(self.names, spec)

    async def consume(
        self, *, limits: PullLimits | None = None, through: FaultProxy | None = None, **options: Any
    ) -> RocketMQConsumer:
        """Return an open consumer, which is closed at the end of the scene; ``through``: all brokers are that proxy."""
        source = self.source(**options)
        client_options = self.client_options
        if through is not None:
            addresses = {address for ids in (await self.client.brokers()).values() for address in ids.values()}
            mapped = dict.fromkeys(addresses, f"127.0.0.1:{through.port}")
            client_options = replace(client_options, dial=replace(client_options.dial, address_map=mapped))
        consumer = RocketMQConsumer(
            Client(client_options, CLOCK),
            source,
            self.codec,
            clock=CLOCK,
            limits=limits or PullLimits.of(self.settings, source.prefetch),
            store=self.producer.send,
        )
        self.stack.push_async_callback(consumer.aclose)
        await consumer.open()
        return consumer

    @asynccontextmanager
    async def proxy(self) -> AsyncIterator[FaultProxy]:
        """Put a proxy in front of the first broker."""
        broker = (await self.queues())[0].broker
        host, _, port = (await self.client.brokers())[broker][0].rpartition(":")
        async with FaultProxy(host, int(port)) as proxy:
            yield proxy

    # --- looking ---

    async def queues(self) -> Sequence[MessageQueue]:
        """Return the queues of the topic, in their order."""
        return (await self.client.routes.route(self.names.topic(self.topic))).readable

    async def committed(self) -> list[int | None]:
        """Return what the group has committed, by queue of the topic."""
        group = self.names.group(self.topic, "g")
        return [await self.asking.committed(group, queue) for queue in await self.queues()]

    async def marked(self) -> list[int | None]:
        """Return the marks of the group, by queue of the topic."""
        group = self.names.shadow(self.topic, "g")
        return [await self.asking.committed(group, queue) for queue in await self.queues()]

    async def all_marked(self, *marks: int) -> None:
        """Wait until these are the marks: nobody waits for the answer when messages are handed out."""

        async def are_marked() -> bool:
            return await self.marked() == list(marks)

        await eventually(are_marked, within=LONG, what=f"the marks {marks}")

    async def ends(self) -> list[int]:
        """Return the offsets of the next messages, by queue of the topic."""
        return [await self.asking.max_offset(queue) for queue in await self.queues()]

    async def members(self) -> frozenset[str]:
        """Return the members of the group."""
        broker = (await self.queues())[0].broker
        return await self.asking.members(self.names.group(self.topic, "g"), broker)

    async def all_committed(self) -> None:
        """Return once everything in the topic is committed."""

        async def is_committed() -> bool:
            return list(await self.committed()) == await self.ends()

        await eventually(is_committed, within=LONG, what=f"everything committed of {self.topic}")


@asynccontextmanager
async def consuming(
    server: RocketMQControl,
    *,
    queues: int = 4,
    ordered: bool = False,
    url: str | None = None,
    heartbeat: float = 6.0,
    **group: Any,
) -> AsyncIterator[Scene]:
    """Declare a topic of this test's own with a group ``g``, and close what was opened at the end."""
    settings, addresses = parse_settings(ConnectOptions(url=url or server.url))
    options = ClientOptions(
        name_servers=tuple(Address(one.host, one.port) for one in addresses),
        dial=DialOptions(timeout=20.0, heartbeat=heartbeat),
        links=LinkOptions(heartbeat=heartbeat),
        timeout=20.0,
    )
    client = Client(options, CLOCK)
    name = f"t-{secrets.token_hex(5)}"
    spec = TopicSpec(
        name=name,
        ordered=ordered,
        groups={"g": GroupSpec(**{"name": "g", "start": "earliest", "ordered": ordered, **group})},
        native={"queues": queues},
    )
    topics = {name: spec}
    names = Names(topics, settings)
    codec = Codec(names, settings, CLOCK)
    making = Making(client, 20.0)
    topology = Topology(making, names)
    producer = RocketMQProducer(
        client,
        names,
        codec,
        Limits(attempt_timeout=20.0, max_message_size=4 << 20),
        group="tests",
        clock=CLOCK,
        on_close=lambda _: None,
        missing=making.missing,
    )
    await client.open()
    scene = Scene(client, options, settings, names, codec, topology, producer, name, Asking(client, 20.0), topics)
    try:
        await topology.declare(spec, spec.groups["g"])
        async with scene.stack:
            yield scene
    finally:
        await producer.aclose()
        await client.aclose()


async def take(consumer: RocketMQConsumer, count: int, *, most: int = 100, within: float = LONG) -> list[Inbound]:
    """Receive exactly ``count`` messages."""
    taken: list[Inbound] = []
    deadline = CLOCK.monotonic() + within
    while len(taken) < count:
        left = deadline - CLOCK.monotonic()
        assert left > 0, f"{len(taken)} of {count} came within {within:g} s"
        taken += await consumer.receive(min(most, count - len(taken)), min(left, 1.0))
    return taken


def bodies(messages: Sequence[Inbound]) -> list[bytes]:
    """Return the bodies, in their order."""
    return [message.body for message in messages]


async def drain(consumer: RocketMQConsumer, seconds: float, *, ack: bool = True) -> list[Inbound]:
    """Receive whatever comes until nothing came for ``seconds``."""
    taken: list[Inbound] = []
    while got := await consumer.receive(100, seconds):
        taken += got
        if ack:
            await consumer.ack(got)
        await asyncio.sleep(0)
    return taken
