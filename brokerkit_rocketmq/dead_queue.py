"""The dead letters of one group as they lie in their queues: found, read again, and buried anew.

A queue only goes forward, so a dead letter between others can be removed only by storing those before it again behind
the others.  The copies say in a property when and where the letter was stored first: that is its place and its
identity, so the order stays, and a crash between the copy and the commit leaves no letter twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from brokerkit.errors import BrokerUnavailable
from brokerkit.spi import Inbound
from brokerkit_rocketmq.asking import Asking
from brokerkit_rocketmq.errors import NAME, is_stored, refused
from brokerkit_rocketmq.mapping import MAX_RECONSUME
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.messages import BadMessages, StoredMessage, decode_messages
from brokerkit_rocketmq.remoting.properties import encode_properties
from brokerkit_rocketmq.routes import MessageQueue

__all__ = ["DeadQueues", "Letter"]

#: Property of a copy: milliseconds since the epoch, broker, queue and offset of where the letter was stored first.
_PLACE = "bk-buried"
_ID, _ORIGIN_ID = "UNIQ_KEY", "ORIGIN_MESSAGE_ID"
#: What the broker would act on, and what it writes by itself.
_DROPPED = frozenset(
    {"DELAY", "REAL_TOPIC", "REAL_QID", "MIN_OFFSET", "MAX_OFFSET", "MSG_REGION", "TRACE_ON", "CLUSTER"}
)
_DROPPED_PREFIX = "TIMER_"
#: ``MessageSysFlag``: how the body is compressed.
_COMPRESSION = 0x1 | 0x700
#: Copies that are under way at once.
_COPIES = 32

#: Where a letter was stored first: its instant decides on the order, the rest tells it from all others.
Place = tuple[int, str, int, int]


@dataclass(slots=True, eq=False)
class Letter:
    """One dead letter; several positions hold the same one after a crash."""

    place: Place
    message_id: str | None
    positions: list[tuple[MessageQueue, int]]
    gone: bool = False


@dataclass(slots=True)
class _Lane:
    """One queue: what lies in it from the committed offset on, in its order."""

    queue: MessageQueue
    committed: int
    #: Behind the last letter that was found.
    end: int
    #: By offset, ascending.
    letters: dict[int, Letter] = field(default_factory=dict)
    #: Offsets of letters that may be left, ascending.
    left: deque[int] = field(default_factory=deque)


class DeadQueues:
    """The queues of the dead letters of one group, read by a group beside it."""

    def __init__(self, asking: Asking, reader: str, producer: str, decode: Callable[[StoredMessage], Inbound]) -> None:
        """``reader``: the native group that reads; ``producer``: the one that copies are sent by."""
        self._asking = asking
        self._reader = reader
        self._producer = producer
        self._decode = decode
        self._lanes: dict[MessageQueue, _Lane] = {}
        #: Read and not asked for yet.
        self._read: dict[tuple[MessageQueue, int], StoredMessage] = {}

    # --- finding ---

    async def find(self, queues: Iterable[MessageQueue]) -> list[Letter]:
        """Return all dead letters that lie in the queues now, the oldest first."""
        queues = tuple(queues)
        await self._asking.caught_up(queue.broker for queue in queues)
        await asyncio.gather(*(self._find_in(queue) for queue in queues))
        found: dict[Place, Letter] = {}
        for queue in sorted(self._lanes):
            lane = self._lanes[queue]
            for offset, letter in lane.letters.items():
                known = found.setdefault(letter.place, letter)
                if known is not letter:
                    known.positions += letter.positions
                    lane.letters[offset] = known
        return [found[place] for place in sorted(found)]

    async def _find_in(self, queue: MessageQueue) -> None:
        asking = self._asking
        first, end, committed = await asyncio.gather(
            asking.min_offset(queue), asking.max_offset(queue), asking.committed(self._reader, queue)
        )
        start = min(max(first, committed or 0), end)
        lane = self._lanes[queue] = _Lane(queue, start, end)
        async for message in self._messages(queue, start, end):
            place, message_id = _place(message, queue), self._decode(message).message_id
            lane.letters[message.queue_offset] = Letter(place, message_id, [(queue, message.queue_offset)])
            lane.left.append(message.queue_offset)

    async def _messages(self, queue: MessageQueue, offset: int, end: int) -> AsyncIterator[StoredMessage]:
        while offset < end:
            frame, following = await self._asking.pull(self._reader, queue, offset)
            for message in _decoded(frame.body, queue):
                if offset <= message.queue_offset < end:
                    yield message
            if following <= offset:
                return  # the rest was deleted meanwhile
            offset = following

    # --- reading ---

    async def read(self, letters: Sequence[Letter]) -> list[tuple[Letter, Inbound]]:
        """Return the messages of letters; those that the broker has deleted meanwhile are left out."""
        wanted = {letter.positions[-1] for letter in letters}
        found: list[tuple[Letter, Inbound]] = []
        self._read = {position: message for position, message in self._read.items() if position in wanted}
        for letter in letters:
            message = await self._stored(letter, wanted)
            if message is not None:
                inbound = self._decode(message)
                if _PLACE in inbound.headers:
                    inbound.headers = {name: value for name, value in inbound.headers.items() if name != _PLACE}
                found.append((letter, inbound))
        self._read.clear()
        return found

    async def _stored(self, letter: Letter, wanted: set[tuple[MessageQueue, int]]) -> StoredMessage | None:
        position = letter.positions[-1]
        if position not in self._read:
            queue, offset = position
            frame, _ = await self._asking.pull(self._reader, queue, offset)
            for message in _decoded(frame.body, queue):
                # Its neighbours come along.
                at = (queue, message.queue_offset)
                if at in wanted:
                    self._read[at] = message
        return self._read.pop(position, None)

    # --- removing ---

    async def advance(self) -> None:
        """Commit what is gone, as far as nothing that is left lies before it."""
        for lane in self._lanes.values():
            left = lane.left
            while left and lane.letters[left[0]].gone:
                del lane.letters[left.popleft()]
            await self._commit(lane, left[0] if left else lane.end)

    async def settle(self) -> None:
        """Store again what lies before letters that are gone, and commit behind those; nothing is lost in between."""
        ends = {queue: self._end(lane) for queue, lane in self._lanes.items()}
        left: dict[Place, Letter] = {}
        for queue, lane in self._lanes.items():
            for offset, letter in lane.letters.items():
                stays = any(at >= ends[where] for where, at in letter.positions)
                if offset < ends[queue] and not letter.gone and not stays:
                    left[letter.place] = letter
        letters = [left[place] for place in sorted(left)]
        for first in range(0, len(letters), _COPIES):
            await self._bury(letters[first : first + _COPIES])
        for queue, lane in self._lanes.items():
            await self._commit(lane, ends[queue])

    @staticmethod
    def _end(lane: _Lane) -> int:
        """Return the offset behind the last letter that is gone."""
        return max((at + 1 for at, letter in lane.letters.items() if letter.gone), default=lane.committed)

    async def _commit(self, lane: _Lane, offset: int) -> None:
        if offset > lane.committed:
            await self._asking.commit(self._reader, lane.queue, offset)
            lane.committed = offset

    async def _bury(self, letters: Sequence[Letter]) -> None:
        wanted = {letter.positions[-1] for letter in letters}
        copies = [(letter, await self._stored(letter, wanted)) for letter in letters]
        self._read.clear()
        await asyncio.gather(*(self._copy(letter, message) for letter, message in copies if message is not None))

    async def _copy(self, letter: Letter, message: StoredMessage) -> None:
        queue = letter.positions[-1][0]
        properties = {
            name: value
            for name, value in message.properties.items()
            if name and value and name not in _DROPPED and not name.startswith(_DROPPED_PREFIX)
        }
        if _ID not in properties:
            # The broker would give it another one.
            properties.setdefault(_ORIGIN_ID, message.offset_id)
        properties[_PLACE] = ":".join(map(str, letter.place))
        fields = {
            "a": self._producer,
            "b": queue.topic,
            "c": "",
            "d": "1",
            "e": str(queue.queue_id),
            "f": str(message.sys_flag & _COMPRESSION),
            "g": str(message.born_timestamp),
            "h": str(message.flag),
            "i": encode_properties(properties),
            "j": str(message.reconsume_times),
            "k": "false",
            "l": str(MAX_RECONSUME),
            "m": "false",
        }
        asking = self._asking
        frame = await asking.client.call(
            queue.broker, RequestCode.SEND_MESSAGE_V2, fields, message.raw_body, timeout=asking.timeout
        )
        if frame.code != ResponseCode.SUCCESS and not is_stored(frame.code):
            raise refused(frame, f"storing a dead letter of {queue.topic!r} again", topic=queue.topic)


def _place(message: StoredMessage, queue: MessageQueue) -> Place:
    told = message.properties.get(_PLACE, "").split(":")
    if len(told) == 4 and told[0].isdecimal() and told[2].isdecimal() and told[3].isdecimal():
        return int(told[0]), told[1], int(told[2]), int(told[3])
    return message.store_timestamp, queue.broker, queue.queue_id, message.queue_offset


def _decoded(body: bytes, queue: MessageQueue) -> list[StoredMessage]:
    try:
        return decode_messages(body)
    except BadMessages as exc:
        raise BrokerUnavailable(
            f"what {queue.broker} holds as {queue.topic!r} cannot be read: {exc}", backend=NAME, retryable=False
        ) from exc
