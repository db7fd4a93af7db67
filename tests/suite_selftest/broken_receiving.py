"""Faults of receiving and settling."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from brokerkit import spi
from brokerkit.errors import Closed

from .broken_backend import BrokenBackend
from .interposed import (
    InterposedConnection,
    InterposedConsumer,
)


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
