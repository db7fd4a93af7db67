from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import spec

from brokerkit.errors import AccessRefused, BrokerError, BrokerUnavailable, TopologyConflict
from brokerkit_rabbitmq.channel import Channel
from brokerkit_rabbitmq.consuming import ConsumeChannel
from brokerkit_rabbitmq.frames import HEARTBEAT_FRAME
from brokerkit_rabbitmq.publishing import PublishChannel
from tests.rabbitmq.wire import FRAME_MAX, Wire, message, method

Event = tuple[Any, ...]


class Recorder(Channel):
    """Keeps what comes in, in its order."""

    def __init__(self, connection: Any, number: int, seen: list[Event]) -> None:
        super().__init__(connection, number)
        self.seen = seen

    def content(self, method_id: int, method: bytes, header: bytes, body: bytes) -> None:
        self.seen.append((self.number, method_id, method, header, body))

    def event(self, method: Any) -> None:
        self.seen.append((self.number, method.NAME, vars(method)))

    def gone(self, error: BrokerError) -> None:
        self.seen.append((self.number, "gone", error))


async def two_channels() -> tuple[Wire, list[Event]]:
    wire, seen = Wire(), list[Event]()
    assert (await wire.open(Recorder, seen)).number == 1
    assert (await wire.open(Recorder, seen)).number == 2
    return wire, seen


# --- the same frames, however they are cut ----------------------------------------------------------------------

channels = st.sampled_from([1, 2])
bodies = st.binary(max_size=40) | st.sampled_from([b"x" * (FRAME_MAX - 8), b"x" * (FRAME_MAX - 7), b"x" * 20_000])


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[bytes, Event]:
    number, tag = draw(channels), draw(st.integers(1, 1 << 40))
    deliver = spec.Basic.Deliver("ctag", tag, draw(st.booleans()), "exchange", draw(st.text(max_size=20)))
    properties = b"".join(spec.BasicProperties(headers={"a": draw(st.text(max_size=20))}).encode())
    body = draw(bodies)
    piece = FRAME_MAX - 8 if len(body) > 100 else draw(st.integers(1, 40))
    raw = message(number, deliver, properties, body, piece)
    return raw, (number, deliver.INDEX, b"".join(deliver.encode()), properties, body)


@st.composite
def cancels(draw: st.DrawFn) -> tuple[bytes, Event]:
    number, tag = draw(channels), draw(st.text(max_size=20))
    content = spec.Basic.Cancel(tag, True)
    return method(number, content), (number, "Basic.Cancel", vars(content))


silent = st.sampled_from(
    [
        HEARTBEAT_FRAME,
        # Of a channel that we closed, this may still be under way.
        message(7, spec.Basic.Deliver("ctag", 5, False, "e", "k"), b"\0\0", b"late"),
        method(7, spec.Basic.Cancel("ctag", True)),
    ]
).map(lambda raw: (raw, None))
streams = st.lists(deliveries() | cancels() | silent, max_size=6)


@given(streams, st.data())
@settings(max_examples=80)
async def test_the_same_frames_come_out_wherever_the_stream_is_cut(
    stream: list[tuple[bytes, Event | None]], data: st.DataObject
) -> None:
    wire, seen = await two_channels()
    raw = b"".join(part for part, _ in stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))

    for start, stop in zip((0, *cuts), (*cuts, len(raw)), strict=True):
        wire.feed(raw[start:stop])

    assert seen == [event for _, event in stream if event is not None]
    assert wire.amqp.error is None


async def test_a_stream_in_slices_of_one_byte_is_the_same_stream() -> None:
    wire, seen = await two_channels()
    properties = b"".join(spec.BasicProperties(message_id="m", headers={"a": "b"}).encode())
    deliver = spec.Basic.Deliver("ctag", 1, False, "e", "k")
    raw = message(1, deliver, properties, b"body in pieces", 5) + HEARTBEAT_FRAME
    raw += message(2, deliver, properties, b"") + method(1, spec.Basic.Cancel("ctag", True))

    for number in range(len(raw)):
        wire.feed(raw[number : number + 1])

    encoded = b"".join(deliver.encode())
    assert seen == [
        (1, deliver.INDEX, encoded, properties, b"body in pieces"),
        (2, deliver.INDEX, encoded, properties, b""),
        (1, "Basic.Cancel", vars(spec.Basic.Cancel("ctag", True))),
    ]


async def test_messages_of_two_channels_may_come_interleaved() -> None:
    wire, seen = await two_channels()
    deliver = spec.Basic.Deliver("ctag", 1, False, "e", "k")
    cut = FRAME_MAX - 8
    raws = {number: message(number, deliver, b"\0\0", bytes([number]) * (cut + 5)) for number in (1, 2)}
    parts: dict[int, list[bytes]] = {}
    for number, raw in raws.items():
        first = len(raw) - 13
        parts[number] = [raw[:first], raw[first:]]

    for index in (0, 1):
        for number in (1, 2):
            wire.feed(parts[number][index])

    assert [(event[0], event[4]) for event in seen] == [(1, b"\1" * (cut + 5)), (2, b"\2" * (cut + 5))]


# --- what is not AMQP -------------------------------------------------------------------------------------------


def frame_of(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


async def test_a_broker_of_another_version_is_named() -> None:
    for slices in (1, 8):
        wire = Wire()
        header = b"AMQP\x00\x00\x09\x01"
        for start in range(0, len(header), slices):
            wire.feed(header[start : start + slices])

        assert type(wire.amqp.error) is BrokerUnavailable
        assert "broker:5672 sent what is not AMQP 0-9-1: it speaks version (0, 0, 9, 1)" in str(wire.amqp.error)
        assert wire.transport.ended == "abort"


async def test_a_frame_beyond_frame_max_is_refused_before_it_is_there() -> None:
    wire, seen = await two_channels()

    wire.feed(struct.pack(">BHI", 3, 1, FRAME_MAX + 1) + b"x")

    assert type(wire.amqp.error) is BrokerUnavailable
    assert wire.transport.ended == "abort"
    assert [event[:2] for event in seen] == [(1, "gone"), (2, "gone")]


@pytest.mark.parametrize(
    "raw",
    [
        frame_of(8, 0, b"")[:-1] + b"\x00",
        frame_of(5, 1, b"payload"),
        frame_of(1, 1, b"\x00"),
        frame_of(1, 1, struct.pack(">I", 0x00FF00FF)),
        frame_of(2, 1, b"short"),
        frame_of(1, 0, struct.pack(">I", spec.Connection.Start.INDEX) + b"\x00\x09\x00\x00\x00\x03\x01n?"),
        frame_of(1, 0, struct.pack(">I", spec.Connection.UpdateSecret.INDEX) + b"\x00"),
        method(1, spec.Basic.Deliver("c", 1, False, "", "k"))
        + frame_of(2, 1, struct.pack(">HHQ", 60, 0, 2) + b"\0\0")
        + frame_of(3, 1, b"more than two"),
        frame_of(1, 1, struct.pack(">I", spec.Basic.Cancel.INDEX) + b"\xc8short") + HEARTBEAT_FRAME * 40,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x46" + b"\0" * 8,
    ],
    ids=[
        "no end mark",
        "unknown kind",
        "half a method",
        "unknown method",
        "half a header",
        "unknown field",
        "method of clients",
        "body too long",
        "text beyond its frame",
        "http",
        "tls",
    ],
)
async def test_what_is_not_amqp_ends_the_connection_with_an_error(raw: bytes) -> None:
    wire, seen = await two_channels()

    wire.feed(raw)

    assert type(wire.amqp.error) is BrokerUnavailable
    assert wire.amqp.error.retryable
    assert "broker:5672 sent what is not AMQP 0-9-1" in str(wire.amqp.error)
    assert wire.transport.ended == "abort"
    await wire.amqp.lost
    assert [event for event in seen if event[1] == "gone"] == [
        (1, "gone", wire.amqp.error),
        (2, "gone", wire.amqp.error),
    ]


payloads = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda index, rest: struct.pack(">I", index) + rest, st.sampled_from(list(spec.methods)), st.binary(max_size=30)
    ),
    st.builds(lambda index: struct.pack(">I", index) + b"\xff" * 12, st.sampled_from(list(spec.methods))),
)
garbage = st.lists(
    st.builds(frame_of, st.sampled_from([1, 1, 2, 3, 8, 5]), st.integers(0, 4), payloads) | st.binary(max_size=20),
    max_size=5,
)


@given(garbage, st.data())
@settings(max_examples=300)
async def test_nothing_that_a_broker_sends_raises_out_of_the_protocol(parts: list[bytes], data: st.DataObject) -> None:
    wire = Wire()
    await wire.open(Recorder, [])
    await wire.open(PublishChannel, 10, lambda: None)
    await wire.open(ConsumeChannel, lambda *delivery: None)
    raw = b"".join(parts)
    cut = data.draw(st.integers(0, len(raw)))

    wire.feed(raw[:cut])
    # asyncio may have read more before it knew.
    wire.feed(raw[cut:])

    await asyncio.sleep(0)
    assert (wire.amqp.error is None) is (wire.transport.ended is None)
    assert wire.amqp.error is None or isinstance(wire.amqp.error, BrokerError)


# --- the end ----------------------------------------------------------------------------------------------------


async def test_a_close_of_the_broker_is_answered_and_ends_everything() -> None:
    wire, seen = await two_channels()
    call = asyncio.ensure_future(wire.amqp.open_channel(Recorder, seen))
    await wire.written()

    wire.feed(
        method(0, spec.Connection.Close(403, "ACCESS_REFUSED - no more", 0, 0))
        + method(1, spec.Basic.Cancel("c", True))
    )
    wire.feed(method(1, spec.Basic.Cancel("c", True)) + b"garbage" * 9)

    assert type(wire.amqp.error) is AccessRefused
    assert [event[1] for event in seen] == ["gone", "gone", "gone"]
    with pytest.raises(AccessRefused):
        await call
    assert [type(each) for each in await wire.methods()] == [spec.Connection.CloseOk]
    assert wire.transport.ended == "close"
    await wire.amqp.lost


async def test_a_close_of_a_channel_is_answered_and_takes_no_other_with_it() -> None:
    wire, seen = await two_channels()
    # Cut by the broker within a character.
    text = b"PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'b\xc3"
    close = spec.Channel.Close(406, "", 50, 10)
    close.reply_text = text.decode("utf-8", "ignore")
    raw = (
        method(1, close).replace(b"'b", b"'b\xc3").replace(bytes([len(text) - 1]) + b"PRE", bytes([len(text)]) + b"PRE")
    )
    raw = raw[:3] + struct.pack(">I", len(raw) - 8) + raw[7:]

    wire.feed(raw + method(1, spec.Basic.Cancel("late", True)) + method(2, spec.Basic.Cancel("c", True)))

    assert [event[:2] for event in seen] == [(1, "gone"), (2, "Basic.Cancel")]
    assert type(seen[0][2]) is TopologyConflict
    assert "inequivalent arg 'x-queue-type'" in str(seen[0][2])
    assert [(part.channel_number, type(part.method)) for part in await wire.written()] == [(1, spec.Channel.CloseOk)]
    assert wire.amqp.error is None
    # Its number is free again.
    assert (await wire.open(Recorder, seen)).number == 1


async def test_writers_pause_while_the_broker_blocks_or_the_socket_is_full() -> None:
    wire, changes = Wire(), list[bool]()
    wire.amqp.on_change = lambda: changes.append(wire.amqp.may_write)

    wire.feed(frame_of(1, 0, struct.pack(">I", spec.Connection.Blocked.INDEX) + b"\x04low\xff"))
    assert (wire.amqp.blocked, wire.amqp.may_write) == ("low\ufffd", False)
    wire.amqp.pause_writing()
    wire.feed(method(0, spec.Connection.Unblocked()))
    assert (wire.amqp.blocked, wire.amqp.may_write) == (None, False)
    wire.amqp.resume_writing()

    assert wire.amqp.may_write
    assert changes == [False, False, True]


# --- the login --------------------------------------------------------------------------------------------------


def start(**properties: Any) -> spec.Connection.Start:
    return spec.Connection.Start(0, 9, {"product": "RabbitMQ", **properties}, "PLAIN AMQPLAIN", "en_US")


async def test_a_login_agrees_on_the_smaller_values() -> None:
    wire = Wire()
    wire.amqp.tuning.heartbeat = 6.0
    login = asyncio.ensure_future(wire.amqp.login("PLAIN", "\0guest\0guest", "prod", {"product": "brokerkit"}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert bytes(wire.transport.written) == b"AMQP\x00\x00\x09\x01"
    wire.transport.written.clear()

    wire.feed(method(0, start(version="3.10.8")))
    (start_ok,) = await wire.methods()
    assert (start_ok.mechanism, start_ok.response) == ("PLAIN", b"\0guest\0guest")
    wire.feed(method(0, spec.Connection.Tune(50, 0, 60)))
    tune_ok, opened = await wire.methods()
    # No limit of the broker's leaves ours.
    assert (tune_ok.channel_max, tune_ok.frame_max, tune_ok.heartbeat) == (50, FRAME_MAX, 6)
    assert opened.virtual_host in ("prod", b"prod")
    wire.feed(method(0, spec.Connection.OpenOk()))
    await login

    assert wire.amqp.version == (3, 10, 8)
    closing = asyncio.ensure_future(wire.amqp.close())
    assert [type(each) for each in await wire.methods()] == [spec.Connection.Close]
    wire.feed(method(0, spec.Connection.CloseOk()))
    await closing


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3.10.8", (3, 10, 8)),
        ("4.3.0-rc.1", (4, 3, 0)),
        ("4.0.5+dev", (4, 0, 5)),
        ("", (0,)),
        ("unknown", (0,)),
        ("4", (4,)),
        (b"3.13.7", (3, 13, 7)),
    ],
)
async def test_the_version_of_a_broker_is_read_from_any_text(text: str | bytes, version: tuple[int, ...]) -> None:
    wire = Wire()
    wire.amqp.server = {"version": text}

    assert wire.amqp.version == version


async def test_a_mechanism_that_is_not_offered_is_an_error_that_does_not_pass() -> None:
    wire = Wire()
    login = asyncio.ensure_future(wire.amqp.login("EXTERNAL", "", "/", {}))
    await asyncio.sleep(0)

    wire.feed(method(0, start()))

    with pytest.raises(BrokerUnavailable, match="offers the login mechanisms PLAIN AMQPLAIN, not EXTERNAL") as caught:
        await login
    assert not caught.value.retryable
