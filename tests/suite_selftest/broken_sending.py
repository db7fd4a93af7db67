"""Faults of sending."""

from __future__ import annotations

from collections.abc import Sequence

from brokerkit import spi
from brokerkit.errors import BrokerError, SendRefused

from .broken_backend import BrokenBackend
from .interposed import (
    InterposedConsumer,
    InterposedProducer,
)


class LosesSome(BrokenBackend):
    """Confirms every 40th message and throws it away."""

    caught_by = ("test_send_receive_many", "test_concurrent_sends", "test_competing_consumers_share")

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        return () if self.now_and_then(40) else (message,)


class Doubles(BrokenBackend):
    """Stores every 40th message twice."""

    caught_by = ("test_send_receive_many", "test_concurrent_sends")

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        return (message, message) if self.now_and_then(40) else (message,)


class DeliversEarly(BrokenBackend):
    """Forgets the due time of what is sent."""

    caught_by = ("test_delayed_send", "test_delays_are_independent")

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        message.due = None
        return (message,)


class DeliversLate(BrokenBackend):
    """Adds half a minute to every due time."""

    caught_by = ("test_delayed_send", "test_delayed_nack")

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        if message.due is not None:
            message.due += 30
        return (message,)


class OneTimerForAll(BrokenBackend):
    """Delays every message at least as long as the one before it, as per-queue timers do."""

    caught_by = ("test_delays_are_independent",)

    def __init__(self, inner: spi.Backend) -> None:
        super().__init__(inner)
        self._latest = 0.0

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        if message.due is not None:
            message.due = self._latest = max(self._latest, message.due)
        return (message,)


class RetriesToEveryGroup(BrokenBackend):
    """Sends to the topic what was meant for one group."""

    caught_by = ("test_attempt_counts_up", "test_redrive_dead_letters")

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        if isinstance(message.destination, spi.ToGroup):
            message.destination = spi.ToTopic(message.destination.topic)
        return (message,)


class TruncatesAtNul(BrokenBackend):
    """Cuts bodies where a C string would end."""

    caught_by = ("test_body_is_opaque_bytes",)

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        message.body = message.body.split(b"\0")[0]
        return (message,)


class MangledHeaders(BrokenBackend):
    """Strips the values of headers and drops the empty ones."""

    caught_by = ("test_headers_round_trip_hostile_strings", "test_headers_that_brokers_interpret")

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        message.headers = {name: value.strip() for name, value in message.headers.items() if value}
        return (message,)


class DropsTags(BrokenBackend):
    """Stores messages without their tag."""

    caught_by = ("test_tag_filter",)

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        message.tag = None
        return (message,)


class IgnoresPriority(BrokenBackend):
    """Declares strict priority and stores everything alike."""

    caught_by = ("test_priority_order",)

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        message.priority = 0
        return (message,)


class SilentDeadLetters(BrokenBackend):
    """Loses the headers of dead letters that say why."""

    caught_by = ("test_reject_goes_to_dead_letter", "test_retry_gives_up_to_dead_letter")

    def outgoing(self, message: spi.Outbound) -> Sequence[spi.Outbound]:
        if isinstance(message.destination, spi.ToDead):
            message.headers = {name: value for name, value in message.headers.items() if not name.startswith("bk-")}
        return (message,)


class SwallowsRefusedSends(BrokenBackend):
    """Reports every message as stored, whatever the broker answered."""

    caught_by = ("test_refused_send_is_an_error", "test_dead_letter_failure_keeps_original")

    class producer_class(InterposedProducer):
        async def send(self, messages: Sequence[spi.Outbound]) -> Sequence[BrokerError | None]:
            await super().send(messages)
            return [None for _ in messages]

    class consumer_class(InterposedConsumer):
        async def settle_with(self, message: spi.Inbound, outbounds: Sequence[spi.Outbound]) -> None:
            try:
                await super().settle_with(message, outbounds)
            except SendRefused:
                await self.ack([message])


class BatchesFailTogether(BrokenBackend):
    """Fails the whole batch with its first bad message."""

    caught_by = ("test_batch_send_outcome_per_message",)

    class producer_class(InterposedProducer):
        async def send(self, messages: Sequence[spi.Outbound]) -> Sequence[BrokerError | None]:
            outcomes = await super().send(messages)
            error = next((outcome for outcome in outcomes if outcome is not None), None)
            return [error for _ in messages]


class ForeignErrors(BrokenBackend):
    """Lets exceptions of its client library out."""

    caught_by = ("test_delete_then_send_raises", "test_oversized_body_raises")

    class producer_class(InterposedProducer):
        async def send(self, messages: Sequence[spi.Outbound]) -> Sequence[BrokerError | None]:
            for outcome in (outcomes := await super().send(messages)):
                if outcome is not None:
                    raise OSError(str(outcome))
            return outcomes
