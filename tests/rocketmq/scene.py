"""What the fault tests share: topics of their own, managers and connections on them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from brokerkit import AsyncManager, Topic
from brokerkit.errors import BrokerError
from brokerkit.spi import ConnectOptions, ConsumerDriver, GroupSpec, Inbound, Outbound, TopicSpec, ToTopic
from brokerkit.testing.ledger import Ledger
from brokerkit_rocketmq.backend import RocketMQBackend
from brokerkit_rocketmq.connection import RocketMQConnection
from tests.traffic import CLOCK, LONG

__all__ = [
    "GROUP",
    "a_topic",
    "connected",
    "made",
    "manager_on",
    "outbound",
    "send",
    "take",
]

GROUP = "work"


def a_topic() -> Topic[bytes]:
    """Return a topic that nobody else has, with the group `GROUP`."""
    return Topic(f"f-{secrets.token_hex(5)}", bytes, groups=[GROUP])


def manager_on(url: str, section: Mapping[str, Any] | None = None, **overrides: Any) -> AsyncManager:
    """Return an unconnected manager; ``section`` is its ``rocketmq:``, ``overrides`` are further settings."""
    settings = {"url": url, "rocketmq": {"queues": 4, **(section or {})}, **overrides}
    return AsyncManager(backend=RocketMQBackend(), settings=settings)


# --- drivers --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connected(
    url: str, topic: Topic[bytes], *, attempt_timeout: float = 10.0, **section: Any
) -> AsyncIterator[RocketMQConnection]:
    """Open a connection of the driver, where the topic is declared, and close it at the end."""
    spec = TopicSpec(name=topic.name, groups={GROUP: GroupSpec(name=GROUP)})
    options = ConnectOptions(
        url=url, section={"queues": 1, **section}, topics={topic.name: spec}, attempt_timeout=attempt_timeout
    )
    connection = await RocketMQBackend().connect(options)
    try:
        await connection.declare(spec, spec.groups[GROUP])
        yield connection
    finally:
        await connection.aclose()


def outbound(topic: Topic[bytes], body: bytes = b"x", message_id: str | None = None) -> Outbound:
    """Return a message."""
    return Outbound(destination=ToTopic(topic.name), body=body, message_id=message_id or secrets.token_hex(8))


def made(topic: Topic[bytes], ledger: Ledger, count: int, body: bytes = b"x") -> list[Outbound]:
    """Return ``count`` messages, entered as sent."""
    messages = [outbound(topic, body) for _ in range(count)]
    for message in messages:
        ledger.sent(message.message_id)
    return messages


async def send(
    connection: RocketMQConnection, messages: Iterable[Outbound], ledger: Ledger
) -> list[BrokerError | None]:
    """Send once by a producer of its own; return the outcomes."""
    messages = list(messages)
    producer = await connection.open_producer()
    try:
        outcomes = list(await producer.send(messages))
    finally:
        await producer.aclose()
    for message, outcome in zip(messages, outcomes, strict=True):
        ledger.sent(message.message_id)
        if outcome is None:
            ledger.confirmed(message.message_id)
    return outcomes


async def take(consumer: ConsumerDriver, count: int, *, within: float = LONG) -> list[Inbound]:
    """Receive ``count`` messages."""
    deadline = CLOCK.monotonic() + within
    taken: list[Inbound] = []
    while len(taken) < count:
        assert CLOCK.monotonic() < deadline, f"{len(taken)} of {count} messages came within {within:g} s"
        taken += await consumer.receive(count - len(taken), 0.5)
    return taken
