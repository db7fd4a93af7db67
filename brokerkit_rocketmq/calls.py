"""`Call`: the messages of one `send`, and what became of each."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

from brokerkit.errors import BrokerError

if TYPE_CHECKING:
    from brokerkit.spi import Outbound

__all__ = ["Call", "Entry", "Pending"]


class Pending(enum.Enum):
    """Where a message without an outcome is."""

    #: Nothing of it was written: it is certainly not stored.
    WAITING = "waiting"
    #: The broker may have it.
    WRITTEN = "written"


class Call:
    """The messages of one call of `send` and their outcomes; `done` when all are known."""

    __slots__ = ("deadline", "done", "left", "outcomes")

    def __init__(self, size: int, deadline: float, done: asyncio.Future[None]) -> None:
        self.outcomes: list[BrokerError | Pending | None] = [Pending.WAITING] * size
        self.left = size
        #: On the monotonic clock.
        self.deadline = deadline
        #: Cancelled when the caller was: what is not written yet never is.
        self.done = done

    def settle(self, index: int, outcome: BrokerError | None) -> None:
        """Note the outcome of one message, once for each; ignored when the call has ended meanwhile."""
        if self.done.done():
            return
        self.outcomes[index] = outcome
        self.left -= 1
        if not self.left:
            self.done.set_result(None)

    def expire(self, waiting: Callable[[], BrokerError], written: Callable[[], BrokerError]) -> None:
        """Give every message without an outcome one: its time is up.  What the broker answers later is ignored."""
        if self.done.done():
            return
        for index, outcome in enumerate(self.outcomes):
            if outcome is Pending.WAITING:
                self.outcomes[index] = waiting()
            elif outcome is Pending.WRITTEN:
                self.outcomes[index] = written()
        self.done.set_result(None)


#: A message, whose call it is, and its place there.
Entry = tuple["Outbound", Call, int]
