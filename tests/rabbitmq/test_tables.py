from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import data as pika_tables

from brokerkit_rabbitmq.tables import decode_table, encode_field, encode_table

#: What a malformed table may raise; whoever decodes catches these.
MALFORMED = (ValueError, IndexError, struct.error)

names = st.text(max_size=40)
times = st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1)).map(lambda t: t.replace(microsecond=0, tzinfo=UTC))
decimals = st.builds(
    lambda unscaled, scale: Decimal(unscaled).scaleb(-scale),
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.integers(0, 255),
)
#: Values that both codecs write and read as the same; pika 1.4 rounds floats down.
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.text(), times, decimals)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
tables = st.dictionaries(names, values, max_size=6)
#: Byte arrays whose bytes are no text, which both sides can only read as bytes.
no_text = st.binary(max_size=40).map(lambda raw: raw + b"\xff")


def encoded_by_pika(table: dict[str, Any]) -> bytes:
    pieces: list[bytes] = []
    pika_tables.encode_table(pieces, table)
    return b"".join(pieces)


@given(tables)
def test_pika_reads_what_we_write(table: dict[str, Any]) -> None:
    raw = encode_table(table)

    assert pika_tables.decode_table(raw, 0) == (table, len(raw))


@given(tables)
def test_we_read_what_pika_writes(table: dict[str, Any]) -> None:
    raw = encoded_by_pika(table)

    assert decode_table(raw) == (table, len(raw))


@given(tables, st.binary(max_size=9), st.binary(max_size=9))
def test_a_table_is_read_where_it_stands(table: dict[str, Any], before: bytes, behind: bytes) -> None:
    raw = encode_table(table)

    assert decode_table(before + raw + behind, len(before)) == (table, len(before) + len(raw))


@given(st.dictionaries(names, no_text, max_size=3))
def test_bytes_that_are_no_text_stay_bytes_in_both_directions(table: dict[str, Any]) -> None:
    assert pika_tables.decode_table(encode_table(table), 0)[0] == table
    assert decode_table(encoded_by_pika(table))[0] == table


def test_a_byte_array_stays_bytes_even_when_it_is_text() -> None:
    # pika writes bytes with the type "x".
    assert decode_table(encoded_by_pika({"raw": b"text"}))[0] == {"raw": b"text"}


@given(st.floats(allow_nan=False))
def test_a_float_keeps_its_fraction(number: float) -> None:
    assert decode_table(encode_table({"n": number}))[0] == {"n": number}


@pytest.mark.parametrize(
    ("kind", "layout", "number"),
    [
        (b"b", ">b", -5),
        (b"B", ">B", 250),
        (b"s", ">h", -30_000),
        (b"U", ">h", -30_000),
        (b"u", ">H", 60_000),
        (b"I", ">i", -(1 << 31)),
        (b"i", ">I", (1 << 32) - 1),
        (b"l", ">q", -(1 << 63)),
        (b"L", ">q", (1 << 63) - 1),
        (b"f", ">f", 0.5),
        (b"d", ">d", 1e300),
        (b"t", ">?", True),
    ],
)
def test_every_number_type_of_rabbitmq_is_read(kind: bytes, layout: str, number: float) -> None:
    field = b"\x01n" + kind + struct.pack(layout, number)

    assert decode_table(struct.pack(">I", len(field)) + field) == ({"n": number}, 4 + len(field))


def test_a_time_in_milliseconds_is_a_number() -> None:
    field = b"\x01tT" + struct.pack(">Q", 1_700_000_000_000_000)

    assert decode_table(struct.pack(">I", len(field)) + field)[0] == {"t": 1_700_000_000_000_000}


def test_a_name_may_have_255_bytes() -> None:
    name = "ü" * 127 + "x"

    assert pika_tables.decode_table(encode_table({name: "v"}), 0)[0] == {name: "v"}
    assert decode_table(encoded_by_pika({name: "v"}))[0] == {name: "v"}


@pytest.mark.parametrize("name", ["x" * 256, "ü" * 128], ids=["ascii", "umlauts"])
def test_a_name_of_256_bytes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="256 bytes, at most 255"):
        encode_field(name, "v")


def test_the_longest_integers_fit_and_the_next_do_not() -> None:
    for number in (-(1 << 63), (1 << 63) - 1):
        assert decode_table(encode_table({"n": number}))[0] == {"n": number}
    for number in (-(1 << 63) - 1, 1 << 63):
        with pytest.raises(TypeError, match="64 bits"):
            encode_table({"n": number})


@pytest.mark.parametrize(
    "value",
    [
        object(),
        1j,
        {1, 2},
        [object()],
        {"a": {"b": object()}},
        Decimal("NaN"),
        Decimal("Infinity"),
        Decimal(1 << 31),
        Decimal("1E-256"),
        Decimal("1E-999999999"),
        Decimal("1E+999999"),
        datetime(1969, 12, 31, tzinfo=UTC),
        {1: "a number as name"},
    ],
)
def test_a_value_without_a_type_in_amqp_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        encode_table({"n": value})


@pytest.mark.parametrize("table", [{"n": "half \ud800"}, {"half \ud800": "v"}], ids=["value", "name"])
def test_a_text_that_utf8_cannot_encode_is_a_value_error(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode_table(table)


def test_a_decimal_with_an_exponent_is_a_whole_number() -> None:
    assert decode_table(encode_table({"n": Decimal("2E+9")}))[0] == {"n": Decimal(2_000_000_000)}


def test_a_time_with_another_zone_is_the_same_instant() -> None:
    there = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(hours=0)

    assert pika_tables.decode_table(encode_table({"t": there.astimezone()}), 0)[0] == {"t": there}


# --- malformed ones ---------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_garbage_raises_only_what_a_caller_expects(raw: bytes) -> None:
    try:
        decode_table(raw)
    except MALFORMED:
        pass


@given(st.data(), tables)
def test_a_table_with_changed_bytes_raises_only_what_a_caller_expects(
    data: st.DataObject, table: dict[str, Any]
) -> None:
    raw = bytearray(encode_table(table))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_table(bytes(raw))
    except MALFORMED:
        pass


@given(tables.filter(bool), st.data())
def test_a_table_that_is_cut_short_is_refused(table: dict[str, Any], data: st.DataObject) -> None:
    raw = encode_table(table)

    with pytest.raises(MALFORMED):
        decode_table(raw[: data.draw(st.integers(0, len(raw) - 1))])


@pytest.mark.parametrize(
    "field",
    [
        b"\x01sS\x00\x00\x00\x05ab",
        b"\x01sx\x00\x00\x00\x05ab",
        b"\x01aA\x00\x00\x00\x03l\x00\x00\x00\x00\x00\x00\x00\x07",
        b"\x01fF\x00\x00\x00\x03\x01nt\x01",
        b"\x01?Z",
        b"\x09s",
    ],
    ids=["string", "bytes", "item over its array", "field over its table", "unknown type", "name"],
)
def test_a_field_that_lies_about_itself_is_refused(field: bytes) -> None:
    raw = struct.pack(">I", len(field)) + field

    with pytest.raises(MALFORMED):
        decode_table(raw)


@pytest.mark.parametrize("kind", [b"A", b"F"])
def test_nesting_without_end_is_refused_and_not_followed(kind: bytes) -> None:
    inner = b""
    for _ in range(5_000):
        inner = (b"\x01n" if kind == b"F" else b"") + kind + struct.pack(">I", len(inner)) + inner
    field = inner if kind == b"F" else b"\x01n" + inner

    with pytest.raises(ValueError, match="nested"):
        decode_table(struct.pack(">I", len(field)) + field)


def test_values_that_hold_themselves_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(ValueError, match="nested"):
        encode_table({"n": endless})


def test_a_hundred_levels_are_written_and_read() -> None:
    value: Any = "innermost"
    for _ in range(100):
        value = [value]

    assert decode_table(encode_table({"n": value}))[0] == {"n": value}
