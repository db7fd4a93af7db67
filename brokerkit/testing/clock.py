"""A clock that a test moves by hand, so that an hour passes in the time of the work that is due in it."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
import threading
from collections.abc import Callable

from brokerkit.clock import SystemClock

__all__ = ["VirtualClock"]

#: Ticks a second.  A power of two, so that every `time()` is an exact float: ``due = time() + delay`` followed by
#: ``call_later(due - time())`` then neither fires early nor misses the `advance` that should reach it.
_TICKS = 1 << 20

#: The loop counts as idle after this many turns in a row without a ready callback: each turn polls the sockets once.
_QUIET_TURNS = 5

#: Turns for a loop that does not show its ready queue (uvloop).
_BLIND_TURNS = 100

#: Cancelled timers are swept out of the heap when there are more of them than this and than live ones.
_SWEEP = 64


class _VirtualTimer:
    """One pending callback; ordered by instant, then by creation."""

    __slots__ = ("callback", "clock", "context", "due", "loop", "number")

    def __init__(
        self,
        clock: VirtualClock,
        due: int,
        number: int,
        callback: Callable[[], object],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.clock = clock
        self.due = due
        self.number = number
        self.callback: Callable[[], object] | None = callback
        self.loop = loop
        self.context = contextvars.copy_context()

    def __lt__(self, other: _VirtualTimer) -> bool:
        return (self.due, self.number) < (other.due, other.number)

    def cancel(self) -> None:
        self.clock._cancel(self)

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()


class VirtualClock:
    """A `brokerkit.clock.Clock` that stands still until `advance` moves it.

    ``start`` is the first value of `time`, in seconds since the epoch.  ``busy`` says whether work that the loop
    cannot see is under way, such as a handler in a thread; see `watch`.  Durations are rounded up to ticks of
    2**-20 s (about a microsecond), so nothing fires early.  `time` and `monotonic` may be called from any thread,
    `sleep` and `call_later` from a running event loop.
    """

    def __init__(
        self, start: float = 1_700_000_000.0, *, busy: Callable[[], bool] | None = None, patience: float = 30.0
    ) -> None:
        """``patience`` is how long, in real seconds, `advance` waits for the loop to become idle before it fails."""
        self._system = SystemClock()
        self._patience = patience
        self._lock = threading.Lock()
        self._origin = math.ceil(start * _TICKS)
        self._ticks = 0
        self._heap: list[_VirtualTimer] = []
        self._cancelled = 0
        self._created = 0
        self._advancing = False
        self._busy: list[Callable[[], bool]] = [] if busy is None else [busy]

    # --- Clock ------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return (self._origin + self._ticks) / _TICKS

    def monotonic(self) -> float:
        # Far from `time`, so that code which mixes the two fails its test.
        return 1000.0 + self._ticks / _TICKS

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self.call_later(seconds, wake)
        try:
            await woken
        finally:
            timer.cancel()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> _VirtualTimer:
        loop = asyncio.get_running_loop()
        with self._lock:
            self._created += 1
            timer = _VirtualTimer(self, self._ticks + _ticks(seconds), self._created, callback, loop)
            if timer.due > self._ticks:
                heapq.heappush(self._heap, timer)
                return timer
        loop.call_soon(timer.fire)
        return timer

    # --- moving it --------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """How many timers wait for their instant."""
        with self._lock:
            return len(self._heap) - self._cancelled

    @property
    def until_next(self) -> float | None:
        """Seconds to the earliest timer; None when there is none."""
        with self._lock:
            while self._heap and self._heap[0].callback is None:
                heapq.heappop(self._heap)
                self._cancelled -= 1
            return (self._heap[0].due - self._ticks) / _TICKS if self._heap else None

    def watch(self, busy: Callable[[], bool]) -> Callable[[], None]:
        """Add ``busy``, keep `advance` turning the loop while it returns True; return a call that removes it.

        It is called on the loop and must stay True until the result of the work has been handed to the loop.
        """
        self._busy.append(busy)
        return lambda: self._busy.remove(busy)

    async def advance(self, seconds: float) -> None:
        """Move ``seconds`` ahead, through every timer on the way at its exact instant, ties in order of creation.

        Returns when nothing is runnable any more: no callback is ready on this loop over several turns, nor on the
        loops that made the timers which fired, and no ``busy`` hook says otherwise.  Raises `AssertionError` when
        that does not happen within ``patience`` real seconds after a timer, and `RuntimeError` when called while
        another `advance` runs.
        """
        if not seconds >= 0:
            raise ValueError(f"a clock cannot be advanced by {seconds!r} seconds: pass 0 or more")
        with self._lock:
            if self._advancing:
                raise RuntimeError("advance() was called while another advance() of this clock runs: await that first")
            self._advancing = True
        try:
            await self._settle()
            with self._lock:
                target = self._ticks + _ticks(seconds)
            while due := self._take_next(target):
                here = asyncio.get_running_loop()
                elsewhere = set()
                for timer in due:
                    if timer.loop is here:
                        here.call_soon(timer.fire, context=timer.context)
                    elif timer.loop.is_running():
                        timer.loop.call_soon_threadsafe(timer.fire, context=timer.context)
                        elsewhere.add(timer.loop)
                for loop in elsewhere:
                    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._settle(), loop))
                await self._settle()
            await self._settle()
        finally:
            with self._lock:
                self._advancing = False

    def advance_threadsafe(self, loop: asyncio.AbstractEventLoop, seconds: float, within: float = 60.0) -> None:
        """Advance from a thread that does not run ``loop``, on which the timers live; block until it is done.

        ``within`` is in real seconds; `AssertionError` when it was not enough.
        """
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            raise RuntimeError("advance_threadsafe() would block the loop that it waits for: await advance() there")
        future = asyncio.run_coroutine_threadsafe(self.advance(seconds), loop)
        try:
            future.result(within)
        except TimeoutError:
            if future.done():
                raise
            future.cancel()
            raise AssertionError(
                f"advancing by {seconds:g} virtual seconds took more than {within:g} real ones"
            ) from None

    def _take_next(self, target: int) -> list[_VirtualTimer]:
        """Take the timers of the earliest instant up to ``target`` and move the time there, or to ``target``."""
        with self._lock:
            due: list[_VirtualTimer] = []
            while self._heap and self._heap[0].due <= target:
                head = self._heap[0]
                if head.callback is None:
                    self._cancelled -= 1
                elif due and head.due > due[0].due:
                    break
                else:
                    due.append(head)
                heapq.heappop(self._heap)
            self._ticks = max(self._ticks, due[0].due if due else target)
            return due

    def _cancel(self, timer: _VirtualTimer) -> None:
        with self._lock:
            if timer.callback is None:
                return
            timer.callback = None
            if timer.due <= self._ticks:
                return  # already taken out of the heap: `fire` finds nothing to call
            self._cancelled += 1
            if self._cancelled > max(_SWEEP, len(self._heap) // 2):
                self._heap = [kept for kept in self._heap if kept.callback is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    async def _settle(self) -> None:
        """Turn the loop until nothing is ready."""
        ready = getattr(asyncio.get_running_loop(), "_ready", None)
        deadline = self._system.monotonic() + self._patience
        quiet = 0
        while quiet < (_BLIND_TURNS if ready is None else _QUIET_TURNS):
            if any(busy() for busy in tuple(self._busy)):
                quiet = 0
                # Real time on purpose: the thread that is waited for needs the processor.
                await self._system.sleep(0.001)
            else:
                # Looked at before this task yields: its own turn is then not in the queue.
                quiet = quiet + 1 if not ready else 0
                await asyncio.sleep(0)
            if self._system.monotonic() > deadline:
                reason = (
                    "a busy hook stayed true" if any(busy() for busy in tuple(self._busy)) else "callbacks stay ready"
                )
                raise AssertionError(
                    f"the loop was not idle within {self._patience:g} real seconds at virtual time "
                    f"{self.monotonic():.6f}: {reason}"
                )


def _ticks(seconds: float) -> int:
    return max(0, math.ceil(seconds * _TICKS))
