"""What the broken backends have in common."""

from __future__ import annotations

from itertools import count
from typing import ClassVar

from brokerkit import spi

from .interposed import (
    InterposedBackend,
)

__all__ = ["BrokenBackend"]


class BrokenBackend(InterposedBackend):
    """The base of the broken ones."""

    #: The cases that must fail on this backend.
    caught_by: ClassVar[tuple[str, ...]]

    def __init__(self, inner: spi.Backend) -> None:
        super().__init__(inner)
        self.tick = count(1).__next__

    def now_and_then(self, every: int) -> bool:
        """Return True on each ``every``-th call."""
        return self.tick() % every == 0
