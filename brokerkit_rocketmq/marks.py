"""`Mark`: how far a queue was handed out, and which message is being tried alone, in the one number a broker keeps.

The mark of a queue is the offset of the shadow group.  As a rule it is just the offset below which messages were handed
out.  While a message that may have ended a process is tried again, the mark also says which one and how often it was
started, so that this is known even if it ends the process once more: both change together or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mark", "Trial"]

#: Brokers take any number that is not negative (``ConsumerOffsetManager``, 4.9 and 5.x).  No queue gets to this offset.
_TRIAL = 1 << 62
_STARTS_BITS = 8
_SPAN_BITS = 14
_MOST_STARTS = (1 << _STARTS_BITS) - 1
_MOST_SPAN = (1 << _SPAN_BITS) - 1
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
