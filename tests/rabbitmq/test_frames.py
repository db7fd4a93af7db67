from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from brokerkit_rabbitmq.frames import (
    ACK,
    HEARTBEAT_FRAME,
    NACK,
    OVERHEAD,
    ack_frame,
    content_frames,
    method_frame,
    nack_frame,
    publish_frame,
)

channels = st.integers(1, 65535)
tags = st.integers(0, (1 << 64) - 1)
names = st.text(max_size=60)

PROPERTIES = spec.BasicProperties(content_type="text/plain", headers={"a": "b"}, delivery_mode=2)


@given(channels, names, names, st.booleans())
def test_a_publish_frame_is_that_of_pika(channel: int, exchange: str, key: str, mandatory: bool) -> None:
    method = spec.Basic.Publish(0, exchange, key, mandatory)

    assert publish_frame(channel, exchange, key, mandatory) == frame.Method(channel, method).marshal()


@given(channels, tags, st.booleans())
def test_an_ack_frame_is_that_of_pika(channel: int, tag: int, multiple: bool) -> None:
    assert ack_frame(channel, tag, multiple) == frame.Method(channel, spec.Basic.Ack(tag, multiple)).marshal()


@given(channels, tags, st.booleans(), st.booleans())
def test_a_nack_frame_is_that_of_pika(channel: int, tag: int, multiple: bool, requeue: bool) -> None:
    method = spec.Basic.Nack(tag, multiple, requeue)

    assert nack_frame(channel, tag, multiple=multiple, requeue=requeue) == frame.Method(channel, method).marshal()


def test_any_method_frame_is_that_of_pika() -> None:
    method = spec.Queue.Declare(0, "q", arguments={"x": 1})
    arguments = b"".join(method.encode())

    assert method_frame(7, spec.Queue.Declare.INDEX, arguments) == frame.Method(7, method).marshal()
    assert (ACK, NACK) == (spec.Basic.Ack.INDEX, spec.Basic.Nack.INDEX)


def test_the_heartbeat_is_that_of_pika() -> None:
    assert frame.Heartbeat().marshal() == HEARTBEAT_FRAME


def content_of_pika(channel: int, body: bytes, frame_max: int) -> bytes:
    step = frame_max - spec.FRAME_HEADER_SIZE - spec.FRAME_END_SIZE
    parts = [frame.Header(channel, len(body), PROPERTIES).marshal()]
    parts += (frame.Body(channel, body[start : start + step]).marshal() for start in range(0, len(body), step))
    return b"".join(parts)


@pytest.mark.parametrize("pieces", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_body_is_cut_where_pika_cuts_it(pieces: int, more: int) -> None:
    frame_max = 8192
    size = max(0, pieces * (frame_max - OVERHEAD) + more)
    body = bytes(number % 251 for number in range(size))
    written = content_frames(3, b"".join(PROPERTIES.encode()), body, frame_max)

    assert written == content_of_pika(3, body, frame_max)


@given(channels, st.binary(max_size=300), st.integers(OVERHEAD + 1, 200))
def test_the_frames_of_a_message_are_those_of_pika_and_none_is_too_long(
    channel: int, body: bytes, frame_max: int
) -> None:
    written = content_frames(channel, b"".join(PROPERTIES.encode()), body, frame_max)

    assert written == content_of_pika(channel, body, frame_max)
    received, rest, first = b"", written, True
    while rest:
        used, part = frame.decode_frame(rest)
        if first:
            assert part.body_size == len(body)
            first = False
        else:
            assert used <= frame_max
            received += part.fragment
        rest = rest[used:]
    assert received == body


def test_an_empty_body_has_no_frame() -> None:
    written = content_frames(1, b"".join(PROPERTIES.encode()), b"", 8192)
    used, header = frame.decode_frame(written)

    assert (used, header.body_size) == (len(written), 0)


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127 + "x"], ids=["ascii", "umlauts"])
def test_names_may_have_255_bytes(name: str) -> None:
    method = spec.Basic.Publish(0, name, name, True)

    assert publish_frame(1, name, name, True) == frame.Method(1, method).marshal()


@pytest.mark.parametrize(
    ("exchange", "key", "what"), [("x" * 256, "", "exchange"), ("", "ü" * 128, "routing key")], ids=["exchange", "key"]
)
def test_names_of_256_bytes_are_refused(exchange: str, key: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"the {what} .* has 256 bytes, at most 255"):
        publish_frame(1, exchange, key, True)
