"""Faults 11 to 19 and 24 of the reference: what the broker refuses hits exactly the messages it concerns."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence

import pika
import pytest

from brokerkit.errors import (
    BrokerError,
    MessageTooLarge,
    SendTimeout,
    TopicNotFound,
    TopologyConflict,
)
from brokerkit.spi import ConsumerOptions, GroupSpec, Outbound, TopicSpec, ToTopic
from brokerkit.testing.deadlines import eventually, within
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rabbitmq import RabbitMQControl, RabbitMQNode
from tests.rabbitmq.scene import (
    LONG,
    ORDERS,
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

#: Refuses every publish: a classic queue that may hold nothing.
FULL = GroupSpec(name="full", tag="full", native={"arguments": {"x-max-length": 0, "x-overflow": "reject-publish"}})
WORK = ConsumerOptions(topic="orders", group="work", prefetch=500)


def kinds(outcomes: Sequence[BaseException | None]) -> Counter[str]:
    return Counter("stored" if outcome is None else type(outcome).__name__ for outcome in outcomes)


# --- 11 -------------------------------------------------------------------------------------------------------


async def test_a_declaration_that_contradicts_a_queue_fails_alone_and_names_the_argument(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger = Ledger()
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 5, "x-overflow": "reject-publish"}
    other = TopicSpec(name="orders", groups={"work": GroupSpec(name="work", native={"arguments": arguments})})
    async with connected(shared_node.address.url(vhost)) as connection:
        producer = await connection.open_producer()
        consumer = await connection.open_consumer(WORK)
        epochs = publishing_link(connection).epoch
        sending = asyncio.create_task(producer.send(made(ledger, 200)))
        for _ in range(3):
            with pytest.raises(TopologyConflict, match="x-delivery-limit"):
                await connection.declare(other, other.groups["work"])
        await connection.verify(ORDERS, ORDERS.groups["work"])
        assert kinds(list(await sending)) == {"stored": 200}
        for message_id in ledger.sent_ids:
            ledger.confirmed(message_id)
        await take(consumer, 200, ledger)
        assert publishing_link(connection).epoch == epochs
    await balanced(ledger, doubled=0)


# --- 12, 13 ---------------------------------------------------------------------------------------------------


async def test_a_missing_exchange_fails_its_own_messages_only(shared_node: RabbitMQControl, vhost: str) -> None:
    ledger, lost = Ledger(), Ledger()
    gone = TopicSpec(name="gone", groups={"g": GroupSpec(name="g")})
    url = shared_node.address.url(vhost)
    async with connected(url, topics=[ORDERS, gone]) as connection, connected(url) as other:
        producer = await connection.open_producer()
        consumer = await connection.open_consumer(WORK)
        await producer.send([outbound(destination=ToTopic("gone"))])
        await other.delete("gone", None)
        good, bad = made(ledger, 300), made(lost, 300, destination=ToTopic("gone"))
        mixed = [message for pair in zip(good[:100], bad[:100], strict=True) for message in pair]
        outcomes = await within(
            LONG,
            asyncio.gather(producer.send(mixed), producer.send(good[100:]), producer.send(bad[100:])),
            "all outcomes",
        )
        of = {
            message.message_id: outcome
            for messages, answers in zip((mixed, good[100:], bad[100:]), outcomes, strict=True)
            for message, outcome in zip(messages, answers, strict=True)
        }
        assert kinds([of[message.message_id] for message in good]) == {"stored": 300}
        assert kinds([of[message.message_id] for message in bad]) == {"TopicNotFound": 300}
        for message in good:
            ledger.confirmed(message.message_id)
        assert publishing_link(connection).epoch == 1, "the connection was lost"
        # As soon as it exists again, it is used again.
        await other.declare(gone, gone.groups["g"])
        assert await producer.send([outbound(destination=ToTopic("gone"))]) == [None]
        await take(consumer, 300, ledger)
    await balanced(ledger, doubled=0)


async def test_a_deleted_topic_is_declared_again_by_the_manager_and_nothing_is_lost(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger = Ledger()
    url = shared_node.address.url(vhost)
    async with manager_on(url) as sender, connected(url) as other:
        await sender.send(TOPIC, b"before")
        await other.delete("orders", None)
        with pytest.raises(TopicNotFound):
            await sender.send(TOPIC, b"after")
        async with working(manager_on(url), ledger):
            for outcome in await sender.send_many(TOPIC, [b"x"] * 50):
                assert outcome.error is None
                ledger.confirmed(outcome.message_id)
            await balanced(ledger, doubled=0)


@pytest.fixture
def limited(shared_node: RabbitMQControl, vhost: str) -> Iterator[str]:
    """The URL of a user who may write to the exchange "orders" only."""
    user = f"limited-{vhost}"
    shared_node.add_user(user, "secret")
    shared_node.set_permissions(user, vhost, write="^(orders|orders:due|bk\\..*|orders:work|amq\\.default|)$")
    yield shared_node.address.url(vhost, user=user, password="secret")
    shared_node.delete_user(user)


async def test_a_missing_permission_and_an_internal_exchange_fail_their_own_messages_only(
    shared_node: RabbitMQControl, vhost: str, limited: str
) -> None:
    ledger = Ledger()
    secret = TopicSpec(name="secret", groups={"g": GroupSpec(name="g")})
    internal = TopicSpec(name="internal", native={"exchange": "bk.internal", "exchange_type": "fanout"})
    direct = shared_node.address.url(vhost)
    client = pika.BlockingConnection(pika.URLParameters(direct))
    client.channel().exchange_declare("bk.internal", "fanout", durable=True, internal=True)
    client.close()
    topics = [ORDERS, secret, internal]
    async with connected(direct, topics=[ORDERS, secret]):
        options = {spec.name: spec for spec in topics}
    async with connected(limited, topics=[ORDERS]) as connection:
        connection._options.topics.update(options)  # type: ignore[attr-defined]
        producer = await connection.open_producer()
        consumer = await connection.open_consumer(WORK)
        good = made(ledger, 100)
        for name in ("secret", "internal"):
            bad = [outbound(destination=ToTopic(name)) for _ in range(100)]
            mixed = [message for pair in zip(good, bad, strict=True) for message in pair]
            outcomes = list(await producer.send(mixed))
            assert kinds(outcomes[0::2]) == {"stored": 100}
            assert kinds(outcomes[1::2]) == {"AccessRefused": 100}
            assert name in str(outcomes[1])
            assert not any(outcome.retryable for outcome in outcomes[1::2] if outcome)
            for message in good:
                ledger.confirmed(message.message_id)
            await take(consumer, 100, ledger)
            good = made(ledger, 100)
        assert publishing_link(connection).epoch == 1, "the connection was lost"
    await balanced(ledger, doubled=0)


# --- 14, 15, 16 -----------------------------------------------------------------------------------------------


async def test_a_returned_message_fails_alone_also_among_equal_ids(shared_node: RabbitMQControl, vhost: str) -> None:
    red = TopicSpec(name="orders", groups={"work": GroupSpec(name="work", tag="red")})
    async with connected(shared_node.address.url(vhost), topics=[red]) as connection:
        producer = await connection.open_producer()
        messages = [outbound(message_id="same", tag=("red", "blue")[number % 2]) for number in range(200)]
        outcomes = list(await producer.send(messages))
        assert kinds(outcomes[0::2]) == {"stored": 100}
        assert kinds(outcomes[1::2]) == {"Unroutable": 100}
        assert "blue" in str(outcomes[1])
        consumer = await connection.open_consumer(WORK)
        received = await take(consumer, 100)
        assert {message.tag for message in received} == {"red"}
        await consumer.ack(received)
        assert await consumer.receive(1, 0.3) == ()


async def test_a_refused_message_is_sent_again_until_there_is_room(shared_node: RabbitMQControl, vhost: str) -> None:
    """Fault 15: five fit, the others are refused (negative confirm) and not counted as sent."""
    ledger = Ledger()
    small = {"arguments": {"x-max-length": 5, "x-overflow": "reject-publish"}}
    topics = {"orders": {"groups": {"work": {"rabbitmq": small}}}}
    url = shared_node.address.url(vhost)
    async with manager_on(url, topics=topics, send_timeout=3.0) as hasty:
        outcomes = await hasty.send_many(TOPIC, [b"x"] * 20)
        # When the time is over during a last try, the refusal before it is the cause of its error.
        errors = [one.error.__cause__ if isinstance(one.error, SendTimeout) else one.error for one in outcomes]
        assert kinds(errors) == {"stored": 5, "SendRefused": 15}
        assert hasty.monitor.metrics().totals["sent"] == 5
        for outcome in outcomes:
            ledger.sent(outcome.message_id)
            if outcome.error is None:
                ledger.confirmed(outcome.message_id)
    async with manager_on(url, topics=topics) as patient:
        sending = asyncio.create_task(patient.send_many(TOPIC, [b"x"] * 20))
        await eventually(lambda: state(shared_node, vhost)[0] == 5, what="a full queue")
        async with working(manager_on(url, topics=topics), ledger):
            for outcome in await within(LONG, sending, "the sends that were refused at first"):
                assert outcome.error is None
                ledger.confirmed(outcome.message_id)
            await balanced(ledger, doubled=0)


async def test_confirms_refusals_and_returns_in_any_order_resolve_every_send_once(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger = Ledger()
    topic = TopicSpec(name="orders", groups={"work": GroupSpec(name="work", tag="good"), "full": FULL})
    expected = {"good": "stored", "full": "SendRefused", "nobody": "Unroutable"}
    async with connected(shared_node.address.url(vhost), topics=[topic], window=300) as connection:
        producer = await connection.open_producer()
        consumer = await connection.open_consumer(WORK)
        tags = ("good", "full", "good", "good", "nobody")

        async def one_by_one(count: int) -> None:
            for number in range(count):
                message = outbound(tag=tags[number % 5])
                (outcome,) = await producer.send([message])
                check(message, outcome)

        async def together(count: int) -> None:
            messages = [outbound(tag=tags[number % 5]) for number in range(count)]
            for message, outcome in zip(messages, await producer.send(messages), strict=True):
                check(message, outcome)

        def check(message: Outbound, outcome: BrokerError | None) -> None:
            assert kinds([outcome]) == {expected[message.tag or ""]: 1}
            answered.append(message.message_id)
            if outcome is None:
                ledger.confirmed(message.message_id)

        answered: list[str] = []
        await within(
            LONG, asyncio.gather(*(together(200) for _ in range(10)), *(one_by_one(50) for _ in range(20))), "answers"
        )
        assert len(answered) == len(set(answered)) == 3000
        assert len(ledger.confirmed_ids) == 1800
        await take(consumer, 1800, ledger)
        assert await consumer.receive(1, 0.3) == ()
    await balanced(ledger, doubled=0)


# --- 17, 18, 19 -----------------------------------------------------------------------------------------------


async def test_a_body_over_the_brokers_limit_fails_alone(own_node: RabbitMQNode, own_vhost: str) -> None:
    """The broker closes the channel (406); the other messages of it are sent again by the core."""
    ledger, url = Ledger(), own_node.address.url(own_vhost)
    own_node.configure("max_message_size", 100_000)
    try:
        async with manager_on(url) as sender:
            assert (await sender.send_many(TOPIC, [b"warm"]))[0].error is None
            bodies = [b"x" * (200_000 if number == 70 else 500) for number in range(150)]
            outcomes = await within(LONG, sender.send_many(TOPIC, bodies), "all outcomes")
            wrong = {number: outcome.error for number, outcome in enumerate(outcomes) if outcome.error is not None}
            assert list(wrong) == [70], wrong
            assert isinstance(wrong[70], MessageTooLarge), wrong
            for number, outcome in enumerate(outcomes):
                if number != 70:
                    ledger.confirmed(outcome.message_id)
        async with manager_on(url, {"max_message_size": 100_000}) as guarded:
            await guarded.connect()
            with pytest.raises(MessageTooLarge, match="100000"):
                await guarded.send(TOPIC, b"x" * 100_001)
        async with working(manager_on(url), ledger, topic=TOPIC):
            # "warm" is not in the books.
            ledger.sent(outcomes[0].message_id)
            await eventually(lambda: ledger.settled, LONG, "every confirmed message handled")
        ledger.assert_nothing_lost()
        assert len(ledger.doubled) <= 149
    finally:
        own_node.configure("max_message_size", 128 << 20)


@pytest.mark.parametrize("piece", [1, 7, None])
async def test_bodies_of_every_number_of_frames_arrive_byte_by_byte(
    shared_node: RabbitMQControl, vhost: str, piece: int | None
) -> None:
    frame = 8192 - 8
    sizes = (0, 1, frame - 1, frame, frame + 1, 2 * frame, 2 * frame + 1, 4 * frame) if piece != 1 else (0, 1, 300)
    bodies = [bytes(number % 251 for number in range(size)) for size in sizes]
    ledger = Ledger()
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        async with connected(proxy.url_for(shared_node.address.url(vhost)), frame_max=8192) as connection:
            consumer = await connection.open_consumer(WORK)
            proxy.slice(piece)
            messages = [outbound(body) for body in bodies]
            assert await send(connection, messages, ledger) == [None] * len(bodies)
            received = await take(consumer, len(bodies), ledger)
            assert [message.body for message in received] == bodies
            proxy.slice(None)
    await balanced(ledger, doubled=0)


async def test_what_amqp_cannot_carry_fails_before_anything_is_written(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger = Ledger()
    async with connected(shared_node.address.url(vhost), frame_max=8192) as connection:
        producer = await connection.open_producer()
        bad = [
            outbound(tag="t" * 256),
            outbound(headers={"h": "v" * 8192}),
            outbound(native={"routing_key": 5}),
            outbound(native={"routing_key": "k" * 256}),
        ]
        good = made(ledger, 4)
        mixed = [message for pair in zip(good, bad, strict=True) for message in pair]
        outcomes = list(await producer.send(mixed))
        assert kinds(outcomes[0::2]) == {"stored": 4}
        assert kinds(outcomes[1::2]) == {"MessageTooLarge": 3, "PayloadError": 1}
        for message in good:
            ledger.confirmed(message.message_id)
        assert publishing_link(connection).epoch == 1
        await take(await connection.open_consumer(WORK), 4, ledger)
    await balanced(ledger, doubled=0)


# --- 24 -------------------------------------------------------------------------------------------------------


async def test_a_queue_deleted_under_load_leaves_no_send_without_an_outcome(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    """A limit of RabbitMQ: what was confirmed is gone with its queue, and publishes under way are confirmed.

    3.10.8 may also close the connection that publishes to a quorum queue at this moment (541 INTERNAL_ERROR).
    """
    ledger = Ledger()
    url = shared_node.address.url(vhost)
    async with connected(url) as connection, connected(url) as other:
        producer = await connection.open_producer()
        sends = [asyncio.create_task(producer.send(made(Ledger(), 50))) for _ in range(40)]
        await other.delete("orders", "work")
        outcomes = [
            outcome for answers in await within(LONG, asyncio.gather(*sends), "outcomes") for outcome in answers
        ]
        assert len(outcomes) == 2000
        assert set(kinds(outcomes)) <= {"stored", "Unroutable", "SendTimeout"}
        await other.declare(ORDERS, ORDERS.groups["work"])
        assert await send(connection, made(ledger, 20), ledger) == [None] * 20
        await take(await connection.open_consumer(WORK), 20, ledger)
    await balanced(ledger, doubled=0)
