"""`Interrupts`: Ctrl-C, SIGTERM and a closed terminal, in the order in which they come."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts"]


class Interrupts:
    """Counts signals; the first one raises KeyboardInterrupt, later ones are for whoever reads ``count``."""

    def __init__(self) -> None:
        self.count = 0
        self._held = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen in this block; must run in the main thread."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.signal(number, self._note) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raise only at the end of this block: what is started in it must not be forgotten."""
        before = self.count
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if before == 0 and self.count:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1 and not self._held:
            raise KeyboardInterrupt
