"""`BlockingDeliveries` and `BlockingDelivery`: what ``Manager.consume(…)`` gives."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from brokerkit.deliveries import Deliveries
from brokerkit.delivery import Delivery
from brokerkit.errors import Closed
from brokerkit.gate import Gate
from brokerkit.message import Message

__all__ = ["BlockingDeliveries", "BlockingDelivery"]

T = TypeVar("T")


class BlockingDelivery:
    """A `Delivery` for blocking code: the same verbs, the same rules.

    ``with delivery:`` acknowledges on success and nacks, with the topic's backoff, on an error.
    """

    __slots__ = ("_delivery", "_gate")

    def __init__(self, delivery: Delivery, gate: Gate) -> None:
        self._delivery = delivery
        self._gate = gate

    @property
    def message(self) -> Message:
        """The message."""
        return self._delivery.message

    @property
    def attempt(self) -> int:
        """Which start of a handler this is: 1 for the first."""
        return self._delivery.attempt

    @property
    def native(self) -> Any:
        """The client library's own message."""
        return self._delivery.native

    @property
    def stale(self) -> bool:
        """Whether the connection or assignment that it came by is gone; it will be delivered again."""
        return self._delivery.stale

    @property
    def settled(self) -> bool:
        """Whether one of the verbs was used."""
        return self._delivery.settled

    @property
    def verb(self) -> str | None:
        """The verb that it was settled with: ``ack``, ``nack`` or ``reject``."""
        return self._delivery.verb

    @property
    def cancelled(self) -> bool:
        """Whether the handler's timeout passed."""
        return self._delivery.cancelled

    @overload
    def payload(self) -> Any: ...
    @overload
    def payload(self, type: builtins.type[T]) -> T: ...

    def payload(self, type: Any = Any) -> Any:
        """Return the body decoded into ``type``; raise `DecodeError` when it does not fit."""
        return self._delivery.payload(type)

    def ack(self) -> None:
        """Settle as done."""
        self._settle(self._delivery.ack)

    def nack(self, delay: float | None = 0.0) -> None:
        """Give back for another attempt after ``delay`` seconds; None takes the topic's backoff."""
        self._settle(partial(self._delivery.nack, delay))

    def reject(self, reason: str = "rejected") -> None:
        """Make it a dead letter of its group."""
        self._settle(partial(self._delivery.reject, reason))

    def extend(self, seconds: float) -> None:
        """Keep the delivery for ``seconds`` from now, where deliveries have leases."""
        self._settle(partial(self._delivery.extend, seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: builtins.type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._delivery.settled:
            self._settle(partial(self._delivery.__aexit__, kind, error, trace))

    def _settle(self, verb: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            self._gate.call(verb)
        except Closed:
            # As after a lost connection: the delivery is stale, and comes again.
            if not self._gate.closed:
                raise

    def __repr__(self) -> str:
        return f"<Blocking{repr(self._delivery)[1:]}"


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
        return None if delivery is None else BlockingDelivery(delivery, self._gate)

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
