"""`RocketMQProducer`: hands messages to lanes, and knows when their time is up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from brokerkit.errors import BrokerError, BrokerUnavailable, Closed, SendTimeout, TopicNotFound
from brokerkit.spi import Clock, Outbound, Timer, ToDead, ToGroup, ToInbox, ToTopic
from brokerkit_rocketmq.batching import MOST_BYTES
from brokerkit_rocketmq.calls import Call
from brokerkit_rocketmq.errors import NAME
from brokerkit_rocketmq.lanes import Lane
from brokerkit_rocketmq.native import native_options
from brokerkit_rocketmq.outlets import Outlets
from brokerkit_rocketmq.strands import Sending

if TYPE_CHECKING:
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.mapping import Codec
    from brokerkit_rocketmq.names import Names

__all__ = ["Limits", "RocketMQProducer"]

#: Topics that have a lane at the same time.
_MOST_LANES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a producer."""

    #: Seconds of one attempt to send.
    attempt_timeout: float
    #: Bytes of a message that brokers take.
    max_message_size: int
    #: Messages under way to one broker.
    window: int = 1000


class RocketMQProducer:
    """A `brokerkit.spi.ProducerDriver`.

    Every native topic has a `Lane`.  What they share are the brokers, each with bounds of what is under way to it.
    """

    def __init__(
        self,
        client: Client,
        names: Names,
        codec: Codec,
        limits: Limits,
        *,
        group: str,
        clock: Clock,
        on_close: Callable[[RocketMQProducer], None],
        missing: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """
        group:   the producer group that brokers are told
        missing: makes the native topic that a send found missing, or raises `BrokerError`
        """
        self._names = names
        self._limits = limits
        self._clock = clock
        self._on_close = on_close
        self._outlets = Outlets(client, clock, timeout=limits.attempt_timeout, window=limits.window)
        most_bytes = min(MOST_BYTES, limits.max_message_size)
        self._sending = Sending(client, codec, self._outlets, clock, group, most_bytes, missing)
        self._closed = False
        self._loop = asyncio.get_running_loop()
        #: By topic and whether an order is kept and an answer waited for.
        self._lanes: dict[tuple[str, bool, bool], Lane] = {}
        #: Calls in the order of their deadlines, which is the order in which they were made.
        self._calls: deque[Call] = deque()
        self._alarm: Timer | None = None

    # --- sending ---

    async def send(self, messages: Sequence[Outbound]) -> Sequence[BrokerError | None]:
        """Store the messages, as `brokerkit.spi.ProducerDriver.send` says."""
        if self._closed:
            raise Closed("the producer is closed", backend=NAME)
        if not messages:
            return []
        timeout = self._limits.attempt_timeout
        call = Call(len(messages), self._clock.monotonic() + timeout, self._loop.create_future())
        self._calls.append(call)
        if self._alarm is None:
            self._alarm = self._clock.call_later(timeout, self._time_is_up)
        for index, message in enumerate(messages):
            try:
                self._lane_of(message).add(message, call, index)
            except BrokerError as error:
                call.settle(index, error)
        try:
            await call.done
        except asyncio.CancelledError:
            # What is not written yet never is.
            call.done.cancel()
            raise
        calls = self._calls
        while calls and calls[0].done.done():
            # At once, or the collector of garbage goes through what was sent in the last seconds again and again.
            calls.popleft()
        # All of them have one now.
        outcomes = cast("list[BrokerError | None]", call.outcomes)
        return _without_gone_inboxes(messages, outcomes) if any(outcomes) else outcomes

    def _lane_of(self, message: Outbound) -> Lane:
        # What is not answered could be overtaken.
        oneway = message.native is not None and not message.ordered and native_options(message.native).oneway
        key = (self._topic_of(message), message.ordered, oneway)
        return self._lanes.get(key) or self._open_lane(*key)

    def _topic_of(self, message: Outbound) -> str:
        destination = message.destination
        if isinstance(destination, ToTopic):
            return self._names.topic(destination.topic)
        if isinstance(destination, ToGroup):
            return self._names.retry(destination.topic, destination.group)
        if isinstance(destination, ToDead):
            return self._names.dead(destination.topic, destination.group)
        return self._names.inbox

    def _open_lane(self, topic: str, ordered: bool, oneway: bool) -> Lane:
        if len(self._lanes) >= _MOST_LANES:
            idle = next((key for key, lane in self._lanes.items() if lane.idle), None)
            if idle is not None:
                self._lanes.pop(idle).close()
        lane = self._lanes[topic, ordered, oneway] = Lane(topic, self._sending, ordered=ordered, oneway=oneway)
        return lane

    # --- deadlines ---

    def _time_is_up(self) -> None:
        self._alarm = None
        now = self._clock.monotonic()
        calls = self._calls
        while calls and (calls[0].done.done() or calls[0].deadline <= now):
            calls.popleft().expire(self._not_sent, self._not_answered)
        for lane in self._lanes.values():
            lane.drop_expired()
        if calls:
            # Also while closing: what no broker has room for does not end otherwise.
            self._alarm = self._clock.call_later(calls[0].deadline - now, self._time_is_up)

    def _not_sent(self) -> BrokerError:
        return BrokerUnavailable(
            f"not sent in {self._limits.attempt_timeout:g} s: no broker takes it at the moment", backend=NAME
        )

    def _not_answered(self) -> BrokerError:
        return SendTimeout(f"no answer in {self._limits.attempt_timeout:g} s, the outcome is unknown", backend=NAME)

    # --- closing ---

    async def aclose(self) -> None:
        """Wait for the answers that are under way, which have their deadlines, then close.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            under_way = [call.done for call in self._calls if not call.done.done()]
            if under_way:
                await asyncio.wait(under_way)
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
            cancelled = [task for lane in self._lanes.values() for task in lane.close()] + self._outlets.close()
            await asyncio.gather(*cancelled, return_exceptions=True)
            self._on_close(self)


def _without_gone_inboxes(
    messages: Sequence[Outbound], outcomes: Sequence[BrokerError | None]
) -> list[BrokerError | None]:
    """A message to an inbox that is gone is dropped silently; so it is where there has never been one."""
    return [
        None if isinstance(outcome, TopicNotFound) and isinstance(message.destination, ToInbox) else outcome
        for message, outcome in zip(messages, outcomes, strict=True)
    ]
