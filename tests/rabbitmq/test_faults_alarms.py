"""Faults 20 to 22 and 39 of the reference: the broker runs short of memory or disk, or is slow."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator

import pytest

from brokerkit import Message, RetryPolicy
from brokerkit.errors import BrokerError, SendTimeout
from brokerkit.spi import ConsumerOptions
from brokerkit.testing.deadlines import eventually, within
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rabbitmq import RabbitMQControl, RabbitMQNode
from tests.rabbitmq.scene import (
    CLOCK,
    LONG,
    TOPIC,
    balanced,
    connected,
    made,
    manager_on,
    outbound,
    publishing_link,
    send,
    state,
    take,
    working,
)

WORK = ConsumerOptions(topic="orders", group="work", prefetch=10)


@pytest.fixture
def url(own_node: RabbitMQNode, own_vhost: str) -> Iterator[str]:
    yield own_node.address.url(own_vhost)
    # The virtual host is deleted next.
    own_node.set_memory_alarm(False)
    own_node.set_disk_alarm(False)


async def test_in_a_memory_alarm_publishers_wait_to_their_deadline_and_consumers_go_on(
    own_node: RabbitMQNode, url: str
) -> None:
    ledger = Ledger()
    async with connected(url, attempt_timeout=2.0) as connection:
        consumer = await connection.open_consumer(WORK)
        assert await send(connection, made(ledger, 60), ledger) == [None] * 60
        first = await take(consumer, 10)
        await asyncio.to_thread(own_node.set_memory_alarm, True)
        # The broker blocks a connection when it publishes for the first time in the alarm.
        blocked = made(ledger, 1)
        began = CLOCK.monotonic()
        (outcome,) = await send(connection, blocked, ledger)
        assert isinstance(outcome, SendTimeout), outcome
        assert 1.9 <= CLOCK.monotonic() - began < 10.0
        amqp = publishing_link(connection).amqp
        assert amqp is not None
        await eventually(lambda: amqp.blocked is not None, what="the word of the broker")
        (outcome,) = await send(connection, made(ledger, 1), ledger)
        assert isinstance(outcome, SendTimeout), outcome
        assert "block" in outcome.message
        # Acknowledgements reach the broker: with a prefetch of ten the others come only then.
        await consumer.ack(first)
        for message in first:
            ledger.handled(message.message_id or "")
        await take(consumer, 50, ledger)
        sending = asyncio.create_task(send(connection, made(ledger, 5), ledger))
        await asyncio.to_thread(own_node.set_memory_alarm, False)
        assert await within(LONG, sending, "the sends after the alarm") == [None] * 5
        # The message that was written into the alarm arrives too; the one that waited does not.
        await take(consumer, 6, ledger)
        assert ledger.unconfirmed & ledger.handled_ids.keys() == {blocked[0].message_id}
    await balanced(ledger, doubled=0)


async def test_a_send_through_the_manager_outlives_a_memory_alarm(own_node: RabbitMQNode, url: str) -> None:
    ledger = Ledger()
    async with (
        working(manager_on(url), ledger) as worker,
        manager_on(url, attempt_timeout=3.0) as sender,
    ):
        await sender.send(TOPIC, b"x", message_id="first")
        ledger.confirmed("first")
        await asyncio.to_thread(own_node.set_memory_alarm, True)
        ids = [f"in the alarm {number}" for number in range(30)]
        sends = [asyncio.create_task(sender.send(TOPIC, b"x", message_id=each)) for each in ids]
        with pytest.raises(SendTimeout):
            async with manager_on(url, attempt_timeout=2.0, send_timeout=5.0) as hasty:
                await hasty.send(TOPIC, b"x")
        assert not any(each.done() for each in sends)
        assert (await worker.monitor.health()).healthy
        await asyncio.to_thread(own_node.set_memory_alarm, False)
        for each in await within(LONG, asyncio.gather(*sends), "the sends that waited"):
            ledger.confirmed(each)
        await eventually(lambda: ledger.settled, LONG, "every confirmed message handled")
    ledger.assert_nothing_lost()
    # Written once before the broker said that it blocks, and once after the alarm.
    assert all(count == 2 for count in ledger.doubled.values()), ledger


async def test_a_retry_in_a_disk_alarm_keeps_its_original_and_does_not_loop(
    own_node: RabbitMQNode, own_vhost: str, url: str
) -> None:
    """Fault 21: the copy for the retry cannot be sent, so the original stays unacknowledged."""
    ledger = Ledger()
    starts: list[int] = []
    worker = manager_on(url, attempt_timeout=2.0)
    alarmed = asyncio.Event()

    @worker.handler(TOPIC, retry=RetryPolicy(max_attempts=3, base_delay=0.1, max_delay=0.1, jitter="none"))
    async def handle(message: Message) -> None:
        starts.append(message.attempt)
        if message.attempt == 1:
            await alarmed.wait()
            raise RuntimeError("to be tried again")
        ledger.handled(message.message_id or "", message.attempt)

    async with worker, manager_on(url) as sender:
        await worker.start()
        ledger.confirmed(await sender.send(TOPIC, b"x"))
        await eventually(lambda: starts, LONG, "the first start")
        await asyncio.to_thread(own_node.set_disk_alarm, True)
        alarmed.set()
        await eventually(
            lambda: state(own_node, own_vhost)[1] == 1,
            what="the unacknowledged original",
        )
        until = CLOCK.monotonic() + 5.0
        while CLOCK.monotonic() < until:
            assert starts == [1], "the message was started again while nothing could be sent"
            await CLOCK.sleep(0.1)
        assert state(own_node, own_vhost)[0] == 0
        await asyncio.to_thread(own_node.set_disk_alarm, False)
        await balanced(ledger, doubled=2)
        assert set(starts[1:]) <= {1, 2}


async def test_connecting_declaring_and_consuming_work_in_an_alarm_that_is_on_already(
    own_node: RabbitMQNode, url: str
) -> None:
    ledger = Ledger()
    async with connected(url) as before:
        await send(before, made(ledger, 3), ledger)
    await asyncio.to_thread(own_node.set_memory_alarm, True)
    try:
        began = CLOCK.monotonic()
        async with connected(url, attempt_timeout=2.0) as connection:
            consumer = await connection.open_consumer(WORK)
            await connection.ping(LONG)
            await take(consumer, 3, ledger)
            assert CLOCK.monotonic() - began < 15.0
            producer = await connection.open_producer()
            (outcome,) = await producer.send([outbound()])
            assert isinstance(outcome, SendTimeout)
    finally:
        await asyncio.to_thread(own_node.set_memory_alarm, False)
    await balanced(ledger, doubled=0)


async def test_a_broker_that_does_not_read_costs_bounded_memory_and_every_send_ends_in_time(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    """Fault 39: what was not written by its deadline is certainly not stored."""
    ledger = Ledger()
    size, count = 100_000, 400
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        async with connected(proxy.url_for(shared_node.address.url(vhost)), attempt_timeout=3.0) as connection:
            assert await send(connection, made(ledger, 1), ledger) == [None]
            producer = await connection.open_producer()
            await producer.send([outbound(b"warm", message_id="warm")])
            proxy.freeze()
            body = bytes(size)
            tracemalloc.start()
            try:
                began = CLOCK.monotonic()
                outcomes: list[BrokerError | None] = []
                for answers in await asyncio.gather(*(producer.send(made(Ledger(), 1, body)) for _ in range(count))):
                    outcomes += answers
                took = CLOCK.monotonic() - began
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert all(isinstance(outcome, SendTimeout) for outcome in outcomes), outcomes[:3]
            assert took < 10.0
            assert peak < 8 << 20, f"{peak:,} bytes were held for messages that nobody reads"
            proxy.thaw()
            assert await within(LONG, send(connection, made(ledger, 1), ledger), "a send afterwards") == [None]
        async with connected(shared_node.address.url(vhost)) as reader:
            consumer = await reader.open_consumer(ConsumerOptions(topic="orders", group="work", prefetch=100))
            while not ledger.settled:
                for message in await consumer.receive(100, 1.0):
                    await consumer.ack([message])
                    if message.message_id in ledger.sent_ids:
                        ledger.handled(message.message_id or "")
    await balanced(ledger, doubled=0)
