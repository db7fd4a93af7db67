"""`Delivery`: one message in the hands of the application, to be settled with one of three verbs."""

from __future__ import annotations

import builtins
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, overload

from brokerkit import codec
from brokerkit.envelope import message_of
from brokerkit.errors import AlreadySettled, DecodeError, check_seconds
from brokerkit.message import Message
from brokerkit.spi import Inbound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

__all__ = ["Delivery", "Settler"]

T = TypeVar("T")


class Settler(Protocol):
    """Who carries out what a `Delivery` is settled with."""

    async def settle_ack(self, inbound: Inbound) -> None: ...

    async def settle_nack(self, inbound: Inbound, attempt: int, delay: float | None) -> None:
        """Give back for another attempt; ``delay`` None takes the topic's backoff."""

    async def settle_reject(self, inbound: Inbound, attempt: int, reason: str) -> None:
        """Make a dead letter; raise the `BrokerError` for which that cannot be done, and settle nothing then."""

    async def extend(self, inbounds: Sequence[Inbound], seconds: float) -> None: ...

    def is_live(self, inbound: Inbound) -> bool: ...


class Delivery:
    """One delivery of a message.

    `ack` says done, `nack` again (counted), `reject` dead letter.  The same verb twice is a no-op, another one
    raises `AlreadySettled`.  Settling after the connection was lost returns quietly; `stale` is then True and
    the broker delivers the message again.

    ``async with delivery:`` acknowledges on success and nacks, with the topic's backoff, on an error.
    """

    __slots__ = ("_inbound", "_message", "_received", "_settler", "_stale", "_verb", "attempt", "cancelled")

    def __init__(self, inbound: Inbound, settler: Settler, attempt: int, receive_time: float) -> None:
        self._inbound = inbound
        self._settler = settler
        self._message: Message | None = None
        self._received = receive_time
        self._verb: str | None = None
        self._stale = False
        #: Which start of a handler this is: 1 for the first.
        self.attempt = attempt
        #: Set when the handler's timeout passed: a sync handler, which nothing can stop, should look at it.
        self.cancelled = False

    @property
    def message(self) -> Message:
        """The message."""
        if self._message is None:
            self._message = message_of(self._inbound, self._received, self.attempt)
        return self._message

    @property
    def native(self) -> Any:
        """The client library's own message."""
        return self._inbound.native

    @property
    def stale(self) -> bool:
        """Whether the connection or assignment that it came by went before it was settled; it will come again."""
        if self._verb is None:
            return not self._settler.is_live(self._inbound)
        return self._stale

    @property
    def settled(self) -> bool:
        """Whether one of the verbs was used."""
        return self._verb is not None

    @property
    def verb(self) -> str | None:
        """The verb it was settled with: ``ack``, ``nack`` or ``reject``."""
        return self._verb

    @overload
    def payload(self) -> Any: ...
    @overload
    def payload(self, type: builtins.type[T]) -> T: ...

    def payload(self, type: Any = Any) -> Any:
        """Return the body decoded into ``type``; raise `DecodeError` when it does not fit."""
        if self._inbound.problem is not None:
            raise DecodeError(self._inbound.problem)
        return codec.decode(self._inbound.body, type)

    async def ack(self) -> None:
        """Settle as done."""
        if self._settle("ack"):
            await self._settler.settle_ack(self._inbound)

    async def nack(self, delay: float | None = 0.0) -> None:
        """Give back for another attempt after ``delay`` seconds; None takes the topic's backoff.

        Raise `PayloadError` for a delay that is no finite number of at least 0 and `CapabilityNotSupported` for one
        that cannot be kept here; nothing has happened then.
        """
        if delay is not None:
            check_seconds("delay", delay)
        if self._settle("nack"):
            await self._carry_out(self._settler.settle_nack(self._inbound, self.attempt, delay))

    async def reject(self, reason: str = "rejected") -> None:
        """Make it a dead letter of its group.

        Raise `SendRefused` or another `BrokerError` when that cannot be stored; any verb may follow then.
        """
        if self._settle("reject"):
            await self._carry_out(self._settler.settle_reject(self._inbound, self.attempt, reason))

    async def _carry_out(self, settling: Awaitable[None]) -> None:
        try:
            await settling
        except BaseException:
            # Refused or cancelled: as far as anybody knows nothing happened, so any verb may follow.
            self._verb = None
            raise

    async def extend(self, seconds: float) -> None:
        """Keep the delivery for ``seconds`` from now, where deliveries have leases; raise `PayloadError` as `nack`."""
        check_seconds("seconds", seconds)
        await self._settler.extend([self._inbound], seconds)

    def _settle(self, verb: str) -> bool:
        """Return whether ``verb`` is to be carried out."""
        if self._verb is None:
            self._stale = not self._settler.is_live(self._inbound)
            self._verb = verb
            return True
        if self._verb == verb:
            return False
        raise AlreadySettled(
            f"the delivery of message {self._inbound.message_id} was settled with {self._verb} before; "
            f"{verb} would contradict it",
            topic=self._inbound.topic,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: builtins.type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._verb is not None:
            return
        if error is None:
            await self.ack()
        elif isinstance(error, Exception):
            await self.nack(None)
        # Else the task is being cancelled: left unsettled, it goes back when the consumer closes.

    def __repr__(self) -> str:
        return (
            f"<Delivery {self._inbound.message_id} of {self._inbound.topic}:{self._inbound.group} "
            f"attempt {self.attempt} {self._verb or 'unsettled'}>"
        )
