"""What becomes of a delivery that was not simply handled: retry, deferral, dead letter, follow-ups.

The same on every backend: store the copy, wait for the confirm, then acknowledge the original; in one
transaction where the backend can (ATOMIC_SETTLE).  A copy that cannot be stored leaves the original with the
broker: nothing is ever acknowledged on hope.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from brokerkit.clock import Clock
from brokerkit.envelope import (
    ATTEMPT,
    DEAD_ERROR,
    DEAD_FIRST,
    DEAD_HOST,
    DEAD_LAST,
    DEAD_REASON,
    DEAD_TEXT,
    DEAD_TRACEBACK,
    SUSPECT,
    attempt_of,
)
from brokerkit.error_text import clean_text, handler_traceback
from brokerkit.errors import BrokerError, BrokerUnavailable
from brokerkit.producer import Producer
from brokerkit.spi import AtomicSettle, ConsumerDriver, Destination, Inbound, Outbound, ToDead, ToGroup

__all__ = ["Settlement", "failure_headers"]

#: Modules whose errors need no further name.
_KNOWN_BY_NAME = frozenset({"builtins", "brokerkit.errors"})
#: Seconds for which a copy is tried before the original goes back to the broker.
_PATIENCE = 30.0


class Settlement:
    """Copies of deliveries to other places, for one consumer."""

    def __init__(
        self,
        driver: ConsumerDriver,
        producer: Producer,
        clock: Clock,
        ids: Callable[[], str],
    ) -> None:
        self._driver = driver
        self._producer = producer
        self._clock = clock
        self._ids = ids
        self._atomic: AtomicSettle | None = None

    def use_atomic(self, driver: AtomicSettle) -> None:
        """Settle in one transaction with the copy from now on."""
        self._atomic = driver

    async def forward(self, inbound: Inbound, outbounds: Sequence[Outbound]) -> BrokerError | None:
        """Store ``outbounds``, then acknowledge ``inbound``; return None when both were done, else why not.

        The delivery is stale (nothing was stored), a copy could not be stored within 30 s, or never can be; the
        caller then gives the original back.
        """
        if not self._driver.live(inbound):
            return BrokerUnavailable("the delivery is stale: its connection or assignment is gone")
        try:
            if self._atomic is not None:
                return await self._forward_atomically(self._atomic, inbound, outbounds)
            errors = [error for error in await self._producer.deliver(outbounds, _PATIENCE) if error is not None]
            if errors:
                # One that no patience cures says more than one that time may cure.
                return min(errors, key=lambda error: error.retryable)
            await self._driver.ack([inbound])
        except BrokerError as error:
            return error
        return None

    async def _forward_atomically(
        self, driver: AtomicSettle, inbound: Inbound, outbounds: Sequence[Outbound]
    ) -> BrokerError | None:
        deadline = self._clock.monotonic() + _PATIENCE
        pause = 0.05
        while True:
            try:
                await driver.settle_with(inbound, outbounds)
            except BrokerError as error:
                if not error.retryable or self._clock.monotonic() + pause >= deadline:
                    return error
                await self._clock.sleep(pause)
                pause = min(pause * 2, 2.0)
            else:
                return None

    # --- the copies ---

    def retry(self, inbound: Inbound, *, attempt: int, due: float | None, first_failure: float) -> Outbound:
        """Return the copy that makes ``attempt`` the next start, for the failing group only."""
        headers = _without(inbound.headers, SUSPECT)
        headers[ATTEMPT] = str(attempt)
        headers.setdefault(DEAD_FIRST, repr(first_failure))
        return self._copy(inbound, ToGroup(inbound.topic, inbound.group), headers, due)

    def deferral(self, inbound: Inbound, *, due: float | None) -> Outbound:
        """Return the copy that comes again at ``due`` with the same attempt."""
        headers = dict(inbound.headers)
        attempt = attempt_of(inbound)
        if attempt > 1:
            # What the backend counted ends with this delivery.
            headers[ATTEMPT] = str(attempt)
        return self._copy(inbound, ToGroup(inbound.topic, inbound.group), headers, due)

    def suspect(self, inbound: Inbound, *, attempt: int) -> Outbound:
        """Return the stamped copy of a message that was under way when a process crashed."""
        headers = dict(inbound.headers)
        headers[ATTEMPT] = str(attempt)
        headers[SUSPECT] = "1"
        return self._copy(inbound, ToGroup(inbound.topic, inbound.group), headers, None)

    def unstamped(self, copy: Inbound) -> Outbound:
        """Return a stamped copy as it was before the stamp: it was not started after all."""
        headers = _without(copy.headers, SUSPECT, ATTEMPT)
        attempt = attempt_of(copy) - 1
        if attempt > 1:
            headers[ATTEMPT] = str(attempt)
        return self._copy(copy, ToGroup(copy.topic, copy.group), headers, None)

    def dead(
        self,
        inbound: Inbound,
        *,
        reason: str,
        attempt: int,
        error: BaseException | str | None,
        first_failure: float | None = None,
    ) -> Outbound:
        """Return the dead letter: the message as it was, and why it was given up."""
        now = repr(self._clock.time())
        headers = _without(inbound.headers, SUSPECT)
        headers.setdefault(DEAD_FIRST, now if first_failure is None else repr(first_failure))
        headers |= failure_headers(error)
        headers |= {ATTEMPT: str(attempt), DEAD_REASON: reason, DEAD_LAST: now, DEAD_HOST: socket.gethostname()}
        return self._copy(inbound, ToDead(inbound.topic, inbound.group), headers, None)

    def _copy(self, inbound: Inbound, destination: Destination, headers: dict[str, str], due: float | None) -> Outbound:
        return Outbound(
            destination=destination,
            body=inbound.body,
            # A foreign message without an id gets one now; from here on it keeps it.
            message_id=inbound.message_id or self._ids(),
            headers=headers,
            due=due,
            key=inbound.key,
            tag=inbound.tag,
            type=inbound.type,
            content_type=inbound.content_type,
            priority=inbound.priority,
            timestamp=inbound.timestamp if inbound.timestamp is not None else self._clock.time(),
            correlation_id=inbound.correlation_id,
            reply_to=inbound.reply_to,
        )


def failure_headers(error: BaseException | str | None) -> dict[str, str]:
    """Return the headers that explain a failure: type, text and the end of the traceback."""
    if error is None:
        return {}
    if isinstance(error, str):
        return {DEAD_TEXT: clean_text(error)}
    headers = {
        DEAD_ERROR: _type_name(type(error)),
        DEAD_TEXT: clean_text(error),
    }
    headers[DEAD_TRACEBACK] = handler_traceback(error)
    return headers


def _type_name(kind: type[BaseException]) -> str:
    """Return the name under which a reader knows the error: with its module, unless it is Python's or brokerkit's."""
    return kind.__qualname__ if kind.__module__ in _KNOWN_BY_NAME else f"{kind.__module__}.{kind.__qualname__}"


def _without(headers: Mapping[str, Any], *names: str) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in names}
