"""The basic properties of a message: bits, order and kinds, encoded and decoded by hand.

The property list of a content header (AMQP 0-9-1, section 4.2.6.1): 16 flag bits, highest first, then the values
of the bits that are set.  Messages of brokerkit always have a delivery mode and a header table.
"""

from __future__ import annotations

import struct
from typing import Any

from brokerkit_rabbitmq.tables import SHORT, decode_table

__all__ = [
    "LENGTH",
    "PERSISTENT",
    "TRANSIENT",
    "Properties",
    "TooLong",
    "decode_properties",
    "encode_properties",
    "fits",
]

PERSISTENT = 2
TRANSIENT = 1

CONTENT_TYPE = 1 << 15
CONTENT_ENCODING = 1 << 14
HEADERS = 1 << 13
DELIVERY_MODE = 1 << 12
PRIORITY = 1 << 11
CORRELATION_ID = 1 << 10
REPLY_TO = 1 << 9
EXPIRATION = 1 << 8
MESSAGE_ID = 1 << 7
TIMESTAMP = 1 << 6
TYPE = 1 << 5
USER_ID = 1 << 4
APP_ID = 1 << 3

_U16 = struct.Struct(">H")
_U64 = struct.Struct(">Q")
#: Timestamps are less than this.
_NO_TIME = 2.0**64
#: The byte in front of a short string, by its length.
LENGTH = tuple(bytes((size,)) for size in range(SHORT + 1))
#: Names come again and again: 255 bytes of short string, decoded once.
_MOST_KNOWN = 512


class TooLong(ValueError):
    """A text is no short string."""


class Properties:
    """What a property list holds; None where it holds nothing."""

    __slots__ = (
        "app_id",
        "content_encoding",
        "content_type",
        "correlation_id",
        "delivery_mode",
        "expiration",
        "headers",
        "message_id",
        "priority",
        "reply_to",
        "timestamp",
        "type",
        "user_id",
    )

    def __init__(self) -> None:
        self.content_type: str | None = None
        self.content_encoding: str | None = None
        self.headers: dict[str, Any] | None = None
        self.delivery_mode: int | None = None
        self.priority: int | None = None
        self.correlation_id: str | None = None
        self.reply_to: str | None = None
        self.expiration: str | None = None
        self.message_id: str | None = None
        self.timestamp: int | None = None
        self.type: str | None = None
        self.user_id: str | None = None
        self.app_id: str | None = None


def fits(value: str) -> bool:
    """Return whether ``value`` can be a short string."""
    return len(value) <= SHORT and (value.isascii() or len(value.encode()) <= SHORT)


def encode_properties(
    headers: bytes,
    *,
    message_id: str | None,
    content_type: str | None = None,
    content_encoding: str | None = None,
    delivery_mode: int = PERSISTENT,
    priority: int | None = None,
    correlation_id: str | None = None,
    reply_to: str | None = None,
    timestamp: float = 0.0,
    type: str | None = None,
    user_id: str | None = None,
    app_id: str | None = None,
) -> bytes:
    """Return flags and values; ``headers`` is an encoded table.  Raise `TooLong` for a text that does not fit."""
    flags = HEADERS | DELIVERY_MODE
    parts = [b""]
    try:
        if content_type is not None:
            flags |= CONTENT_TYPE
            raw = content_type.encode()
            parts += (LENGTH[len(raw)], raw)
        if content_encoding is not None:
            flags |= CONTENT_ENCODING
            raw = content_encoding.encode()
            parts += (LENGTH[len(raw)], raw)
        parts += (headers, b"\x02" if delivery_mode == PERSISTENT else b"\x01")
        if priority is not None:
            flags |= PRIORITY
            parts.append(LENGTH[priority])
        if correlation_id is not None:
            flags |= CORRELATION_ID
            raw = correlation_id.encode()
            parts += (LENGTH[len(raw)], raw)
        if reply_to is not None:
            flags |= REPLY_TO
            raw = reply_to.encode()
            parts += (LENGTH[len(raw)], raw)
        if message_id is not None:
            flags |= MESSAGE_ID
            raw = message_id.encode()
            parts += (LENGTH[len(raw)], raw)
        if 0 < timestamp < _NO_TIME:
            flags |= TIMESTAMP
            parts.append(_U64.pack(int(timestamp)))
        if type is not None:
            flags |= TYPE
            raw = type.encode()
            parts += (LENGTH[len(raw)], raw)
        if user_id is not None:
            flags |= USER_ID
            raw = user_id.encode()
            parts += (LENGTH[len(raw)], raw)
        if app_id is not None:
            flags |= APP_ID
            raw = app_id.encode()
            parts += (LENGTH[len(raw)], raw)
    except IndexError:
        raise TooLong(f"a property has more than {SHORT} bytes") from None
    parts[0] = _U16.pack(flags)
    return b"".join(parts)


def decode_properties(data: bytes, offset: int, content_types: dict[bytes, str]) -> Properties:
    """Return the properties at ``offset``.  ``content_types`` remembers the texts that come again and again.

    Raise ValueError, IndexError or struct.error when they are malformed.
    """
    (flags,) = _U16.unpack_from(data, offset)
    offset += 2
    found = Properties()
    if flags & CONTENT_TYPE:
        stop = offset + 1 + data[offset]
        if stop > len(data):
            raise ValueError("a short string is longer than its frame")
        raw = data[offset + 1 : stop]
        known = content_types.get(raw)
        if known is None:
            known = raw.decode("utf-8", "replace")
            if len(content_types) < _MOST_KNOWN:
                content_types[raw] = known
        found.content_type = known
        offset = stop
    if flags & CONTENT_ENCODING:
        found.content_encoding, offset = _short(data, offset)
    if flags & HEADERS:
        found.headers, offset = decode_table(data, offset)
    if flags & DELIVERY_MODE:
        found.delivery_mode = data[offset]
        offset += 1
    if flags & PRIORITY:
        found.priority = data[offset]
        offset += 1
    if flags & CORRELATION_ID:
        found.correlation_id, offset = _short(data, offset)
    if flags & REPLY_TO:
        found.reply_to, offset = _short(data, offset)
    if flags & EXPIRATION:
        found.expiration, offset = _short(data, offset)
    if flags & MESSAGE_ID:
        found.message_id, offset = _short(data, offset)
    if flags & TIMESTAMP:
        (found.timestamp,) = _U64.unpack_from(data, offset)
        offset += 8
    if flags & TYPE:
        found.type, offset = _short(data, offset)
    if flags & USER_ID:
        found.user_id, offset = _short(data, offset)
    if flags & APP_ID:
        found.app_id, offset = _short(data, offset)
    return found


def _short(data: bytes, offset: int) -> tuple[str, int]:
    stop = offset + 1 + data[offset]
    if stop > len(data):
        raise ValueError("a short string is longer than its frame")
    raw = data[offset + 1 : stop]
    try:
        # Half as long as with "replace".
        return raw.decode(), stop
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), stop
