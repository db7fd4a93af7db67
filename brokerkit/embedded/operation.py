"""One thing to do in a transaction, and how much fits into one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from brokerkit.embedded.transaction import Transaction
from brokerkit.spi import Outbound

__all__ = ["MAX_BYTES", "MAX_WEIGHT", "Operation", "Queued", "Sending", "split"]

#: Bounds of one transaction, so that the next process waits a few milliseconds at most.
MAX_WEIGHT = 500
MAX_BYTES = 4 << 20


class Queued:
    """One thing to do in a transaction, and who waits for it.

    `apply` raises a `BrokerError` only before it changed anything: it then fails alone.  ``probe`` may find out
    without a transaction that there is nothing to do, and return the result.  ``discard`` gets a result that
    nobody waits for any more.  ``future`` gets the error, or None when ``result`` is there: an exception in a
    future that is dropped would be logged.
    """

    __slots__ = ("error", "future", "loop", "result", "since")

    durable: bool = False
    weight: int = 1
    size: int = 0
    probe: Callable[[], Any] | None = None
    discard: Callable[[Any], object] | None = None
    result: Any
    error: BaseException | None
    future: asyncio.Future[BaseException | None] | None
    loop: asyncio.AbstractEventLoop | None
    #: When it was submitted, by the monotonic clock.
    since: float

    def __init__(self) -> None:
        self.result = self.error = self.future = self.loop = None

    def apply(self, tx: Transaction) -> Any:
        """Do it and return the result."""
        raise NotImplementedError

    def deliver(self) -> None:
        """Tell the one who waits, on their loop."""
        future = self.future
        if future is None:
            return
        if not future.done():
            future.set_result(self.error)
        elif self.discard is not None and self.error is None:
            self.discard(self.result)


class Operation(Queued):
    """Whatever a function does."""

    __slots__ = ("_apply", "discard", "durable", "probe", "size", "weight")

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
        super().__init__()
        self._apply = apply
        self.durable = durable
        self.weight = weight
        self.size = size
        self.probe = probe
        self.discard = discard

    def apply(self, tx: Transaction) -> Any:
        return self._apply(tx)


class Sending(Queued):
    """Messages to store; the result is one outcome each.  A class of its own, because there is one for each send."""

    __slots__ = ("messages", "size", "weight")

    durable = True

    def __init__(self, messages: Sequence[Outbound], size: int) -> None:
        self.messages = messages
        self.weight = len(messages)
        self.size = size
        self.result = self.error = self.future = self.loop = None

    def apply(self, tx: Transaction) -> Any:
        return tx.send(self.messages)


def split(messages: Sequence[Outbound]) -> list[Sending]:
    """Split what is too much for one transaction."""
    size = sum(len(message.body) for message in messages)
    if len(messages) <= MAX_WEIGHT and size <= MAX_BYTES:
        return [Sending(messages, size)] if messages else []
    parts: list[Sending] = []
    part: list[Outbound] = []
    size = 0
    for message in messages:
        length = len(message.body)
        if part and (len(part) >= MAX_WEIGHT or size + length > MAX_BYTES):
            parts.append(Sending(part, size))
            part, size = [], 0
        part.append(message)
        size += length
    parts.append(Sending(part, size))
    return parts
