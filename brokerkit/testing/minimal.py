"""`MinimalBackend`: a backend that offers no optional capability, so that every refusal can be tested.

It is a real broker nevertheless, the embedded one in memory, behind connections that have the required methods and
nothing else.  It also shows how little a backend needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from brokerkit.errors import BrokerError, Unroutable
from brokerkit.spi import (
    Backend,
    Capability,
    Connection,
    ConnectOptions,
    ConsumerDriver,
    ConsumerOptions,
    Inbound,
    Manage,
    Outbound,
    ProducerDriver,
    TopicSpec,
    ToTopic,
)

__all__ = ["MinimalBackend"]

_NOTHING: frozenset[Capability] = frozenset()


class MinimalBackend:
    """Wraps ``inner``, which must offer MANAGE, and offers nothing.

    Topics and groups come into being when the application that declared them first uses the connection.
    """

    name = "minimal"
    schemes: tuple[str, ...] = ("minimal",)
    capabilities = _NOTHING

    def __init__(self, inner: Backend) -> None:
        self._inner = inner

    async def connect(self, options: ConnectOptions) -> Connection:
        return _Connection(await self._inner.connect(replace(options, topics={})), options.topics)

    def map_error(self, exc: BaseException) -> BrokerError | None:
        return self._inner.map_error(exc)


class _Connection:
    def __init__(self, inner: Connection, topics: Mapping[str, TopicSpec]) -> None:
        self._inner = inner
        self._topics = topics
        self._made: dict[str, TopicSpec] = {}

    def capabilities(self, topic: str) -> frozenset[Capability]:
        return _NOTHING

    async def make(self, topic: str, group: str | None = None) -> None:
        """Make ``topic`` exist with the groups that the application declared, and with ``group``."""
        spec = self._topics.get(topic) or TopicSpec(name=topic)
        manage = cast(Manage, self._inner)
        if self._made.get(topic) is not spec:
            await manage.declare(spec, None)
            for declared in spec.groups.values():
                await manage.declare(spec, declared)
            self._made[topic] = spec

    async def open_producer(self) -> ProducerDriver:
        return _Producer(self, await self._inner.open_producer())

    def has_group(self, topic: str) -> bool:
        spec = self._made.get(topic)
        return spec is None or bool(spec.groups) or spec.unroutable == "drop"

    async def open_consumer(self, options: ConsumerOptions) -> ConsumerDriver:
        await self.make(options.topic, options.group)
        return _Consumer(await self._inner.open_consumer(options))

    async def ping(self, timeout: float) -> None:
        await self._inner.ping(timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Producer:
    def __init__(self, connection: _Connection, inner: ProducerDriver) -> None:
        self._connection = connection
        self._inner = inner

    async def send(self, messages: Sequence[Outbound]) -> Sequence[BrokerError | None]:
        for message in messages:
            if isinstance(message.destination, ToTopic):
                await self._connection.make(message.destination.topic)
        outcomes = list(await self._inner.send(messages))
        for index, message in enumerate(messages):
            # The inner backend keeps such messages for later groups; this one promises nothing of the kind.
            if isinstance(message.destination, ToTopic) and not self._connection.has_group(message.destination.topic):
                outcomes[index] = Unroutable(
                    "no group would receive the message; declare one in Topic(groups=[...])",
                    topic=message.destination.topic,
                )
        return outcomes

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Consumer:
    """The required methods, and `Inbound` without what only optional capabilities promise."""

    def __init__(self, inner: ConsumerDriver) -> None:
        self._inner = inner

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        received = await self._inner.receive(max_messages, timeout)
        for inbound in received:
            inbound.redelivered = None
            inbound.started = None
            inbound.crashes = 0
        return received

    async def ack(self, messages: Sequence[Inbound]) -> None:
        await self._inner.ack(messages)

    async def release(self, messages: Sequence[Inbound]) -> None:
        await self._inner.release(messages)

    def live(self, message: Inbound) -> bool:
        return self._inner.live(message)

    async def aclose(self) -> None:
        await self._inner.aclose()
