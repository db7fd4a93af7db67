"""What the fault tests share: a topic with a group, managers and connections on it, and traffic with its ledger."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from brokerkit import AsyncManager, Message, RetryPolicy, Topic
from brokerkit.clock import SystemClock
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
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from brokerkit_rabbitmq.backend import RabbitMQBackend
from brokerkit_rabbitmq.connection import RabbitMQConnection
from brokerkit_rabbitmq.link import Link

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

CLOCK = SystemClock()
#: Seconds; a machine that runs other tests too is slow.
LONG = 60.0

TOPIC: Topic[bytes] = Topic("orders", bytes, groups=["work"])
#: The same, as drivers see it, and the queue of its group.
ORDERS = TopicSpec(name="orders", groups={"work": GroupSpec(name="work")})
QUEUE = "orders:work"
_TO_ORDERS = ToTopic("orders")


# --- managers -------------------------------------------------------------------------------------------------


def manager_on(url: str, section: Mapping[str, Any] | None = None, **overrides: Any) -> AsyncManager:
    """Return an unconnected manager; ``section`` is its ``rabbitmq:``, ``overrides`` are further settings."""
    settings = {"url": url, "rabbitmq": {"management_url": "", **(section or {})}, **overrides}
    return AsyncManager(backend=RabbitMQBackend(), settings=settings)


@asynccontextmanager
async def working(
    manager: AsyncManager, ledger: Ledger, topic: Topic[bytes] = TOPIC, *, pause: float = 0.0, **options: Any
) -> AsyncIterator[AsyncManager]:
    """Run a handler that writes to the ledger inside the block; close the manager at its end."""
    options.setdefault("retry", RetryPolicy(base_delay=0.1, max_delay=0.5, jitter="none"))

    @manager.handler(topic, **options)
    async def handle(message: Message) -> None:
        if pause:
            await CLOCK.sleep(pause)
        ledger.handled(message.message_id or "", message.attempt)

    async with manager:
        await manager.start()
        yield manager


class Traffic:
    """Sends one message after the other inside ``async with``, and writes to the ledger what became of each."""

    def __init__(self, manager: AsyncManager, ledger: Ledger, topic: Topic[bytes] = TOPIC, *, pause: float = 0.01):
        self.failed: list[BrokerError] = []
        self._manager, self._ledger, self._topic, self._pause = manager, ledger, topic, pause
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Let the send that runs end, then send nothing more."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def more(self, count: int, within: float = LONG) -> None:
        """Return when ``count`` more sends were confirmed."""
        goal = len(self._ledger.confirmed_ids) + count
        await eventually(
            lambda: len(self._ledger.confirmed_ids) >= goal, within, f"{count} more confirms; failed: {self.failed}"
        )

    async def _run(self) -> None:
        while not self._stopping.is_set():
            message_id = secrets.token_hex(8)
            self._ledger.sent(message_id)
            try:
                await self._manager.send(self._topic, b"x" * 100, message_id=message_id)
            except BrokerError as error:
                self.failed.append(error)
            else:
                self._ledger.confirmed(message_id)
            await CLOCK.sleep(self._pause)


async def balanced(ledger: Ledger, *, doubled: int, within: float = LONG) -> None:
    """Return when every confirmed message was handled; fail when more than ``doubled`` were handled twice."""
    try:
        await eventually(lambda: ledger.settled, within, "every confirmed message handled")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{ledger}") from None
    ledger.assert_nothing_unknown()
    assert ledger.confirmed_ids, f"nothing was confirmed\n{ledger}"
    runs = sum(count - 1 for count in ledger.doubled.values())
    assert runs <= doubled, f"{runs} runs too many, at most {doubled} are explained\n{ledger}"


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
