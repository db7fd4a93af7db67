"""How a running manager is asked to stop: SIGTERM and SIGINT, and what the second one means."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["StopRequest", "stop_signals"]


class StopRequest:
    """Says stop when it is called, and stop now when it is called again.  Lives on the manager's event loop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        #: Ends the drain that is under way.
        self.hurry: Callable[[], None] | None = None

    def __call__(self) -> None:
        if self.asked.is_set() and self.hurry is not None:
            self.hurry()
        self.asked.set()


@contextmanager
def stop_signals(ask: Callable[[], object]) -> Iterator[None]:
    """Call ``ask`` for each SIGTERM and SIGINT; afterwards the handlers are what they were before.

    Outside of the main thread, where Python handles no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: ask()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            # None stands for a handler that was not set by Python; nothing can put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
