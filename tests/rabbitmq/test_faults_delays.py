"""Faults 33, 34 and 41 of the reference: the delay wheel when its targets or parts go, and when clocks step."""

from __future__ import annotations

import asyncio
import random

import pika
import pytest

from brokerkit import AsyncManager
from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError
from brokerkit.spi import ConsumerOptions, GroupSpec, ToGroup, TopicSpec, ToTopic
from brokerkit.testing.deadlines import eventually, within
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from brokerkit_rabbitmq.backend import RabbitMQBackend
from tests.rabbitmq.scene import (
    CLOCK,
    LONG,
    ORDERS,
    QUEUE,
    TOPIC,
    balanced,
    connected,
    consuming_link,
    manager_on,
    outbound,
    publishing_link,
    send,
    take,
    working,
)

WORK = ConsumerOptions(topic="orders", group="work", prefetch=100)
OTHER = TopicSpec(name="other", groups={"g": GroupSpec(name="g")})


def depth(node: RabbitMQControl, name: str, vhost: str) -> int:
    queue = node.queue(name, vhost)
    return (queue.ready or 0) if queue is not None else -1


# --- 33 -------------------------------------------------------------------------------------------------------


async def test_what_no_group_matches_when_it_is_due_is_kept_with_the_lost_and_blocks_nothing(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger = Ledger()
    async with connected(shared_node.address.url(vhost), topics=[ORDERS, OTHER]) as connection:
        due = CLOCK.time() + 1.0
        stray = [outbound(destination=ToTopic("other"), due=due) for _ in range(40)]
        good = [outbound(due=due) for _ in range(40)]
        mixed = [message for pair in zip(stray, good, strict=True) for message in pair]
        assert await send(connection, mixed, Ledger()) == [None] * 80
        for message in good:
            ledger.confirmed(message.message_id)
        await connection.delete("other", "g")
        await take(await connection.open_consumer(WORK), 40, ledger)
        await eventually(lambda: depth(shared_node, "bk.delay.lost", vhost) == 40, LONG, "the lost ones")
    await balanced(ledger, doubled=0)


async def test_a_retry_whose_queue_is_gone_stays_in_the_queue_of_its_target_and_others_go_on(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger = Ledger()
    async with connected(shared_node.address.url(vhost), topics=[ORDERS, OTHER]) as connection:
        due = CLOCK.time() + 0.5
        stuck = [outbound(destination=ToGroup("other", "g"), due=due) for _ in range(50)]
        good = [outbound(destination=ToGroup("orders", "work"), due=due) for _ in range(50)]
        assert await send(connection, [*stuck, *good], Ledger()) == [None] * 100
        for message in good:
            ledger.confirmed(message.message_id)
        await asyncio.to_thread(shared_node.delete_queue, "other:g", vhost)
        await take(await connection.open_consumer(WORK), 50, ledger)
        queue = shared_node.queue("bk.due.q.other:g", vhost)
        assert queue is not None
        assert depth(shared_node, "bk.delay.lost", vhost) == 0
    await balanced(ledger, doubled=0)


@pytest.mark.parametrize("part", ["an exchange", "everything"])
async def test_a_wheel_that_somebody_deleted_is_declared_again(
    shared_node: RabbitMQControl, vhost: str, part: str
) -> None:
    """The first send after it may fail; the next one makes what it needs."""
    ledger = Ledger()
    url = shared_node.address.url(vhost)
    async with manager_on(url) as sender, working(manager_on(url), ledger):
        ledger.confirmed(await sender.send(TOPIC, b"x", delay=0.2))
        await eventually(lambda: ledger.settled, LONG, "the first one")
        client = pika.BlockingConnection(pika.URLParameters(url))
        channel = client.channel()
        for place in range(8) if part == "everything" else (0,):
            channel.exchange_delete(f"bk.delay.{place}")
        if part == "everything":
            channel.exchange_delete("bk.delay.out")
            for queue in shared_node.list_queues(vhost):
                if queue.name.startswith("bk."):
                    channel.queue_delete(queue.name)
        client.close()

        async def sent() -> bool:
            try:
                ledger.confirmed(await sender.send(TOPIC, b"x", delay=0.2))
            except BrokerError:
                return False
            return True

        await eventually(sent, LONG, "a delayed send")
        await balanced(ledger, doubled=0)


async def test_a_delayed_send_returns_in_time_when_its_declarations_hang(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    """The link for declarations is down, the one for publishing works: the outcome comes by the deadline."""
    async with connected(shared_node.address.url(vhost), attempt_timeout=3.0) as connection:
        link = consuming_link(connection)
        producer = await connection.open_producer()
        await producer.send([outbound()])
        assert link.amqp is not None
        transport = link.amqp._transport
        assert transport is not None
        transport.pause_reading()
        messages = [outbound(due=CLOCK.time() + 60.0 * number) for number in range(1, 4)]
        began = CLOCK.monotonic()
        outcomes = await within(LONG, producer.send([*messages, outbound()]), "the outcomes")
        # Far from the 30 s that a declaration may take.
        assert CLOCK.monotonic() - began < 10.0
        assert all(isinstance(outcome, BrokerError) and outcome.retryable for outcome in outcomes[:3]), outcomes
        transport.resume_reading()

        async def sent() -> bool:
            return list(await producer.send(messages)) == [None] * 3

        await eventually(sent, within=LONG, what="the delayed messages are taken")
        assert publishing_link(connection).epoch == 1


# --- 34 -------------------------------------------------------------------------------------------------------


async def test_mixed_delays_come_never_early_in_the_order_of_their_times_and_all(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger, rng = Ledger(), random.Random(34)
    async with connected(shared_node.address.url(vhost)) as connection:
        consumer = await connection.open_consumer(WORK)
        now = CLOCK.time() + 0.5
        # Half of them at equal instants.
        times = [now + rng.uniform(0, 3.0) for _ in range(150)] + [
            now + 1.0 + number % 3 * 0.8 for number in range(150)
        ]
        rng.shuffle(times)
        messages = [outbound(due=time) for time in times]
        due = {message.message_id: message.due or 0.0 for message in messages}
        assert await send(connection, messages, ledger) == [None] * 300
        order: list[str] = []
        deadline = CLOCK.monotonic() + LONG
        while len(order) < 300:
            assert CLOCK.monotonic() < deadline, ledger
            for message in await consumer.receive(100, 0.5):
                early = due[message.message_id or ""] - CLOCK.time()
                assert early <= 0.0, f"{early:.3f} s early"
                await consumer.ack([message])
                ledger.handled(message.message_id or "")
                order.append(message.message_id or "")
        latest = 0.0
        for message_id in order:
            latest = max(latest, due[message_id])
            # A busy machine moves what is due a little late.
            assert due[message_id] > latest - 2.0
        assert depth(shared_node, "bk.delay.lost", vhost) == 0
    await balanced(ledger, doubled=0)


async def test_a_message_goes_round_the_wheel_four_times_and_its_deaths_do_not_pile_up(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    """3.10 drops a message that passes a queue again with the x-death header of the last time."""
    ledger = Ledger()
    deaths: list[int] = []
    async with manager_on(shared_node.address.url(vhost)) as manager:
        for _ in range(3):
            ledger.confirmed(await manager.send(TOPIC, b"x", delay=0.3))
        async with manager.consume(TOPIC, group="work") as deliveries, asyncio.timeout(LONG):
            async for delivery in deliveries:
                headers = delivery.native.properties.headers or {}
                deaths.append(sum(entry["count"] for entry in headers.get("x-death", [])))
                if delivery.attempt < 5:
                    await delivery.nack(delay=0.3)
                    continue
                await delivery.ack()
                ledger.handled(delivery.message.message_id or "", delivery.attempt)
                if ledger.settled:
                    break
    assert set(ledger.handled_ids.values()) == {(5,)}
    assert len(deaths) == 15
    assert 0 < max(deaths) <= 3, f"deaths of earlier passes travelled along: {deaths}"
    await balanced(ledger, doubled=0)


# --- 41 -------------------------------------------------------------------------------------------------------


class SteppingClock(SystemClock):
    """A wall clock that an operator or NTP sets; the monotonic one goes on."""

    def __init__(self) -> None:
        self.step = 0.0

    def time(self) -> float:
        return super().time() + self.step


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_a_step_of_the_wall_clock_moves_no_timer(shared_node: RabbitMQControl, vhost: str, step: float) -> None:
    ledger, clock = Ledger(), SteppingClock()
    settings = {"url": shared_node.address.url(vhost), "rabbitmq": {"management_url": "", "heartbeat": 1}}
    manager = AsyncManager(backend=RabbitMQBackend(), settings=settings, clock=clock)
    async with working(manager, ledger):
        links = [of(await manager.connection()) for of in (publishing_link, consuming_link)]
        ledger.confirmed(await manager.send(TOPIC, b"x"))
        began = clock.monotonic()
        clock.step = step
        ledger.confirmed(await manager.send(TOPIC, b"x"))
        # Its time is one of the new wall clock.  What was sent before a step back waits as long as the step is.
        ledger.confirmed(await manager.send(TOPIC, b"x", delay=1.0))
        await eventually(lambda: ledger.settled, LONG, "all of them")
        took = clock.monotonic() - began
        assert 1.0 <= took < 30.0
        while clock.monotonic() - began < 4.0:
            await clock.sleep(0.1)
        assert [link.epoch for link in links] == [1, 1], "a heartbeat was missed"
        assert (await manager.monitor.health()).healthy
    await balanced(ledger, doubled=0)
    assert QUEUE in {queue.name for queue in shared_node.list_queues(vhost)}
