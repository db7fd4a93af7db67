"""One thing to do in a transaction, and how much fits into one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from brokerkit.embedded.transaction import Transaction
from brokerkit.spi import Outbound

__all__ = ["MAX_BYTES", "MAX_WEIGHT", "Operation", "split"]

#: Bounds of one transaction, so that the next process waits a few milliseconds at most.
MAX_WEIGHT = 500
MAX_BYTES = 4 << 20


class Operation:
    """One thing to do in a transaction, and who waits for it.

    ``apply`` raises a `BrokerError` only before it changed anything: it then fails alone.  ``probe`` may find out
    without a transaction that there is nothing to do, and return the result.  ``discard`` gets a result that
    nobody waits for any more.
    """

    __slots__ = ("apply", "discard", "durable", "error", "future", "loop", "probe", "result", "size", "weight")

    def __init__(
        self,
        apply: Callable[[Transaction], Any],
        *,
        durable: bool,
        weight: int = 1,
        size: int = 0,
        probe: Callable[[], Any] | None = None,
        discard: Callable[[Any], object] | None = None,
    ) -> None:
        self.apply = apply
        self.durable = durable
        self.weight = weight
        self.size = size
        self.probe = probe
        self.discard = discard
        self.result: Any = None
        self.error: BaseException | None = None
        self.future: asyncio.Future[Any] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def deliver(self) -> None:
        """Tell the one who waits, on their loop."""
        future = self.future
        if future is None:
            return
        if not future.done():
            # An error travels in the operation: an exception in a future that is dropped would be logged.
            future.set_result(None)
        elif self.discard is not None and self.error is None:
            self.discard(self.result)


def split(messages: Sequence[Outbound]) -> list[Sequence[Outbound]]:
    """Split what is too much for one transaction."""
    if len(messages) <= MAX_WEIGHT and sum(len(message.body) for message in messages) <= MAX_BYTES:
        return [messages] if messages else []
    parts: list[Sequence[Outbound]] = []
    part: list[Outbound] = []
    size = 0
    for message in messages:
        size += len(message.body)
        if part and (len(part) >= MAX_WEIGHT or size > MAX_BYTES):
            parts.append(part)
            part, size = [], len(message.body)
        part.append(message)
    parts.append(part)
    return parts
