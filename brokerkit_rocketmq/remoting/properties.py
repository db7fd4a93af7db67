r"""The properties of a message: names and values in one text, ``name \x01 value \x02 …``.

From ``MessageDecoder.messageProperties2String`` and ``MessageConst``.  A broker drops what has an empty name or an
empty value, and stores at most 32,767 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["LIMIT", "SYSTEM", "SYSTEM_PREFIXES", "encode_properties", "is_system", "parse_properties"]

#: Bytes that a broker stores (``MessageStoreConfig``: a short); what it adds by itself counts too.
LIMIT = 32_767

#: Names that brokers and clients give a meaning or write themselves (``MessageConst`` of 4.9.4 and of 5.x).
SYSTEM = frozenset(
    {
        "KEYS", "TAGS", "WAIT", "DELAY", "RETRY_TOPIC", "REAL_TOPIC", "REAL_QID", "PGROUP", "MIN_OFFSET", "MAX_OFFSET",
        "BUYER_ID", "ORIGIN_MESSAGE_ID", "TRANSFER_FLAG", "CORRECTION_FLAG", "MQ2_FLAG", "RECONSUME_TIME", "MSG_REGION",
        "TRACE_ON", "UNIQ_KEY", "EXTEND_UNIQ_INFO", "MAX_RECONSUME_TIMES", "CONSUME_START_TIME",
        "CHECK_IMMUNITY_TIME_IN_SECONDS", "DUP_INFO", "TRANSACTION_CHECK_TIMES", "INSTANCE_ID", "CORRELATION_ID",
        "REPLY_TO_CLIENT", "TTL", "ARRIVE_TIME", "PUSH_REPLY_TIME", "CLUSTER", "MSG_TYPE", "REDIRECT",
        "PROPERTY_FORWARD_QUEUE_ID", "TRACE_CONTEXT", "BORN_TIMESTAMP", "1ST_POP_TIME", "DLQ_ORIGIN_TOPIC",
        "DLQ_ORIGIN_MESSAGE_ID",
    }
)  # fmt: skip
#: Families of such names; newer brokers add members.
SYSTEM_PREFIXES = ("__", "TIMER_", "POP_", "INNER_", "TRAN_", "LITE_", "_SYS_")


def is_system(name: str) -> bool:
    """Return whether a property of this name may mean something to a broker or to a client."""
    return name in SYSTEM or name.startswith(SYSTEM_PREFIXES)


def encode_properties(properties: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    r"""Return the properties as one text.

    Raise ValueError where a broker would store something else: an empty name or value, or ``\x01`` or ``\x02``.
    """
    pairs = list(properties.items() if isinstance(properties, Mapping) else properties)
    text = "".join(f"{name}\x01{value}\x02" for name, value in pairs)
    if text.count("\x01") != len(pairs) or text.count("\x02") != len(pairs):
        bad = next(name for name, value in pairs if _is_torn(name) or _is_torn(value))
        raise ValueError(f"property {bad[:40]!r} or its value holds one of the separators \\x01 and \\x02")
    for name, value in pairs:
        if not name or not value:
            raise ValueError(f"property {name!r}: RocketMQ drops properties with an empty name or value")
    return text


def _is_torn(text: str) -> bool:
    return "\x01" in text or "\x02" in text


def parse_properties(raw: bytes | str) -> dict[str, str]:
    """Return the properties of a stored message; what has no name is left out, as Java does.

    Bytes that are no UTF-8 become U+FFFD: a text that cannot be read never makes a message unreadable.
    """
    text = raw if isinstance(raw, str) else str(raw, "utf-8", "replace")
    # 4.9.4 writes no separator at the end, the others do.
    if text[-1:] == "\x02":
        text = text[:-1]
    pairs = [item.split("\x01", 1) for item in text.split("\x02")]
    try:
        properties: dict[str, str] = dict(pairs)
    except ValueError:
        pass
    else:
        if "" not in properties:
            return properties
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0]}
