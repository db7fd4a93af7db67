"""Faults of closing, declaring, purging, counting and looking at dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from brokerkit import spi
from brokerkit.errors import BrokerError, TopologyConflict

from .broken_backend import BrokenBackend
from .interposed import (
    InterposedConnection,
    InterposedConsumer,
    InterposedProducer,
)


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
