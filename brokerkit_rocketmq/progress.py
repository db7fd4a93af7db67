"""`Progress`: what became of the messages of one queue, and the one offset that the broker is told of it.

The broker knows one number a queue: everything below it is done.  So it can only be the smallest offset that is not
settled; what was settled above it is known here alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

__all__ = ["Progress"]

M = TypeVar("M")


class Progress(Generic[M]):
    """The offsets of one queue, in their order: fetched, then handed out, then settled or given back.

    Offsets need not be without gaps: what a filter kept away, or was deleted, is never fetched.
    """

    __slots__ = ("_order", "_settled", "doubtful", "handed", "high", "next")

    def __init__(self, start: int, mark: int = 0) -> None:
        """Begin at offset ``start``; whatever is below ``mark`` may have been handed out before."""
        #: The next offset to fetch.
        self.next = start
        #: What is handed out and not settled, by offset.
        self.handed: dict[int, M] = {}
        #: The offset after the highest that was ever handed out.  As a queue is handed out in its order, an offset
        #: below it was delivered before.
        self.high = max(start, mark)
        #: Whether offsets below it were delivered before is not known.
        self.doubtful = 0
        #: Fetched offsets, ascending, from the smallest that is not settled on.
        self._order: deque[int] = deque()
        #: Of those, the settled ones.
        self._settled: set[int] = set()

    @property
    def low(self) -> int:
        """The smallest offset that is not settled: where a reader goes on that knows only the broker's number."""
        return self._order[0] if self._order else self.next

    @property
    def span(self) -> int:
        """How many fetched offsets are remembered: from the smallest that is not settled to the last one."""
        return len(self._order)

    def fetch(self, offsets: Iterable[int], following: int) -> list[int]:
        """Note what was fetched, ascending, and where to go on; return what is to be handed out.

        Offsets that were settled before, on another assignment of the queue, are left out, and so are those below
        the place to go on from.
        """
        wanted: list[int] = []
        settled, first = self._settled, self.next
        for offset in offsets:
            if offset < first:
                continue
            if offset not in settled:
                wanted.append(offset)
            self._order.append(offset)
        self.next = max(following, first)
        self._advance()
        return wanted

    def skip(self, offsets: Iterable[int]) -> None:
        """Settle offsets that were fetched and nobody is to see, such as those a filter refuses."""
        self._settled.update(offsets)
        self._advance()

    def hand_out(self, messages: dict[int, M]) -> None:
        """Note that fetched messages leave the buffer, by ascending offset."""
        self.handed.update(messages)
        last = next(reversed(messages), -1)
        if last >= self.high:
            self.high = last + 1

    def settle(self, offset: int) -> bool:
        """Settle one that is handed out; return whether it was."""
        if self.handed.pop(offset, None) is None:
            return False
        self._settled.add(offset)
        order = self._order
        if order and order[0] == offset:
            self._advance()
        return True

    def give_back(self, offset: int) -> M | None:
        """Take back one that is handed out, as fetched, and return it; None when it was not handed out."""
        return self.handed.pop(offset, None)

    @property
    def holes(self) -> list[int]:
        """Offsets that are not settled below one that is: the broker's number makes it come again."""
        settled = self._settled
        if not settled:
            return []
        last = max(settled)
        return [offset for offset in self._order if offset < last and offset not in settled]

    def rewind(self) -> None:
        """Fetch again from the smallest unsettled offset on; what was handed out is so no more."""
        self.next = self.low
        self.handed.clear()
        self._order.clear()

    def _advance(self) -> None:
        order, settled = self._order, self._settled
        while order and order[0] in settled:
            settled.discard(order.popleft())
