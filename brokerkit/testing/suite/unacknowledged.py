"""A backend whose acknowledgements do not reach the broker: its process can be killed at the worst moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from brokerkit.errors import BrokerError
from brokerkit.spi import (
    Backend,
    Capability,
    Connection,
    ConnectOptions,
    ConsumerDriver,
    ConsumerOptions,
    GroupSpec,
    Inbound,
    Manage,
    ProducerDriver,
    TopicSpec,
)
from brokerkit.testing.processes import report

__all__ = ["UnacknowledgedBackend"]

#: What the layer does not pass on, or what would make sending and acknowledging one step.
_HIDDEN = frozenset({Capability.ATOMIC_SETTLE, Capability.START_MARKS, Capability.LEASE})


class UnacknowledgedBackend:
    """Passes on what a worker needs, but reports each acknowledgement as ``ack`` and never carries it out."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.name = inner.name
        self.schemes = inner.schemes
        self.capabilities = inner.capabilities - _HIDDEN

    async def connect(self, options: ConnectOptions) -> Connection:
        return _Connection(await self._inner.connect(options))

    def map_error(self, exc: BaseException) -> BrokerError | None:
        return self._inner.map_error(exc)


class _Connection:
    def __init__(self, inner: Connection) -> None:
        self._inner = inner

    def capabilities(self, topic: str) -> frozenset[Capability]:
        return self._inner.capabilities(topic) - _HIDDEN

    async def open_producer(self) -> ProducerDriver:
        return await self._inner.open_producer()

    async def open_consumer(self, options: ConsumerOptions) -> ConsumerDriver:
        return _Consumer(await self._inner.open_consumer(options))

    async def ping(self, timeout: float) -> None:
        await self._inner.ping(timeout)

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        if isinstance(self._inner, Manage):
            await self._inner.declare(topic, group)

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        if isinstance(self._inner, Manage):
            await self._inner.verify(topic, group)

    async def delete(self, topic: str, group: str | None) -> None:
        if isinstance(self._inner, Manage):
            await self._inner.delete(topic, group)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Consumer:
    def __init__(self, inner: ConsumerDriver) -> None:
        self._inner = inner

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        return await self._inner.receive(max_messages, timeout)

    async def ack(self, messages: Sequence[Inbound]) -> None:
        for message in messages:
            report({"step": "ack", "id": message.message_id})
        await asyncio.get_running_loop().create_future()

    async def release(self, messages: Sequence[Inbound]) -> None:
        await self._inner.release(messages)

    def live(self, message: Inbound) -> bool:
        return self._inner.live(message)

    async def aclose(self) -> None:
        await self._inner.aclose()
