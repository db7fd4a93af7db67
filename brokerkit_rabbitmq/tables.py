"""Field tables of AMQP 0-9-1 as RabbitMQ writes and reads them.

Written anew because half of the time of a consumer goes into them, and because pika rounds floats down.  The
types are those of the errata page of RabbitMQ ("table 4.2.3"), with ``l`` and ``L`` both signed 64 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

__all__ = ["decode_table", "encode_field", "encode_table"]

_U8 = struct.Struct(">B")
_I64 = struct.Struct(">q")
_U32 = struct.Struct(">I")
_F64 = struct.Struct(">d")
_DECIMAL = struct.Struct(">Bi")
_FIXED = {
    ord("t"): struct.Struct(">?"),
    ord("b"): struct.Struct(">b"),
    ord("B"): _U8,
    ord("U"): struct.Struct(">h"),
    ord("s"): struct.Struct(">h"),
    ord("u"): struct.Struct(">H"),
    ord("I"): struct.Struct(">i"),
    ord("i"): _U32,
    ord("L"): _I64,
    ord("l"): _I64,
    ord("f"): struct.Struct(">f"),
    ord("d"): _F64,
}
_STRING, _LONG, _BYTES, _TABLE, _ARRAY, _TIME, _NUMBER, _VOID = (ord(kind) for kind in "SlxFATDV")
#: What a field name, like every short string, may be long, in bytes.
SHORT = 255
#: Tables and arrays within each other; a frame has room for more than Python's stack has.
_DEEPEST = 100


def decode_table(data: bytes, offset: int = 0) -> tuple[dict[str, Any], int]:
    """Return the table at ``offset`` and the offset behind it.

    Long strings that are no UTF-8 stay bytes, as do byte arrays.  Raise ValueError, IndexError or struct.error when
    it is malformed or nested more than 100 levels deep.
    """
    return _decode_table(data, offset, 0)


def _decode_table(data: bytes, offset: int, depth: int) -> tuple[dict[str, Any], int]:
    (size,) = _U32.unpack_from(data, offset)
    offset += 4
    end = offset + size
    if end > len(data):
        raise ValueError("a table is longer than its frame")
    table: dict[str, Any] = {}
    while offset < end:
        stop = offset + 1 + data[offset]
        try:
            # Half as long as with "replace".
            name = data[offset + 1 : stop].decode()
        except UnicodeDecodeError:
            name = data[offset + 1 : stop].decode("utf-8", "replace")
        kind = data[stop]
        # Nearly all fields are of these two kinds.
        if kind == _STRING:
            (size,) = _U32.unpack_from(data, stop + 1)
            start = stop + 5
            offset = start + size
            table[name] = _text(data[start:offset], size)
        elif kind == _LONG:
            (table[name],) = _I64.unpack_from(data, stop + 1)
            offset = stop + 9
        else:
            table[name], offset = _decode_field(data, stop, depth)
    if offset != end:
        raise ValueError("a field is longer than its table")
    return table, offset


def _text(raw: bytes, size: int) -> str | bytes:
    if len(raw) < size:
        raise ValueError("a string is longer than its frame")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _decode_field(data: bytes, offset: int, depth: int) -> tuple[Any, int]:
    kind = data[offset]
    offset += 1
    if kind in (_STRING, _BYTES):
        (size,) = _U32.unpack_from(data, offset)
        offset += 4
        raw = data[offset : offset + size]
        if kind == _STRING:
            return _text(raw, size), offset + size
        if len(raw) < size:
            raise ValueError("a string is longer than its frame")
        return raw, offset + size
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.unpack_from(data, offset)[0], offset + fixed.size
    if kind in (_TABLE, _ARRAY) and depth >= _DEEPEST:
        raise ValueError(f"tables are nested more than {_DEEPEST} levels deep")
    if kind == _TABLE:
        return _decode_table(data, offset, depth + 1)
    if kind == _ARRAY:
        (size,) = _U32.unpack_from(data, offset)
        offset += 4
        end = offset + size
        items = []
        while offset < end:
            item, offset = _decode_field(data, offset, depth + 1)
            items.append(item)
        if offset != end:
            raise ValueError("an item is longer than its array")
        return items, offset
    if kind == _VOID:
        return None, offset
    if kind == _TIME:
        (seconds,) = struct.unpack_from(">Q", data, offset)
        try:
            return datetime.fromtimestamp(seconds, UTC), offset + 8
        except (ValueError, OverflowError, OSError):
            # Some senders write milliseconds.
            return seconds, offset + 8
    if kind == _NUMBER:
        scale, unscaled = _DECIMAL.unpack_from(data, offset)
        return Decimal(unscaled).scaleb(-scale), offset + _DECIMAL.size
    raise ValueError(f"unknown field type {kind:#x}")


def encode_table(table: Mapping[str, Any]) -> bytes:
    """Return the table with its length in front.

    Raise TypeError for a value that AMQP has no type for and for a name that is no text, ValueError for a name of more
    than 255 bytes, for a text that UTF-8 cannot encode and for more than 100 levels of nesting.
    """
    return _encode_table(table, 0)


def _encode_table(table: Mapping[str, Any], depth: int) -> bytes:
    fields = b"".join(_encode_field(name, value, depth) for name, value in table.items())
    return _U32.pack(len(fields)) + fields


def encode_field(name: str, value: Any) -> bytes:
    """Return one entry of a table; errors as of `encode_table`."""
    return _encode_field(name, value, 0)


def _encode_field(name: str, value: Any, depth: int) -> bytes:
    if not isinstance(name, str):
        raise TypeError(f"a field name is a text, not {type(name).__name__}")
    raw = name.encode()
    if len(raw) > SHORT:
        raise ValueError(f"the field name {name[:40]!r}… has {len(raw)} bytes, at most {SHORT} are allowed")
    return _U8.pack(len(raw)) + raw + _encode_value(value, depth)


def _encode_value(value: Any, depth: int) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
        return b"S" + _U32.pack(len(raw)) + raw
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise TypeError(f"the integer {value} does not fit into 64 bits")
        return b"l" + _I64.pack(value)
    if isinstance(value, float):
        return b"d" + _F64.pack(value)
    if value is None:
        return b"V"
    if isinstance(value, bytes | bytearray | memoryview):
        # As a long string, which is what other clients send for bytes; a byte array ("x") some do not know.
        raw = bytes(value)
        return b"S" + _U32.pack(len(raw)) + raw
    if isinstance(value, datetime):
        seconds = int(value.timestamp())
        if seconds < 0:
            raise TypeError(f"AMQP has no times before 1970 such as {value}")
        return b"T" + struct.pack(">Q", seconds)
    if isinstance(value, Decimal):
        return b"D" + _encode_decimal(value)
    if isinstance(value, Mapping | Sequence) and depth >= _DEEPEST:
        raise ValueError(f"tables are nested more than {_DEEPEST} levels deep")
    if isinstance(value, Mapping):
        return b"F" + _encode_table(value, depth + 1)
    if isinstance(value, Sequence):
        items = b"".join(_encode_value(item, depth + 1) for item in value)
        return b"A" + _U32.pack(len(items)) + items
    raise TypeError(f"AMQP has no field type for {type(value).__name__}")


def _encode_decimal(value: Decimal) -> bytes:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        raise TypeError(f"{value} is no finite number")
    scale = max(0, -exponent)
    # Ten digits do not fit as a rule, eleven never do: no arithmetic on what may be as long as it likes.
    if scale <= SHORT and value.adjusted() + scale <= 10:
        unscaled = int(value.scaleb(scale))
        if -(1 << 31) <= unscaled < 1 << 31:
            return _DECIMAL.pack(scale, unscaled)
    raise TypeError(f"the decimal {value} does not fit into 32 bits")
