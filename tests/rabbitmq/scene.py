"""What the fault tests share: a topic with a group, managers and connections on it, and what runs on these."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from brokerkit import AsyncManager
from brokerkit.errors import BrokerError
from brokerkit.spi import (
    ConnectOptions,
    ConsumerDriver,
    Destination,
    GroupSpec,
    Inbound,
    Outbound,
    TopicSpec,
    ToTopic,
)
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from brokerkit_rabbitmq.backend import RabbitMQBackend
from brokerkit_rabbitmq.connection import RabbitMQConnection
from brokerkit_rabbitmq.link import Link
from tests.traffic import CLOCK, LONG, TOPIC, Traffic, balanced, working

__all__ = [
    "CLOCK",
    "LONG",
    "ORDERS",
    "QUEUE",
    "TOPIC",
    "Traffic",
    "balanced",
    "connected",
    "consuming_link",
    "made",
    "manager_on",
    "outbound",
    "publishing_link",
    "send",
    "state",
    "take",
    "working",
]

#: `TOPIC` as drivers see it, and the queue of its group.
ORDERS = TopicSpec(name="orders", groups={"work": GroupSpec(name="work")})
QUEUE = "orders:work"
_TO_ORDERS = ToTopic("orders")


# --- managers -------------------------------------------------------------------------------------------------


def manager_on(url: str, section: Mapping[str, Any] | None = None, **overrides: Any) -> AsyncManager:
    """Return an unconnected manager; ``section`` is its ``rabbitmq:``, ``overrides`` are further settings."""
    settings = {"url": url, "rabbitmq": {"management_url": "", **(section or {})}, **overrides}
    return AsyncManager(backend=RabbitMQBackend(), settings=settings)


def state(node: RabbitMQControl, vhost: str, queue: str = QUEUE) -> tuple[int, int, int]:
    """Return how many messages of a queue are ready and unacknowledged, and its consumers; -1 where unknown."""
    found = node.queue(queue, vhost)
    if found is None:
        return -1, -1, -1
    return (
        -1 if found.ready is None else found.ready,
        -1 if found.unacked is None else found.unacked,
        -1 if found.consumers is None else found.consumers,
    )


# --- drivers --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connected(
    url: str, *, topics: Iterable[TopicSpec] = (ORDERS,), attempt_timeout: float = 10.0, **section: Any
) -> AsyncIterator[RabbitMQConnection]:
    """Open a connection of the driver, whose topics are declared, and close it at the end."""
    specs = {topic.name: topic for topic in topics}
    options = ConnectOptions(
        url=url, section={"management_url": "", **section}, topics=specs, attempt_timeout=attempt_timeout
    )
    connection = await RabbitMQBackend().connect(options)
    try:
        for spec in specs.values():
            for group in spec.groups.values():
                await connection.declare(spec, group)
        yield connection
    finally:
        await connection.aclose()


def publishing_link(connection: Any) -> Link:
    """Return the link that messages are published on."""
    link: Link = connection._publishing
    return link


def consuming_link(connection: Any) -> Link:
    """Return the link for everything but publishing."""
    link: Link = connection._consuming
    return link


def outbound(
    body: bytes = b"x", destination: Destination = _TO_ORDERS, message_id: str | None = None, **fields: Any
) -> Outbound:
    """Return a message."""
    return Outbound(destination=destination, body=body, message_id=message_id or secrets.token_hex(8), **fields)


def made(ledger: Ledger, count: int, body: bytes = b"x", **fields: Any) -> list[Outbound]:
    """Return ``count`` messages, entered as sent."""
    messages = [outbound(body, **fields) for _ in range(count)]
    for message in messages:
        ledger.sent(message.message_id)
    return messages


async def send(
    connection: RabbitMQConnection, messages: Iterable[Outbound], ledger: Ledger
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


async def take(
    consumer: ConsumerDriver, count: int, ledger: Ledger | None = None, *, within: float = LONG
) -> list[Inbound]:
    """Receive ``count`` messages; with a ledger acknowledge them and enter them as handled."""
    deadline = CLOCK.monotonic() + within
    taken: list[Inbound] = []
    while len(taken) < count:
        assert CLOCK.monotonic() < deadline, f"{len(taken)} of {count} messages came within {within:g} s"
        messages = await consumer.receive(count - len(taken), 0.5)
        if ledger is not None:
            await consumer.ack(messages)
            for message in messages:
                ledger.handled(message.message_id or "")
        taken += messages
    return taken
