"""Faults 23, 25 to 28 and 30 to 32 of the reference: consumers, their queues, channels and acknowledgements."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import AsyncExitStack

import pytest

from brokerkit import Message, RetryPolicy, Topic
from brokerkit.errors import BrokerUnavailable, TopicNotFound
from brokerkit.spi import ConsumerOptions, ToInbox
from brokerkit.testing.deadlines import eventually, within
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rabbitmq import RabbitMQControl, RabbitMQNode
from brokerkit_rabbitmq.channel import Channel
from brokerkit_rabbitmq.consumer import RabbitMQConsumer
from tests.rabbitmq.scene import (
    CLOCK,
    LONG,
    ORDERS,
    QUEUE,
    TOPIC,
    balanced,
    connected,
    consuming_link,
    made,
    manager_on,
    outbound,
    publishing_link,
    send,
    state,
    take,
    working,
)

WORK = ConsumerOptions(topic="orders", group="work", prefetch=20)


# --- 23 -------------------------------------------------------------------------------------------------------


async def test_a_worker_whose_queue_was_deleted_declares_it_again_and_goes_on(
    shared_node: RabbitMQControl, vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger()
    url = shared_node.address.url(vhost)
    async with working(manager_on(url), ledger), manager_on(url) as sender:
        ledger.confirmed(await sender.send(TOPIC, b"x"))
        await eventually(lambda: ledger.settled, LONG, "the first message")
        await asyncio.to_thread(shared_node.delete_queue, QUEUE, vhost)
        await eventually(lambda: shared_node.queue(QUEUE, vhost), LONG, "the queue to be back")
        await eventually(lambda: state(shared_node, vhost)[2] > 0, LONG, "its consumer")
        for _ in range(10):
            ledger.confirmed(await sender.send(TOPIC, b"x"))
        await balanced(ledger, doubled=0)
    assert any("orders" in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


async def test_a_consumer_whose_queue_is_gone_says_so_and_ignores_its_late_acknowledgements(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger = Ledger()
    async with connected(shared_node.address.url(vhost)) as connection:
        consumer = await connection.open_consumer(WORK)
        await send(connection, made(Ledger(), 3), Ledger())
        held = await take(consumer, 3)
        await asyncio.to_thread(shared_node.delete_queue, QUEUE, vhost)
        with pytest.raises(TopicNotFound, match=QUEUE):
            async with asyncio.timeout(LONG):
                while True:
                    await consumer.receive(1, 0.2)
        assert not any(consumer.live(message) for message in held)
        await consumer.ack(held)
        await consumer.release(held)
        assert consumer.stale == 6
        await consumer.aclose()
        # Not at the end: who consumes a quorum queue that was just declared may lose it to 541 (decision 27).
        assert consuming_link(connection).epoch == 1, "the connection was lost"
        await connection.declare(ORDERS, ORDERS.groups["work"])
        consumer = await connection.open_consumer(WORK)
        await send(connection, made(ledger, 5), ledger)
        await take(consumer, 5, ledger)
    await balanced(ledger, doubled=0)


# --- 25 -------------------------------------------------------------------------------------------------------


async def test_consumer_timeout_ends_the_channel_of_that_consumer_only(own_node: RabbitMQNode, own_vhost: str) -> None:
    """The broker takes the deliveries back and closes the channel (406); the late acknowledgement goes nowhere."""
    ledger = Ledger()
    own_node.configure("consumer_timeout", 1500)
    try:
        async with connected(own_node.address.url(own_vhost)) as connection:
            slow = await connection.open_consumer(WORK)
            await send(connection, made(ledger, 5), ledger)
            held = await take(slow, 5)
            bystander = await connection.open_inbox()
            await eventually(lambda: not slow.live(held[0]), LONG, "the end of the delivery")
            await slow.ack(held)
            assert slow.stale == 5
            again = await take(slow, 5, ledger)
            assert all(message.redelivered for message in again)
            assert await slow.receive(1, 0.3) == ()
            await send(connection, [outbound(destination=ToInbox(bystander.address))], Ledger())
            await take(bystander, 1)
            assert consuming_link(connection).epoch == 1, "the connection was lost"
    finally:
        own_node.configure("consumer_timeout", 1_800_000)
    await balanced(ledger, doubled=0)


# --- 26, 27, 28 -----------------------------------------------------------------------------------------------


async def test_acknowledgements_of_an_earlier_connection_and_repeated_ones_never_reach_the_broker(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    """An unknown tag would close the channel (406): the epochs of links and channels would grow."""
    ledger = Ledger()
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        async with connected(proxy.url_for(shared_node.address.url(vhost))) as connection:
            consumer = await connection.open_consumer(WORK)
            await send(connection, made(ledger, 10), ledger)
            old = await take(consumer, 10)
            await consumer.ack(old[:3])
            await consumer.ack(old[:3])
            await consumer.release(old[2:3])
            for message in old[:3]:
                ledger.handled(message.message_id or "")
            await connection.ping(LONG)  # answered after the acknowledgements
            proxy.reset()
            again = await take(consumer, 7)
            generation = again[0].token[0]
            assert consumer.stale == 4
            await consumer.ack(old)
            await consumer.release(old)
            assert consumer.stale == 24
            for message in again:
                await consumer.ack([message])
                ledger.handled(message.message_id or "")
            await send(connection, made(ledger, 1), ledger)
            (last,) = await take(consumer, 1, ledger)
            assert last.token[0] == generation, "the channel was lost by a wrong acknowledgement"
            assert consuming_link(connection).epoch == 2
    await balanced(ledger, doubled=0)


async def test_a_handler_that_ends_after_a_reconnection_raises_nothing_and_its_redelivery_is_skipped(
    shared_node: RabbitMQControl, vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Faults 27 and 28 with an idempotent handler: the acknowledgement is late or lost, the work is done once."""
    ledger = Ledger()
    running, go = asyncio.Event(), asyncio.Event()
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        url = proxy.url_for(shared_node.address.url(vhost))
        manager = manager_on(url, idempotency={"store": "memory"})

        @manager.handler(TOPIC, idempotent=True, retry=RetryPolicy(base_delay=0.1, max_delay=0.5))
        async def handle(message: Message) -> None:
            running.set()
            await go.wait()
            ledger.handled(message.message_id or "", message.attempt)

        async with manager:
            await manager.start()
            ledger.confirmed(await manager.send(TOPIC, b"x"))
            await within(LONG, running.wait(), "the handler")
            link = consuming_link(await manager.connection())
            proxy.reset()
            await eventually(lambda: link.epoch == 2 and link.amqp is not None, LONG, "the new connection")
            go.set()
            await eventually(
                lambda: state(shared_node, vhost)[:2] == (0, 0),
                LONG,
                "the redelivery to be settled",
            )
            # Fault 28: what is acknowledged from now on never arrives.
            proxy.swallow("up")
            proxy.swallow(None)
    await balanced(ledger, doubled=0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_lost_acknowledgements_bring_messages_back_as_redelivered_and_once_each(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger = Ledger()
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        async with connected(proxy.url_for(shared_node.address.url(vhost))) as connection:
            consumer = await connection.open_consumer(WORK)
            await send(connection, made(ledger, 8), ledger)
            first = await take(consumer, 8)
            proxy.swallow("up")
            await consumer.ack(first)
            for message in first:
                ledger.handled(message.message_id or "")
            before = proxy.counters
            await eventually(lambda: proxy.counters.received_up >= before.received_up, what="the acknowledgements")
            await CLOCK.sleep(0.1)
            proxy.swallow(None)
            proxy.reset()
            again = await take(consumer, 8, ledger)
            assert all(message.redelivered for message in again)
            assert await consumer.receive(1, 0.3) == ()
    assert ledger.doubled == dict.fromkeys(ledger.sent_ids, 2)
    await balanced(ledger, doubled=8)


async def test_what_arrives_while_a_quiet_consumer_is_renewed_is_handled_once(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    """A message that comes on the old channel during the change is not handed out: it could not be settled."""
    ledger = Ledger()
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        async with connected(proxy.url_for(shared_node.address.url(vhost))) as connection:
            consumer = await connection.open_consumer(WORK)
            assert isinstance(consumer, RabbitMQConsumer)
            old = consumer._channel
            assert old is not None
            # The answers of the new channel are late, so that deliveries come on the old one in between.
            async with connected(shared_node.address.url(vhost)) as sender:
                producer = await sender.open_producer()
                old._end()  # what `_watch` concludes after its silence
                proxy.delay(0.05)
                while consumer._channel is None or consumer._channel is old:
                    messages = made(ledger, 1)
                    assert await producer.send(messages) == [None]
                    ledger.confirmed(messages[0].message_id)
                    for message in await consumer.receive(10, 0.01):
                        await consumer.ack([message])
                        ledger.handled(message.message_id or "")
                proxy.delay(0)
                while not ledger.settled:
                    for message in await consumer.receive(10, 1.0):
                        await consumer.ack([message])
                        ledger.handled(message.message_id or "")
                assert await consumer.receive(1, 0.3) == ()
    await balanced(ledger, doubled=0)


# --- 30, 31 ---------------------------------------------------------------------------------------------------


async def test_the_messages_of_a_silent_worker_move_and_it_comes_back_without_harm(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    """Fault 30, as the broker sees a stopped process or host: no byte, no FIN, until its heartbeats are missed."""
    ledger = Ledger()
    direct = shared_node.address.url(vhost)
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        async with (
            connected(proxy.url_for(direct), heartbeat=1) as silent,
            connected(direct) as other,
        ):
            stopped = await silent.open_consumer(WORK)
            await send(other, made(ledger, 10), ledger)
            held = await take(stopped, 10)
            proxy.freeze(existing_only=True)
            consumer = await other.open_consumer(WORK)
            moved = await take(consumer, 5, ledger)
            assert all(message.redelivered for message in moved)
            proxy.thaw()
            await stopped.ack(held)
            await eventually(lambda: consuming_link(silent).epoch >= 2, LONG, "the new connection")
            while not ledger.settled:
                for each in (stopped, consumer):
                    for message in await each.receive(10, 0.2):
                        await each.ack([message])
                        ledger.handled(message.message_id or "")
            await send(other, made(ledger, 2), ledger)
            await consumer.aclose()
            await take(stopped, 2, ledger)
    await balanced(ledger, doubled=0)


async def test_an_inbox_comes_back_under_its_name_after_the_broker_gave_up_the_dead_connection(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    """Fault 31: until then its exclusive queue is locked (405), and the connection and its consumers go on."""
    ledger = Ledger()
    direct = shared_node.address.url(vhost)
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        async with connected(proxy.url_for(direct), heartbeat=2) as connection, connected(direct) as sender:
            inbox = await connection.open_inbox()
            consumer = await connection.open_consumer(WORK)
            # The broker sees nothing of the end of this connection.
            proxy.freeze(existing_only=True)
            amqp = consuming_link(connection).amqp
            assert amqp is not None
            amqp.abort(BrokerUnavailable("cut on our side only"))
            await eventually(lambda: consuming_link(connection).epoch == 2, LONG, "the new connection")
            await send(sender, made(ledger, 3), ledger)
            await take(consumer, 3, ledger)
            message = outbound(destination=ToInbox(inbox.address))
            producer = await sender.open_producer()

            async def arrives() -> bool:
                await producer.send([message])
                return bool(await inbox.receive(1, 0.2))

            await eventually(arrives, LONG, "a message in the inbox")
            assert consuming_link(connection).epoch == 2
    await balanced(ledger, doubled=0)


async def test_consumers_of_a_queue_that_others_are_declaring_get_it(shared_node: RabbitMQControl, vhost: str) -> None:
    """A quorum queue is there for all while its leader starts; the broker then fails whoever consumes it."""
    url = shared_node.address.url(vhost)
    async with AsyncExitStack() as stack:
        managers = [await stack.enter_async_context(manager_on(url)) for _ in range(4)]
        for number in range(5):
            topic: Topic[bytes] = Topic(f"new-{number}", bytes, groups=["work"])
            opened = [stack.enter_async_context(each.consume(topic)) for each in managers]
            await within(LONG, asyncio.gather(*opened), "a consumer of each manager")


# --- 32 -------------------------------------------------------------------------------------------------------


async def test_5000_channels_one_after_the_other_leave_nothing_behind(shared_node: RabbitMQControl, vhost: str) -> None:
    ledger = Ledger()
    async with connected(shared_node.address.url(vhost)) as connection:
        amqp = consuming_link(connection).amqp
        assert amqp is not None

        async def some(count: int) -> None:
            for _ in range(count):
                channel = await amqp.open_channel(Channel)
                await channel.close()

        async def cancelled(count: int) -> None:
            for number in range(count):
                task = asyncio.create_task(some(1))
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait((task,))

        await some(50)
        gc.collect()
        objects = len(gc.get_objects())
        await within(LONG * 2, asyncio.gather(*(some(240) for _ in range(20)), cancelled(200)), "5000 channels")
        await connection.ping(LONG)
        await eventually(lambda: not amqp._channels, what="all numbers to be free")
        gc.collect()
        grown = len(gc.get_objects()) - objects
        assert grown < 1000, f"{grown} objects more than before"
        assert consuming_link(connection).epoch == 1
        await send(connection, made(ledger, 3), ledger)
        await take(await connection.open_consumer(WORK), 3, ledger)
    await balanced(ledger, doubled=0)


async def test_without_a_free_channel_a_send_fails_and_does_not_spin(shared_node: RabbitMQControl, vhost: str) -> None:
    """Fault 10: the number of channels is agreed on with the broker, which would end the connection beyond it."""
    ledger = Ledger()
    async with connected(shared_node.address.url(vhost)) as connection:
        amqp = publishing_link(connection).amqp
        assert amqp is not None
        amqp.tuning.channel_max = 1
        first = await amqp.open_channel(Channel)
        producer = await connection.open_producer()
        before = asyncio.get_running_loop().time()
        (outcome,) = await producer.send([outbound()])
        assert isinstance(outcome, BrokerUnavailable), outcome
        assert "channels" in outcome.message
        assert asyncio.get_running_loop().time() - before < 5.0
        await first.close()
        assert await send(connection, made(ledger, 1), ledger) == [None]
        assert publishing_link(connection).epoch == 1
        await take(await connection.open_consumer(WORK), 1, ledger)
    await balanced(ledger, doubled=0)
