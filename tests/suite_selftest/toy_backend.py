"""A backend as a stranger would write it: in memory, from `brokerkit.spi` alone, with few capabilities.

It is the proof that the suite runs from outside the package, and that what a backend does not offer is refused
or done by the core.  One `ToyBackend` object is one broker: its connections share the topics.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter

from brokerkit import errors, spi

#: Bytes of one body.
MAX_BYTES = 8 << 20


#: What a message takes with it from sender to receiver.
_CARRIED = (
    *("body", "message_id", "headers", "due", "key", "tag", "type", "content_type", "priority", "timestamp"),
    *("correlation_id", "reply_to"),
)


@dataclass(slots=True, eq=False)
class Entry:
    """One message in one group."""

    number: int
    message: spi.Outbound
    redelivered: bool = False


@dataclass(slots=True, eq=False)
class Group:
    spec: spi.GroupSpec
    ready: list[Entry] = field(default_factory=list)
    dead: list[Entry] = field(default_factory=list)
    wakers: list[Callable[[], None]] = field(default_factory=list)

    def wake(self) -> None:
        for waker in tuple(self.wakers):
            waker()


def inbound(topic: str, group: str, entry: Entry, token: object = None) -> spi.Inbound:
    message, redelivered = entry.message, entry.redelivered
    fields = {name: getattr(message, name) for name in _CARRIED}
    return spi.Inbound(topic=topic, group=group, redelivered=redelivered, token=token, native=message, **fields)


class Broker:
    """What a server would hold."""

    def __init__(self) -> None:
        self.topics: dict[str, tuple[spi.TopicSpec, dict[str, Group]]] = {}
        self._next = count().__next__

    def groups(self, topic: str) -> dict[str, Group]:
        try:
            return self.topics[topic][1]
        except KeyError:
            raise errors.TopicNotFound(f"topic {topic!r} was never declared", topic=topic, backend="toy") from None

    def group(self, topic: str, name: str) -> Group:
        try:
            return self.groups(topic)[name]
        except KeyError:
            raise errors.TopicNotFound(f"group {name!r} was never declared", topic=topic, backend="toy") from None

    def store(self, message: spi.Outbound) -> None:
        """Put the message where its destination says, or raise why not."""
        destination = message.destination
        if len(message.body) > MAX_BYTES:
            raise errors.MessageTooLarge(
                f"the body has {len(message.body)} bytes; at most {MAX_BYTES} (MAX_BYTES) are allowed", backend="toy"
            )
        if isinstance(destination, spi.ToDead):
            self.group(destination.topic, destination.group).dead.append(Entry(self._next(), message))
        elif isinstance(destination, spi.ToGroup):
            self._add([self.group(destination.topic, destination.group)], message)
        elif isinstance(destination, spi.ToTopic):
            groups = list(self.groups(destination.topic).values())
            if not groups and self.topics[destination.topic][0].unroutable == "raise":
                hint = "declare one first: admin.declare(topic, group)"
                raise errors.Unroutable(f"topic {destination.topic!r} has no group; {hint}", backend="toy")
            self._add(groups, message)

    def _add(self, groups: list[Group], message: spi.Outbound) -> None:
        for group in groups:
            group.ready.append(Entry(self._next(), message))
            group.wake()


class ToyBackend:
    """The backend; every object is a broker of its own."""

    name = "toy"
    schemes: tuple[str, ...] = ("toy",)
    capabilities = frozenset(
        {
            spi.Capability.CONSUMER_GROUPS,
            spi.Capability.MANAGE,
            spi.Capability.STRICT_TOPICS,
            spi.Capability.DEAD_LETTER,
            spi.Capability.BROWSE,
            spi.Capability.SELECTIVE_ACK,
            spi.Capability.REDELIVERED,
        }
    )

    def __init__(self) -> None:
        self._broker = Broker()

    async def connect(self, options: spi.ConnectOptions) -> spi.Connection:
        return ToyConnection(self._broker, options)

    def map_error(self, exc: BaseException) -> errors.BrokerError | None:
        return None


class ToyConnection:
    def __init__(self, broker: Broker, options: spi.ConnectOptions) -> None:
        self._broker = broker
        self._options = options
        self._children: list[ToyProducer | ToyConsumer] = []
        self._closed = False

    def capabilities(self, topic: str) -> frozenset[spi.Capability]:
        return ToyBackend.capabilities

    async def open_producer(self) -> spi.ProducerDriver:
        producer = ToyProducer(self._broker)
        self._children.append(producer)
        return producer

    async def open_consumer(self, options: spi.ConsumerOptions) -> spi.ConsumerDriver:
        group = self._broker.group(options.topic, options.group)
        return self._consume(options, group, group.ready)

    async def take_dead(self, topic: str, group: str, ids: Sequence[str] | None) -> spi.ConsumerDriver:
        found = self._broker.group(topic, group)
        options = spi.ConsumerOptions(topic=topic, group=group, prefetch=1 << 30)
        return self._consume(options, found, found.dead, ids)

    async def browse(self, topic: str, group: str, limit: int) -> Sequence[spi.Inbound]:
        return [inbound(topic, group, entry) for entry in self._broker.group(topic, group).dead[:limit]]

    def _consume(
        self, options: spi.ConsumerOptions, group: Group, shelf: list[Entry], ids: Sequence[str] | None = None
    ) -> spi.ConsumerDriver:
        consumer = ToyConsumer(self._broker, self._options, options, group, shelf, ids)
        self._children.append(consumer)
        return consumer

    async def ping(self, timeout: float) -> None:
        if self._closed:
            raise errors.BrokerUnavailable("the connection is closed", backend="toy")

    async def aclose(self) -> None:
        self._closed = True
        for child in self._children:
            await child.aclose()

    async def declare(self, topic: spi.TopicSpec, group: spi.GroupSpec | None) -> None:
        if topic.name in self._broker.topics:
            self._check(topic, group, missing_group_is_fine=True)
        else:
            self._broker.topics[topic.name] = (topic, {})
        if group is not None:
            self._broker.groups(topic.name).setdefault(group.name, Group(group))

    async def verify(self, topic: spi.TopicSpec, group: spi.GroupSpec | None) -> None:
        self._broker.groups(topic.name)
        self._check(topic, group, missing_group_is_fine=False)

    def _check(self, topic: spi.TopicSpec, group: spi.GroupSpec | None, *, missing_group_is_fine: bool) -> None:
        existing, groups = self._broker.topics[topic.name]
        if existing.ordered != topic.ordered:
            text = f"topic {topic.name!r} exists with ordered={existing.ordered}, not {topic.ordered}"
            raise errors.TopologyConflict(text, backend="toy")
        if group is not None and group.name not in groups and not missing_group_is_fine:
            self._broker.group(topic.name, group.name)

    async def delete(self, topic: str, group: str | None) -> None:
        _, groups = self._broker.topics.get(topic, (None, {}))
        gone = list(groups.values()) if group is None else [groups[group]] if group in groups else []
        if group is None:
            self._broker.topics.pop(topic, None)
        else:
            groups.pop(group, None)
        for one in gone:
            one.wake()


class ToyProducer:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._closed = False

    async def send(self, messages: Sequence[spi.Outbound]) -> Sequence[errors.BrokerError | None]:
        if self._closed:
            raise errors.Closed("the producer is closed", backend="toy")
        outcomes: list[errors.BrokerError | None] = []
        for message in messages:
            try:
                self._broker.store(message)
            except errors.BrokerError as error:
                outcomes.append(error)
            else:
                outcomes.append(None)
        return outcomes

    async def aclose(self) -> None:
        self._closed = True


class ToyConsumer:
    """Takes from one shelf of a group, the ready messages or the dead letters, and puts back what is not settled."""

    def __init__(
        self,
        broker: Broker,
        connection: spi.ConnectOptions,
        options: spi.ConsumerOptions,
        group: Group,
        shelf: list[Entry],
        ids: Sequence[str] | None,
    ) -> None:
        self._broker = broker
        self._clock = connection.clock
        self._options = options
        self._group = group
        self._shelf = shelf
        self._ids = ids
        self._held: dict[object, Entry] = {}
        self._bell: asyncio.Future[None] | None = None
        self._closed = False
        group.wakers.append(self._ring)

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
        deadline = self._clock.monotonic() + timeout
        while True:
            if self._closed:
                raise errors.Closed("the consumer is closed", topic=self._options.topic, backend="toy")
            if self._broker.group(self._options.topic, self._options.group) is not self._group:
                raise errors.TopicNotFound("the group was deleted", topic=self._options.topic, backend="toy")
            taken = self._take(min(max_messages, self._options.prefetch - len(self._held)))
            remaining = deadline - self._clock.monotonic()
            if taken or remaining <= 0 or self._shelf is self._group.dead:
                return taken
            self._bell = asyncio.get_running_loop().create_future()
            await spi.wait(self._clock, self._bell, remaining)

    def _take(self, limit: int) -> list[spi.Inbound]:
        chosen = [entry for entry in self._shelf if self._ids is None or entry.message.message_id in self._ids]
        return [self._deliver(entry) for entry in chosen[: max(limit, 0)]]

    def _deliver(self, entry: Entry) -> spi.Inbound:
        self._shelf.remove(entry)
        token = object()
        self._held[token] = entry
        return inbound(self._options.topic, self._options.group, entry, token)

    async def ack(self, messages: Sequence[spi.Inbound]) -> None:
        for message in messages:
            self._held.pop(message.token, None)
        self._ring()

    async def release(self, messages: Sequence[spi.Inbound]) -> None:
        for message in messages:
            entry = self._held.pop(message.token, None)
            if entry is not None:
                entry.redelivered = True
                insort(self._shelf, entry, key=attrgetter("number"))
        self._group.wake()

    def live(self, message: spi.Inbound) -> bool:
        return not self._closed and message.token in self._held

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._ring()
        self._group.wakers.remove(self._ring)
        for entry in self._held.values():
            entry.redelivered = True
            insort(self._shelf, entry, key=attrgetter("number"))
        self._held.clear()
        self._group.wake()
