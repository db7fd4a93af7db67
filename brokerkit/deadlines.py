"""Many pending deadlines under one timer.

A timer of the event loop for every handler costs 5 µs a message; here a deadline is an entry in a slot, and one
timer sweeps the slots.  The price is that a deadline may come late by one slot.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from brokerkit.clock import Clock, Timer
from brokerkit.errors import Closed

__all__ = ["Deadline", "DeadlineTable"]

#: Seconds.  The timer looks at the table at least this often, so that it ends soon after the last entry went.
#: Cancelling it with the last entry would arm and cancel one timer a message where handlers never suspend.
_LONGEST_SLEEP = 1.0
#: Seconds.  The sum of now and a rounded difference may fall short of the slot; without a margin the timer would
#: be armed again for a time too short to move a virtual clock.
_MARGIN = 1e-6
#: Slots of long deadlines span this share of them.
_LATENESS = 0.01
#: Different timeouts whose slot width is remembered.
_REMEMBERED = 256

#: What `DeadlineTable.add` returns: opaque.
Deadline = tuple[dict[int, Callable[[], object]], int]


class DeadlineTable:
    """Calls back when deadlines pass; for one event loop.

    A callback comes never early, and late by at most the greater of ``tick`` and 1 % of its timeout (and what the
    loop is held up).  Without entries no timer is armed, at the latest one second after the last one was removed.
    """

    def __init__(self, clock: Clock, *, tick: float = 0.05) -> None:
        self._clock = clock
        self._monotonic = clock.monotonic
        self._tick = tick
        self._numbers = itertools.count()
        #: By the number of the tick at which the slot is due.
        self._slots: dict[int, dict[int, Callable[[], object]]] = {}
        self._order: list[int] = []
        #: Ticks that a slot spans, by timeout.
        self._spans: dict[float, int] = {}
        self._timer: Timer | None = None
        #: When the timer fires; monotonic.
        self._wake = 0.0
        self._closed = False

    def add(self, seconds: float, callback: Callable[[], object]) -> Deadline:
        """Call ``callback`` once ``seconds`` have passed; return what `remove` takes.  Call on the loop."""
        span = self._spans.get(seconds) or self._span(seconds)
        number = (int((self._monotonic() + seconds) / self._tick) // span + 1) * span
        slot = self._slots.get(number)
        if slot is None:
            slot = self._open_slot(number)
        entry = next(self._numbers)
        slot[entry] = callback
        return slot, entry

    def remove(self, deadline: Deadline) -> None:
        """Do not call back.  No-op when it was called or removed before."""
        deadline[0].pop(deadline[1], None)

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    @property
    def armed(self) -> bool:
        """Whether a timer is pending."""
        return self._timer is not None

    def close(self) -> None:
        """Forget all deadlines without calling back; `add` raises `Closed` from now on.  Idempotent."""
        self._closed = True
        self._forget()
        self._disarm()

    def _span(self, seconds: float) -> int:
        if len(self._spans) >= _REMEMBERED:
            self._spans.clear()
        # One slot for each tick of an hour would be 72,000 slots.
        span = self._spans[seconds] = max(1, int(seconds * _LATENESS / self._tick))
        return span

    def _open_slot(self, number: int) -> dict[int, Callable[[], object]]:
        if self._closed:
            raise Closed("a deadline cannot be added: the table was closed")
        slot = self._slots[number] = {}
        heapq.heappush(self._order, number)
        if self._timer is None or number * self._tick < self._wake:
            self._arm()
        return slot

    def _arm(self) -> None:
        self._disarm()
        now = self._monotonic()
        delay = min(max(self._order[0] * self._tick - now, 0.0) + _MARGIN, _LONGEST_SLEEP)
        self._wake = now + delay
        self._timer = self._clock.call_later(delay, self._sweep)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget(self) -> None:
        for slot in self._slots.values():
            slot.clear()
        self._slots.clear()
        self._order.clear()

    def _sweep(self) -> None:
        self._timer = None
        now = self._monotonic()
        due: list[dict[int, Callable[[], object]]] = []
        while self._order and self._order[0] * self._tick <= now:
            due.append(self._slots.pop(heapq.heappop(self._order)))
        # The timer first: a callback may add or remove deadlines, or close the table.
        if any(self._slots.values()):
            self._arm()
        else:
            self._forget()
        for slot in due:
            for entry in tuple(slot):
                callback = slot.pop(entry, None)  # a callback before may have removed it
                if callback is not None and not self._closed:
                    self._call(callback)

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except Exception as exc:  # the other deadlines must not suffer; the loop reports it like any callback's
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the callback of a deadline failed: {callback!r}", "exception": exc}
            )
