"""pika, aio-pika, kombu and Celery beside brokerkit on one broker: each reads what the other sends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import aio_pika
import celery
import kombu
import pika
import pytest
from celery.worker.request import Request

from brokerkit import Delivery, Manager, Message, RetryPolicy, SendOptions
from brokerkit.blocking_delivery import BlockingDelivery
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from tests.rabbitmq.peers import LONG, Taken, connected, peer, take

QUEUE = "orders:billing"
SENT: SendOptions = {
    "message_id": "id-1",
    "type": "created",
    "headers": {"source": "web", "café": "münchen"},
    "tag": "new.eu",
    "key": "customer-7",
    "priority": 7,
    "correlation_id": "c-1",
    "reply_to": "replies",
    "parent": "id-0",
    "ttl": 600,
}


@pytest.fixture
def url(shared_node: RabbitMQControl, vhost: str) -> str:
    return shared_node.address.url(vhost)


@pytest.fixture
def manager(url: str) -> Iterator[Manager]:
    with connected(url) as made:
        made.admin.declare("orders", "billing")
        yield made


@contextlib.contextmanager
def kombu_channel(url: str) -> Iterator[tuple[kombu.Connection, Any]]:
    # Without confirms a quorum queue that was just declared may not get what a channel published right before its end.
    confirmed = {"confirm_publish": True}
    with kombu.Connection(url, transport_options=confirmed) as connection, connection.channel() as channel:
        yield connection, channel


def receive(manager: Manager, count: int = 1) -> list[BlockingDelivery]:
    """Take messages out of the group."""
    found: list[BlockingDelivery] = []
    with manager.consume("orders", group="billing") as deliveries:
        for delivery in deliveries:
            delivery.ack()
            found.append(delivery)
            if len(found) == count:
                break
    return found


def received(manager: Manager) -> Message:
    return receive(manager)[0].message


# --- they read what we send ---------------------------------------------------------------------------------------


def test_pika_reads_what_we_send(url: str, manager: Manager) -> None:
    before = time.time()
    manager.send("orders", {"id": 1}, **SENT)

    with peer(url) as channel:
        came = take(channel, QUEUE)
    properties = came.properties
    assert (came.deliver.exchange, came.deliver.routing_key) == ("orders", "new.eu")
    assert (came.body, properties.content_type, properties.delivery_mode) == (b'{"id":1}', "application/json", 2)
    assert (properties.message_id, properties.type, properties.priority) == ("id-1", "created", 7)
    assert (properties.correlation_id, properties.reply_to) == ("c-1", "replies")
    assert int(before) <= properties.timestamp <= time.time()
    assert {name: came.headers[name] for name in ("source", "café")} == {"source": "web", "café": "münchen"}
    assert (came.headers["bk-tag"], came.headers["bk-key"]) == ("new.eu", "customer-7")
    assert came.headers["bk-parent"] == "id-0" and float(came.headers["bk-expires"]) > before
    # The broker would drop an expired message by itself, where we count it or keep it as a dead letter.
    assert properties.expiration is None


async def test_aio_pika_reads_what_we_send(url: str, manager: Manager) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    await asyncio.to_thread(lambda: manager.send("orders", b"\x00\xff", **SENT))

    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(QUEUE)
        came = await queue.get(timeout=LONG)
        assert came is not None
        await came.ack()
    assert (came.body, came.content_type, came.delivery_mode) == (b"\x00\xff", "application/octet-stream", 2)
    assert (came.message_id, came.type, came.priority, came.correlation_id) == ("id-1", "created", 7, "c-1")
    assert came.timestamp is not None and before <= came.timestamp <= datetime.now(UTC)
    assert (came.routing_key, came.reply_to, came.headers["café"]) == ("new.eu", "replies", "münchen")


def test_kombu_reads_what_we_send(url: str, manager: Manager) -> None:
    manager.send("orders", {"id": 1}, **SENT)
    manager.send("orders", "text")
    manager.send("orders", b"\x00\xff")

    with kombu_channel(url) as (_, channel):
        queue = kombu.Queue(QUEUE, no_declare=True)(channel)
        came = [queue.get(no_ack=True, accept=["json", "text/plain", "application/octet-stream"]) for _ in range(3)]
    assert came[0].payload == {"id": 1}
    assert came[1].payload == "text"
    assert bytes(came[2].body) == b"\x00\xff"
    assert (came[0].properties["message_id"], came[0].properties["type"]) == ("id-1", "created")
    assert (came[0].properties["priority"], came[0].headers["source"]) == (7, "web")


def test_a_delayed_message_of_ours_is_read_when_it_is_due(url: str, manager: Manager) -> None:
    sent = time.time()
    manager.send("orders", "later", delay=0.7, tag="new.eu", headers={"source": "web"})

    with peer(url) as channel:
        came = take(channel, QUEUE)
    assert time.time() - sent >= 0.7
    assert came.properties.expiration is None and came.properties.delivery_mode == 2
    assert (came.headers["bk-tag"], came.headers["source"]) == ("new.eu", "web")
    assert float(came.headers["bk-due"]) == pytest.approx(sent + 0.7, abs=0.5)


# --- we read what they send ---------------------------------------------------------------------------------------

#: A header of every type that AMQP has, and the text that it becomes.
TYPED: dict[str, Any] = {
    "text": "münchen",
    "empty": "",
    "bytes": b"\xff\x00",
    "true": True,
    "int": -5,
    "long": 1 << 40,
    "decimal": Decimal("1.25"),
    "none": None,
    "time": datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
    "list": [1, "two", [3]],
    "table": {"a": {"b": 1}},
}
TEXTS = {
    "text": "münchen",
    "empty": "",
    "bytes": "\\xff\x00",
    "true": "true",
    "int": "-5",
    "long": "1099511627776",
    "decimal": '"1.25"',
    "none": "null",
    "time": '"2024-05-06 07:08:09+00:00"',
    "list": '[1, "two", [3]]',
    "table": '{"a": {"b": 1}}',
}


def test_we_read_what_pika_sends(url: str, manager: Manager) -> None:
    with peer(url) as channel:
        properties = pika.BasicProperties(
            content_type="application/json",
            headers=TYPED,
            priority=200,
            correlation_id="c-1",
            reply_to="replies",
            message_id="foreign-1",
            timestamp=1_700_000_000,
            type="created",
            app_id="theirs",
        )
        channel.basic_publish("orders", "new.eu", b'{"id": 1}', properties, mandatory=True)

    (delivery,) = receive(manager)
    message = delivery.message
    assert message.payload() == {"id": 1}
    assert (message.message_id, message.type, message.tag, message.timestamp) == (
        "foreign-1",
        "created",
        "new.eu",
        1_700_000_000.0,
    )
    assert (message.priority, message.correlation_id, message.reply_to) == (9, "c-1", "replies")
    assert dict(message.headers) == TEXTS
    # What has no place in a message of brokerkit is still there.
    assert delivery.native.properties.app_id == "theirs"
    assert delivery.native.properties.headers["table"] == {"a": {"b": 1}}


async def test_we_read_what_aio_pika_sends(url: str, manager: Manager) -> None:
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("orders")
        headers = {name: value for name, value in TYPED.items() if name != "bytes"} | {"float": 0.5}
        message = aio_pika.Message(
            b"text",
            content_type="text/plain",
            content_encoding="utf-8",
            headers=headers,
            message_id="foreign-2",
            priority=3,
            timestamp=datetime(2024, 5, 6, tzinfo=UTC),
            type="created",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(message, routing_key="new.eu")

    found = received(manager)
    assert (found.payload(str), found.message_id, found.type, found.priority) == ("text", "foreign-2", "created", 3)
    assert found.timestamp == datetime(2024, 5, 6, tzinfo=UTC).timestamp()
    texts = {name: text for name, text in TEXTS.items() if name != "bytes"}
    assert dict(found.headers) == {**texts, "float": "0.5"}


def test_we_read_what_kombu_sends(url: str, manager: Manager) -> None:
    with kombu_channel(url) as (_, channel):
        producer = kombu.Producer(channel)
        producer.publish({"id": 1}, exchange="orders", routing_key="new.eu", headers={"tries": 2}, priority=4)
        # A format that runs code when it is read: it is bytes for us.
        producer.publish({"id": 2}, exchange="orders", routing_key="", serializer="pickle")

    first, second = (delivery.message for delivery in receive(manager, 2))
    assert first.payload() == {"id": 1}
    assert (first.content_type, first.priority, first.tag) == ("application/json", 4, "new.eu")
    assert first.headers["tries"] == "2" and first.message_id is None
    assert second.content_type == "application/x-python-serialize" and second.payload(bytes) == second.body


# --- what other systems leave in a message ------------------------------------------------------------------------

#: What a message has been through that was dead-lettered twice elsewhere.
X_DEATH: dict[str, Any] = {
    "x-death": [
        {
            "count": 3,
            "reason": reason,
            "queue": queue,
            "time": datetime(2024, 5, 6, tzinfo=UTC),
            "exchange": "orders",
            "routing-keys": ["new"],
        }
        for reason, queue in (("expired", "orders:billing"), ("rejected", "bk.delay.0.1"), ("expired", "bk.delay.0.2"))
    ],
    "x-first-death-exchange": "orders",
    "x-first-death-queue": "orders:billing",
    "x-first-death-reason": "expired",
    "x-delivery-count": 4,
}
RETRY = RetryPolicy(max_attempts=5, base_delay=0.2, multiplier=1.0, jitter="none")


def passes(manager: Manager, topic: str, group: str) -> list[tuple[Message, Any]]:
    """Handle the next message, which fails three times; return what each attempt got, with the native message."""
    seen: list[tuple[Message, Any]] = []

    @manager.handler(topic, group=group, retry=RETRY)
    def handle(body: bytes, delivery: Delivery) -> None:
        seen.append((delivery.message, delivery.native))
        if delivery.attempt <= 3:
            raise ConnectionError("again")

    manager.start()
    eventually_sync(lambda: len(seen) == 4, within=LONG, what="three retries")
    manager.stop()
    assert [message.attempt for message, _ in seen] == [1, 2, 3, 4]
    return seen


def test_a_message_full_of_x_death_comes_through_three_delayed_retries(url: str, manager: Manager) -> None:
    # Up to 3.13 the broker takes a client's x-death for its own and drops the message as one that runs in a circle.
    with peer(url) as channel:
        properties = pika.BasicProperties(headers={**X_DEATH, "kept": "yes"}, message_id="dead-1", delivery_mode=2)
        channel.basic_publish("orders", "new", b"body", properties, mandatory=True)

    seen = passes(manager, "orders", "billing")
    assert {message.message_id for message, _ in seen} == {"dead-1"}
    assert all(dict(message.headers) == {"kept": "yes"} for message, _ in seen)
    # What the last one has is of our own delays, not of its earlier life.
    last = seen[-1][1].properties.headers
    assert all(death["queue"].startswith(("bk.delay.", "bk.due.")) for death in last["x-death"])
    assert "x-delivery-count" not in last


def test_a_message_without_an_id_gets_one_for_its_retries(url: str, manager: Manager) -> None:
    with peer(url) as channel:
        channel.basic_publish("orders", "new", b"body", pika.BasicProperties(), mandatory=True)

    seen = passes(manager, "orders", "billing")
    assert seen[0][0].message_id is None
    given = {message.message_id for message, _ in seen[1:]}
    assert len(given) == 1 and None not in given


def test_a_foreign_cc_sends_no_retry_to_other_queues(url: str, manager: Manager) -> None:
    with peer(url) as channel:
        channel.queue_declare("copies", durable=True)
        channel.queue_bind("copies", "orders", "copy")
        properties = pika.BasicProperties(headers={"CC": ["copy"], "BCC": ["copy.too"]})
        channel.basic_publish("orders", "new", b"body", properties, mandatory=True)
        assert take(channel, "copies").body == b"body"

        seen = passes(manager, "orders", "billing")
        assert channel.queue_declare("copies", passive=True).method.message_count == 0
    assert all("CC" not in message.headers and message.tag == "new" for message, _ in seen)


def test_types_of_foreign_headers_outlive_a_retry_for_the_peers_on_the_same_queue(url: str, manager: Manager) -> None:
    with peer(url) as channel:
        properties = pika.BasicProperties(headers=TYPED, content_encoding="utf-8", content_type="text/plain")
        channel.basic_publish("orders", "new", b"body", properties, mandatory=True)

    native = passes(manager, "orders", "billing")[-1][1].properties
    assert {name: native.headers[name] for name in TYPED} == TYPED
    assert (native.content_encoding, native.content_type) == ("utf-8", "text/plain")


@pytest.mark.parametrize("value", ["{", '{"headers": 5}', 5, ["a"]], ids=str)
def test_a_peer_cannot_write_what_we_remember_of_foreign_messages(url: str, manager: Manager, value: Any) -> None:
    with peer(url) as channel:
        properties = pika.BasicProperties(headers={"bk-foreign": value, "number": 1})
        channel.basic_publish("orders", "new", b"body", properties, mandatory=True)

    headers = passes(manager, "orders", "billing")[-1][1].properties.headers
    assert headers["number"] == 1 and "bk-foreign" not in headers


CELERY = """
topics:
  celery:
    rabbitmq: {exchange: celery, exchange_type: direct, routing_key: celery}
    groups: {workers: {rabbitmq: {queue: celery}}}
"""


def test_a_message_of_celery_is_handled_and_stays_one(url: str) -> None:
    app = celery.Celery(broker=url, set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=False, task_ignore_result=True)
    with connected(url, CELERY) as manager:
        sent = app.send_task("shop.bill", args=[7], kwargs={"total": 9.5}, countdown=0, retries=2)
        seen = passes(manager, "celery", "workers")

        first, last = seen[0][0], seen[-1][0]
        assert first.payload() == [[7], {"total": 9.5}, first.payload()[2]]
        assert (first.headers["task"], first.headers["id"], first.correlation_id) == ("shop.bill", sent.id, sent.id)
        assert (first.headers["retries"], first.headers["timelimit"]) == ("2", "[null, null]")
        assert dict(last.headers) == dict(first.headers)
        assert (last.body, last.correlation_id, last.content_type) == (first.body, sent.id, "application/json")

        # Another attempt could be that of a Celery worker, which needs numbers to be numbers.
        headers = seen[-1][1].properties.headers
        assert (headers["retries"], headers["timelimit"], headers["shadow"]) == (2, [None, None], None)
        assert seen[-1][1].properties.content_encoding == "utf-8"
    app.close()


def test_a_celery_worker_takes_the_message_that_we_gave_back(url: str) -> None:
    app = celery.Celery(broker=url, set_as_current=False)

    @app.task(name="shop.bill")  # type: ignore[untyped-decorator]
    def bill(number: int) -> None: ...

    with connected(url, CELERY) as manager:
        app.send_task("shop.bill", args=[7], retries=2)
        with manager.consume("celery", group="workers") as deliveries:
            next(iter(deliveries)).nack(delay=0.2)

        with peer(url) as channel:
            came: Taken = take(channel, "celery")
        message = kombu.Message(
            body=came.body,
            headers=came.headers,
            content_type=came.properties.content_type,
            content_encoding=came.properties.content_encoding,
            accept={"application/json"},
        )
        request = Request(message, app=app, headers=message.headers, body=message.body)
        assert (request.name, request.argsrepr, request.request_dict["retries"]) == ("shop.bill", "[7]", 2)
    app.close()
