"""`RabbitMQProducer`: routes messages, bounds what is under way, and knows what became of each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from brokerkit.errors import (
    BrokerError,
    BrokerUnavailable,
    Closed,
    ConfigurationError,
    MessageTooLarge,
    PayloadError,
    SendTimeout,
    TopicNotFound,
    Unroutable,
)
from brokerkit.spi import Clock, Outbound, Timer, ToDead, ToGroup, ToInbox, TopicSpec, ToTopic, wait
from brokerkit_rabbitmq.errors import NAME
from brokerkit_rabbitmq.lane import Lane
from brokerkit_rabbitmq.link import Link
from brokerkit_rabbitmq.names import Names
from brokerkit_rabbitmq.publishing import Batch, Route
from brokerkit_rabbitmq.topology import Delays
from brokerkit_rabbitmq.wheel import Target

__all__ = ["Limits", "RabbitMQProducer"]

#: Exchanges that have a channel of their own at the same time.
_MOST_LANES = 200
#: The lane of everything that goes through the delay wheel, whose exchanges are ours.
_WHEEL = "bk.delay"
#: What goes straight to a queue, by the default exchange, which cannot be missing.
_DEFAULT = ""


class Limits:
    """Bounds of a producer: seconds of one attempt, messages under way on one exchange, bytes of a body."""

    __slots__ = ("attempt_timeout", "max_message_size", "window")

    def __init__(self, attempt_timeout: float, window: int, max_message_size: int) -> None:
        self.attempt_timeout = attempt_timeout
        self.window = window
        self.max_message_size = max_message_size


class RabbitMQProducer:
    """A `brokerkit.spi.ProducerDriver`.

    Every exchange has a `Lane`, a channel of its own, so that a channel that the broker closes, for an exchange that
    is gone or a missing permission, takes no message of another topic with it.
    """

    def __init__(
        self,
        link: Link,
        names: Names,
        delays: Delays,
        limits: Limits,
        *,
        clock: Clock,
        topics: Mapping[str, TopicSpec],
        on_close: Callable[[RabbitMQProducer], None],
    ) -> None:
        self._link = link
        self._names = names
        self._delays = delays
        self._limits = limits
        self._clock = clock
        self._topics = topics
        self._on_close = on_close
        self._closed = False
        self._lanes: dict[str, Lane] = {}
        #: (topic, tag) -> the declaration it was made for, and where its messages go.
        self._routes: dict[tuple[str, str | None], tuple[TopicSpec | None, Route]] = {}
        #: Batches in the order of their deadlines, which is the order of the calls.
        self._batches: deque[Batch] = deque()
        self._alarm: Timer | None = None
        self._preparing: set[asyncio.Task[None]] = set()
        link.listeners.append(self._link_changed)

    # --- sending ---

    async def send(self, messages: Sequence[Outbound]) -> Sequence[BrokerError | None]:
        """Store the messages, as `brokerkit.spi.ProducerDriver.send` says."""
        if self._closed or self._link.closed:
            raise Closed("the producer is closed", backend=NAME)
        if not messages:
            return []
        timeout = self._limits.attempt_timeout
        batch = Batch(len(messages), self._clock.monotonic() + timeout, asyncio.get_running_loop().create_future())
        self._batches.append(batch)
        if self._alarm is None:
            self._alarm = self._clock.call_later(timeout, self._time_is_up)
        delayed = False
        try:
            for index, message in enumerate(messages):
                try:
                    if message.due is None or message.due <= self._clock.time():
                        self._now(message, batch, index)
                    else:
                        delayed = True
                        await self._later(message, message.due, batch, index)
                        if batch.done.done():
                            # Its time was up meanwhile: nothing more of it may be written.
                            break
                except BrokerError as error:
                    batch.settle(index, error)
            await batch.done
        except asyncio.CancelledError:
            # What is not written yet never is.
            batch.done.cancel()
            raise
        if delayed and any(isinstance(outcome, TopicNotFound) for outcome in batch.outcomes):
            self._delays.forget()
        batches = self._batches
        while batches and batches[0].done.done():
            # At once, or the collector of garbage goes through what was sent in the last seconds again and again.
            batches.popleft()
        # All of them have one now.
        return cast("list[BrokerError | None]", batch.outcomes)

    def _now(self, message: Outbound, batch: Batch, index: int) -> None:
        self._check_size(message)
        destination = message.destination
        if type(destination) is ToTopic:
            route = self._topic_route(destination.topic, message)
        else:
            route = self._queue_route(message)
        lane = self._lanes.get(route.exchange)
        if lane is None:
            lane = self._open_lane(route.exchange)
        lane.add(message, route, batch, index)

    def _check_size(self, message: Outbound) -> None:
        largest = self._limits.max_message_size
        if len(message.body) > largest:
            raise MessageTooLarge(
                f"the body has {len(message.body)} bytes, max_message_size is {largest}", backend=NAME
            )

    async def _later(self, message: Outbound, due: float, batch: Batch, index: int) -> None:
        self._check_size(message)
        if self._delays.refused is not None:
            raise ConfigurationError(
                f"delays are not possible here: {self._delays.refused.message}", backend=NAME
            ) from self._delays.refused
        target, keys = self._target(message)
        # A retry may come a little later; everything else at its time.
        coarse = isinstance(message.destination, ToGroup)
        by_priority = self._by_priority(message)
        priority = message.priority if by_priority else 0
        digits = self._delays.wheel.digits(due - self._clock.time(), coarse=coarse, priority=priority)
        while not self._delays.ready(digits, target):
            if not await self._prepared(digits, target, batch):
                return
            # What that took is no part of the delay any more.
            digits = self._delays.wheel.digits(due - self._clock.time(), coarse=coarse, priority=priority)
        exchange, routing_key = self._delays.wheel.entry(digits, target)
        lane = self._lanes.get(_WHEEL) or self._open_lane(_WHEEL)
        lane.add(message, Route(exchange, routing_key, keys=keys, by_priority=by_priority), batch, index)

    def _target(self, message: Outbound) -> tuple[Target, tuple[str, ...]]:
        """Return where a message goes when it is due, and the keys that it needs there beside those of the wheel."""
        destination = message.destination
        if not isinstance(destination, ToTopic):
            return Target("", self._queue_route(message).routing_key), ()
        straight = self._topic_route(destination.topic, message)
        key = straight.routing_key
        if "~" in key:
            raise PayloadError("a routing key with '~' cannot be delayed", backend=NAME)
        exchange = self._names.due_exchange(destination.topic) or straight.exchange
        if not exchange:
            # The default exchange: the key is the name of a queue, and each queue is a target of its own.
            return Target("", key), ()
        # "Everything" of a topic exchange matches the keys of the wheel too; no other binding does.
        untagged = not key and self._names.topic_keys(destination.topic).exchange_type == "topic"
        return Target(exchange), () if untagged else (key,)

    async def _prepared(self, digits: tuple[int, ...], target: Target, batch: Batch) -> bool:
        """Declare what the delay needs; return whether the batch still waits for it."""
        preparing = asyncio.get_running_loop().create_task(
            self._delays.prepare(digits, target), name="brokerkit-delay-declare"
        )
        self._preparing.add(preparing)
        preparing.add_done_callback(self._preparing.discard)
        # Not cancelled with the send: what is declared serves the next one.
        preparing.add_done_callback(_see)
        if await wait(self._clock, preparing, batch.deadline - self._clock.monotonic()):
            preparing.result()
        return not batch.done.done()

    # --- where to ---

    def _topic_route(self, topic: str, message: Outbound) -> Route:
        spec = self._topics.get(topic)
        native = message.native
        if native:
            return self._make_route(topic, spec, native.get("routing_key", message.tag))
        known = self._routes.get((topic, message.tag))
        if known is not None and known[0] is spec:
            return known[1]
        route = self._make_route(topic, spec, message.tag)
        self._routes[topic, message.tag] = (spec, route)
        return route

    def _make_route(self, topic: str, spec: TopicSpec | None, key: str | None) -> Route:
        if key is None:
            key = self._names.topic_keys(topic).routing_key or ""
        elif not isinstance(key, str):
            raise PayloadError(f"native routing_key is a text, not {type(key).__name__}", backend=NAME)
        wanted = spec is None or spec.unroutable == "raise"
        return Route(
            self._names.exchange(topic).name,
            key,
            mandatory=wanted,
            unwanted=lambda: _nobody_wants(topic, key),
            by_priority=not self._names.keeps_order(topic),
        )

    def _queue_route(self, message: Outbound) -> Route:
        destination = message.destination
        if isinstance(destination, ToGroup):
            queue = self._names.queue_name(destination.topic, destination.group)
            by_priority = self._by_priority(message)
            return Route(_DEFAULT, queue, unwanted=lambda: _no_queue(queue), by_priority=by_priority)
        if isinstance(destination, ToDead):
            queue = self._names.dead_queue_name(destination.topic, destination.group)
            return Route(_DEFAULT, queue, unwanted=lambda: _no_queue(queue), by_priority=False)
        if isinstance(destination, ToInbox):
            return Route(_DEFAULT, destination.address, mandatory=False)
        raise TypeError(f"{type(destination).__name__} is no queue")

    def _by_priority(self, message: Outbound) -> bool:
        """Return whether queues may look at its priority: not where it would change an order that is promised."""
        destination = message.destination
        if isinstance(destination, ToTopic | ToGroup):
            return not self._names.keeps_order(destination.topic)
        return not isinstance(destination, ToDead)

    # --- lanes ---

    def _open_lane(self, name: str) -> Lane:
        if len(self._lanes) >= _MOST_LANES:
            idle = next((lane for lane in self._lanes.values() if lane.idle), None)
            if idle is not None:
                del self._lanes[idle.name]
                idle.close()
        lane = self._lanes[name] = Lane(
            name, self._link, self._limits.window, self._limits.attempt_timeout, self._clock
        )
        return lane

    def _link_changed(self) -> None:
        for lane in tuple(self._lanes.values()):
            lane.stir()

    # --- deadlines ---

    def _time_is_up(self) -> None:
        self._alarm = None
        now = self._clock.monotonic()
        batches = self._batches
        while batches and (batches[0].done.done() or batches[0].deadline <= now):
            batches.popleft().expire(self._not_sent, self._not_confirmed)
        for lane in self._lanes.values():
            lane.drop_expired()
        if batches and not self._closed:
            self._alarm = self._clock.call_later(batches[0].deadline - now, self._time_is_up)

    def _not_sent(self) -> BrokerError:
        amqp, seconds = self._link.amqp, f"{self._limits.attempt_timeout:g} s"
        if amqp is None:
            return BrokerUnavailable(f"not sent in {seconds}: {self._link.error.message}", backend=NAME)
        if amqp.blocked is not None:
            return SendTimeout(f"not sent in {seconds}: the broker blocks publishers ({amqp.blocked})", backend=NAME)
        return SendTimeout(f"not sent in {seconds}: the broker takes no more at the moment", backend=NAME)

    def _not_confirmed(self) -> BrokerError:
        amqp = self._link.amqp
        why = f"; it blocks publishers ({amqp.blocked})" if amqp is not None and amqp.blocked is not None else ""
        return SendTimeout(
            f"no confirm in {self._limits.attempt_timeout:g} s, the outcome is unknown{why}", backend=NAME
        )

    # --- closing ---

    async def aclose(self) -> None:
        """Wait for the answers that are under way, which have their deadlines, then close.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            under_way = [batch.done for batch in self._batches if not batch.done.done()]
            if under_way:
                await asyncio.wait(under_way)
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
            if self._link_changed in self._link.listeners:
                self._link.listeners.remove(self._link_changed)
            preparing = tuple(self._preparing)
            for task in preparing:
                task.cancel()
            await asyncio.gather(*(lane.aclose() for lane in self._lanes.values()), *preparing, return_exceptions=True)
            self._on_close(self)


def _nobody_wants(topic: str, key: str) -> BrokerError:
    tagged = f" with the tag {key!r}" if key else ""
    return Unroutable(
        f"no group of topic {topic!r} gets a message{tagged}: declare a group that wants it (Topic(…, groups=[…]) or "
        f"topics.{topic}.groups in the configuration), or set topics.{topic}.unroutable: drop",
        topic=topic,
        backend=NAME,
    )


def _see(task: asyncio.Task[None]) -> None:
    """Look at how the task ended: whoever waited for it raises it, and if nobody did it is not a fault."""
    if not task.cancelled():
        task.exception()


def _no_queue(queue: str) -> BrokerError:
    return TopicNotFound(f"there is no queue {queue!r}", backend=NAME)
