"""Between the messages of the SPI and AMQP: which field travels where.

AMQP has properties for content type, priority, correlation id, reply address, message id, type and a timestamp in
whole seconds.  Headers hold the rest: the user's own under their names, the core's ``bk-*``, and these:

=============  ==================================================================================================
``bk-seq``     number of the message on its channel, by which a returned one is recognised
``bk-key``     the key
``bk-tag``     the tag; the routing key alone is lost on the way through queues
``bk-due``     not before, in epoch seconds
``bk-time``    the timestamp with its fraction
``bk-long``    JSON: properties of more than 255 bytes
``bk-hidden``  JSON: user headers whose names RabbitMQ interprets, fills itself or cannot take
=============  ==================================================================================================
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from typing import Any

from brokerkit.errors import PayloadError
from brokerkit.spi import Inbound, Outbound
from brokerkit_rabbitmq.errors import NAME
from brokerkit_rabbitmq.properties import TRANSIENT, Properties, encode_properties, fits
from brokerkit_rabbitmq.tables import SHORT, encode_field

__all__ = ["SEQ", "encode_message", "fill_inbound", "sequence_of"]

SEQ = "bk-seq"
_KEY, _TAG, _DUE, _TIME, _LONG, _HIDDEN = "bk-key", "bk-tag", "bk-due", "bk-time", "bk-long", "bk-hidden"

#: Names that RabbitMQ gives a meaning (CC, BCC, those of delays) or writes itself (x-death, the counters of quorum
#: queues, what the shovel and the federation add).
_BROKERS = re.compile(
    r"(CC|BCC|x-death|x-(first|last)-death-.*|x-delay|x-delivery-count|x-acquired-count|x-opt-.*|x-stream-.*"
    r"|x-received-from|x-shovelled.*|x-match)",
)
_U32 = struct.Struct(">I")
#: name, type "l"
_SEQ_FIELD = bytes((len(SEQ),)) + SEQ.encode() + b"l"
_I64 = struct.Struct(">q")
#: Short strings of the property list that a message of the SPI has.
_SHORT_FIELDS = ("message_id", "content_type", "correlation_id", "reply_to", "type")
#: What ``native=`` of a send may hold.
_NATIVE = frozenset({"routing_key", "persistent", "app_id", "user_id", "headers"})


def encode_message(message: Outbound, sequence: int, routing_keys: tuple[str, ...] = ()) -> bytes:
    """Return the property list of ``message``.

    ``routing_keys`` are further keys that exchanges look at (``CC``).  Raise `PayloadError` for options that RabbitMQ
    has not.
    """
    fields = [b"", _SEQ_FIELD, _I64.pack(sequence)]
    stamp = message.timestamp
    if stamp > 0:
        fields.append(_text_field(_TIME, repr(stamp)))
    if message.key is not None:
        fields.append(_text_field(_KEY, message.key))
    if message.tag is not None:
        fields.append(_text_field(_TAG, message.tag))
    if message.due is not None:
        fields.append(_text_field(_DUE, repr(message.due)))
    if routing_keys:
        fields.append(encode_field("CC", routing_keys))
    if message.headers:
        _add_headers(fields, message.headers)
    texts: dict[str, str | None] = {name: getattr(message, name) for name in _SHORT_FIELDS}
    long = {name: text for name, text in texts.items() if text is not None and not fits(text)}
    if long:
        texts |= dict.fromkeys(long)
        fields.append(_text_field(_LONG, json.dumps(long)))
    extra = _native(message.native, fields) if message.native else {}
    size = sum(map(len, fields))
    fields[0] = _U32.pack(size)
    return encode_properties(
        b"".join(fields),
        message_id=texts["message_id"],
        content_type=texts["content_type"],
        correlation_id=texts["correlation_id"],
        reply_to=texts["reply_to"],
        type=texts["type"],
        priority=message.priority,
        timestamp=stamp,
        **extra,
    )


def _text_field(name: str, value: str) -> bytes:
    raw, text = name.encode(), value.encode()
    return b"%c%bS%b%b" % (len(raw), raw, _U32.pack(len(text)), text)


def _add_headers(fields: list[bytes], headers: Mapping[str, str]) -> None:
    hidden: dict[str, str] = {}
    for name, value in headers.items():
        if len(name.encode()) > SHORT or (name[:1] in ("x", "C", "B") and _BROKERS.fullmatch(name)):
            hidden[name] = value
        else:
            fields.append(_text_field(name, value))
    if hidden:
        fields.append(_text_field(_HIDDEN, json.dumps(hidden)))


def _native(native: Mapping[str, Any], fields: list[bytes]) -> dict[str, Any]:
    unknown = sorted(set(native) - _NATIVE)
    if unknown:
        raise PayloadError(
            f"unknown native option {unknown[0]!r} for RabbitMQ; known are {', '.join(sorted(_NATIVE))}", backend=NAME
        )
    extra: dict[str, Any] = {}
    for name in ("app_id", "user_id"):
        text = native.get(name)
        if text is not None:
            if not isinstance(text, str) or not _is_short(text):
                raise PayloadError(f"native {name} is a text of at most {SHORT} bytes", backend=NAME)
            extra[name] = text
    if not native.get("persistent", True):
        extra["delivery_mode"] = TRANSIENT
    headers = native.get("headers") or {}
    if not isinstance(headers, Mapping):
        raise PayloadError(f"native headers are a mapping, not {type(headers).__name__}", backend=NAME)
    try:
        for name, value in headers.items():
            field = encode_field(name, value)
            if name[:3].lower() == "bk-":
                raise PayloadError(f"native header {name!r} is reserved: 'bk-…' are ours", backend=NAME)
            fields.append(field)
    except (TypeError, ValueError) as exc:
        raise PayloadError(f"native headers: {exc}", backend=NAME) from exc
    return extra


def _is_short(text: str) -> bool:
    try:
        return fits(text)
    except UnicodeEncodeError:
        return False


def sequence_of(properties: Properties) -> int | None:
    """Return the number that `encode_message` wrote, or None."""
    sequence = (properties.headers or {}).get(SEQ)
    return sequence if isinstance(sequence, int) else None


def fill_inbound(inbound: Inbound, properties: Properties, routed_tag: str | None) -> None:
    """Fill in what the properties of a received message say.

    ``routed_tag`` is the tag that the routing key stands for where no header names one.
    """
    inbound.message_id = properties.message_id
    inbound.content_type = properties.content_type
    inbound.type = properties.type
    inbound.correlation_id = properties.correlation_id
    inbound.reply_to = properties.reply_to
    if properties.priority is not None:
        # Foreign senders have 256 of them.
        inbound.priority = min(properties.priority, 9)
    if properties.timestamp is not None:
        inbound.timestamp = float(properties.timestamp)
    raw = properties.headers
    if raw is None:
        inbound.tag = routed_tag
        return
    ours = raw.pop(SEQ, None) is not None
    headers: dict[str, str] = {}
    for name, value in raw.items():
        if type(value) is not str:
            if name == "CC" or _BROKERS.fullmatch(name):
                continue
            value = _as_text(value)
        if name[:3] == "bk-":
            if name in _OWN:
                continue
        elif name[:1] in ("x", "C", "B") and _BROKERS.fullmatch(name):
            continue
        headers[name] = value
    stamp = raw.get(_TIME)
    if stamp is not None:
        inbound.timestamp = _number(stamp, inbound.timestamp)
    inbound.key = _text(raw.get(_KEY))
    inbound.tag = _text(raw.get(_TAG)) or (None if ours else routed_tag)
    if _DUE in raw:
        inbound.due = _number(raw[_DUE], None)
    if _HIDDEN in raw:
        headers.update(_texts(raw[_HIDDEN]))
    if _LONG in raw:
        for name, text in _texts(raw[_LONG]).items():
            if name in _SHORT_FIELDS:
                setattr(inbound, name, text)
    inbound.headers = headers


_OWN = frozenset({SEQ, _KEY, _TAG, _DUE, _TIME, _LONG, _HIDDEN})


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object, otherwise: float | None) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return otherwise
    return number if -1e18 < number < 1e18 else otherwise


def _texts(value: object) -> dict[str, str]:
    """Return the texts of one of our own JSON headers; a foreign sender may have written anything there."""
    try:
        found = json.loads(value) if isinstance(value, str) else {}
        # JSON can write lone surrogates; nothing could send them on.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else json.dumps(value, default=str)
