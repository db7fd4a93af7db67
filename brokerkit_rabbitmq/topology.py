"""Declaring, verifying and deleting exchanges, queues and bindings; all calls of one step leave together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from pika import spec

from brokerkit.errors import BrokerError, TopicNotFound, TopologyConflict
from brokerkit.spi import GroupSpec, TopicSpec
from brokerkit_rabbitmq.channel import Channel
from brokerkit_rabbitmq.errors import NAME
from brokerkit_rabbitmq.link import Link
from brokerkit_rabbitmq.names import Exchange, Names, Queue
from brokerkit_rabbitmq.wheel import Binding, Target, Wheel

__all__ = ["Delays", "Topology", "declare_all"]


async def declare_all(
    channel: Channel, exchanges: Iterable[Exchange], queues: Iterable[Queue], bindings: Iterable[Binding]
) -> None:
    """Declare everything on ``channel``, which an error closes; raise the first error."""
    calls = [
        *(channel.start(_declare_exchange(exchange), spec.Exchange.DeclareOk) for exchange in exchanges),
        *(channel.start(_declare_queue(queue), spec.Queue.DeclareOk) for queue in queues),
    ]
    for binding in bindings:
        if binding.to_exchange:
            bind = spec.Exchange.Bind(0, binding.destination, binding.source, binding.key)
            calls.append(channel.start(bind, spec.Exchange.BindOk))
        else:
            queue_bind = spec.Queue.Bind(0, binding.destination, binding.source, binding.key)
            calls.append(channel.start(queue_bind, spec.Queue.BindOk))
    await finish(channel, calls)


async def finish(channel: Channel, calls: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """Wait for the replies of calls that were made together; raise the first error."""
    if not calls:
        return []
    # They come in order, and all fail when the channel ends.
    await channel.connection.answered(calls[-1])
    return [call.result() for call in calls]


def _declare_exchange(exchange: Exchange, *, passive: bool = False) -> Any:
    return spec.Exchange.Declare(
        0,
        exchange.name,
        exchange.type,
        passive,
        exchange.durable,
        exchange.auto_delete,
        arguments=dict(exchange.arguments),
    )


def _declare_queue(queue: Queue, *, passive: bool = False) -> Any:
    return spec.Queue.Declare(
        0, queue.name, passive, queue.durable, queue.exclusive, queue.auto_delete, arguments=dict(queue.arguments)
    )


class Topology:
    """The exchanges and queues of topics and groups on one link, each step on a scratch channel."""

    def __init__(self, link: Link, names: Names, timeout: float) -> None:
        self._link = link
        self._names = names
        self._timeout = timeout

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        """Create the topic, and the group if one is given.  Raise `TopologyConflict` that names the argument."""
        names = self._names
        exchange = names.exchange(topic.name)
        exchanges = [exchange] if exchange.name and not exchange.name.startswith("amq.") else []
        due = names.due_exchange(topic.name)
        if due is not None:
            exchanges.append(Exchange(due, exchange.type, arguments={"alternate-exchange": "bk.delay.lost"}))
        queues: list[Queue] = []
        bindings: list[Binding] = []
        if group is not None:
            queue = names.queue(topic.name, group)
            queues = [queue, names.dead_queue(topic.name, group)]
            for source in filter(None, (exchange.name, due)):
                bindings += (Binding(source, queue.name, key) for key in names.bindings(topic.name, group))
        try:
            async with self._link.scratch(self._timeout) as channel:
                await declare_all(channel, exchanges, queues, bindings)
        except BrokerError as error:
            raise _about(error, topic.name) from error.__cause__

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        """Raise `TopicNotFound` unless the exchange, and the queue if a group is given, exist.  Creates nothing."""
        names = self._names
        exchange = names.exchange(topic.name)
        try:
            async with self._link.scratch(self._timeout) as channel:
                calls = []
                if exchange.name:
                    passive = _declare_exchange(exchange, passive=True)
                    calls.append(channel.start(passive, spec.Exchange.DeclareOk))
                if group is not None:
                    passive = _declare_queue(names.queue(topic.name, group), passive=True)
                    calls.append(channel.start(passive, spec.Queue.DeclareOk))
                await finish(channel, calls)
        except BrokerError as error:
            raise _about(error, topic.name) from error.__cause__

    async def count(self, queue: str) -> tuple[int, int]:
        """Return how many messages of ``queue`` are ready, and its consumers; raise `TopicNotFound`."""
        async with self._link.scratch(self._timeout) as channel:
            answer = await channel.call(_declare_queue(Queue(queue), passive=True), spec.Queue.DeclareOk)
        return answer.message_count, answer.consumer_count

    async def delete(self, exchanges: Iterable[str], queues: Iterable[str]) -> None:
        """Delete what exists of these, with all messages."""
        async with self._link.scratch(self._timeout) as channel:
            # Exchanges first: nothing is routed to half of the groups.
            calls = [channel.start(spec.Exchange.Delete(0, name), spec.Exchange.DeleteOk) for name in exchanges]
            calls += [channel.start(spec.Queue.Delete(0, name), spec.Queue.DeleteOk) for name in queues]
            await finish(channel, calls)

    async def purge(self, queue: str) -> int:
        """Remove what is ready in ``queue``; return how many."""
        async with self._link.scratch(self._timeout) as channel:
            answer = await channel.call(spec.Queue.Purge(0, queue), spec.Queue.PurgeOk)
        return int(answer.message_count)


class Delays:
    """The part of the wheel that exists on the broker, as far as this process declared it.

    The exchanges are declared when the connection is made, so that missing permissions are known before anything is
    sent; the queues of a digit and of a target when they are needed first.
    """

    def __init__(self, link: Link, wheel: Wheel, timeout: float) -> None:
        self.wheel = wheel
        #: Why there are no delays on this broker; None when there are.
        self.refused: BrokerError | None = None
        self._link = link
        self._timeout = timeout
        self._known: set[object] = set()
        self._epoch = 0
        self._lock = asyncio.Lock()

    async def declare(self) -> None:
        """Declare the exchanges; note in `refused` that the broker does not let us."""
        try:
            await self._declare_frame()
        except BrokerError as error:
            if error.retryable:
                raise
            self.refused = error

    async def _declare_frame(self) -> None:
        epoch = self._link.epoch
        async with self._link.scratch(self._timeout) as channel:
            await declare_all(channel, *self.wheel.frame())
        self._known.clear()
        self._epoch = epoch

    def forget(self) -> None:
        """Declare everything again before the next delay: somebody has deleted a part of it."""
        self._epoch = 0

    def ready(self, digits: tuple[int, ...], target: Target) -> bool:
        """Return whether a message with this delay can be sent now."""
        return self._epoch == self._link.epoch and self._known.issuperset((target, *self.wheel.steps(digits)))

    async def prepare(self, digits: tuple[int, ...], target: Target) -> None:
        """Declare what a message with this delay passes through."""
        async with self._lock:
            if self._epoch != self._link.epoch:
                # The broker may have lost everything with the link.
                await self._declare_frame()
            steps = [step for step in self.wheel.steps(digits) if step not in self._known]
            parts = [self.wheel.step(*step) for step in steps]
            if target not in self._known:
                parts.append(self.wheel.due(target))
            if not parts:
                return
            async with self._link.scratch(self._timeout) as channel:
                await declare_all(channel, (), (queue for queue, _ in parts), (binding for _, binding in parts))
            self._known.update(steps, (target,))


def _about(error: BrokerError, topic: str) -> BrokerError:
    if isinstance(error, TopicNotFound | TopologyConflict) and error.topic is None:
        return error.with_context(topic=topic, backend=NAME)
    return error
