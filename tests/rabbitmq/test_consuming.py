from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import spec

from brokerkit.errors import BrokerUnavailable, TopicNotFound
from brokerkit_rabbitmq.consuming import ConsumeChannel
from tests.rabbitmq.wire import Wire, message, method


class Consumer:
    """A consuming channel and the broker's view of it: what it delivered and what is settled."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.delivered: list[tuple[int, bool, bytes]] = []
        self.unacked: list[int] = []
        self.acked: list[int] = []
        self.requeued: list[int] = []
        self._tag = 0

    async def open(self) -> ConsumeChannel:
        self.channel = await self.wire.open(
            ConsumeChannel,
            lambda tag, redelivered, address, method, header, body: self.delivered.append((tag, redelivered, body)),
        )
        consuming = asyncio.ensure_future(self.channel.consume("q", 10))
        (qos,) = await self.wire.methods()
        assert (type(qos), qos.prefetch_count, qos.global_qos) == (spec.Basic.Qos, 10, False)
        self.wire.feed(method(1, spec.Basic.QosOk()))
        (consume,) = await self.wire.methods()
        assert (type(consume), consume.queue, consume.no_ack) == (spec.Basic.Consume, "q", False)
        self.wire.feed(method(1, spec.Basic.ConsumeOk("ctag")))
        await consuming
        return self.channel

    def deliver(self, count: int = 1, *, redelivered: bool = False, body: bytes = b"x") -> None:
        for _ in range(count):
            self._tag += 1
            self.unacked.append(self._tag)
            deliver = spec.Basic.Deliver("ctag", self._tag, redelivered, "e", "k")
            self.wire.feed(message(1, deliver, b"\0\0", body))

    async def settle(self) -> None:
        """Do what was written, as rabbit_channel:collect_acks does it."""
        for each in await self.wire.methods():
            tag, multiple = each.delivery_tag, each.multiple
            if multiple and tag == 0:
                tags = list(self.unacked)
            else:
                # Also the tag of a "multiple" must be there, or the broker closes the channel with 406.
                assert tag in self.unacked, f"unknown delivery tag {tag}"
                tags = [one for one in self.unacked if one == tag or (multiple and one < tag)]
            for one in tags:
                self.unacked.remove(one)
            if isinstance(each, spec.Basic.Ack):
                self.acked += tags
            else:
                assert isinstance(each, spec.Basic.Nack) and each.requeue
                self.requeued += tags


@given(st.data())
@settings(max_examples=150)
async def test_the_broker_has_settled_what_was_asked_and_nothing_else(data: st.DataObject) -> None:
    consumer = Consumer()
    channel = await consumer.open()
    acked, released = set[int](), set[int]()
    count = 0

    for _ in range(data.draw(st.integers(1, 10))):
        step = data.draw(st.sampled_from(["deliver", "ack", "ack", "release"]))
        if step == "deliver" or not count:
            more = data.draw(st.integers(1, 6))
            count += more
            consumer.deliver(more)
            continue
        # Also some that are settled already, and in any order.
        tags = data.draw(st.lists(st.integers(1, count), max_size=6))
        settled = acked | released
        fresh = set(tags) - settled
        repeated = channel.ack(tags) if step == "ack" else channel.release(tags)
        assert repeated == len(tags) - len(fresh)
        (acked if step == "ack" else released).update(fresh)
        if data.draw(st.booleans()):
            # Not every settlement leaves in a turn of its own.
            await consumer.settle()

    await consumer.settle()
    assert sorted(consumer.acked) == sorted(acked)
    assert sorted(consumer.requeued) == sorted(released)
    assert channel.idle is (not consumer.unacked)
    for tag in range(1, count + 1):
        assert channel.is_settled(tag) is (tag in acked | released)

    channel.release_all()
    await consumer.settle()
    assert sorted(consumer.acked) == sorted(acked)
    assert not consumer.unacked
    # A late handler settles what went back already.
    assert channel.ack(range(1, count + 1)) == count
    assert channel.release(range(1, count + 1)) == count
    assert await consumer.wire.written() == []
    assert channel.idle


async def test_what_is_acknowledged_in_order_takes_one_frame() -> None:
    consumer = Consumer()
    channel = await consumer.open()
    consumer.deliver(100)

    channel.ack(range(1, 51))
    channel.ack(range(51, 101))

    assert [(each.delivery_tag, each.multiple) for each in await consumer.wire.methods()] == [(50, True), (100, True)]


async def test_what_lies_above_an_unsettled_one_is_acknowledged_by_itself() -> None:
    consumer = Consumer()
    channel = await consumer.open()
    consumer.deliver(5)

    channel.ack([2, 3, 5])
    await consumer.settle()

    assert (consumer.acked, consumer.unacked) == ([2, 3, 5], [1, 4])


async def test_released_ones_go_back_oldest_first() -> None:
    consumer = Consumer()
    channel = await consumer.open()
    consumer.deliver(3)

    channel.release([3, 1, 2])

    written = await consumer.wire.methods()
    assert [(type(each), each.delivery_tag, each.multiple) for each in written] == [
        (spec.Basic.Nack, tag, False) for tag in (1, 2, 3)
    ]


async def test_a_consumer_that_has_given_back_all_is_idle() -> None:
    consumer = Consumer()
    channel = await consumer.open()
    assert channel.idle
    consumer.deliver(2)
    assert not channel.idle

    channel.release([1, 2])

    assert channel.idle


async def test_the_memory_of_settled_ones_does_not_grow() -> None:
    consumer = Consumer()
    channel = await consumer.open()
    for number in range(1, 2_000, 2):
        consumer.deliver(2)
        channel.ack([number + 1])
        channel.release([number])
        assert channel.idle
    assert len(channel._settled) == 0


async def test_deliveries_arrive_as_they_were_sent() -> None:
    consumer = Consumer()
    await consumer.open()

    consumer.deliver(body=b"")
    consumer.deliver(redelivered=True, body=b"x" * 20_000)

    assert consumer.delivered == [(1, False, b""), (2, True, b"x" * 20_000)]


async def test_the_consumer_ends_when_the_broker_cancels_it_and_not_when_it_cancels_another() -> None:
    consumer = Consumer()
    channel = await consumer.open()
    consumer.deliver()

    consumer.wire.feed(method(1, spec.Basic.Cancel("another", True)))
    assert not channel.ended.done()
    consumer.wire.feed(method(1, spec.Basic.Cancel("ctag", True)))
    assert channel.ended.done()

    # What was delivered before can still be settled, and there is nothing left to cancel.
    channel.ack([1])
    await consumer.settle()
    assert consumer.acked == [1]
    await channel.cancel()
    assert await consumer.wire.written() == []


@pytest.mark.parametrize(
    "close", [spec.Channel.Close(406, "PRECONDITION_FAILED - delivery acknowledgement timed out", 0, 0), None]
)
async def test_the_consumer_ends_with_its_channel_and_with_the_link(close: Any) -> None:
    consumer = Consumer()
    channel = await consumer.open()

    if close is None:
        consumer.wire.transport.abort()
        await consumer.wire.amqp.lost
    else:
        consumer.wire.feed(method(1, close))

    assert channel.ended.done()
    assert isinstance(channel.error, BrokerUnavailable)
    await consumer.wire.written()
    consumer.deliver()
    channel.release_all()
    assert consumer.delivered == []
    assert await consumer.wire.written() == []


async def test_cancelling_waits_for_what_is_under_way() -> None:
    consumer = Consumer()
    channel = await consumer.open()

    cancelling = asyncio.ensure_future(channel.cancel())
    (cancel,) = await consumer.wire.methods()
    assert (type(cancel), cancel.consumer_tag) == (spec.Basic.Cancel, "ctag")
    consumer.deliver()
    consumer.wire.feed(method(1, spec.Basic.CancelOk("ctag")))
    await cancelling

    assert [tag for tag, _, _ in consumer.delivered] == [1]


async def test_a_queue_that_is_not_there_is_named() -> None:
    wire = Wire()
    channel = await wire.open(ConsumeChannel, lambda *delivery: None)
    consuming = asyncio.ensure_future(channel.consume("q", 100_000))
    (qos,) = await wire.methods()
    # 16 bits, and 0 would be no limit.
    assert qos.prefetch_count == 65_535
    wire.feed(method(1, spec.Basic.QosOk()))
    await wire.methods()
    wire.feed(method(1, spec.Channel.Close(404, "NOT_FOUND - no queue 'q' in vhost '/'", 60, 20)))

    with pytest.raises(TopicNotFound, match="no queue 'q'"):
        await consuming
