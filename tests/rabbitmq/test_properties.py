from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import spec

from brokerkit_rabbitmq.properties import PERSISTENT, TRANSIENT, decode_properties, encode_properties, fits
from brokerkit_rabbitmq.tables import encode_table

MALFORMED = (ValueError, IndexError, struct.error)

short = st.text(max_size=60)
headers = st.dictionaries(
    st.text(max_size=20), st.text(max_size=40) | st.integers(-(1 << 63), (1 << 63) - 1), max_size=4
)
octets = st.integers(0, 255)
SHORT_NAMES = ("content_type", "correlation_id", "reply_to", "message_id", "type", "user_id", "app_id")

#: What `encode_properties` takes, each field there or not.
ours = st.fixed_dictionaries(
    {"message_id": st.none() | short},
    optional={
        **{name: st.none() | short for name in SHORT_NAMES if name != "message_id"},
        "delivery_mode": st.sampled_from([PERSISTENT, TRANSIENT]),
        "priority": octets,
        "timestamp": st.floats(0, 1e12),
    },
)
#: What pika can write, each field there or not.
theirs = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((*SHORT_NAMES, "content_encoding", "expiration", "cluster_id"), short),
        "headers": headers,
        "delivery_mode": octets,
        "priority": octets,
        "timestamp": st.integers(0, (1 << 64) - 1),
    },
)


def encoded_by_pika(fields: dict[str, Any]) -> bytes:
    return b"".join(spec.BasicProperties(**fields).encode())


@given(headers, ours)
def test_pika_reads_what_we_write(table: dict[str, Any], fields: dict[str, Any]) -> None:
    read = spec.BasicProperties().decode(encode_properties(encode_table(table), **fields))

    assert read.headers == table
    assert read.delivery_mode == fields.get("delivery_mode", PERSISTENT)
    assert (read.priority or 0) == fields.get("priority", 0)
    stamp = fields.get("timestamp", 0.0)
    assert read.timestamp == (int(stamp) if stamp > 0 else None)
    for name in SHORT_NAMES:
        assert getattr(read, name) == fields.get(name), name
    assert (read.content_encoding, read.expiration, read.cluster_id) == (None, None, None)


@given(theirs, st.binary(max_size=5))
def test_we_read_any_subset_that_pika_writes(fields: dict[str, Any], before: bytes) -> None:
    read = decode_properties(before + encoded_by_pika(fields), len(before), {})

    for name in type(read).__slots__:
        assert getattr(read, name) == fields.get(name), name


@given(st.lists(st.text(min_size=1, max_size=5), max_size=30))
def test_remembered_content_types_are_the_right_ones(content_types: list[str]) -> None:
    known: dict[bytes, str] = {}

    for text in content_types:
        assert decode_properties(encoded_by_pika({"content_type": text}), 0, known).content_type == text


def test_what_is_remembered_has_a_bound() -> None:
    known: dict[bytes, str] = {}

    for number in range(2_000):
        raw = encoded_by_pika({"content_type": f"type/{number}"})
        assert decode_properties(raw, 0, known).content_type == f"type/{number}"
    assert len(known) <= 512


@pytest.mark.parametrize(
    ("text", "short_enough"), [("x" * 255, True), ("x" * 256, False), ("ü" * 127, True), ("ü" * 128, False)]
)
def test_a_short_string_has_at_most_255_bytes(text: str, short_enough: bool) -> None:
    assert fits(text) is short_enough
    if short_enough:
        raw = encode_properties(encode_table({}), message_id=text, content_type=text, correlation_id=text)
        read = spec.BasicProperties().decode(raw)
        assert (read.message_id, read.content_type, read.correlation_id) == (text, text, text)


@pytest.mark.parametrize("stamp", [float("inf"), float("nan"), 2.0**64, 0.0, -1.0])
def test_a_timestamp_that_has_no_room_is_left_out(stamp: float) -> None:
    raw = encode_properties(encode_table({}), message_id="m", timestamp=stamp)

    assert spec.BasicProperties().decode(raw).timestamp is None


def test_text_that_is_no_utf8_is_read_with_marks() -> None:
    raw = struct.pack(">H", 1 << 15 | 1 << 7) + b"\x02\xff\xfe" + b"\x02a\xff"
    read = decode_properties(raw, 0, {})

    assert (read.content_type, read.message_id) == ("\ufffd\ufffd", "a\ufffd")


@given(st.binary(max_size=120))
def test_garbage_raises_only_what_a_caller_expects(raw: bytes) -> None:
    try:
        decode_properties(raw, 0, {})
    except MALFORMED:
        pass


@given(theirs.filter(bool), st.data())
def test_properties_that_are_cut_short_are_refused(fields: dict[str, Any], data: st.DataObject) -> None:
    # The cluster id, which comes last, is of no interest to us.
    fields.pop("cluster_id", None)
    raw = encoded_by_pika(fields)

    with pytest.raises(MALFORMED):
        decode_properties(raw[: data.draw(st.integers(0, len(raw) - 1))], 0, {})
