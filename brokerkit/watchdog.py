"""Names the code that holds up the event loop.

A blocking call in an async handler stops everything else in the process, heartbeats included.  A thread looks
at the loop's pulse; when it is late it reads where the loop's thread is, which names the culprit and the line.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from types import CodeType, FrameType

__all__ = ["LoopWatchdog"]

log = logging.getLogger("brokerkit.worker")

#: Seconds between two beats, and without one after which the loop counts as held up.
_BEAT = 0.25
_LATE = 0.5
#: Seconds between two warnings about the same handler.
_SILENCE = 60.0


class LoopWatchdog:
    """Warns when the running event loop is held up for more than half a second.

    It lives on real time, not on the manager's clock: a thread that blocks does so in real time.
    """

    def __init__(self, handlers: Callable[[], Iterable[tuple[str, CodeType]]]) -> None:
        self._handlers = handlers
        self._stop = threading.Event()
        self._beaten = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        #: How many times the loop was found held up.
        self.held_up = 0

    def start(self) -> None:
        """Watch the running loop."""
        loop = asyncio.get_running_loop()
        loop_thread = threading.get_ident()
        self._beat(loop)
        self._thread = threading.Thread(
            target=self._watch, args=(loop, loop_thread), name="brokerkit-watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; returns when the thread has ended."""
        self._stop.set()
        if self._timer is not None:
            self._timer.cancel()
        self._beaten.set()
        if self._thread is not None:
            self._thread.join()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beaten.set()
        self._timer = loop.call_later(_BEAT, self._beat, loop)

    def _watch(self, loop: asyncio.AbstractEventLoop, loop_thread: int) -> None:
        warned: dict[str, int] = {}
        rounds = 0
        while not self._stop.wait(_BEAT):
            rounds += 1
            if self._beaten.wait(_BEAT + _LATE):
                self._beaten.clear()
                continue
            if loop.is_closed():
                # Its owner closed it without a stop; what runs in that thread now is somebody else's.
                return
            frame = sys._current_frames().get(loop_thread)
            if frame is None or self._stop.is_set():
                continue
            self.held_up += 1
            name, where = self._culprit(frame)
            if rounds - warned.get(name, -(10**9)) < _SILENCE / _BEAT:
                continue
            warned[name] = rounds
            log.warning(
                "the event loop is held up by %s at %s: a blocking call belongs into a sync handler "
                "or asyncio.to_thread",
                name,
                where,
            )

    def _culprit(self, frame: FrameType) -> tuple[str, str]:
        """Return the handler on the stack, and the innermost line."""
        known = {code: name for name, code in self._handlers()}
        inner = traceback.extract_stack(frame, limit=1)[-1]
        where = f"{inner.filename}:{inner.lineno} in {inner.name}"
        walk: FrameType | None = frame
        while walk is not None:
            if walk.f_code in known:
                return f"handler {known[walk.f_code]}", where
            walk = walk.f_back
        return "code outside of any handler", where
