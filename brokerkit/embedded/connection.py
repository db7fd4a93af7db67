"""The connection of the embedded backend: it opens drivers on one store and manages topics."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import ClassVar

from brokerkit.embedded.consumer import EmbeddedConsumer, EmbeddedDeadLetters, EmbeddedInbox
from brokerkit.embedded.producer import EmbeddedProducer
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.store import Claimant, Store
from brokerkit.errors import Closed
from brokerkit.spi import (
    Capability,
    ConnectOptions,
    ConsumerOptions,
    GroupSpec,
    GroupStats,
    Inbound,
    TopicSpec,
)

__all__ = ["EmbeddedConnection"]


class EmbeddedConnection:
    """A `brokerkit.spi.Connection` on a `Store`, with everything that is optional.

    The classes of the drivers are attributes, so that a subclass can put others in their place.
    """

    producer_class: ClassVar[type[EmbeddedProducer]] = EmbeddedProducer
    consumer_class: ClassVar[type[EmbeddedConsumer]] = EmbeddedConsumer
    inbox_class: ClassVar[type[EmbeddedInbox]] = EmbeddedInbox
    dead_letters_class: ClassVar[type[EmbeddedDeadLetters]] = EmbeddedDeadLetters

    def __init__(
        self,
        store: Store,
        settings: EmbeddedSettings,
        options: ConnectOptions,
        capabilities: Callable[[str], frozenset[Capability]],
    ) -> None:
        """Take over ``store``, which is open; `aclose` closes it."""
        self.store = store
        self._settings = settings
        self._options = options
        self._capabilities = capabilities
        self._drivers: set[EmbeddedProducer | EmbeddedConsumer] = set()
        self._closed: asyncio.Future[None] | None = None

    def capabilities(self, topic: str) -> frozenset[Capability]:
        return self._capabilities(topic)

    async def open_producer(self) -> EmbeddedProducer:
        producer = self.producer_class(self._open_store(), self._options, self._drivers.discard)
        self._drivers.add(producer)
        return producer

    async def open_consumer(self, options: ConsumerOptions) -> EmbeddedConsumer:
        store = self._open_store()
        owner = self._owner()
        topic, group, tags = options.topic, options.group, None
        if options.broadcast:
            topic, group = await store.attach(topic, owner)
            if options.tag != "*":
                tags = frozenset(options.tag.split("||"))
        else:
            # Only to learn that it exists.
            await store.stats(topic, group)
        claimant = Claimant(topic=topic, group=group, owner=owner, ordered=options.ordered, lease=self._settings.lease)
        consumer = self.consumer_class(
            store,
            claimant,
            self._options.clock,
            prefetch=options.prefetch,
            on_close=self._drivers.discard,
            tags=tags,
        )
        return await self._adopt(consumer)

    async def open_inbox(self) -> EmbeddedInbox:
        store = self._open_store()
        owner = self._owner()
        topic, address = await store.attach(None, owner)
        claimant = Claimant(topic=topic, group=address, owner=owner, lease=self._settings.lease)
        inbox = self.inbox_class(
            store, claimant, self._options.clock, prefetch=_UNBOUNDED, on_close=self._drivers.discard
        )
        inbox.address = address
        await self._adopt(inbox)
        return inbox

    async def take_dead(self, topic: str, group: str, ids: Sequence[str] | None) -> EmbeddedDeadLetters:
        store = self._open_store()
        await store.stats(topic, group)
        claimant = Claimant(topic=topic, group=group, owner=self._owner(), lease=self._settings.lease)
        letters = self.dead_letters_class(
            store, claimant, self._options.clock, prefetch=_UNBOUNDED, on_close=self._drivers.discard
        )
        letters.ids = None if ids is None else frozenset(ids)
        await self._adopt(letters)
        return letters

    async def _adopt(self, consumer: EmbeddedConsumer) -> EmbeddedConsumer:
        if self._closed is not None:
            # Closed while the store was asked: nobody would close this consumer.
            await consumer.aclose()
            raise Closed("the connection is closed", backend="embedded")
        self._drivers.add(consumer)
        return consumer

    async def ping(self, timeout: float) -> None:
        # Well before the caller gives up, who does not know why there was no answer.
        await self._open_store().ping(min(timeout * 0.9, _PING))

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        await self._open_store().declare(topic, group)

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        await self._open_store().verify(topic, group)

    async def delete(self, topic: str, group: str | None) -> None:
        await self._open_store().delete(topic, group)

    async def purge(self, topic: str, group: str) -> int:
        return await self._open_store().purge(topic, group)

    async def stats(self, topic: str, group: str) -> GroupStats:
        return await self._open_store().stats(topic, group)

    async def browse(self, topic: str, group: str, limit: int) -> Sequence[Inbound]:
        return await self._open_store().browse(topic, group, limit)

    async def aclose(self) -> None:
        if self._closed is not None:
            # Whoever comes second returns when the first one is done.
            await asyncio.wait((self._closed,))
            return
        self._closed = asyncio.get_running_loop().create_future()
        try:
            closing = (driver.aclose() for driver in list(self._drivers))
            for result in await asyncio.gather(*closing, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
        finally:
            try:
                await self.store.close()
            finally:
                self._closed.set_result(None)

    def _open_store(self) -> Store:
        if self._closed is not None:
            raise Closed("the connection is closed", backend="embedded")
        return self.store

    def _owner(self) -> str:
        return f"{self._options.client_id}-{secrets.token_hex(8)}"


#: Seconds after which a file that somebody else keeps locked counts as out of order; who sends has to wait as long.
_PING = 2.0
#: Inboxes and dead letters are read by the core itself, which asks for as many as it wants.
_UNBOUNDED = 1 << 30
