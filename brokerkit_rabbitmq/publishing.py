"""`PublishChannel`: messages on their way to one exchange, each with its confirm."""

from __future__ import annotations

import asyncio
import enum
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pika import spec

from brokerkit.errors import BrokerError, Closed, MessageTooLarge, SendRefused, TopicNotFound, Unroutable
from brokerkit_rabbitmq.channel import Channel
from brokerkit_rabbitmq.errors import NAME, fresh, unknown_outcome
from brokerkit_rabbitmq.frames import ACK, NACK, RETURN, content_frames, publish_frame
from brokerkit_rabbitmq.mapping import encode_message, sequence_of
from brokerkit_rabbitmq.properties import decode_properties

if TYPE_CHECKING:
    from brokerkit.spi import Outbound
    from brokerkit_rabbitmq.protocol import Amqp

__all__ = ["Batch", "Pending", "PublishChannel", "Route"]

_U32 = struct.Struct(">I")
_ANSWER = struct.Struct(">QB")
_REPLY_CODE = struct.Struct(">H")
_NO_ROUTE = 312
#: Addresses whose publish frame is kept.
_MOST_ROUTES = 1024


class Route:
    """Where one message goes: exchange, routing key, further keys, and whether somebody must want it."""

    __slots__ = ("by_priority", "exchange", "keys", "mandatory", "routing_key", "unwanted")

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        *,
        mandatory: bool = True,
        keys: tuple[str, ...] = (),
        unwanted: Callable[[], BrokerError] | None = None,
        by_priority: bool = True,
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.mandatory = mandatory
        self.keys = keys
        #: Makes the error of a message that no queue wants.
        self.unwanted = unwanted
        #: Whether queues may deliver by priority.
        self.by_priority = by_priority


class Pending(enum.Enum):
    """Where a message without an outcome is."""

    #: Nothing of it was written: it is certainly not stored.
    WAITING = "waiting"
    #: The broker may have it.
    WRITTEN = "written"


_WRITTEN = Pending.WRITTEN


class Batch:
    """The messages of one call of `send` and their outcomes; `done` when all are known."""

    __slots__ = ("deadline", "done", "left", "outcomes")

    def __init__(self, size: int, deadline: float, done: asyncio.Future[None]) -> None:
        self.outcomes: list[BrokerError | Pending | None] = [Pending.WAITING] * size
        self.left = size
        #: On the monotonic clock.
        self.deadline = deadline
        self.done = done

    def settle(self, index: int, outcome: BrokerError | None) -> None:
        """Note the outcome of one message.  Called once for each."""
        self.outcomes[index] = outcome
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)

    def expire(self, waiting: Callable[[], BrokerError], written: Callable[[], BrokerError]) -> None:
        """Give every message without an outcome one: its time is up.  What the broker answers later is ignored."""
        if self.done.done():
            return
        for index, outcome in enumerate(self.outcomes):
            if outcome is Pending.WAITING:
                self.outcomes[index] = waiting()
            elif outcome is Pending.WRITTEN:
                self.outcomes[index] = written()
        self.done.set_result(None)


class PublishChannel(Channel):
    """A channel in confirm mode.  `unconfirmed` holds what was written and not answered, in the order of writing."""

    def __init__(self, connection: Amqp, number: int, window: int, on_room: Callable[[], None]) -> None:
        super().__init__(connection, number)
        self.window = window
        #: Called when more may be written and when the channel is gone.
        self._on_room = on_room
        self._sequence = 0
        #: Sequence number -> whose message it is, and its route.
        self.unconfirmed: dict[int, tuple[Batch, int, Route, int]] = {}
        #: Whether the broker answered no to a message of this channel.
        self.refused = False
        self._retired = False
        self._oldest = 1
        self._returned: dict[int, BrokerError] = {}
        self._frames: dict[tuple[str, str, bool], bytes] = {}

    async def select(self) -> None:
        """Ask for confirms; before anything is published."""
        await self.call(spec.Confirm.Select(), spec.Confirm.SelectOk)

    def publish(self, message: Outbound, route: Route, batch: Batch, index: int) -> None:
        """Write one message.  Raise `PayloadError` or `MessageTooLarge` for one that AMQP cannot carry."""
        connection = self.connection
        address = (route.exchange, route.routing_key, route.mandatory)
        method = self._frames.get(address)
        if method is None:
            method = self._remember(address)
        sequence = self._sequence + 1
        properties = encode_message(message, sequence, route.keys, by_priority=route.by_priority)
        frame_max = connection.tuning.frame_max
        if len(properties) + 20 > frame_max:
            raise MessageTooLarge(
                f"headers and properties have {len(properties)} bytes, frame_max allows {frame_max - 20}", backend=NAME
            )
        body = message.body
        frames = method + content_frames(self.number, properties, body, frame_max)
        if self.unconfirmed:
            connection.write(frames)
        else:
            # Most likely the only one for now: a turn of the loop would be a tenth of its round trip.
            connection.write_now(frames)
        self._sequence = sequence
        batch.outcomes[index] = _WRITTEN
        self.unconfirmed[sequence] = (batch, index, route, len(body))

    def _remember(self, address: tuple[str, str, bool]) -> bytes:
        try:
            frame = publish_frame(self.number, *address)
        except ValueError as exc:
            raise MessageTooLarge(str(exc), backend=NAME) from exc
        if len(self._frames) >= _MOST_ROUTES:
            self._frames.clear()
        self._frames[address] = frame
        return frame

    # --- answers ---

    def method(self, data: bytes, start: int, stop: int) -> None:
        (method_id,) = _U32.unpack_from(data, start)
        if method_id == ACK:
            tag, bits = _ANSWER.unpack_from(data, start + 4)
            self._answered(tag, bits & 1, None)
        elif method_id == NACK:
            tag, bits = _ANSWER.unpack_from(data, start + 4)
            self.refused = True
            self._answered(tag, bits & 1, _refused)
        else:
            super().method(data, start, stop)

    def _answered(self, tag: int, multiple: int, failure: Callable[[], BrokerError] | None) -> None:
        unconfirmed = self.unconfirmed
        if not multiple:
            entry = unconfirmed.pop(tag, None)
            if entry is not None:
                self._settle(tag, entry, failure)
            if not unconfirmed:
                # Or the next answer to several would begin with the first message of the channel.
                self._oldest = self._sequence + 1
        else:
            # Those below the oldest are answered; each number is looked at once.
            tag = min(tag, self._sequence)
            for number in range(self._oldest, tag + 1):
                entry = unconfirmed.pop(number, None)
                if entry is not None:
                    self._settle(number, entry, failure)
            self._oldest = max(self._oldest, tag + 1)
        self._on_room()
        if self._retired and not unconfirmed:
            self.close_soon()

    def retire(self) -> None:
        """Close the channel when everything on it is answered; nothing more is published on it."""
        self._retired = True
        if not self.unconfirmed:
            self.close_soon()

    def _settle(
        self, number: int, entry: tuple[Batch, int, Route, int], failure: Callable[[], BrokerError] | None
    ) -> None:
        batch, index, _, _ = entry
        returned = self._returned.pop(number, None) if self._returned else None
        if not batch.done.done():
            batch.settle(index, returned if failure is None else failure())

    def content(self, method_id: int, method: bytes, header: bytes, body: bytes) -> None:
        if method_id != RETURN:
            return
        # It comes before the confirm of the same message (specification of basic.publish, mandatory).
        sequence = sequence_of(decode_properties(header, 0, {}))
        entry = self.unconfirmed.get(sequence) if sequence is not None else None
        if entry is None or sequence is None:
            return
        (code,) = _REPLY_CODE.unpack_from(method, 0)
        route = entry[2]
        if code == _NO_ROUTE and route.unwanted is not None:
            self._returned[sequence] = route.unwanted()
        else:
            text = str(method[3 : 3 + method[2]], "utf-8", "replace")
            self._returned[sequence] = Unroutable(f"RabbitMQ returned the message: {code} {text}", backend=NAME)

    # --- the end ---

    def gone(self, error: BrokerError) -> None:
        entries, self.unconfirmed = self.unconfirmed, {}
        returned, self._returned = self._returned, {}
        culprit = _culprit(error, entries)
        for number, (batch, index, _, _) in entries.items():
            if batch.done.done():
                continue
            if number in returned:
                batch.settle(index, returned[number])
            elif culprit is None or number in culprit:
                batch.settle(index, fresh(error))
            else:
                batch.settle(index, unknown_outcome(error))
        self._on_room()

    def event(self, method: Any) -> None:
        if isinstance(method, spec.Channel.Flow):
            # RabbitMQ blocks connections instead; another broker may ask.
            self.start(spec.Channel.FlowOk(method.active))


def _refused() -> BrokerError:
    return SendRefused(
        "the broker refused the message (negative confirm): a queue is full or cannot store it now", backend=NAME
    )


def _culprit(error: BrokerError, entries: dict[int, tuple[Batch, int, Route, int]]) -> frozenset[int] | None:
    """Return which messages the broker closed the channel for; None: all of them."""
    if isinstance(error, Closed | TopicNotFound):
        # All messages of the channel go to one exchange.
        return None if isinstance(error, TopicNotFound) else frozenset()
    if error.retryable:
        return frozenset()
    if isinstance(error, MessageTooLarge):
        # It is the first one of the largest: those before it were taken.
        largest = max((size for _, _, _, size in entries.values()), default=0)
        return frozenset([next(number for number, entry in entries.items() if entry[3] == largest)] if entries else ())
    return None
