"""`Patience`: ends a worker process by force when it was asked to stop and does not."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from brokerkit.clock import Clock

__all__ = ["Patience"]

#: Seconds beyond the stop timeout after the first signal.  A handler that ignores its cancellation takes five.
_GRACE = 8.0
#: Seconds after the second signal; less than the supervisor gives its children.
_NOW = 4.0


class Patience:
    """Counts SIGINT and SIGTERM in a thread of its own: an event loop that a handler holds up hears of neither.

    The third signal, and the end of the patience after the first two, end the process with exit code 1.  What was
    in work goes back to its group, as after any crash.

    on_first:  called when the first signal comes
    on_second: called when the second one comes; Python makes one call of its handler of two that come at once
    on_forced: called before the process ends by force
    """

    def __init__(
        self,
        stop_timeout: float,
        clock: Clock,
        *,
        on_first: Callable[[], object],
        on_second: Callable[[], object],
        on_forced: Callable[[], object],
    ) -> None:
        self._stop_timeout = stop_timeout
        self._clock = clock
        self._on_first = on_first
        self._on_second = on_second
        self._on_forced = on_forced
        self._read, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._before = -1
        self._thread = threading.Thread(target=self._watch, name="brokerkit-patience", daemon=True)

    def __enter__(self) -> Self:
        # Python writes each signal's number there at once, whatever the main thread is at.
        self._before = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._written)
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        signals = 0
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(deadline - self._clock.monotonic(), 0.0)
            ready, _, _ = select.select([self._read], [], [], left)
            if not ready:
                self._on_forced()
                os._exit(1)
            heard = os.read(self._read, 64)
            if not heard:
                return
            for number in heard:
                if number not in (signal.SIGINT, signal.SIGTERM):
                    continue
                signals += 1
                seconds = {1: self._stop_timeout + _GRACE, 2: _NOW}.get(signals, 0.0)
                until = self._clock.monotonic() + seconds
                deadline = until if deadline is None else min(deadline, until)
                if signals == 1:
                    self._on_first()
                elif signals == 2:
                    self._on_second()
