"""`Mark`: how far a queue was handed out, and which message is being tried alone, in the one number a broker keeps.

The mark of a queue is the offset of the shadow group.  As a rule it is just the offset below which messages were handed
out.  While a message that may have ended a process is tried again, the mark also says which one and how often it was
started, so that this is known even if it ends the process once more: both change together or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MOST_IN_HAND", "Mark", "Trial", "TrialCounts"]

#: Brokers take any number that is not negative (``ConsumerOffsetManager``, 4.9 and 5.x).  No queue gets to this offset.
_TRIAL = 1 << 62
_STARTS_BITS = 8
_SPAN_BITS = 14
_MOST_STARTS = (1 << _STARTS_BITS) - 1
_MOST_SPAN = (1 << _SPAN_BITS) - 1
#: Messages of a queue that may be handed out at the same time and still be told apart.
MOST_IN_HAND = _MOST_SPAN
_MOST_OFFSET = (1 << (62 - _STARTS_BITS - _SPAN_BITS)) - 1


@dataclass(frozen=True, slots=True)
class Trial:
    """A message that was started while no other suspect was."""

    offset: int
    #: Starts until now; 255 stands for more as well.
    starts: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What the members of a group leave to each other about one queue."""

    #: Messages below this offset were handed out.
    high: int
    trial: Trial | None = None

    @property
    def number(self) -> int:
        """The mark as an offset.  A trial that does not fit (offset from 2^40 on) is left out."""
        trial = self.trial
        if trial is None or not (0 <= trial.offset <= _MOST_OFFSET and 0 <= self.high - trial.offset <= _MOST_SPAN):
            return self.high
        low_bits = (self.high - trial.offset) << _STARTS_BITS | min(trial.starts, _MOST_STARTS)
        return _TRIAL | trial.offset << (_SPAN_BITS + _STARTS_BITS) | low_bits

    @classmethod
    def of(cls, number: int) -> Mark:
        """Return what an offset of the shadow group says."""
        if number < _TRIAL:
            return cls(number)
        offset = (number & (_TRIAL - 1)) >> (_SPAN_BITS + _STARTS_BITS)
        return cls(offset + (number >> _STARTS_BITS & _MOST_SPAN), trial=Trial(offset, starts=number & _MOST_STARTS))


class TrialCounts:
    """The suspects of one queue that were tried, and how often each of them was started.

    A suspect is a message that was handed out to a process that may have died of it: one start, if any.
    """

    __slots__ = ("_starts", "_trying")

    def __init__(self, trial: Trial | None = None) -> None:
        self._starts = {trial.offset: trial.starts} if trial is not None else {}
        #: What was started here and neither settled nor given back.
        self._trying: set[int] = set()

    def starts(self, offset: int) -> int:
        """Return how often a suspect was started, one start included that nobody recorded."""
        return self._starts.get(offset, 1)

    def begin(self, offset: int) -> None:
        """Count a start."""
        self._starts[offset] = self.starts(offset) + 1
        self._trying.add(offset)

    def cancel(self, offset: int) -> bool:
        """Take back the start of a suspect that did not end this process; return whether there was one."""
        if offset not in self._trying:
            return False
        self._trying.discard(offset)
        self._starts[offset] -= 1
        return True

    def cancel_all(self) -> None:
        """Take back all starts of what is being tried."""
        for offset in tuple(self._trying):
            self.cancel(offset)

    def settle_below(self, low: int) -> None:
        """Forget what is settled."""
        for offset in [offset for offset in self._starts if offset < low]:
            del self._starts[offset]
            self._trying.discard(offset)

    def worst(self, low: int) -> Trial | None:
        """Return the suspect from ``low`` on that was started most often; None when none was tried.

        A mark has room for one.  Others are rarely tried at the same time, and are charged less than they should be.
        """
        tried = [Trial(offset, starts) for offset, starts in self._starts.items() if offset >= low and starts > 1]
        return max(tried, key=lambda trial: trial.starts, default=None)
