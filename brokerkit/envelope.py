"""Between `Message` and the wire: which field travels where.

Fields that brokers know by themselves (id, type, key, tag, priority, …) are fields of `Outbound` and
`Inbound`; the others are headers whose names begin with ``bk-``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict

from brokerkit.errors import PayloadError
from brokerkit.message import Message
from brokerkit.names import RESERVED_HEADER, check_headers, check_tag, check_text
from brokerkit.spi import Inbound

__all__ = [
    "ATTEMPT",
    "DEAD_ERROR",
    "DEAD_FIRST",
    "DEAD_HOST",
    "DEAD_LAST",
    "DEAD_REASON",
    "DEAD_TEXT",
    "DEAD_TRACEBACK",
    "EXPIRES",
    "PARENT",
    "REPLY_ERROR",
    "SUSPECT",
    "SendOptions",
    "attempt_of",
    "check_options",
    "expires_of",
    "message_of",
    "user_headers",
]

#: Number of the start of a handler that this delivery would be; 1 where it is missing.
ATTEMPT = "bk-attempt"
#: Epoch seconds after which the message is not handled any more.
EXPIRES = "bk-expires"
#: Id of the message whose handling sent this one.
PARENT = "bk-parent"
#: The message was under way when a process crashed and runs alone now (guarantee 4).
SUSPECT = "bk-suspect"
#: On a reply: the failure of the handler on the other side.
REPLY_ERROR = "bk-reply-error"
#: On a dead letter: exhausted, rejected, undecodable, no-handler, not-retryable, expired or worker-crash.
DEAD_REASON = "bk-dead-reason"
DEAD_ERROR = "bk-dead-error"
DEAD_TEXT = "bk-dead-text"
DEAD_TRACEBACK = "bk-dead-traceback"
DEAD_FIRST = "bk-dead-first"
DEAD_LAST = "bk-dead-last"
DEAD_HOST = "bk-dead-host"


class SendOptions(TypedDict, total=False):
    """Keyword options of `send`."""

    #: Ordering and tracing key.
    key: str | None
    #: Label that groups filter by.
    tag: str | None
    #: Chooses among handlers of one group.
    type: str | None
    headers: Mapping[str, str] | None
    #: Seconds from now before which it is not delivered.
    delay: float | None
    #: The same as an instant: an aware datetime or epoch seconds.
    due: datetime | float | None
    #: Seconds after which it is not handled any more.
    ttl: float | None
    #: 0 (lowest) to 9.
    priority: int
    message_id: str | None
    correlation_id: str | None
    reply_to: str | None
    #: The message whose handling sends this one, or its id.
    parent: Any
    #: Options for one backend, passed through unchecked.
    native: Mapping[str, Any] | None


_KNOWN = frozenset(SendOptions.__annotations__)


def check_options(options: Mapping[str, Any], now: float) -> tuple[dict[str, str], float | None]:
    """Check the options of one send; return its headers (``bk-*`` included) and its due time.

    Raise `PayloadError` that names the option.
    """
    if not _KNOWN.issuperset(options):
        unknown = sorted(set(options) - _KNOWN)
        raise PayloadError(f"unknown send option {unknown[0]!r}; known are {', '.join(sorted(_KNOWN))}")
    headers: dict[str, str] = {}
    given = options.get("headers")
    if given is not None:
        check_headers(given)
        headers.update(given)
    for name in ("key", "type", "message_id", "correlation_id", "reply_to"):
        value = options.get(name)
        if value is not None:
            check_text(name, value)
            if not value and name == "message_id":
                raise PayloadError("message_id must not be empty")
    tag = options.get("tag")
    if tag is not None:
        check_tag(tag)
    priority = options.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= 9:
        raise PayloadError(f"priority is an int from 0 to 9, not {priority!r}")
    due = _due(options.get("delay"), options.get("due"), now)
    ttl = options.get("ttl")
    if ttl is not None:
        ttl = _seconds("ttl", ttl)
        if ttl <= 0:
            raise PayloadError(f"ttl must be positive, not {ttl!r}")
        headers[EXPIRES] = repr(now + ttl)
    parent = options.get("parent")
    if parent is not None:
        headers[PARENT] = _parent_id(parent)
    return headers, due


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PayloadError(f"{name} is a number of seconds, not {type(value).__name__}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise PayloadError(f"{name} is a finite number of seconds, not {seconds!r}")
    return seconds


def _due(delay: object, due: object, now: float) -> float | None:
    if delay is not None:
        if due is not None:
            raise PayloadError("give delay or due, not both")
        seconds = _seconds("delay", delay)
        if seconds < 0:
            raise PayloadError(f"delay must not be negative: {seconds!r}")
        return now + seconds if seconds else None
    if due is None:
        return None
    if isinstance(due, datetime):
        if due.utcoffset() is None:
            raise PayloadError(
                f"due {due.isoformat()} is a naive datetime; give it a time zone, as in datetime.now(UTC)"
            )
        instant = due.timestamp()
    else:
        instant = _seconds("due", due)
    return instant if instant > now else None


def _parent_id(parent: object) -> str:
    parent_id = getattr(getattr(parent, "message", parent), "message_id", parent)
    if not isinstance(parent_id, str):
        # Not its repr: that of a message shows the body.
        raise PayloadError(f"parent is a message with an id, or its id; this {type(parent).__name__} has none")
    return check_text("parent", parent_id)


def attempt_of(inbound: Inbound) -> int:
    """Return which start of a handler this delivery would be: 1 for the first."""
    text = inbound.headers.get(ATTEMPT)
    # A foreign sender may write what it likes there.
    written = int(text) if text is not None and text.isdecimal() and len(text) < 10 else None
    return max(1, inbound.native_attempt if written is None else written) + inbound.crashes


def expires_of(inbound: Inbound) -> float | None:
    """Return the instant after which the message is not handled any more, or None."""
    text = inbound.headers.get(EXPIRES)
    if text is None:
        return None
    try:
        instant = float(text)
    except ValueError:
        return None
    # A foreign sender may write nan or inf there.
    return instant if math.isfinite(instant) else None


def user_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers without brokerkit's own."""
    return {name: value for name, value in headers.items() if not name.startswith(RESERVED_HEADER)}


def message_of(inbound: Inbound, receive_time: float | None = None, attempt: int | None = None) -> Message:
    """Return the received message as an application sees it."""
    expires = expires_of(inbound)
    sent = inbound.timestamp
    return Message(
        body=inbound.body,
        topic=inbound.topic,
        message_id=inbound.message_id,
        type=inbound.type,
        headers=user_headers(inbound.headers),
        content_type=inbound.content_type,
        key=inbound.key,
        tag=inbound.tag,
        priority=inbound.priority,
        timestamp=sent,
        ttl=expires - sent if expires is not None and sent is not None else None,
        due=inbound.due,
        correlation_id=inbound.correlation_id,
        reply_to=inbound.reply_to,
        parent_id=inbound.headers.get(PARENT),
        receive_time=receive_time,
        attempt=attempt_of(inbound) if attempt is None else attempt,
        redelivered=inbound.redelivered,
    )
