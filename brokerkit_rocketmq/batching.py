"""`Parcel`: what goes out in one request, a single message or several of one topic in RocketMQ's batch format."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from brokerkit.errors import BrokerError
from brokerkit_rocketmq.calls import Entry, Pending
from brokerkit_rocketmq.errors import fresh
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.remoting.messages import encode_batch, encode_member

if TYPE_CHECKING:
    from brokerkit.spi import Outbound
    from brokerkit_rocketmq.mapping import WireMessage

__all__ = ["MOST_BYTES", "MOST_MESSAGES", "Parcel", "pack"]

#: Messages of one batch.
MOST_MESSAGES = 64
#: Bytes of one batch; brokers take 4 MiB unless they are told otherwise.
MOST_BYTES = 1 << 20


class Parcel:
    """Messages that one request stores: all of them or none."""

    __slots__ = ("body", "entries", "second", "wire")

    def __init__(self, entries: list[Entry], wire: WireMessage, body: bytes, *, second: bool = False) -> None:
        self.entries = entries
        #: The message, if it is a single one; the last one of a batch.
        self.wire = wire
        self.body = body
        #: It is sent once more, because it was refused for the sake of others or by an old route.
        self.second = second

    @property
    def is_batch(self) -> bool:
        return len(self.entries) > 1

    @property
    def code(self) -> int:
        return RequestCode.SEND_BATCH_MESSAGE if len(self.entries) > 1 else RequestCode.SEND_MESSAGE_V2

    @property
    def deadline(self) -> float:
        """When the last of its calls ends; monotonic."""
        return max(call.deadline for _, call, _ in self.entries)

    def fields(self, group: str, queue_id: int) -> dict[str, str]:
        """Return the header (``SendMessageRequestHeaderV2``)."""
        wire = self.wire
        batch = len(self.entries) > 1
        return {
            "a": group,
            "b": wire.topic,
            # No template: a topic that does not exist is not made by sending to it.
            "c": "",
            "d": "4",
            "e": str(queue_id),
            "f": str(wire.sys_flag),
            "g": str(wire.born),
            "h": str(wire.flag),
            "i": "" if batch else wire.properties,
            "j": str(wire.reconsume_times),
            "k": "false",
            "l": str(wire.max_reconsume_times),
            # This and not the code of the request tells the broker what the body is (``SendMessageProcessor``).
            "m": "true" if batch else "false",
        }

    def mark_written(self) -> None:
        """Note that the broker may have them from now on."""
        for _, call, index in self.entries:
            call.outcomes[index] = Pending.WRITTEN

    def stored(self) -> None:
        """Tell the callers that the broker has them."""
        for _, call, index in self.entries:
            call.settle(index, None)

    def failed(self, error: BrokerError) -> None:
        """Tell the callers; each gets an error of its own."""
        for _, call, index in self.entries:
            call.settle(index, fresh(error))


def pack(
    waiting: deque[Entry],
    encode: Callable[[Outbound], WireMessage],
    *,
    most_messages: int = MOST_MESSAGES,
    most_bytes: int = MOST_BYTES,
    second: bool = False,
) -> Parcel | None:
    """Take from the front of ``waiting`` what may go out together, at least one message; None: nothing is left.

    What is given up already is dropped, and what ``encode`` refuses gets its outcome.
    """
    entries: list[Entry] = []
    parts: list[bytes] = []
    size = 0
    wire: WireMessage | None = None
    while waiting and len(entries) < most_messages:
        message, call, index = waiting[0]
        if call.done.done():
            waiting.popleft()
            continue
        try:
            latest = encode(message)
        except BrokerError as error:
            waiting.popleft()
            call.settle(index, error)
            continue
        body = latest.body
        if not latest.batchable:
            if not entries:
                return Parcel([waiting.popleft()], latest, body, second=second)
            break
        part = encode_member(body, latest.properties.encode(), latest.flag)
        size += len(part)
        if size > most_bytes and entries:
            break
        wire = latest
        parts.append(part)
        entries.append(waiting.popleft())
    if wire is None:
        return None
    return Parcel(entries, wire, encode_batch(parts) if len(entries) > 1 else wire.body, second=second)
