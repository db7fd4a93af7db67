"""`BlockingDeliveries`: what ``Manager.consume(…)`` gives."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self

from brokerkit.blocking_delivery import BlockingDelivery
from brokerkit.deliveries import Deliveries
from brokerkit.errors import Closed
from brokerkit.gate import Gate

__all__ = ["BlockingDeliveries"]


class BlockingDeliveries:
    """A context manager and iterator of `BlockingDelivery`.

    In an ordered group the next message of a key comes only after the one before it was settled.
    """

    def __init__(self, deliveries: Deliveries, gate: Gate) -> None:
        self._deliveries = deliveries
        self._gate = gate

    def __enter__(self) -> Self:
        self._gate.call(self._deliveries.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> BlockingDelivery:
        delivery = self.receive()
        if delivery is None:
            raise StopIteration
        return delivery

    def receive(self, timeout: float | None = None) -> BlockingDelivery | None:
        """Return the next delivery, or None after ``timeout`` seconds; without a timeout wait for ever.

        Raise `Closed` when the deliveries or the manager are closed meanwhile.
        """
        delivery = self._gate.call(partial(self._deliveries.receive, timeout))
        return None if delivery is None else BlockingDelivery(delivery, self._settle)

    def close(self) -> None:
        """Close the consumer; what was not settled goes back.  Idempotent."""
        if not self._gate.running:
            return
        try:
            self._gate.call(self._deliveries.aclose)
        except Closed:
            # The manager is being closed by another thread, and these with it.
            if not self._gate.closed:
                raise

    def _settle(self, verb: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            self._gate.call(verb)
        except Closed:
            # As after a lost connection: the delivery is stale, and comes again.
            if not self._gate.closed:
                raise
