r"""The properties of our messages as one text: what RocketMQ would drop or interpret, in one property that it does not.

What each property means is in `mapping`.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

from brokerkit.spi import Inbound, Outbound
from brokerkit_rocketmq.remoting.compression import COMPRESSED, decompress
from brokerkit_rocketmq.remoting.messages import StoredMessage
from brokerkit_rocketmq.remoting.properties import is_system

__all__ = [
    "ATTEMPT", "CONTENT_TYPE", "CORRELATION", "DUE", "EMPTY", "FOREIGN", "KEY", "KEYS", "MESSAGE_ID", "NOTHING",
    "ORIGIN_ID", "ORIGIN_TOPIC", "PRIORITY", "REPLY_TO", "RETRY_TOPIC", "SHARDING", "STORED", "TAG", "TAGS", "TIME",
    "TYPE", "Pairs", "is_dropped", "is_header", "join", "join_fields", "join_packed", "mark", "number", "plain_text",
    "read_rest", "restore", "written_attempt",
]  # fmt: skip

#: Names and values in the order in which they are written.
Pairs = list[tuple[str, str]]

#: The number of a start, in the headers of copies (brokerkit's envelope).
ATTEMPT = "bk-attempt"

MESSAGE_ID, KEYS, TAGS, CORRELATION = "UNIQ_KEY", "KEYS", "TAGS", "CORRELATION_ID"
SHARDING, RETRY_TOPIC, ORIGIN_TOPIC = "__SHARDINGKEY", "RETRY_TOPIC", "DLQ_ORIGIN_TOPIC"
ORIGIN_ID = "ORIGIN_MESSAGE_ID"
KEY, TAG, TYPE, CONTENT_TYPE = "bk-key", "bk-tag", "bk-type", "bk-content-type"
REPLY_TO, PRIORITY, DUE, TIME = "bk-reply-to", "bk-prio", "bk-due", "bk-time"
EMPTY, FOREIGN, STORED = "bk-empty", "bk-foreign", "bk-stored"
_HIDDEN, _PACKED = "bk-hidden", "bk-packed"

#: What C++ clients, which end a body at a zero byte, read as empty, and Java's ``trim`` makes empty.
NOTHING = b"\0"
#: Bytes that ``bk-packed`` may become.
_MOST_PACKED = 1 << 20
#: The bits of the flags that name the kind of compression.
_KIND_BITS = 7 << 8

#: System properties of foreign senders that a retry keeps: readers of theirs look at them.
_KEPT = frozenset({"REPLY_TO_CLIENT", "MSG_TYPE", "TTL", "BUYER_ID", "INSTANCE_ID", "TRACE_CONTEXT", SHARDING})
#: Fields of a message that ``bk-hidden`` may hold, by the properties that they have when they are harmless.
_FIELDS = {
    MESSAGE_ID: "message_id",
    KEYS: "key",
    KEY: "key",
    TAGS: "tag",
    TAG: "tag",
    CORRELATION: "correlation_id",
    TYPE: "type",
    CONTENT_TYPE: "content_type",
    REPLY_TO: "reply_to",
}
#: What holds other properties, or never travels.
_OURS = frozenset({EMPTY, _HIDDEN, _PACKED, FOREIGN, STORED})
#: What is more than a header, but for system properties: a field, or something that is read in a way of its own.
_FIELD_NAMES = frozenset({*_FIELDS, ORIGIN_ID, TIME, DUE, PRIORITY, *_OURS})


def written_attempt(headers: Mapping[str, str]) -> int | None:
    """Return which start of a handler a copy is meant for; None where that is not written."""
    text = headers.get(ATTEMPT, "")
    # A foreign sender may write what it likes there.
    return int(text) if text.isdecimal() and len(text) < 10 else None


def plain_text(message: Outbound) -> str | None:
    """Return the text of a message that goes to a topic and has neither headers, delay nor native options.

    It is what `join_fields` would make of its fields; None where one of them cannot be written as it is.
    """
    text = f"{MESSAGE_ID}\x01{message.message_id}\x02"
    count = 1
    if message.tag is not None:
        text += f"{TAGS}\x01{message.tag}\x02"
        count += 1
    if message.timestamp > 0:
        text += f"{TIME}\x01{message.timestamp!r}\x02"
        count += 1
    if message.content_type is not None:
        text += f"{CONTENT_TYPE}\x01{message.content_type}\x02"
        count += 1
    if message.key is not None:
        text += f"{KEYS}\x01{message.key}\x02"
        count += 1
        if message.ordered:
            text += f"{SHARDING}\x01{message.key}\x02"
            count += 1
    if message.type is not None:
        text += f"{TYPE}\x01{message.type}\x02"
        count += 1
    if message.correlation_id is not None:
        text += f"{CORRELATION}\x01{message.correlation_id}\x02"
        count += 1
    if message.reply_to is not None:
        text += f"{REPLY_TO}\x01{message.reply_to}\x02"
        count += 1
    if message.priority:
        text += f"{PRIORITY}\x01{message.priority}\x02"
        count += 1
    return text if _is_whole(text, count) else None


def join_fields(pairs: Pairs) -> str:
    """Return the text of a message without headers."""
    text = "".join([f"{name}\x01{value}\x02" for name, value in pairs])
    return text if _is_whole(text, len(pairs)) else _join_hidden(pairs, {}, {})


def join(pairs: Pairs, headers: Mapping[str, str]) -> str:
    """Return the text of fields and headers."""
    hidden: dict[str, str] = {}
    plain: Pairs = []
    for name, value in headers.items():
        if is_system(name):
            hidden[name] = value
        elif name not in _OURS:
            plain.append((name, value))
    if not hidden:
        text = "".join([f"{name}\x01{value}\x02" for name, value in (*pairs, *plain)])
        if _is_whole(text, len(pairs) + len(plain)):
            return text
    return _join_hidden(pairs, dict(plain), hidden)


def _is_whole(text: str, count: int) -> bool:
    """Whether the broker keeps all ``count`` properties of the text as they are."""
    return text.count("\x01") == count and text.count("\x02") == count and "\x01\x02" not in text


def _join_hidden(pairs: Pairs, headers: dict[str, str], hidden: dict[str, str]) -> str:
    """Return the text with what the broker would drop or read otherwise in a property of its own."""
    fields = {name: value for name, value in pairs if not _is_storable(value)}
    hidden |= {name: value for name, value in headers.items() if not (_is_storable(name) and _is_storable(value))}
    plain = [pair for pair in pairs if pair[0] not in fields]
    plain += [pair for pair in headers.items() if pair[0] not in hidden]
    secret = json.dumps({"fields": fields, "headers": hidden}, ensure_ascii=False, separators=(",", ":"))
    plain.append((_HIDDEN, secret))
    return "".join([f"{name}\x01{value}\x02" for name, value in plain])


def _is_storable(text: str) -> bool:
    return bool(text) and "\x01" not in text and "\x02" not in text


def join_packed(pairs: Pairs, headers: Mapping[str, str], packed: Mapping[str, str]) -> str:
    """Return the text with the headers ``packed`` compressed: no other reader sees those, and no message is stuck."""
    content = json.dumps({name: value for name, value in packed.items() if name not in _OURS}, ensure_ascii=False)
    compressed = base64.b64encode(zlib.compress(content.encode(), 9)).decode()
    return f"{join(pairs, headers)}{_PACKED}\x01{compressed}\x02"


def restore(pairs: Pairs, text: str, flag: int) -> int:
    """Add what a foreign sender wrote; return its flag."""
    foreign = json.loads(text)
    present = {name for name, _ in pairs}
    pairs += [(name, value) for name, value in foreign["properties"].items() if name not in present]
    return flag or int(foreign["flag"])


def _foreign(flag: int, properties: Mapping[str, str]) -> str:
    return json.dumps({"flag": flag, "properties": properties})


# --- on the way in ---


def read_rest(inbound: Inbound, found: dict[str, str], flag: int) -> None:
    """Fill in what is left in ``found``, which becomes the headers."""
    due = found.pop(DUE, None)
    if due is not None:
        inbound.due = number(due)
    priority = found.pop(PRIORITY, None)
    if priority is not None:
        inbound.priority = max(0, min(int(number(priority) or 0), 9))
    foreign: dict[str, str] = {}
    if not found.keys().isdisjoint(_OURS):
        _read_ours(inbound, found)
    for name in [name for name in found if is_system(name)]:
        value = found.pop(name)
        if name in _KEPT and value:
            foreign[name] = value
    if foreign:
        if inbound.key is None:
            inbound.key = foreign.get(SHARDING)
        elif foreign.get(SHARDING) == inbound.key:
            del foreign[SHARDING]
    hidden = inbound.headers
    inbound.headers = {**found, **hidden} if hidden else found
    if foreign or flag:
        found = {**inbound.headers, FOREIGN: _foreign(flag, foreign)}
        inbound.headers = found


def _read_ours(inbound: Inbound, found: dict[str, str]) -> None:
    """Read the properties that hold others; the hidden headers become those of ``inbound``."""
    found.pop(FOREIGN, None)
    found.pop(STORED, None)
    if found.pop(EMPTY, None) is not None and inbound.body == NOTHING:
        inbound.body = b""
    packed = found.pop(_PACKED, None)
    hidden = found.pop(_HIDDEN, None)
    content = _object(hidden)
    for name, value in _texts(content.get("fields")).items():
        if name in _FIELDS:
            setattr(inbound, _FIELDS[name], value)
    headers = _texts(content.get("headers"))
    if packed is not None:
        headers |= _texts(_object(_unpacked(packed)))
    inbound.headers = {name: value for name, value in headers.items() if name not in _OURS}


def _unpacked(packed: str) -> str | None:
    try:
        return decompress(base64.b64decode(packed), "zlib", _MOST_PACKED).decode()
    except ValueError:
        return None


def _object(text: str | None) -> dict[str, Any]:
    """Return one of our own JSON objects; a foreign sender may have written anything there."""
    try:
        found = json.loads(text) if text is not None else {}
        # JSON can write lone surrogates; nothing could send them on.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(text, str) and name}


def is_header(name: str) -> bool:
    """Return whether a property of this name is a header, whatever its value and the others are."""
    return name not in _FIELD_NAMES and not is_system(name)


def is_dropped(name: str) -> bool:
    """Return whether a property of this name tells brokers and clients something, and nobody else."""
    return is_system(name) and name not in _FIELD_NAMES and name not in _KEPT


def number(text: str) -> float | None:
    """Return a number that somebody wrote as a text, or None: a foreign sender may write nan there."""
    try:
        value = float(text)
    except ValueError:
        return None
    # False for nan, too.
    return value if -1e18 < value < 1e18 else None


def mark(inbound: Inbound, stored: StoredMessage, problem: str) -> None:
    """Note that the body is not what was sent, and how it was stored, so that a dead letter can be read elsewhere."""
    inbound.problem = problem
    flags = stored.sys_flag & (COMPRESSED | _KIND_BITS)
    if flags & COMPRESSED:
        inbound.headers = {**inbound.headers, STORED: str(flags)}
