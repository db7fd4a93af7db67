from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import frame, spec

from brokerkit.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    Closed,
    MessageTooLarge,
    PayloadError,
    SendRefused,
    SendTimeout,
    TopicNotFound,
    Unroutable,
)
from brokerkit.spi import Outbound, ToTopic
from brokerkit_rabbitmq.publishing import Batch, Pending, PublishChannel, Route
from tests.rabbitmq.wire import FRAME_MAX, Wire, message, method


def outbound(body: bytes = b"x", **fields: Any) -> Outbound:
    # Every message has the same id: returns must find theirs by something else.
    return Outbound(**{"destination": ToTopic("t"), "body": body, "message_id": "same", **fields})


def batch_of(size: int) -> Batch:
    return Batch(size, 0.0, asyncio.get_running_loop().create_future())


def nobody() -> BrokerError:
    return Unroutable("nobody wants it")


ROUTE = Route("exchange", "key", unwanted=nobody)


async def confirm_channel(wire: Wire, rooms: list[int]) -> PublishChannel:
    channel = await wire.open(PublishChannel, 1000, lambda: rooms.append(1))
    selecting = asyncio.ensure_future(channel.select())
    assert [type(each) for each in await wire.methods()] == [spec.Confirm.Select]
    wire.feed(method(channel.number, spec.Confirm.SelectOk()))
    await selecting
    return channel


# --- what is written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, FRAME_MAX - 8, FRAME_MAX - 7, 3 * FRAME_MAX])
async def test_a_message_is_written_as_pika_reads_it(size: int) -> None:
    wire = Wire()
    channel = await confirm_channel(wire, [])

    channel.publish(outbound(b"x" * size, type="order"), Route("e", "k", keys=("further",)), batch_of(1), 0)
    publish, header, *pieces = await wire.written()

    assert isinstance(publish.method, spec.Basic.Publish)
    assert (publish.method.exchange, publish.method.routing_key, publish.method.mandatory) == ("e", "k", True)
    assert (header.body_size, header.properties.type, header.properties.headers["CC"]) == (size, "order", ["further"])
    assert b"".join(piece.fragment for piece in pieces) == b"x" * size


async def test_a_message_that_does_not_fit_fails_alone_and_takes_no_number() -> None:
    wire = Wire()
    channel = await confirm_channel(wire, [])
    batch = batch_of(4)

    with pytest.raises(
        MessageTooLarge, match=f"headers and properties have 9.* bytes, frame_max allows {FRAME_MAX - 20}"
    ):
        channel.publish(outbound(headers={"big": "x" * 9_000}), ROUTE, batch, 0)
    with pytest.raises(MessageTooLarge, match=r"routing key .* 256 bytes"):
        channel.publish(outbound(), Route("e", "k" * 256), batch, 1)
    with pytest.raises(PayloadError, match="unknown native option"):
        channel.publish(outbound(native={"nonsense": 1}), ROUTE, batch, 2)
    assert batch.outcomes == [Pending.WAITING] * 4
    assert await wire.written() == []

    channel.publish(outbound(), ROUTE, batch, 3)
    wire.feed(method(channel.number, spec.Basic.Ack(1)))
    assert batch.outcomes[3] is None


async def test_headers_may_fill_a_frame_and_not_a_byte_more() -> None:
    wire = Wire()
    channel = await confirm_channel(wire, [])
    channel.publish(outbound(headers={"big": ""}), ROUTE, batch_of(1), 0)
    _, header, _ = await wire.written()
    room = FRAME_MAX - len(header.marshal())

    channel.publish(outbound(headers={"big": "x" * room}), ROUTE, batch_of(1), 0)
    with pytest.raises(MessageTooLarge):
        channel.publish(outbound(headers={"big": "x" * (room + 1)}), ROUTE, batch_of(1), 0)

    _, header, _ = await wire.written()
    assert (len(header.marshal()), len(header.properties.headers["big"])) == (FRAME_MAX, room)


async def test_frames_are_right_for_more_addresses_than_are_remembered() -> None:
    wire = Wire()
    channel = await confirm_channel(wire, [])

    for number in (*range(1_500), 0, 1_499):
        channel.publish(outbound(), Route("e", f"key-{number}", mandatory=number % 2 == 0), batch_of(1), 0)
    published = [part.method for part in await wire.written() if isinstance(part, frame.Method)]

    assert [(each.routing_key, each.mandatory) for each in published] == [
        (f"key-{number}", number % 2 == 0) for number in (*range(1_500), 0, 1_499)
    ]


# --- confirms ---------------------------------------------------------------------------------------------------


class Once(Batch):
    """Fails when a message is given two outcomes."""

    __slots__ = ("settled",)

    def settle(self, index: int, outcome: BrokerError | None) -> None:
        assert not self.done.done(), "an outcome for a batch that is over"
        assert isinstance(self.outcomes[index], Pending), "a second outcome for one message"
        super().settle(index, outcome)


@dataclass
class Sent:
    """What the broker of the test knows about one message."""

    batch: Once
    index: int
    size: int
    #: Properties as they were written.
    properties: bytes
    returned: bool = False
    expected: type[BrokerError] | None = None


#: How a channel ends: reply code and text (None: the link breaks), and what becomes of a message that may be stored.
ENDS: list[tuple[int | None, str, type[BrokerError]]] = [
    (404, "NOT_FOUND - no exchange 'exchange' in vhost '/'", TopicNotFound),
    (403, "ACCESS_REFUSED - access to exchange 'exchange' in vhost '/' refused for user 'guest'", AccessRefused),
    (406, "PRECONDITION_FAILED - message size 5 is larger than max size 4", MessageTooLarge),
    (541, "INTERNAL_ERROR", SendTimeout),
    (None, "", SendTimeout),
]


@given(st.data())
@settings(max_examples=150)
async def test_whatever_the_broker_answers_every_message_has_one_outcome_and_the_right_one(data: st.DataObject) -> None:
    wire, rooms = Wire(), list[int]()
    channel = await confirm_channel(wire, rooms)
    batches: list[tuple[Once, list[Sent]]] = []
    open_: dict[int, Sent] = {}
    sequence = 0

    async def publish() -> None:
        nonlocal sequence
        sizes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
        batch = Once(len(sizes), 0.0, asyncio.get_running_loop().create_future())
        mine = []
        for index, size in enumerate(sizes):
            channel.publish(outbound(b"x" * size), ROUTE, batch, index)
            _, header, *_ = await wire.written()
            sequence += 1
            # Another codec writes them back: what returns is found by its contents alone.
            sent = Sent(batch, index, size, b"".join(header.properties.encode()))
            mine.append(sent)
            open_[sequence] = sent
        batches.append((batch, mine))

    def answer() -> None:
        tag, multiple, good = (
            data.draw(st.sampled_from(sorted(open_))),
            data.draw(st.booleans()),
            data.draw(st.booleans()),
        )
        kind = spec.Basic.Ack if good else spec.Basic.Nack
        wire.feed(method(channel.number, kind(tag, multiple)))
        for number in [number for number in open_ if number == tag or (multiple and number < tag)]:
            sent = open_.pop(number)
            if sent.batch not in expired:
                sent.expected = SendRefused if not good else Unroutable if sent.returned else None
        assert rooms
        rooms.clear()

    def give_back() -> None:
        sent = open_[data.draw(st.sampled_from(sorted(open_)))]
        if not sent.returned:
            sent.returned = True
            returned = spec.Basic.Return(312, "NO_ROUTE", "exchange", "key")
            wire.feed(message(channel.number, returned, sent.properties, b"x" * sent.size, 2))

    expired: list[Once] = []

    def expire() -> None:
        batch, mine = data.draw(st.sampled_from(batches))
        if not batch.done.done():
            expired.append(batch)
            for sent in mine:
                if sent in open_.values():
                    sent.expected = BrokerUnavailable
            batch.expire(lambda: Closed("never written"), lambda: BrokerUnavailable("its time is up"))

    for _ in range(data.draw(st.integers(1, 14))):
        step = data.draw(st.sampled_from(["publish", "answer", "answer", "return", "expire"]))
        if step == "publish" or not batches:
            await publish()
        elif step == "expire":
            expire()
        elif not open_:
            continue
        elif step == "answer":
            answer()
        else:
            give_back()
        assert sorted(channel.unconfirmed) == sorted(open_)

    code, text, kind = data.draw(st.sampled_from(ENDS))
    if code is None:
        wire.transport.abort()
        await wire.amqp.lost
    else:
        wire.feed(method(channel.number, spec.Channel.Close(code, text, 60, 40)))
    largest = max((sent.size for sent in open_.values()), default=0)
    culprit = next((number for number in sorted(open_) if open_[number].size == largest), None)
    for number, sent in open_.items():
        if sent.batch not in expired:
            # A message that came back is certainly not stored, whatever happens to the channel then.
            blamed = kind if kind is not MessageTooLarge or number == culprit else SendTimeout
            sent.expected = Unroutable if sent.returned else blamed

    assert not channel.unconfirmed
    for batch, mine in batches:
        assert batch.done.done()
        for sent in mine:
            outcome = batch.outcomes[sent.index]
            assert (None if outcome is None else type(outcome)) is sent.expected
    shared = [id(outcome) for batch, _ in batches for outcome in batch.outcomes if outcome is not None]
    # An exception that two callers raise has the traceback of both.
    assert len(set(shared)) == len(shared)


async def test_a_return_of_another_kind_shows_what_the_broker_said() -> None:
    wire = Wire()
    channel = await confirm_channel(wire, [])
    batch = batch_of(1)
    channel.publish(outbound(), ROUTE, batch, 0)
    _, header, _ = await wire.written()

    returned = spec.Basic.Return(313, "NO_CONSUMERS", "exchange", "key")
    wire.feed(message(channel.number, returned, b"".join(header.properties.encode()), b"x"))
    wire.feed(method(channel.number, spec.Basic.Ack(1)))

    assert isinstance(batch.outcomes[0], Unroutable)
    assert "313 NO_CONSUMERS" in str(batch.outcomes[0])


@pytest.mark.parametrize("headers", [None, {}, {"bk-seq": 99}, {"bk-seq": "1"}, {"bk-seq": -1}], ids=str)
async def test_a_return_of_nothing_that_is_under_way_changes_nothing(headers: dict[str, Any] | None) -> None:
    wire = Wire()
    channel = await confirm_channel(wire, [])
    batch = batch_of(1)
    channel.publish(outbound(), ROUTE, batch, 0)

    raw = b"".join(spec.BasicProperties(headers=headers).encode())
    wire.feed(message(channel.number, spec.Basic.Return(312, "NO_ROUTE", "exchange", "key"), raw, b"x"))
    wire.feed(method(channel.number, spec.Basic.Ack(1)))

    assert batch.outcomes == [None]
    assert wire.amqp.error is None


@pytest.mark.parametrize("tag", [0, 2, 7, (1 << 64) - 1])
@pytest.mark.parametrize("multiple", [True, False])
async def test_a_confirm_of_what_was_never_sent_does_no_harm(tag: int, multiple: bool) -> None:
    wire = Wire()
    channel = await confirm_channel(wire, [])

    wire.feed(method(channel.number, spec.Basic.Ack(tag, multiple)))
    batch = batch_of(1)
    channel.publish(outbound(), ROUTE, batch, 0)
    wire.feed(method(channel.number, spec.Basic.Ack(1, True)))

    assert batch.outcomes == [None]


async def test_ten_thousand_confirms_look_at_each_number_once() -> None:
    wire = Wire()
    channel = await confirm_channel(wire, [])
    batch = batch_of(10_000)
    for index in range(10_000):
        channel.publish(outbound(), ROUTE, batch, index)
    # The oldest stays open: what is answered above it must not be looked at again and again.
    for tag in range(2, 10_001):
        wire.feed(method(channel.number, spec.Basic.Ack(tag)))
    assert list(channel.unconfirmed) == [1]

    wire.feed(method(channel.number, spec.Basic.Ack(10_000, True)))
    assert batch.outcomes == [None] * 10_000
    assert batch.done.done()


async def test_flow_is_answered() -> None:
    wire = Wire()
    channel = await confirm_channel(wire, [])

    wire.feed(method(channel.number, spec.Channel.Flow(False)))

    (answer,) = await wire.methods()
    assert (type(answer), answer.active) == (spec.Channel.FlowOk, False)


async def test_what_the_broker_confirms_while_the_channel_is_closed_still_counts() -> None:
    wire = Wire()
    channel = await confirm_channel(wire, [])
    batch = batch_of(2)
    channel.publish(outbound(), ROUTE, batch, 0)
    channel.publish(outbound(), ROUTE, batch, 1)
    await wire.written()

    closing = asyncio.ensure_future(channel.close())
    assert [type(each) for each in await wire.methods()] == [spec.Channel.Close]
    # What the broker says before it has read that still counts.
    wire.feed(method(channel.number, spec.Basic.Ack(1)) + method(channel.number, spec.Channel.CloseOk()))
    await closing

    assert batch.outcomes == [None, Pending.WRITTEN]
