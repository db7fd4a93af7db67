"""What the tests of sending share: a producer on a server, what is stored there, and a broker that refuses."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError, SendRefused
from brokerkit.spi import ConnectOptions, Destination, GroupSpec, Outbound, TopicSpec, ToTopic
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.faults import Answer, FaultProxy
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.backend import RocketMQBackend
from brokerkit_rocketmq.connection import RocketMQConnection
from brokerkit_rocketmq.producer import RocketMQProducer
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.frames import Frame, FrameParser, encode_response
from brokerkit_rocketmq.remoting.messages import StoredMessage, decode_messages

__all__ = ["CLOCK", "LONG", "Scene", "a_topic", "in_order", "outbound", "proxied", "refusing", "sending"]

CLOCK = SystemClock()
#: Seconds; a machine that runs other tests too is slow.
LONG = 60.0

_SENDS = (RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE)
#: ``PullSysFlag``: filter by what the request says.
_SUBSCRIPTION = 4


def a_topic(*groups: str, ordered: bool = False, queues: int | None = None) -> TopicSpec:
    """Return a topic that nobody else has."""
    specs = {name: GroupSpec(name=name, ordered=ordered) for name in groups}
    native = {} if queues is None else {"queues": queues}
    return TopicSpec(name=f"s-{secrets.token_hex(5)}", ordered=ordered, groups=specs, native=native)


def outbound(topic: TopicSpec | Destination, body: bytes = b"x", message_id: str = "", **fields: Any) -> Outbound:
    """Return a message."""
    destination: Destination = ToTopic(topic.name) if isinstance(topic, TopicSpec) else topic
    ordered = isinstance(topic, TopicSpec) and topic.ordered
    return Outbound(
        destination=destination,
        body=body,
        message_id=message_id or secrets.token_hex(8),
        timestamp=CLOCK.time(),
        ordered=ordered,
        **fields,
    )


@dataclass(frozen=True)
class Scene:
    """A connection with one producer."""

    connection: RocketMQConnection
    producer: RocketMQProducer
    topics: dict[str, TopicSpec]

    async def declare(self, topic: TopicSpec) -> TopicSpec:
        """Declare a topic with its groups."""
        self.topics[topic.name] = topic
        for group in topic.groups.values() or (None,):
            await self.connection.declare(topic, group)
        return topic

    async def send(self, *messages: Outbound) -> list[BrokerError | None]:
        """Send in one call; return the outcomes."""
        return list(await self.producer.send(messages))

    async def send_each(self, messages: Iterable[Outbound]) -> list[BrokerError | None]:
        """Send each in a call of its own, all at the same time; return the outcomes."""
        return [outcome for (outcome,) in await asyncio.gather(*(self.producer.send([each]) for each in messages))]

    async def store(self, messages: Sequence[Outbound], *, at_once: bool = False) -> None:
        """Send each in a call of its own, or all in one; again those that a busy broker refuses, as the core does."""
        left = list(messages)

        async def all_taken() -> bool:
            outcomes = await (self.send(*left) if at_once else self.send_each(left))
            others = [outcome for outcome in outcomes if outcome is not None and not isinstance(outcome, SendRefused)]
            assert not others, others[:3]
            left[:] = [message for message, outcome in zip(left, outcomes, strict=True) if outcome is not None]
            return not left

        await eventually(all_taken, LONG, f"{len(messages)} messages are taken")

    async def stored(self, topic: str) -> list[StoredMessage]:
        """Return all that a native topic holds, by broker, queue and offset."""
        client = self.connection.client
        route = await client.routes.route(topic, refresh=True)
        found: list[StoredMessage] = []
        for queue in route.readable:
            offset = 0
            while True:
                fields = {
                    "consumerGroup": "tests-of-sending",
                    "topic": topic,
                    "queueId": str(queue.queue_id),
                    "queueOffset": str(offset),
                    "maxMsgNums": "32",
                    "sysFlag": str(_SUBSCRIPTION),
                    "commitOffset": "0",
                    "suspendTimeoutMillis": "0",
                    "subscription": "*",
                    "subVersion": "0",
                    "expressionType": "TAG",
                }
                frame = await client.call(queue.broker, RequestCode.PULL_MESSAGE, fields, timeout=LONG)
                if frame.code != ResponseCode.SUCCESS:
                    break
                found += decode_messages(frame.body)
                offset = int(frame.fields["nextBeginOffset"])
        return found

    async def stored_ids(self, topic: TopicSpec | str, count: int = 0) -> list[str]:
        """Return the ids of what a topic holds, once these are at least ``count``."""
        name = topic if isinstance(topic, str) else topic.name
        ids: list[str] = []

        async def enough() -> bool:
            ids[:] = [message.properties["UNIQ_KEY"] for message in await self.stored(name)]
            return len(ids) >= count

        # A message can be read when the queues were built from the log, some milliseconds after the answer to its send.
        await eventually(enough, LONG, f"{count} messages in {name}")
        return ids


@asynccontextmanager
async def sending(
    server: RocketMQControl, *topics: TopicSpec, attempt_timeout: float = LONG, **section: Any
) -> AsyncIterator[Scene]:
    """Open a connection and a producer, declare the topics, and close all of it at the end."""
    specs: dict[str, TopicSpec] = {}
    options = ConnectOptions(url=server.url, section=section, topics=specs, attempt_timeout=attempt_timeout)
    connection = await RocketMQBackend().connect(options)
    try:
        producer = await connection.open_producer()
        scene = Scene(connection, producer, specs)
        for topic in topics:
            await scene.declare(topic)
        yield scene
    finally:
        await connection.aclose()


@asynccontextmanager
async def proxied(server: RocketMQControl) -> AsyncIterator[tuple[dict[str, FaultProxy], dict[str, str]]]:
    """Put a proxy before every broker; yield them by the brokers' names, and the ``address_map`` that uses them."""
    async with AsyncExitStack() as stack:
        proxies: dict[str, FaultProxy] = {}
        addresses: dict[str, str] = {}
        for broker in server.address.masters:
            host, _, port = broker.address.rpartition(":")
            proxy = proxies[broker.name] = await stack.enter_async_context(FaultProxy(host, int(port)))
            addresses[broker.address] = f"{proxy.host}:{proxy.port}"
        yield proxies, addresses


class _Refusing(Answer):
    """Answers sends in the place of the broker where ``answer`` says how; all else goes through."""

    def __init__(self, answer: Callable[[Frame], tuple[int, str] | None]) -> None:
        self._parser = FrameParser()
        self._answer = answer
        self._raw = bytearray()

    def upstream(self, data: bytes) -> tuple[bytes, bytes]:
        self._raw += data
        forward, reply = b"", b""
        for frame in self._parser.feed(data):
            size = 4 + int.from_bytes(self._raw[:4], "big")
            raw, self._raw = bytes(self._raw[:size]), self._raw[size:]
            refusal = self._answer(frame) if frame.code in _SENDS else None
            if refusal is None:
                forward += raw
            else:
                reply += encode_response(refusal[0], frame.opaque, remark=refusal[1])
        return forward, reply


@asynccontextmanager
async def refusing(
    server: RocketMQControl, answer: Callable[[Frame], tuple[int, str] | None]
) -> AsyncIterator[dict[str, str]]:
    """Let ``answer`` refuse sends, by a code and a remark; yield the ``address_map`` that leads to it."""
    async with proxied(server) as (proxies, addresses):
        for proxy in proxies.values():
            proxy.answer(lambda: _Refusing(answer))
        yield addresses


def in_order(ids: Sequence[str], expected: Iterable[str]) -> list[str]:
    """Return those of ``ids`` that are expected, each once, in the order of their first places."""
    wanted = set(expected)
    return list(dict.fromkeys(one for one in ids if one in wanted))
