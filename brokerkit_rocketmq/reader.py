"""`Reader`: one queue in our hands: what was fetched of it, what is handed out, what is settled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from brokerkit_rocketmq.progress import Progress

if TYPE_CHECKING:
    from brokerkit_rocketmq.remoting.connection import RemotingConnection
    from brokerkit_rocketmq.remoting.frames import Frame, HeadTemplate
    from brokerkit_rocketmq.remoting.messages import StoredMessage
    from brokerkit_rocketmq.routes import MessageQueue

__all__ = ["Reader"]


class Reader:
    """A queue from the moment that it is ours until it is not; there is another one when it comes back.

    A delivery's token is its reader and its offset, so it is stale when the reader is.
    """

    __slots__ = (
        "_ahead",
        "_emptied",
        "_narrow",
        "_room",
        "at_work",
        "buffer",
        "buffered",
        "checked",
        "committed",
        "disordered",
        "giving",
        "home",
        "live",
        "mark_head",
        "marking",
        "progress",
        "queue",
        "start",
        "waiting",
    )

    def __init__(
        self, queue: MessageQueue, progress: Progress[StoredMessage], home: RemotingConnection, *, ahead: int
    ) -> None:
        """``ahead``: messages that are handed out from the oldest unsettled one on while there are suspects.

        Suspects run one by one.  If the others went on meanwhile without a bound, all of those would be suspects after
        the next crash, more each time than could be run until then.
        """
        self.queue = queue
        self.progress = progress
        #: Where it began: everything below was settled before.
        self.start = progress.low
        #: The connection that it began on; when that is lost, the broker gives the queue to others.
        self.home = home
        #: Whether what was handed out may be settled.
        self.live = True
        #: Whether messages may be handed out.
        self.giving = True
        #: Offsets of what handlers are at work on.
        self.at_work: set[int] = set()
        #: What may be handed out, ascending, and its bytes.
        self.buffer: deque[StoredMessage] = deque()
        self.buffered = 0
        #: The offset that the broker has; -1: not known.
        self.committed = -1
        #: Monotonic: when it was last compared with what the broker has.
        self.checked = 0.0
        #: Whether it is in the consumer's list of readers with messages.
        self.waiting = False
        #: The header of what it writes of its mark, and the writes that are not answered yet.
        self.mark_head: HeadTemplate | None = None
        self.marking: set[asyncio.Future[Frame]] = set()
        #: Whether several of them were under way together: a broker handles those in any order.
        self.disordered = False
        #: The span below which messages may be fetched again; 0: that is not what is waited for.
        self._narrow = 0
        self._ahead = ahead
        self._room: asyncio.Future[None] | None = None
        self._emptied: asyncio.Future[None] | None = None

    @property
    def is_behind(self) -> bool:
        """Whether something was settled that the broker has not been told."""
        return self.progress.low > max(self.start, self.committed)

    # --- filling and emptying the buffer ---

    def fill(self, messages: list[StoredMessage], following: int) -> None:
        """Put what was fetched into the buffer, but for what was settled before."""
        wanted = self.progress.fetch([message.queue_offset for message in messages], following)
        if len(wanted) != len(messages):
            chosen = set(wanted)
            messages = [message for message in messages if message.queue_offset in chosen]
        self.buffer.extend(messages)
        self.buffered += sum(message.size for message in messages)

    def take(self, count: int) -> list[StoredMessage]:
        """Hand out up to ``count`` messages, in their order; none when suspects have to be settled before."""
        buffer, progress = self.buffer, self.progress
        if progress.suspects:
            end = max(progress.suspected, progress.low + self._ahead)
            count = sum(1 for _ in takewhile(lambda message: message.queue_offset < end, islice(buffer, count)))
            if not count:
                return []
        if len(buffer) <= count:
            taken, self.buffer, self.buffered = list(buffer), deque(), 0
        else:
            taken = [buffer.popleft() for _ in range(count)]
            self.buffered -= sum(message.size for message in taken)
        progress.hand_out({message.queue_offset: message for message in taken})
        room = self._room
        if room is not None and not room.done():
            room.set_result(None)
        return taken

    def give_back(self, offsets: Iterable[int]) -> int:
        """Put messages that are handed out in front of the buffer, in their order; return how many were not."""
        stale = 0
        returned = []
        for offset in offsets:
            self.at_work.discard(offset)
            message = self.progress.give_back(offset)
            if message is None:
                stale += 1
            else:
                returned.append(message)
        if returned:
            self.buffered += sum(message.size for message in returned)
            self.buffer = deque(sorted([*returned, *self.buffer], key=lambda message: message.queue_offset))
        return stale

    def take_back_unstarted(self) -> None:
        """Take back what no handler is at work on: whoever reads the queue next has it sooner."""
        self.give_back([offset for offset in self.progress.handed if offset not in self.at_work])

    def messages(self, offsets: Iterable[int]) -> list[StoredMessage]:
        """Return those of the messages that are here, handed out or not."""
        here = {message.queue_offset: message for message in self.buffer} | self.progress.handed
        return [here[offset] for offset in offsets if offset in here]

    def drop(self) -> None:
        """Forget the buffer and what is handed out: it is not ours to deliver or to settle any more."""
        self.live = self.giving = False
        self.buffer.clear()
        self.buffered = 0
        self.progress.handed.clear()

    def info(self, *, locked: bool) -> dict[str, object]:
        """Return what administrators are shown (``ProcessQueueInfo``)."""
        handed = self.progress.handed
        offsets = [*handed, *(message.queue_offset for message in self.buffer)]
        return {
            "commitOffset": self.committed,
            "cachedMsgMinOffset": min(offsets, default=0),
            "cachedMsgMaxOffset": max(offsets, default=0),
            "cachedMsgCount": len(offsets),
            "cachedMsgSizeInMiB": self.buffered >> 20,
            "transactionMsgMinOffset": 0,
            "transactionMsgMaxOffset": 0,
            "transactionMsgCount": 0,
            "locked": locked,
            "tryUnlockTimes": 0,
            "lastLockTimestamp": 0,
            "droped": not self.live,
            "lastPullTimestamp": 0,
            "lastConsumeTimestamp": 0,
        }

    # --- waiting ---

    async def all_marked(self) -> None:
        """Return when what was written of marks is answered."""
        if self.marking:
            await asyncio.wait(tuple(self.marking))

    async def room(self, most: int, most_bytes: int, span: int) -> None:
        """Return when the buffer holds at most so many messages and bytes, and `Progress.span` is below ``span``."""
        while len(self.buffer) > most or self.buffered > most_bytes or self.progress.span >= span:
            self._narrow = span if self.progress.span >= span else 0
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        self._narrow = 0

    def emptied(self) -> asyncio.Future[None]:
        """Return what is done when nothing is handed out any more; `settled` must be called after settlements."""
        if self._emptied is None:
            self._emptied = asyncio.get_running_loop().create_future()
        self.settled()
        return self._emptied

    def hurry(self) -> None:
        """Wait no longer for what is handed out."""
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def settled(self) -> None:
        """Note that something was settled or given back."""
        if self._narrow and self.progress.span < self._narrow and self._room is not None and not self._room.done():
            self._room.set_result(None)
        emptied = self._emptied
        if emptied is not None and not self.progress.handed and not emptied.done():
            emptied.set_result(None)
