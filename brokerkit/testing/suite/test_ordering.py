"""Order where it is declared, and what a cancellation leaves behind."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any

import pytest

from brokerkit.errors import SendTimeout
from brokerkit.spi import Capability
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import (
    case,
    collect,
    id_of,
    needs,
    new_id,
    none_ended,
    outbound,
    receive_exactly,
    receive_nothing,
    requires,
    send,
)

__all__ = [
    "test_cancel_receive_loses_nothing",
    "test_cancel_send_is_not_success",
    "test_cancelled_handler_leaves_unsettled",
    "test_order_by_key",
    "test_order_kept_across_nack",
    "test_order_single_consumer",
    "test_send_timeout_raises",
]


@case(timeout=240)
@requires(Capability.ORDERED)
async def test_order_single_consumer(harness: Harness) -> None:
    """On an ordered topic a thousand sends that are in flight at once arrive in the order they were called in."""
    topic = harness.topic(ordered=True)
    async with harness.manager() as manager, manager.consume(topic, ordered=True, prefetch=50) as deliveries:
        sends = [asyncio.create_task(manager.send(topic, b"%d" % number)) for number in range(1000)]
        ids = [await each for each in sends]
        received = await receive_exactly(deliveries, ids, within=harness.timing.within(2000))
        assert [id_of(each) for each in received] == ids


@case
@requires(Capability.ORDERED_BY_KEY)
async def test_order_by_key(harness: Harness) -> None:
    """With several consumers the messages of one key still come in the order they were sent, each after the other."""
    topic = harness.topic(ordered=True)
    keys, rounds = [f"key-{number}" for number in range(16)], 10
    seen: dict[str | None, list[int]] = defaultdict(list)

    async def work(manager: Any) -> None:
        async with manager.consume(topic, ordered=True, prefetch=8) as deliveries:
            async for delivery in deliveries:
                seen[delivery.message.key].append(int(delivery.message.body))
                # Others get their turn: a second holder of the same key would overtake here.
                await asyncio.sleep(0)
                await delivery.ack()

    async with harness.manager() as sender, harness.manager() as one, harness.manager() as other:
        for number in range(rounds):
            for key in keys:
                await sender.send(topic, b"%d" % number, key=key)
        workers = [asyncio.create_task(work(manager)) for manager in (one, other)]
        try:
            await eventually(
                lambda: none_ended(workers) and sum(map(len, seen.values())) >= len(keys) * rounds,
                within=harness.timing.within(len(keys) * rounds),
                what=f"{len(keys) * rounds} messages were received",
            )
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    assert dict(seen) == {key: list(range(rounds)) for key in keys}


@case
@requires(Capability.ORDERED)
async def test_order_kept_across_nack(harness: Harness) -> None:
    """In an ordered group a message that is given back comes again before its successors."""
    topic = harness.topic(ordered=True)
    async with harness.manager() as manager:
        for number in range(5):
            await manager.send(topic, b"%d" % number)
        order: list[tuple[bytes, int]] = []
        async with manager.consume(topic, ordered=True, prefetch=10) as deliveries:
            for _ in range(7):
                (delivery,) = await collect(deliveries, 1, within=harness.timing.within(), ack=False)
                order.append((delivery.message.body, delivery.attempt))
                # The head twice, and one in the middle later.
                again = order[-1] in ((b"0", 1), (b"2", 1))
                await (delivery.nack() if again else delivery.ack())
            await receive_nothing(deliveries, harness.timing.quiet)
    assert order == [(b"0", 1), (b"0", 2), (b"1", 1), (b"2", 1), (b"2", 2), (b"3", 1), (b"4", 1)]


@case
async def test_cancel_receive_loses_nothing(harness: Harness) -> None:
    """Receives that are cancelled at any moment while messages flow lose none of them."""
    name, topic = harness.name("spi"), harness.topic("portable")
    chance = random.Random(7)
    async with harness.connection() as connection:
        await harness.declare(connection, name)
        producer = await connection.open_producer()
        consumer = await harness.consumer(connection, name)

        async def send_all() -> list[str]:
            ids = []
            for _ in range(30):
                ids += await send(producer, *(outbound(name) for _ in range(5)))
                await asyncio.sleep(chance.random() * 0.01)
            return ids

        async def take() -> None:
            for inbound in await _cancelled_somewhere(consumer.receive(3, 1.0), chance) or ():
                received.append(inbound.message_id)
                await consumer.ack([inbound])

        received: list[str | None] = []
        await _until_all_came(harness, asyncio.create_task(send_all()), take, received)
    async with harness.manager() as manager, manager.consume(topic, prefetch=5) as deliveries:
        # Some come late, where the broker can delay: the receives then wait in other places.
        delay = 0.05 if Capability.DELAYED_SEND in harness.capabilities else None

        async def send_portable() -> list[str]:
            return [await manager.send(topic, b"x", delay=None if number % 10 else delay) for number in range(100)]

        async def take_portable() -> None:
            delivery = await _cancelled_somewhere(deliveries.receive(1.0), chance)
            if delivery is not None:
                received.append(delivery.message.message_id)
                await delivery.ack()

        received = []
        await _until_all_came(harness, asyncio.create_task(send_portable()), take_portable, received)


async def _cancelled_somewhere(coroutine: Any, chance: random.Random) -> Any:
    """Return what ``coroutine`` returns, or None when it was cancelled first, after a few milliseconds at most."""
    task = asyncio.ensure_future(coroutine)
    for _ in range(chance.randrange(6)):
        await asyncio.sleep(0)
    await asyncio.wait([task], timeout=chance.random() * 0.005)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


async def _until_all_came(harness: Harness, sending: asyncio.Task[list[str]], take: Any, received: list[Any]) -> None:
    deadline = harness.clock.monotonic() + harness.timing.within(300)
    while not sending.done() or not set(sending.result()) <= set(received):
        if harness.clock.monotonic() > deadline:
            missing = set(await sending) - set(received)
            raise AssertionError(f"{len(missing)} messages never came: {sorted(missing)[:10]}")
        await take()
    assert set(received) == set(sending.result())


@case
async def test_cancel_send_is_not_success(harness: Harness) -> None:
    """A cancelled send raises `CancelledError`, and its message is stored once or not at all."""
    topic = harness.topic()
    chance = random.Random(11)
    confirmed: set[str] = set()
    cancelled: set[str] = set()
    async with harness.manager() as manager:
        await manager.send(topic, b"warm", message_id="first-" + new_id())
        for _ in range(40):
            name = new_id()
            task = asyncio.create_task(manager.send(topic, b"x", message_id=name))
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                cancelled.add(name)
            else:
                confirmed.add(name)
        # It comes after all that were stored before it, wherever order is kept; the quiet time covers the rest.
        last = await manager.send(topic, b"last")
        counts: dict[str | None, int] = defaultdict(int)
        async with manager.consume(topic) as deliveries:
            deadline = harness.clock.monotonic() + harness.timing.within(50)
            while not confirmed | {last} <= set(counts) and harness.clock.monotonic() < deadline:
                delivery = await deliveries.receive(1.0)
                if delivery is not None:
                    counts[delivery.message.message_id] += 1
                    await delivery.ack()
            while (delivery := await deliveries.receive(harness.timing.quiet)) is not None:
                counts[delivery.message.message_id] += 1
                await delivery.ack()
    assert cancelled, "no send was cancelled: the case checked nothing"
    assert confirmed | {last} <= set(counts)
    assert set(counts.values()) == {1}
    assert len(set(counts) - confirmed - cancelled) == 2  # the first and the last


@case
async def test_cancelled_handler_leaves_unsettled(harness: Harness) -> None:
    """A handler that is cancelled did not succeed: its message is not acknowledged and comes again."""
    topic = harness.topic()
    cancelled = asyncio.Event()
    started = asyncio.Event()

    async def handle(body: bytes) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with harness.manager() as manager:
        manager.add_handler(topic, handle, retry=harness.retry())
        sent = await manager.send(topic, b"x")
        await manager.start()
        await eventually(started.is_set, within=harness.timing.within(), what="the handler started")
        await manager.stop(timeout=0.1)
        assert cancelled.is_set()
    async with harness.manager() as other, other.consume(topic) as deliveries:
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within())
        assert delivery.attempt in (1, 2)
        await receive_nothing(deliveries, harness.timing.quiet)


@case
@needs("stall")
async def test_send_timeout_raises(harness: Harness) -> None:
    """A send that gets no answer raises `SendTimeout`, which is retryable, in time."""
    topic = harness.topic()
    patience = 5.0
    # The first send connects and declares, which none of these may cut short.
    async with harness.manager(send_timeout=patience, attempt_timeout=2.0) as manager:
        await manager.send(topic, b"before")
        async with harness.stall():
            began = harness.clock.monotonic()
            with pytest.raises(SendTimeout) as raised:
                await manager.send(topic, b"unanswered")
            assert harness.clock.monotonic() - began < patience + harness.timing.deadline
            assert raised.value.retryable
        await manager.send(topic, b"after")
