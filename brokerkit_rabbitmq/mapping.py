"""Between the messages of the SPI and AMQP: which field travels where.

AMQP has properties for content type, priority, correlation id, reply address, message id, type and a timestamp in
whole seconds.  Headers hold the rest: the user's own under their names, the core's ``bk-*``, and these:

=============  ==================================================================================================
``bk-seq``     number of the message on its channel, by which a returned one is recognised
``bk-key``     the key
``bk-tag``     the tag; the routing key alone is lost on the way through queues
``bk-due``     not before, in epoch seconds
``bk-prio``    the priority, where no queue may deliver by it
``bk-time``    the timestamp with its fraction
``bk-long``    JSON: properties of more than 255 bytes
``bk-hidden``  JSON: user headers whose names RabbitMQ interprets, fills itself or cannot take
=============  ==================================================================================================

``bk-foreign`` does not travel: it is how what a foreign sender wrote and the SPI has no place for, such as headers
that are numbers, gets from a received message into its retry, for the peers that read the same queue.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Mapping
from typing import Any

from brokerkit.errors import PayloadError
from brokerkit.spi import Inbound, Outbound
from brokerkit_rabbitmq.errors import NAME
from brokerkit_rabbitmq.properties import LENGTH, TRANSIENT, Properties, TooLong, encode_properties, fits
from brokerkit_rabbitmq.tables import SHORT, encode_field

__all__ = ["SEQ", "encode_message", "fill_inbound", "sequence_of"]

SEQ = "bk-seq"
_KEY, _TAG, _DUE, _TIME, _LONG, _HIDDEN = "bk-key", "bk-tag", "bk-due", "bk-time", "bk-long", "bk-hidden"
_PRIORITY = "bk-prio"
_FOREIGN = "bk-foreign"

#: Names that RabbitMQ gives a meaning (CC, BCC, those of delays) or writes itself (x-death, the counters of quorum
#: queues, what the shovel and the federation add).
_BROKERS = re.compile(
    r"(CC|BCC|x-death|x-(first|last)-death-.*|x-delay|x-delivery-count|x-acquired-count|x-opt-.*|x-stream-.*"
    r"|x-received-from|x-shovelled.*|x-match)",
)
_U32 = struct.Struct(">I")
#: Name and type: "l" is 64 bits, "S" a long string.
_SEQ_FIELD = bytes((len(SEQ),)) + SEQ.encode() + b"l"
_TIME_FIELD = bytes((len(_TIME),)) + _TIME.encode() + b"S"
_I64 = struct.Struct(">q")
#: Short strings of the property list that a message of the SPI has.
_SHORT_FIELDS = ("message_id", "content_type", "correlation_id", "reply_to", "type")
#: What ``native=`` of a send may hold.
_NATIVE = frozenset({"routing_key", "persistent", "app_id", "user_id", "headers"})


def encode_message(
    message: Outbound, sequence: int, routing_keys: tuple[str, ...] = (), *, by_priority: bool = True
) -> bytes:
    """Return the property list of ``message``.

    ``routing_keys`` are further keys that exchanges look at (``CC``).  Without ``by_priority`` no queue sees the
    priority.  Raise `PayloadError` for options that RabbitMQ has not.
    """
    fields = [_SEQ_FIELD, _I64.pack(sequence)]
    stamp = message.timestamp
    if stamp > 0:
        text = repr(stamp).encode()
        fields += (_TIME_FIELD, _U32.pack(len(text)), text)
    if message.key is not None:
        fields.append(_text_field(_KEY, message.key))
    if message.tag is not None:
        fields.append(_text_field(_TAG, message.tag))
    if message.due is not None:
        fields.append(_text_field(_DUE, repr(message.due)))
    # Also 0: quorum queues from 4.3 on take none for 4.
    priority: int | None = message.priority
    if not by_priority:
        if priority:
            fields.append(_text_field(_PRIORITY, str(priority)))
        priority = None
    if routing_keys:
        fields.append(encode_field("CC", routing_keys))
    encoding = _add_headers(fields, message.headers) if message.headers else None
    extra = _native(message.native, fields) if message.native else {}
    try:
        return encode_properties(
            _table(fields),
            message_id=message.message_id,
            content_type=message.content_type,
            content_encoding=encoding,
            correlation_id=message.correlation_id,
            reply_to=message.reply_to,
            type=message.type,
            priority=priority,
            timestamp=stamp,
            **extra,
        )
    except TooLong:
        pass
    texts: dict[str, str | None] = {name: getattr(message, name) for name in _SHORT_FIELDS}
    long = {name: text for name, text in texts.items() if text is not None and not fits(text)}
    fields.append(_text_field(_LONG, json.dumps(long)))
    texts |= dict.fromkeys(long)
    return encode_properties(
        _table(fields),
        message_id=texts["message_id"],
        content_type=texts["content_type"],
        content_encoding=encoding,
        correlation_id=texts["correlation_id"],
        reply_to=texts["reply_to"],
        type=texts["type"],
        priority=priority,
        timestamp=stamp,
        **extra,
    )


def _table(fields: list[bytes]) -> bytes:
    table = b"".join(fields)
    return _U32.pack(len(table)) + table


def _text_field(name: str, value: str) -> bytes:
    raw, text = name.encode(), value.encode()
    return b"".join((LENGTH[len(raw)], raw, b"S", _U32.pack(len(text)), text))


def _add_headers(fields: list[bytes], headers: Mapping[str, str]) -> str | None:
    """Add the headers; return the content encoding, which only a foreign message has."""
    hidden: dict[str, str] = {}
    foreign = json.loads(headers[_FOREIGN]) if _FOREIGN in headers else None
    typed: Mapping[str, str] = foreign["headers"] if foreign is not None else {}
    for name, value in headers.items():
        if name in typed:
            fields.append(base64.b64decode(typed[name]))
        elif name == _FOREIGN:
            continue
        elif len(name.encode()) > SHORT or (name[:1] in ("x", "C", "B") and _BROKERS.fullmatch(name)):
            hidden[name] = value
        else:
            fields.append(_text_field(name, value))
    if hidden:
        fields.append(_text_field(_HIDDEN, json.dumps(hidden)))
    return foreign["content_encoding"] if foreign is not None else None


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
    encoding = properties.content_encoding
    if raw is None:
        inbound.tag = routed_tag
        if encoding is not None:
            inbound.headers = {_FOREIGN: _foreign({}, encoding)}
        return
    ours = raw.pop(SEQ, None) is not None
    stamp = raw.pop(_TIME, None)
    if stamp is not None:
        inbound.timestamp = _number(stamp, inbound.timestamp)
    if raw or encoding is not None:
        _fill_headers(inbound, raw, encoding)
    if inbound.tag is None and not ours:
        inbound.tag = routed_tag


def _fill_headers(inbound: Inbound, raw: Mapping[str, Any], encoding: str | None) -> None:
    headers: dict[str, str] = {}
    typed: dict[str, Any] = {}
    for name, value in raw.items():
        if type(value) is not str:
            if name == "CC" or _BROKERS.fullmatch(name):
                continue
            if name[:3] != "bk-":
                typed[name] = value
            value = _as_text(value)
        if name[:3] == "bk-":
            if name in _OWN:
                continue
        elif name[:1] in ("x", "C", "B") and _BROKERS.fullmatch(name):
            continue
        headers[name] = value
    inbound.key = _text(raw.get(_KEY))
    inbound.tag = _text(raw.get(_TAG)) or None
    if _DUE in raw:
        inbound.due = _number(raw[_DUE], None)
    if _PRIORITY in raw:
        inbound.priority = max(0, min(int(_number(raw[_PRIORITY], None) or 0), 9))
    if _HIDDEN in raw:
        # Headers of ours are never hidden: those that are would be a foreign sender's.
        headers |= {name: text for name, text in _texts(raw[_HIDDEN]).items() if name[:3].lower() != "bk-"}
    if _LONG in raw:
        for name, text in _texts(raw[_LONG]).items():
            if name in _SHORT_FIELDS:
                setattr(inbound, name, text)
    if typed or encoding is not None:
        headers[_FOREIGN] = _foreign(typed, encoding)
    inbound.headers = headers


_OWN = frozenset({_KEY, _TAG, _DUE, _PRIORITY, _LONG, _HIDDEN, _FOREIGN})


def _foreign(typed: Mapping[str, Any], encoding: str | None) -> str:
    """Return what `_add_headers` needs to write headers and content encoding as a foreign sender wrote them."""
    fields: dict[str, str] = {}
    for name, value in typed.items():
        try:
            fields[name] = base64.b64encode(encode_field(name, value)).decode()
        except (TypeError, ValueError):
            # Some can be read and not written; they travel on as texts.
            continue
    return json.dumps({"headers": fields, "content_encoding": encoding})


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
    return value if isinstance(value, str) else json.dumps(value, default=_as_plain)


def _as_plain(value: object) -> str:
    return _as_text(value) if isinstance(value, bytes) else str(value)
