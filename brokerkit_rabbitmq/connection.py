"""The connection of the RabbitMQ backend: two links, the drivers on them, and the topology."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from brokerkit.errors import BrokerError, Closed
from brokerkit.spi import (
    Capability,
    ConnectOptions,
    ConsumerOptions,
    GroupSpec,
    GroupStats,
    Inbound,
    TopicSpec,
)
from brokerkit_rabbitmq.consumer import RabbitMQConsumer
from brokerkit_rabbitmq.dead_letters import DeadLetterReader
from brokerkit_rabbitmq.decoding import Decoder
from brokerkit_rabbitmq.dialing import Dialer
from brokerkit_rabbitmq.errors import NAME
from brokerkit_rabbitmq.link import Link, Reconnecting
from brokerkit_rabbitmq.management import Management, ManagementUnavailable
from brokerkit_rabbitmq.names import Names
from brokerkit_rabbitmq.producer import Limits, RabbitMQProducer
from brokerkit_rabbitmq.settings import Address, RabbitMQSettings
from brokerkit_rabbitmq.sources import BroadcastSource, GroupSource, InboxSource, Source
from brokerkit_rabbitmq.stats import Figures
from brokerkit_rabbitmq.topology import Delays, Topology
from brokerkit_rabbitmq.wheel import Target, Wheel

__all__ = ["ALWAYS", "RabbitMQConnection"]

#: What every broker and every topic offers.
ALWAYS = frozenset(
    {
        Capability.DURABLE,
        Capability.MULTIPROCESS,
        Capability.CONSUMER_GROUPS,
        Capability.TAGS,
        Capability.DEAD_LETTER,
        Capability.BROADCAST,
        Capability.INBOX,
        Capability.BROWSE,
        Capability.ORDERED,
        Capability.ORDERED_BY_KEY,
        Capability.SELECTIVE_ACK,
        Capability.REDELIVERED,
        Capability.MANAGE,
        Capability.PURGE,
        Capability.STATS,
        Capability.STRICT_TOPICS,
    }
)

#: max_message_size of the broker where nobody changed it, by version: bytes.
_MESSAGE_SIZES = (((4, 0), 16 << 20), ((0,), 128 << 20))
#: Seconds for one call, such as a declaration: a broker that has just come up takes many for a quorum queue.  That
#: the broker is gone is found by the heartbeats.
_CALL_TIMEOUT = 30.0
#: Deliveries that an inbox holds at once.
_INBOX_PREFETCH = 1000


class _Driver(Protocol):
    async def aclose(self) -> None: ...


class RabbitMQConnection:
    """A `brokerkit.spi.Connection` with everything optional but what the broker lacks.

    Publishing and consuming have a link each: a broker short of memory stops reading from connections that publish,
    and acknowledgements must still reach it.  Everything that manages goes over the consuming one.
    """

    def __init__(self, settings: RabbitMQSettings, addresses: Sequence[Address], options: ConnectOptions) -> None:
        """Raise `ConfigurationError`; no I/O before `open`."""
        self._settings = settings
        self._options = options
        self._timeout = options.attempt_timeout
        self._dialer = Dialer(
            settings,
            options.clock,
            client_id=options.client_id,
            timeout=settings.connection_timeout or self._timeout,
            call_timeout=max(_CALL_TIMEOUT, self._timeout),
        )
        self._reconnecting = Reconnecting(
            addresses,
            attempts=settings.connection_attempts,
            first_pause=settings.retry_delay,
            longest_pause=max(settings.retry_delay, settings.retry_max_delay),
        )
        self._publishing = self._link("publishing")
        self._consuming = self._link("consuming")
        self._names = Names(options.topics, settings.queue_type, settings.max_priority)
        self._topology = Topology(self._consuming, self._names, self._timeout)
        wheel = Wheel(settings.delay_queue_type or settings.queue_type)
        self._delays = Delays(self._consuming, wheel, self._timeout)
        self._management = Management(settings, addresses)
        self._figures = Figures(self._topology, self._management, self._names, options.clock)
        self._drivers: set[_Driver] = set()
        self._closed: asyncio.Future[None] | None = None

    def _link(self, role: str) -> Link:
        return Link(
            role,
            self._dialer,
            self._reconnecting,
            self._options.clock,
            blocked_timeout=self._settings.blocked_connection_timeout,
        )

    async def open(self) -> None:
        """Connect.  Raise `BrokerUnavailable`, `AccessRefused` or `ConfigurationError`."""
        try:
            await self._consuming.open()
            await self._publishing.open()
            self._names.version = self._delays.wheel.version = self.version
            if self._settings.delay:
                await self._delays.declare()
        except BaseException:
            await self.aclose()
            raise

    @property
    def version(self) -> tuple[int, ...]:
        """The version of the broker, as numbers; (0,) when it is not known."""
        amqp = self._consuming.amqp
        return amqp.version if amqp is not None else (0,)

    def capabilities(self, topic: str) -> frozenset[Capability]:
        """Return what holds for ``topic`` on this broker."""
        names = self._names
        offers = ALWAYS
        if self._settings.delay and self._delays.refused is None:
            offers |= {Capability.DELAYED_SEND}
        if names.has_priorities(topic):
            offers |= {Capability.STRICT_PRIORITY}
        if names.topic_keys(topic).exchange == "":
            # Nothing can be bound to the default exchange.
            offers -= {Capability.BROADCAST}
        if not names.can_order(topic):
            offers -= {Capability.ORDERED, Capability.ORDERED_BY_KEY}
        return offers

    # --- drivers ---

    async def open_producer(self) -> RabbitMQProducer:
        self._check()
        settings = self._settings
        limits = Limits(
            self._timeout,
            settings.window,
            settings.max_message_size or next(size for since, size in _MESSAGE_SIZES if self.version >= since),
        )
        producer = RabbitMQProducer(
            self._publishing,
            self._names,
            self._delays,
            limits,
            clock=self._options.clock,
            topics=self._options.topics,
            on_close=self._drivers.discard,
        )
        self._drivers.add(producer)
        return producer

    async def open_consumer(self, options: ConsumerOptions) -> RabbitMQConsumer:
        self._check()
        names, topic = self._names, options.topic
        exchange = names.exchange(topic).name
        untagged = names.topic_keys(topic).routing_key or ""
        source: Source
        if options.broadcast:
            group = GroupSpec(name=options.group, tag=options.tag)
            source = BroadcastSource(
                topic,
                options.group,
                exchanges=[exchange, *filter(None, [names.due_exchange(topic)])],
                untagged=untagged,
                keys=names.bindings(topic, group),
                prefetch=options.prefetch,
            )
        else:
            source = GroupSource(
                topic,
                options.group,
                queue=names.queue_name(topic, options.group),
                exchange=exchange,
                untagged=untagged,
                prefetch=options.prefetch,
                ordered=options.ordered,
            )
        return await self._consume(source, ordered=options.ordered and not options.broadcast)

    async def open_inbox(self) -> RabbitMQInbox:
        self._check()
        source = InboxSource(_INBOX_PREFETCH)
        inbox = RabbitMQInbox(
            self._consuming, source, clock=self._options.clock, timeout=self._timeout, on_close=self._drivers.discard
        )
        inbox.address = source.name
        await self._adopt(inbox)
        return inbox

    async def _consume(self, source: Source, *, ordered: bool) -> RabbitMQConsumer:
        link = self._consuming
        if ordered:
            # A link of its own, because only a lost connection gives back what is unsettled in its order.
            link = self._link(f"ordered {source.name}")
            await link.open()
        consumer = RabbitMQConsumer(
            link,
            source,
            clock=self._options.clock,
            timeout=self._timeout,
            on_close=self._drivers.discard,
            hang_up=ordered,
        )
        await self._adopt(consumer)
        return consumer

    async def _adopt(self, consumer: RabbitMQConsumer | DeadLetterReader) -> None:
        # From the start, so that a close meanwhile finds it.
        self._drivers.add(consumer)
        try:
            await consumer.open()
            self._check()
        except BaseException:
            await consumer.aclose()
            raise

    # --- dead letters ---

    async def take_dead(self, topic: str, group: str, ids: Sequence[str] | None) -> DeadLetterReader:
        self._check()
        queue = self._names.dead_queue_name(topic, group)
        source = GroupSource(topic, group, queue=queue, exchange="", untagged="", prefetch=0)
        reader = DeadLetterReader(
            self._link(f"reading {queue}"),
            queue,
            Decoder(source),
            ids=None if ids is None else frozenset(ids),
            clock=self._options.clock,
            timeout=self._timeout,
            on_close=self._drivers.discard,
        )
        await self._adopt(reader)
        return reader

    async def browse(self, topic: str, group: str, limit: int) -> Sequence[Inbound]:
        reader = await self.take_dead(topic, group, ())
        try:
            return list(reader.oldest(limit))
        finally:
            await reader.aclose()

    # --- managing ---

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        self._check()
        await self._topology.declare(topic, group)

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        self._check()
        await self._topology.verify(topic, group)

    async def delete(self, topic: str, group: str | None) -> None:
        self._check()
        names = self._names
        if group is not None:
            queue = names.queue_name(topic, group)
            due = self._delays.wheel.due(Target("", queue))[0].name
            await self._topology.delete((), (queue, names.dead_queue_name(topic, group), due))
            return
        exchange, due_exchange = names.exchange(topic).name, names.due_exchange(topic)
        queues = {self._delays.wheel.due(Target(due_exchange or exchange))[0].name}
        for name in self._options.topics[topic].groups if topic in self._options.topics else ():
            queue = names.queue_name(topic, name)
            queues |= {queue, names.dead_queue_name(topic, name), self._delays.wheel.due(Target("", queue))[0].name}
        queues |= await self._queues_of(topic)
        await self._topology.delete(filter(None, (exchange, due_exchange)), sorted(queues))

    async def _queues_of(self, topic: str) -> set[str]:
        """Return the queues of groups that other processes declared, as far as the management API is there."""
        try:
            found = await self._management.queue_names() if self._management.offered else []
        except ManagementUnavailable:
            return set()
        return {name for name in found if name.startswith((f"{topic}:", f"bk.due.q.{topic}:"))}

    async def purge(self, topic: str, group: str) -> int:
        self._check()
        return await self._topology.purge(self._names.queue_name(topic, group))

    async def stats(self, topic: str, group: str) -> GroupStats:
        self._check()
        return await self._figures.stats(topic, group)

    # --- the connection ---

    async def ping(self, timeout: float) -> None:
        self._check()
        await asyncio.gather(self._publishing.ping(timeout), self._consuming.ping(timeout))

    async def aclose(self) -> None:
        if self._closed is not None:
            if not self._closed.done():
                await asyncio.wait((self._closed,))
            return
        self._closed = asyncio.get_running_loop().create_future()
        try:
            closing = [driver.aclose() for driver in tuple(self._drivers)]
            results = await asyncio.gather(*closing, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, BrokerError):
                    raise result
        finally:
            try:
                await asyncio.gather(self._publishing.aclose(), self._consuming.aclose())
            finally:
                self._closed.set_result(None)

    def _check(self) -> None:
        if self._closed is not None:
            raise Closed("the connection is closed", backend=NAME)


class RabbitMQInbox(RabbitMQConsumer):
    """A consumer of the messages to one `ToInbox` address."""

    address: str
