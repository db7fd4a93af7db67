"""A healthy backend behind a thin layer of delegation, where `broken_backends` puts its faults.

The layer speaks only `brokerkit.spi`, so that a fault is expressed in the terms of the contract it breaks and
does not depend on how the embedded drivers are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from brokerkit import spi
from brokerkit.errors import BrokerError

__all__ = ["InterposedBackend", "InterposedConnection", "InterposedConsumer", "InterposedProducer"]


class InterposedProducer:
    """Delegates everything; ``connection`` and ``inner`` are for the faults."""

    def __init__(self, inner: spi.ProducerDriver, connection: InterposedConnection) -> None:
        self.inner = inner
        self.connection = connection

    async def send(self, messages: Sequence[spi.Outbound]) -> Sequence[BrokerError | None]:
        altered = [self.connection.backend.outgoing(message) for message in messages]
        outcomes = iter(await self.inner.send([one for group in altered for one in group]))
        # A message that `outgoing` left out is reported as stored, one that it multiplied by its first outcome.
        return [next([next(outcomes) for _ in group].__iter__(), None) for group in altered]

    async def aclose(self) -> None:
        await self.inner.aclose()


class InterposedConsumer:
    """Delegates everything, the optional calls included."""

    def __init__(
        self, inner: spi.ConsumerDriver, connection: InterposedConnection, options: spi.ConsumerOptions | None = None
    ) -> None:
        #: Any, because a driver of embedded has optional methods that `ConsumerDriver` does not list.
        self.inner: Any = inner
        self.connection = connection
        self.options = options
        self.lease: float = getattr(inner, "lease", 0.0)
        self.address: str = getattr(inner, "address", "")

    async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
        return cast("Sequence[spi.Inbound]", await self.inner.receive(max_messages, timeout))

    async def ack(self, messages: Sequence[spi.Inbound]) -> None:
        await self.inner.ack(messages)

    async def release(self, messages: Sequence[spi.Inbound]) -> None:
        await self.inner.release(messages)

    def live(self, message: spi.Inbound) -> bool:
        return cast(bool, self.inner.live(message))

    async def extend(self, messages: Sequence[spi.Inbound], seconds: float) -> None:
        await self.inner.extend(messages, seconds)

    async def settle_with(self, message: spi.Inbound, outbounds: Sequence[spi.Outbound]) -> None:
        altered = [one for outbound in outbounds for one in self.connection.backend.outgoing(outbound)]
        await self.inner.settle_with(message, altered)

    def mark_started(self, message: spi.Inbound) -> None:
        self.inner.mark_started(message)

    async def aclose(self) -> None:
        await self.inner.aclose()


class InterposedConnection:
    """Delegates everything and wraps the drivers it opens in the classes of the backend."""

    def __init__(self, inner: spi.Connection, backend: InterposedBackend, options: spi.ConnectOptions) -> None:
        self.inner: Any = inner
        self.backend = backend
        self.options = options

    def capabilities(self, topic: str) -> frozenset[spi.Capability]:
        return cast("frozenset[spi.Capability]", self.inner.capabilities(topic)) & self.backend.capabilities

    async def open_producer(self) -> spi.ProducerDriver:
        return self.backend.producer_class(await self.inner.open_producer(), self)

    async def open_consumer(self, options: spi.ConsumerOptions) -> spi.ConsumerDriver:
        return self.backend.consumer_class(await self.inner.open_consumer(options), self, options)

    async def open_inbox(self) -> spi.InboxDriver:
        return self.backend.inbox_class(await self.inner.open_inbox(), self)

    async def take_dead(self, topic: str, group: str, ids: Sequence[str] | None) -> spi.ConsumerDriver:
        return InterposedConsumer(await self.inner.take_dead(topic, group, ids), self)

    async def ping(self, timeout: float) -> None:
        await self.inner.ping(timeout)

    async def declare(self, topic: spi.TopicSpec, group: spi.GroupSpec | None) -> None:
        await self.inner.declare(topic, group)

    async def verify(self, topic: spi.TopicSpec, group: spi.GroupSpec | None) -> None:
        await self.inner.verify(topic, group)

    async def delete(self, topic: str, group: str | None) -> None:
        await self.inner.delete(topic, group)

    async def purge(self, topic: str, group: str) -> int:
        return cast(int, await self.inner.purge(topic, group))

    async def stats(self, topic: str, group: str) -> spi.GroupStats:
        return cast(spi.GroupStats, await self.inner.stats(topic, group))

    async def browse(self, topic: str, group: str, limit: int) -> Sequence[spi.Inbound]:
        return cast("Sequence[spi.Inbound]", await self.inner.browse(topic, group, limit))

    async def aclose(self) -> None:
        await self.inner.aclose()


class InterposedBackend:
    """Embedded with every capability and no fault: the control group of the broken ones."""

    name = "embedded"
    schemes: tuple[str, ...] = ("memory", "sqlite")
    connection_class: type[InterposedConnection] = InterposedConnection
    producer_class: type[InterposedProducer] = InterposedProducer
    consumer_class: type[InterposedConsumer] = InterposedConsumer
    inbox_class: type[InterposedConsumer] = InterposedConsumer

    def __init__(self, inner: spi.Backend) -> None:
        self.inner = inner
        self.capabilities: frozenset[spi.Capability] = inner.capabilities

    async def connect(self, options: spi.ConnectOptions) -> spi.Connection:
        return self.connection_class(await self.inner.connect(options), self, options)

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        """Return what is stored in place of ``message``, by a send as by an atomic settlement."""
        return (message,)

    def map_error(self, exc: BaseException) -> BrokerError | None:
        return self.inner.map_error(exc)
