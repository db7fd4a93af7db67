"""`BlockingDelivery`: a `Delivery` in the hands of a thread."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from brokerkit.delivery import Delivery
from brokerkit.message import Message

__all__ = ["BlockingDelivery"]

T = TypeVar("T")


class BlockingDelivery:
    """A `Delivery` for blocking code: the same verbs, the same rules.

    ``with delivery:`` acknowledges on success and nacks, with the topic's backoff, on an error.
    """

    __slots__ = ("_delivery", "_run")

    def __init__(self, delivery: Delivery, run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]) -> None:
        """``run`` makes a coroutine on the loop of ``delivery``, runs it there and blocks until it ended."""
        self._delivery = delivery
        self._run = run

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
        self._run(self._delivery.ack)

    def nack(self, delay: float | None = 0.0) -> None:
        """Give back for another attempt after ``delay`` seconds; None takes the topic's backoff."""
        self._run(partial(self._delivery.nack, delay))

    def reject(self, reason: str = "rejected") -> None:
        """Make it a dead letter of its group."""
        self._run(partial(self._delivery.reject, reason))

    def extend(self, seconds: float) -> None:
        """Keep the delivery for ``seconds`` from now, where deliveries have leases."""
        self._run(partial(self._delivery.extend, seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: builtins.type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._delivery.settled:
            self._run(partial(self._delivery.__aexit__, kind, error, trace))

    def __repr__(self) -> str:
        return f"<Blocking{repr(self._delivery)[1:]}"
