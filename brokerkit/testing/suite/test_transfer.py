"""Messages that are sent come, once, where they should."""

from __future__ import annotations

import asyncio
from typing import Any

from brokerkit.errors import BrokerError, MessageTooLarge, PayloadError
from brokerkit.spi import Capability
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import (
    case,
    collect,
    none_ended,
    outbound,
    receive_exactly,
    receive_nothing,
    requires,
    send,
)
from brokerkit.topic import Group, Topic

__all__ = [
    "test_batch_send_outcome_per_message",
    "test_competing_consumers_share",
    "test_concurrent_sends",
    "test_groups_each_get_everything",
    "test_many_topics_concurrently",
    "test_new_group_reads_old_messages",
    "test_producer_and_consumer_on_two_connections",
    "test_receive_respects_max",
    "test_receive_timeout_returns_empty",
    "test_send_before_consumer_starts",
    "test_send_receive_many",
    "test_send_receive_one",
    "test_topics_are_isolated",
]


@case
async def test_send_receive_one(harness: Harness) -> None:
    """A message arrives once with the body, the headers, the id and the other fields that it was sent with."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        before = harness.clock.time()
        sent = await manager.send(
            topic,
            b"body",
            headers={"colour": "blue"},
            key="k1",
            tag="t1",
            type="order.made",
            priority=3,
            correlation_id="c1",
            reply_to="somewhere",
            parent="p1",
        )
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within())
        message = delivery.message
        assert (message.body, dict(message.headers)) == (b"body", {"colour": "blue"})
        assert (message.message_id, message.topic, message.attempt) == (sent, topic.name, 1)
        assert (message.key, message.tag, message.type, message.priority) == ("k1", "t1", "order.made", 3)
        assert (message.correlation_id, message.reply_to, message.parent_id) == ("c1", "somewhere", "p1")
        # Some brokers keep milliseconds, some seconds.
        assert before - 1.0 <= message.timestamp <= harness.clock.time() + 1.0
        await receive_nothing(deliveries, harness.timing.quiet)


@case
async def test_send_receive_many(harness: Harness) -> None:
    """Of a hundred messages every one arrives, each once, and no other."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        outcomes = await manager.send_many(topic, [b"%d" % number for number in range(100)])
        assert [outcome.error for outcome in outcomes] == [None] * 100
        received = await receive_exactly(
            deliveries, [outcome.message_id for outcome in outcomes], within=harness.timing.within(100)
        )
        expected = {outcome.message_id: b"%d" % number for number, outcome in enumerate(outcomes)}
        assert {each.message.message_id: each.message.body for each in received} == expected
        await receive_nothing(deliveries, harness.timing.quiet)


@case
async def test_send_before_consumer_starts(harness: Harness) -> None:
    """A group that is declared receives what was sent before any of its consumers started."""
    topic = harness.topic()
    async with harness.manager() as manager:
        ids = [await manager.send(topic, b"early") for _ in range(3)]
        async with manager.consume(topic) as deliveries:
            await receive_exactly(deliveries, ids, within=harness.timing.within())


@case
async def test_topics_are_isolated(harness: Harness) -> None:
    """Messages of one topic never come to a consumer of another one, even in a group of the same name."""
    one, other = harness.topic("one"), harness.topic("other")
    async with harness.manager() as manager, manager.consume(one) as from_one, manager.consume(other) as from_other:
        to_one = [await manager.send(one, b"one") for _ in range(5)]
        to_other = [await manager.send(other, b"other") for _ in range(5)]
        await receive_exactly(from_one, to_one, within=harness.timing.within())
        await receive_exactly(from_other, to_other, within=harness.timing.within())
        await receive_nothing(from_one, harness.timing.quiet)
        await receive_nothing(from_other, harness.timing.quiet)


@case
async def test_many_topics_concurrently(harness: Harness) -> None:
    """Twenty topics are used at once by one manager without getting in each other's way."""
    topics = [harness.topic(f"t{number}") for number in range(20)]

    async def use(manager: Any, topic: Any) -> None:
        async with manager.consume(topic) as deliveries:
            ids = [await manager.send(topic, topic.name.encode()) for _ in range(5)]
            received = await receive_exactly(deliveries, ids, within=harness.timing.within(100))
            assert {each.message.body for each in received} == {topic.name.encode()}

    async with harness.manager() as manager:
        await asyncio.gather(*(use(manager, topic) for topic in topics))


@case
async def test_competing_consumers_share(harness: Harness) -> None:
    """Consumers of one group share its messages: each comes to exactly one of them."""
    topic = harness.topic()
    received: list[str | None] = []

    async def work(manager: Any) -> None:
        async with manager.consume(topic, prefetch=5) as deliveries:
            async for delivery in deliveries:
                received.append(delivery.message.message_id)
                await delivery.ack()

    async with harness.manager() as manager:
        workers = [asyncio.create_task(work(manager)) for _ in range(4)]
        try:
            outcomes = await manager.send_many(topic, [b"shared"] * 60)
            assert [outcome.error for outcome in outcomes] == [None] * 60
            ids = {outcome.message_id for outcome in outcomes}
            await eventually(
                lambda: none_ended(workers) and ids <= set(received),
                within=harness.timing.within(60),
                what="all 60 were received",
            )
            async with manager.consume(topic) as deliveries:
                await receive_nothing(deliveries, harness.timing.quiet)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    assert sorted(map(str, received)) == sorted(ids)


@case
@requires(Capability.CONSUMER_GROUPS)
async def test_groups_each_get_everything(harness: Harness) -> None:
    """Every group receives every message of the topic."""
    topic = harness.topic(groups=["billing", "audit"])
    async with harness.manager() as manager:
        ids = [await manager.send(topic, b"for all") for _ in range(10)]
        for group in ("billing", "audit"):
            async with manager.consume(topic, group=group) as deliveries:
                await receive_exactly(deliveries, ids, within=harness.timing.within(10))
                await receive_nothing(deliveries, harness.timing.quiet)


@case
@requires(Capability.FROM_START, Capability.CONSUMER_GROUPS)
async def test_new_group_reads_old_messages(harness: Harness) -> None:
    """A group that is declared with start="earliest" receives what was sent, and handled by others, before."""
    topic = harness.topic(groups=["first"])
    late: Topic[Any] = Topic(topic.name, groups=[Group("late", start="earliest")])
    async with harness.manager() as manager:
        ids = [await manager.send(topic, b"old") for _ in range(5)]
        async with manager.consume(topic, group="first") as deliveries:
            await receive_exactly(deliveries, ids, within=harness.timing.within())
    async with harness.manager() as manager, manager.consume(late, group="late") as deliveries:
        await receive_exactly(deliveries, ids, within=harness.timing.within())
        ids = [await manager.send(late, b"new")]
        await receive_exactly(deliveries, ids, within=harness.timing.within())


@case
async def test_batch_send_outcome_per_message(harness: Harness) -> None:
    """In a batch a bad message fails alone, with its error; the others are stored and come."""
    topic = harness.topic()
    payloads: list[object] = [b"first", object(), b"third"]
    errors: list[type[BrokerError] | None] = [None, PayloadError, None]
    if harness.max_bytes is not None:
        payloads += [bytes(harness.max_bytes + 1), b"fifth"]
        errors += [MessageTooLarge, None]
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        outcomes = await manager.send_many(topic, payloads)
        assert [outcome.error and type(outcome.error) for outcome in outcomes] == errors
        stored = [outcome.message_id for outcome in outcomes if outcome.error is None]
        await receive_exactly(deliveries, stored, within=harness.timing.within())
        await receive_nothing(deliveries, harness.timing.quiet)


@case
async def test_receive_respects_max(harness: Harness) -> None:
    """A receive returns at most as many messages as it was asked for, however many wait."""
    topic = harness.name()
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        producer = await connection.open_producer()
        waiting = set(await send(producer, *(outbound(topic) for _ in range(20))))
        consumer = await harness.consumer(connection, topic)
        deadline = harness.clock.monotonic() + harness.timing.within(20)
        for limit in (1, 3, 7, 3, 1, 5) * 20:
            received = await consumer.receive(limit, 1.0)
            assert len(received) <= limit
            await consumer.ack(received)
            waiting -= {each.message_id or "" for each in received}
            if not waiting or harness.clock.monotonic() > deadline:
                break
        assert not waiting


@case
async def test_concurrent_sends(harness: Harness) -> None:
    """Fifty tasks that send at once through one producer all get through."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        ids = await asyncio.gather(*(manager.send(topic, b"%d" % number) for number in range(50)))
        await receive_exactly(deliveries, ids, within=harness.timing.within(50))
        await receive_nothing(deliveries, harness.timing.quiet)


@case
async def test_producer_and_consumer_on_two_connections(harness: Harness) -> None:
    """A manager receives what another one sent: nothing passes by the broker."""
    topic = harness.topic()
    async with harness.manager() as sender, harness.manager() as receiver, receiver.consume(topic) as deliveries:
        ids = [await sender.send(topic, b"across") for _ in range(5)]
        await receive_exactly(deliveries, ids, within=harness.timing.within())


@case
async def test_receive_timeout_returns_empty(harness: Harness) -> None:
    """A receive on an empty topic returns nothing after about its timeout, and not before half of it."""
    topic = harness.name()
    timeout = 1.0
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        consumer = await harness.consumer(connection, topic)
        began = harness.clock.monotonic()
        received = await consumer.receive(5, timeout)
        took = harness.clock.monotonic() - began
    assert tuple(received) == ()
    assert timeout / 2 <= took <= timeout + harness.timing.deadline
    name = harness.topic("portable")
    async with harness.manager() as manager, manager.consume(name) as deliveries:
        assert await deliveries.receive(0.1) is None
        sent = await manager.send(name, b"x")
        assert (await collect(deliveries, 1, within=harness.timing.within()))[0].message.message_id == sent
