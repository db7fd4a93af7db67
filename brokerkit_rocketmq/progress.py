"""`Progress`: what became of the messages of one queue, and the one offset that the broker is told of it.

The broker knows one number a queue: everything below it is done.  So it can only be the smallest offset that is not
settled; what was settled above it is known here alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from brokerkit_rocketmq.marks import Mark, TrialCounts

__all__ = ["Progress"]

M = TypeVar("M")


class Progress(Generic[M]):
    """The offsets of one queue, in their order: fetched, then handed out, then settled or given back.

    Offsets need not be without gaps: what a filter kept away, or was deleted, is never fetched.
    """

    __slots__ = ("_order", "_settled", "doubtful", "handed", "high", "next", "suspected", "trials", "witness")

    def __init__(self, start: int, mark: Mark | None = None) -> None:
        """Begin at offset ``start``; what is below ``mark`` was handed out before, to a process that may have died."""
        high = mark.high if mark is not None else 0
        #: The next offset to fetch.
        self.next = start
        #: What is handed out and not settled, by offset.
        self.handed: dict[int, M] = {}
        #: The offset after the highest that was ever handed out.  As a queue is handed out in its order, an offset
        #: below it was delivered before.
        self.high = max(start, high)
        #: Messages below this offset may have been started by a process that died of them.
        self.suspected = high
        self.trials = TrialCounts(mark.trial if mark is not None else None)
        #: Whether offsets below it were delivered before is not known.
        self.doubtful = 0
        #: A message below `low`: while the queue has it, the queue is the one that these offsets are of.
        self.witness: M | None = None
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

    def fetch(self, offsets: list[int], following: int) -> list[int]:
        """Note what was fetched, ascending, and where to go on; return what is to be handed out.

        Offsets that were settled before, on another assignment of the queue, are left out, and so are those below
        the place to go on from.
        """
        settled, first = self._settled, self.next
        if not settled and (not offsets or offsets[0] >= first):
            self._order.extend(offsets)
            self.next = max(following, first)
            return offsets
        wanted: list[int] = []
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
        message = self.handed.pop(offset, None)
        if message is None:
            return False
        order = self._order
        if order and order[0] == offset:
            order.popleft()
            self.witness = message
            if self._settled:
                self._advance()
        else:
            self._settled.add(offset)
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

    # --- what a process may have died of ---

    @property
    def suspects(self) -> bool:
        """Whether some are not settled yet that a process may have died of."""
        return self.low < self.suspected

    @property
    def mark(self) -> Mark:
        """What the next reader has to know if this process dies now."""
        return Mark(self.high, self.trials.worst(self.low))

    def begin_trial(self, offset: int) -> None:
        """Note that a suspect is about to be started alone; `mark` is to be written before."""
        self.trials.settle_below(self.low)
        self.trials.begin(offset)

    def meet(self, mark: Mark) -> None:
        """Take in the mark of the broker, after a time in which others may have had the queue and died."""
        if mark.high > self.high or self._tried_elsewhere(mark):
            self.suspected = mark.high
            self.high = max(self.high, mark.high)
            self.trials = TrialCounts(mark.trial)

    def _tried_elsewhere(self, mark: Mark) -> bool:
        trial = mark.trial
        return trial is not None and trial.offset >= self.low and trial.starts > self.trials.starts(trial.offset)

    def _advance(self) -> None:
        order, settled = self._order, self._settled
        while order and order[0] in settled:
            settled.discard(order.popleft())
