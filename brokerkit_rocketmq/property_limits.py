"""What becomes of more properties than RocketMQ stores of a message: packed, shortened, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from brokerkit.errors import MessageTooLarge
from brokerkit_rocketmq.errors import NAME
from brokerkit_rocketmq.property_text import Pairs, join_packed
from brokerkit_rocketmq.remoting.properties import LIMIT

__all__ = ["MOST_NEW", "fitting"]

#: Bytes of properties: a retry and a dead letter must have room for what the core adds, and every message for what
#: the broker adds (MSG_REGION, TRACE_ON, CLUSTER, REAL_TOPIC, TIMER_…).
MOST_NEW, _MOST_AGAIN = 30_720, LIMIT - 767
_TRACEBACK = "bk-dead-traceback"


def fitting(text: str, size: int, pairs: Pairs, headers: Mapping[str, str], again: bool) -> tuple[str, int]:
    """Return the text of the properties as it is, or packed, and its bytes; raise `MessageTooLarge`."""
    if not again:
        raise MessageTooLarge(
            f"headers and other properties have {size} bytes; {MOST_NEW} of the {LIMIT} that RocketMQ stores are "
            f"left for them",
            backend=NAME,
        )
    if size <= _MOST_AGAIN:
        return text, size
    for plain, packed in _packings(headers):
        text = join_packed(pairs, plain, packed)
        smaller = len(text.encode())
        if smaller <= _MOST_AGAIN:
            return text, smaller
    raise MessageTooLarge(
        f"headers and other properties have {size} bytes, and are too many also compressed; RocketMQ stores {LIMIT}",
        backend=NAME,
    )


def _packings(headers: Mapping[str, str]) -> Iterator[tuple[Mapping[str, str], Mapping[str, str]]]:
    """Yield headers to be written as they are and headers to be compressed, what readers miss least first."""
    ours = {name: value for name, value in headers.items() if name.startswith("bk-")}
    users = {name: value for name, value in headers.items() if name not in ours}
    yield users, ours
    yield {}, headers
    # Rather a dead letter that explains itself less than a message that can never become one.
    brief = {name: value for name, value in ours.items() if name != _TRACEBACK}
    yield users, brief
    yield {}, users | brief
