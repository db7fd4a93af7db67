"""What real brokers make of the messages that `mapping` encodes: nothing may be dropped, joined or cut."""

from __future__ import annotations

import random
import secrets
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from brokerkit.clock import SystemClock
from brokerkit.spi import ConnectOptions, ConsumerOptions, GroupSpec, Inbound, Outbound, ToGroup, TopicSpec, ToTopic
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.backend import RocketMQBackend
from brokerkit_rocketmq.remoting.messages import StoredMessage
from tests.rocketmq.consuming import consuming, take

CLOCK = SystemClock()
#: Seconds; a machine that runs other tests too is slow.
LONG = 60.0


@dataclass
class Wire:
    """One topic with one group, and both ends of it."""

    topic: str
    producer: Any
    consumer: Any

    async def through(self, *messages: Outbound) -> list[Inbound]:
        """Send the messages, receive them all, in the order in which they were sent."""
        outcomes = await self.producer.send(messages)
        assert [error for error in outcomes if error is not None] == []
        found: dict[str | None, Inbound] = {}
        end = CLOCK.monotonic() + LONG
        while len(found) < len(messages) and CLOCK.monotonic() < end:
            for inbound in await self.consumer.receive(32, 1.0):
                found[inbound.message_id] = inbound
                await self.consumer.ack([inbound])
        return [found[message.message_id] for message in messages]

    def message(self, **fields: Any) -> Outbound:
        defaults: dict[str, Any] = {
            "destination": ToTopic(self.topic),
            "body": b"body",
            "message_id": secrets.token_hex(8),
        }
        return Outbound(**(defaults | {"timestamp": CLOCK.time()} | fields))

    def again(self, **fields: Any) -> Outbound:
        """Return a message for the group alone, as retries are."""
        return self.message(destination=ToGroup(self.topic, "g"), **fields)


@asynccontextmanager
async def wire(server: RocketMQControl, **section: Any) -> AsyncIterator[Wire]:
    group = GroupSpec(name="g")
    topic = TopicSpec(name=f"t.{secrets.token_hex(5)}", groups={"g": group})
    options = ConnectOptions(url=server.address.url(), section=section, topics={topic.name: topic}, attempt_timeout=20)
    connection = await RocketMQBackend().connect(options)
    try:
        await connection.declare(topic, group)
        consumer = await connection.open_consumer(ConsumerOptions(topic=topic.name, group="g", prefetch=100))
        yield Wire(topic.name, await connection.open_producer(), consumer)
        await connection.delete(topic.name, None)
    finally:
        await connection.aclose()


def noise(length: int) -> str:
    return "".join(random.Random(7).choices(string.printable[:90], k=length))


async def test_every_field_and_every_odd_header_arrives(rocketmq: RocketMQControl) -> None:
    async with wire(rocketmq) as one:
        odd = {
            "DELAY": "3", "KEYS": "k", "TAGS": "t", "UNIQ_KEY": "u", "TIMER_DELIVER_MS": "1", "__CRC32#": "9",
            "WAIT": "false", "RETRY_TOPIC": "r", "TRAN_MSG": "true", "empty": "", "torn": "a\x01b\x02c", "nul": "\0",
            "\u5bfc": "\U0001f600", " ": " ", "x": "1",
        }  # fmt: skip
        messages = [
            one.message(headers=odd, key="a key", tag="t.1", type="order.new", content_type="text/plain", priority=9,
                        correlation_id="c", reply_to="inbox"),
            one.message(key="", type="", correlation_id="", content_type="",
                        message_id="\x01weird\x02" + secrets.token_hex(4)),
            one.message(body=b""),
            one.message(body=b"\0"),
            one.message(body=bytes(range(256)) * 8, key="\u5bfc\u51fa"),
            one.again(body=b"", headers=odd | {"bk-attempt": "3"}),
        ]  # fmt: skip

        found = await one.through(*messages)

        for sent, inbound in zip(messages, found, strict=True):
            for name in ("body", "message_id", "headers", "key", "tag", "type", "content_type", "priority", "timestamp",
                         "correlation_id", "reply_to"):  # fmt: skip
                assert getattr(inbound, name) == getattr(sent, name), name
            assert inbound.problem is None
        assert found[-1].native_attempt == 3


async def test_as_many_bytes_of_properties_as_are_allowed_are_stored(rocketmq: RocketMQControl) -> None:
    async with wire(rocketmq) as one:
        fresh = one.message(headers={"x": noise(30_500)}, due=CLOCK.time() + 2)
        copy = one.again(headers={"x": noise(31_700), "bk-attempt": "2"}, due=CLOCK.time() + 2)
        packed = one.again(headers={"x": noise(20_000) + "y" * 40_000, "bk-attempt": "2"})

        found = await one.through(fresh, copy, packed)

        assert [inbound.headers for inbound in found] == [fresh.headers, copy.headers, packed.headers]


async def test_a_compressed_body_arrives_as_it_was(rocketmq: RocketMQControl) -> None:
    async with wire(rocketmq, compress_over=4096) as one:
        (inbound,) = await one.through(one.message(body=b"text " * 200_000))

        assert inbound.body == b"text " * 200_000
        assert isinstance(inbound.native, StoredMessage)
        assert inbound.native.compression == "zlib"
        assert len(inbound.native.raw_body) < 10_000


async def test_native_options_are_what_the_broker_stores(rocketmq: RocketMQControl) -> None:
    async with wire(rocketmq) as one:
        native = {"flag": -5, "keys": ["w1", "w2"], "properties": {"BUYER_ID": "7", "shop": "north"}, "delay_level": 1}
        (inbound,) = await one.through(one.message(key="k", native=native))

        stored = inbound.native
        assert (stored.flag, stored.properties["KEYS"], stored.properties["BUYER_ID"]) == (-5, "k w1 w2", "7")
        assert (inbound.key, inbound.headers["shop"]) == ("k", "north")
        assert stored.store_timestamp - stored.born_timestamp >= 900


async def test_many_messages_sent_together_are_each_as_they_were(rocketmq: RocketMQControl) -> None:
    async with wire(rocketmq) as one:
        messages = [
            one.message(body=str(number).encode() * 50, headers={"n": str(number), "e": ""}, key=str(number % 7))
            for number in range(90)
        ]

        found = await one.through(*messages)

        assert [(m.body, m.headers, m.key, m.timestamp) for m in found] == [
            (m.body, m.headers, m.key, m.timestamp) for m in messages
        ]


async def test_the_largest_body_is_stored(rocketmq: RocketMQControl) -> None:
    async with wire(rocketmq) as one:
        body = random.Random(3).randbytes(4 << 20)

        (inbound,) = await one.through(one.message(body=body))

        assert inbound.body == body


async def test_clients_of_another_kind_may_write_what_stands_for_empty_and_hidden_texts(
    rocketmq: RocketMQControl,
) -> None:
    async with consuming(rocketmq, queues=1) as scene:
        consumer = await scene.consume()
        hidden = '{"fields":{"bk-type":""},"headers":{"TAGS":"x","note":""}}'
        await scene.put(0, b"\0", **{"bk-empty": "1", "bk-hidden": hidden, "plain": "y"})
        await scene.put(0, b"\0")
        empty, zero = await take(consumer, 2)
        assert (empty.body, zero.body) == (b"", b"\0")
        assert (empty.type, empty.tag, empty.headers) == ("", None, {"TAGS": "x", "note": "", "plain": "y"})
        await consumer.ack([empty, zero])
