"""Embedded backends with one fault each, and the cases of the suite that name that fault.

A fault that would happen by chance happens here by count, so that a case that names it always meets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar

from brokerkit import spi
from brokerkit.errors import BrokerError, Closed, SendRefused, TopologyConflict

from .interposed import (
    InterposedBackend,
    InterposedConnection,
    InterposedConsumer,
    InterposedProducer,
)

__all__ = ["ALL_BROKEN", "BrokenBackend"]


class BrokenBackend(InterposedBackend):
    """The base of the broken ones."""

    #: The cases that must fail on this backend.
    caught_by: ClassVar[tuple[str, ...]]

    def __init__(self, inner: spi.Backend) -> None:
        super().__init__(inner)
        self.tick = count(1).__next__

    def now_and_then(self, every: int) -> bool:
        """Return True on each ``every``-th call."""
        return self.tick() % every == 0


# --- sending --------------------------------------------------------------------------------------------------


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


# --- receiving ------------------------------------------------------------------------------------------------


class AcknowledgesAtReceive(BrokenBackend):
    """Settles what it delivers before anybody handled it."""

    caught_by = ("test_nack_redelivers", "test_close_gives_back_prefetched", "test_cancelled_handler_leaves_unsettled")

    class consumer_class(InterposedConsumer):
        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            messages = await super().receive(max_messages, timeout)
            await self.inner.ack(messages)
            return messages


class NewIdAtReceive(BrokenBackend):
    """Gives each delivery an id of its own."""

    caught_by = ("test_message_id_survives_redelivery", "test_send_receive_one")

    class consumer_class(InterposedConsumer):
        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            messages = await super().receive(max_messages, timeout)
            for message in messages:
                message.message_id = f"delivery-{self.connection.backend.tick()}"  # type: ignore[attr-defined]
            return messages


class Reorders(BrokenBackend):
    """Lets a message be overtaken by the next one of its key, now and then."""

    caught_by = ("test_order_single_consumer", "test_order_by_key")

    class consumer_class(InterposedConsumer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._withheld: spi.Inbound | None = None

        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            messages = list(await super().receive(max_messages, min(timeout, 0.1)))
            if self._withheld is None:
                self._withheld = messages.pop(0) if messages else None
            elif not messages or self._withheld.key in [message.key for message in messages]:
                messages.append(self._withheld)
                self._withheld = None
            return messages


class IgnoresMaxMessages(BrokenBackend):
    """Returns as much as its prefetch allows."""

    caught_by = ("test_receive_respects_max",)

    class consumer_class(InterposedConsumer):
        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            return await super().receive(max_messages + 1000, timeout)


class IgnoresPrefetch(BrokenBackend):
    """Keeps a buffer of its own with all the messages there are."""

    caught_by = ("test_prefetch_limits_unsettled",)

    class consumer_class(InterposedConsumer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._buffer: list[spi.Inbound] = []

        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            if not self._buffer:
                self._buffer += await super().receive(1000, timeout)
            # Or the leases would end, and the others get their share after all.
            await self.inner.extend(self._buffer, 60.0)
            given, self._buffer = self._buffer[:max_messages], self._buffer[max_messages:]
            return given

    class connection_class(InterposedConnection):
        async def open_consumer(self, options: spi.ConsumerOptions) -> spi.ConsumerDriver:
            return await super().open_consumer(replace(options, prefetch=10_000))


class LosesOnCancel(BrokenBackend):
    """Throws away what arrived while a receive was being cancelled."""

    caught_by = ("test_cancel_receive_loses_nothing",)

    class consumer_class(InterposedConsumer):
        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            taken: Sequence[spi.Inbound] = ()
            try:
                taken = await super().receive(max_messages, timeout)
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                await self.inner.ack(taken)
                raise
            return taken


class ReturnsLate(BrokenBackend):
    """Does not answer a receive before its timeout is long over."""

    caught_by = ("test_receive_timeout_returns_empty",)

    class consumer_class(InterposedConsumer):
        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            return await super().receive(max_messages, timeout + 3)


class SleepsThroughClose(BrokenBackend):
    """Leaves a pending receive waiting when the consumer is closed."""

    caught_by = ("test_close_wakes_pending_receive",)

    class consumer_class(InterposedConsumer):
        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            try:
                return await super().receive(max_messages, timeout)
            except Closed:
                await asyncio.sleep(timeout)
                return ()


class CrossesGroups(BrokenBackend):
    """Lets all groups of a topic work on the first one's messages."""

    caught_by = ("test_groups_each_get_everything",)

    class connection_class(InterposedConnection):
        async def open_consumer(self, options: spi.ConsumerOptions) -> spi.ConsumerDriver:
            groups = self.options.topics[options.topic].groups if options.topic in self.options.topics else {}
            first = next(iter(sorted(groups)), options.group)
            return await super().open_consumer(replace(options, group=first))


class BroadcastCompetes(BrokenBackend):
    """Takes a broadcast consumer for one more member of a group."""

    caught_by = ("test_broadcast_reaches_every_consumer",)

    class connection_class(InterposedConnection):
        async def open_consumer(self, options: spi.ConsumerOptions) -> spi.ConsumerDriver:
            if options.broadcast:
                await self.declare(spi.TopicSpec(name=options.topic), spi.GroupSpec(name=options.group))
            return await super().open_consumer(replace(options, broadcast=False))


# --- settling -------------------------------------------------------------------------------------------------


class ResurrectsAcknowledged(BrokenBackend):
    """Forgets every seventh acknowledgement, which shows after a reopen."""

    caught_by = ("test_acked_message_stays_gone",)

    class consumer_class(InterposedConsumer):
        async def ack(self, messages: Sequence[spi.Inbound]) -> None:
            backend: Any = self.connection.backend
            await super().ack([message for message in messages if not backend.now_and_then(7)])


class SettlesStaleTokens(BrokenBackend):
    """Settles its oldest delivery when the token's own one is over, as positions without an epoch do."""

    caught_by = ("test_ack_twice_is_noop",)

    class consumer_class(InterposedConsumer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._taken: list[spi.Inbound] = []

        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            messages = await super().receive(max_messages, timeout)
            self._taken += messages
            return messages

        async def ack(self, messages: Sequence[spi.Inbound]) -> None:
            for message in messages:
                live = [one for one in self._taken if self.inner.live(one)]
                await super().ack([message] if message in live else live[:1])


class AcknowledgesCumulatively(BrokenBackend):
    """Settles everything that was delivered before the acknowledged message, too."""

    caught_by = ("test_partial_batch_settlement",)

    class consumer_class(InterposedConsumer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._open: list[spi.Inbound] = []

        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            messages = await super().receive(max_messages, timeout)
            self._open += messages
            return messages

        async def ack(self, messages: Sequence[spi.Inbound]) -> None:
            last = max((self._open.index(message) for message in messages if message in self._open), default=-1)
            settled, self._open = self._open[: last + 1], self._open[last + 1 :]
            await super().ack(settled)


class DropsReleased(BrokenBackend):
    """Takes a release for an acknowledgement."""

    caught_by = ("test_nack_repeatedly", "test_worker_shutdown_drains")

    class consumer_class(InterposedConsumer):
        async def release(self, messages: Sequence[spi.Inbound]) -> None:
            await self.inner.ack(messages)


class SettlesWithoutStoring(BrokenBackend):
    """Acknowledges in a settlement and forgets what was to be stored with it."""

    caught_by = ("test_retry_then_success", "test_reject_goes_to_dead_letter", "test_nack_redelivers")

    class consumer_class(InterposedConsumer):
        async def settle_with(self, message: spi.Inbound, outbounds: Sequence[spi.Outbound]) -> None:
            await self.inner.ack([message])


class DoesNotExtend(BrokenBackend):
    """Accepts the extension of a lease and does nothing."""

    caught_by = ("test_extend_keeps_lease",)

    class consumer_class(InterposedConsumer):
        async def extend(self, messages: Sequence[spi.Inbound], seconds: float) -> None:
            pass


# --- closing, managing ----------------------------------------------------------------------------------------


class AcknowledgesAtClose(BrokenBackend):
    """Settles at close what was prefetched and never handed out."""

    caught_by = ("test_close_gives_back_prefetched", "test_concurrent_close")

    class consumer_class(InterposedConsumer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._taken: list[spi.Inbound] = []

        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            messages = await super().receive(max_messages, timeout)
            self._taken += messages
            return messages

        async def aclose(self) -> None:
            await self.inner.ack([message for message in self._taken if self.inner.live(message)])
            await super().aclose()


class LeaksATask(BrokenBackend):
    """Leaves a task behind when it is closed."""

    caught_by = ("test_no_task_or_socket_leak",)

    class connection_class(InterposedConnection):
        async def aclose(self) -> None:
            await super().aclose()
            self.backend.left_behind = asyncio.ensure_future(asyncio.sleep(3600))  # type: ignore[attr-defined]


class PurgesTooMuch(BrokenBackend):
    """Purges every group of the topic."""

    caught_by = ("test_purge_empties_one_group",)

    class connection_class(InterposedConnection):
        async def purge(self, topic: str, group: str) -> int:
            groups = self.options.topics[topic].groups if topic in self.options.topics else {}
            for other in groups:
                if other != group:
                    await super().purge(topic, other)
            return await super().purge(topic, group)


class PurgesTheDelayed(BrokenBackend):
    """Purges what waits for its due time, too: as if it had never been stored."""

    caught_by = ("test_purge_empties_one_group",)

    class connection_class(InterposedConnection):
        async def purge(self, topic: str, group: str) -> int:
            stats = await self.stats(topic, group)
            specs = self.options.topics[topic]
            await self.delete(topic, group)
            await self.declare(specs, specs.groups.get(group, spi.GroupSpec(name=group)))
            return stats.ready or 0


class BrowsingReorders(BrokenBackend):
    """Looks at dead letters by taking them and putting them back at the end."""

    caught_by = ("test_browse_keeps_order",)

    class connection_class(InterposedConnection):
        async def browse(self, topic: str, group: str, limit: int) -> Sequence[spi.Inbound]:
            taker = await self.inner.take_dead(topic, group, None)
            producer = await self.inner.open_producer()
            seen = await taker.receive(limit, 0.0)
            for message in seen:
                copy = spi.Outbound(
                    destination=spi.ToDead(topic, group),
                    body=message.body,
                    message_id=message.message_id or "",
                    headers=message.headers,
                    timestamp=message.timestamp or 0.0,
                )
                await producer.send([copy])
            await taker.ack(seen)
            await taker.aclose()
            await producer.aclose()
            return seen  # type: ignore[no-any-return]


class RedrivesEverything(BrokenBackend):
    """Ignores which dead letters were asked for."""

    caught_by = ("test_redrive_dead_letters",)

    class connection_class(InterposedConnection):
        async def take_dead(self, topic: str, group: str, ids: Sequence[str] | None) -> spi.ConsumerDriver:
            return await super().take_dead(topic, group, None)


class InventsFigures(BrokenBackend):
    """Answers 0 where it should count."""

    caught_by = ("test_stats_count_ready_and_dead",)

    class connection_class(InterposedConnection):
        async def stats(self, topic: str, group: str) -> spi.GroupStats:
            return replace(await super().stats(topic, group), ready=0, dead=0)


class AcceptsConflicts(BrokenBackend):
    """Declares without looking at what exists."""

    caught_by = ("test_conflicting_declare_raises",)

    class connection_class(InterposedConnection):
        async def declare(self, topic: spi.TopicSpec, group: spi.GroupSpec | None) -> None:
            try:
                await super().declare(topic, group)
            except TopologyConflict:
                return


class ForgetsTheStart(BrokenBackend):
    """Lets every new group begin at the latest message."""

    caught_by = ("test_new_group_reads_old_messages",)

    class connection_class(InterposedConnection):
        async def declare(self, topic: spi.TopicSpec, group: spi.GroupSpec | None) -> None:
            await super().declare(topic, None if group is None else replace(group, start="latest"))


class ReadsOldMessages(BrokenBackend):
    """Lets every new group begin at the earliest message."""

    caught_by = ("test_latest_group_does_not_read_old",)

    class connection_class(InterposedConnection):
        async def declare(self, topic: spi.TopicSpec, group: spi.GroupSpec | None) -> None:
            await super().declare(topic, None if group is None else replace(group, start="earliest"))


class CreatesMissingTopics(BrokenBackend):
    """Declares on a send or an open what was never declared, and says that it is strict."""

    caught_by = ("test_send_to_missing_topic_raises", "test_receive_from_missing_topic_raises")

    class connection_class(InterposedConnection):
        async def open_consumer(self, options: spi.ConsumerOptions) -> spi.ConsumerDriver:
            await self.declare(spi.TopicSpec(name=options.topic), spi.GroupSpec(name=options.group))
            return await super().open_consumer(options)

    class producer_class(InterposedProducer):
        async def send(self, messages: Sequence[spi.Outbound]) -> Sequence[BrokerError | None]:
            for message in messages:
                if isinstance(message.destination, spi.ToTopic):
                    await self.connection.declare(spi.TopicSpec(name=message.destination.topic), None)
            return await super().send(messages)


class SharedInbox(BrokenBackend):
    """Gives every reply to the first request that waits."""

    caught_by = ("test_request_reply_concurrent",)

    class inbox_class(InterposedConsumer):
        async def receive(self, max_messages: int, timeout: float) -> Sequence[spi.Inbound]:
            messages = list(await super().receive(max_messages, timeout))
            ids = [message.correlation_id for message in messages]
            for message, other in zip(messages, ids[1:] + ids[:1], strict=True):
                message.correlation_id = other
            return messages


ALL_BROKEN: tuple[type[BrokenBackend], ...] = (
    LosesSome,
    Doubles,
    DeliversEarly,
    DeliversLate,
    OneTimerForAll,
    RetriesToEveryGroup,
    TruncatesAtNul,
    MangledHeaders,
    DropsTags,
    IgnoresPriority,
    SilentDeadLetters,
    SwallowsRefusedSends,
    BatchesFailTogether,
    ForeignErrors,
    AcknowledgesAtReceive,
    NewIdAtReceive,
    Reorders,
    IgnoresMaxMessages,
    IgnoresPrefetch,
    LosesOnCancel,
    ReturnsLate,
    SleepsThroughClose,
    CrossesGroups,
    BroadcastCompetes,
    ResurrectsAcknowledged,
    SettlesStaleTokens,
    AcknowledgesCumulatively,
    DropsReleased,
    SettlesWithoutStoring,
    DoesNotExtend,
    AcknowledgesAtClose,
    LeaksATask,
    PurgesTooMuch,
    PurgesTheDelayed,
    BrowsingReorders,
    RedrivesEverything,
    InventsFigures,
    AcceptsConflicts,
    ForgetsTheStart,
    ReadsOldMessages,
    CreatesMissingTopics,
    SharedInbox,
)
