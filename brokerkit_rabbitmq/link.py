"""`Link`: a connection that is made again whenever it is lost, until it is closed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from brokerkit.errors import AccessRefused, BrokerError, BrokerUnavailable, Closed, ConfigurationError
from brokerkit.spi import Clock, Timer, wait
from brokerkit_rabbitmq.channel import Channel
from brokerkit_rabbitmq.dialing import Dialer
from brokerkit_rabbitmq.errors import NAME, fresh
from brokerkit_rabbitmq.protocol import Amqp
from brokerkit_rabbitmq.settings import Address

__all__ = ["Link", "Reconnecting"]

log = logging.getLogger("brokerkit.rabbitmq")

C = TypeVar("C", bound=Channel)


class Reconnecting:
    """How a link comes back: the hosts, and the pauses between the rounds, in seconds."""

    __slots__ = ("addresses", "attempts", "first_pause", "longest_pause")

    def __init__(
        self, addresses: Sequence[Address], *, attempts: int = 1, first_pause: float = 0.2, longest_pause: float = 5.0
    ) -> None:
        self.addresses = tuple(addresses)
        #: Rounds of the first connecting.
        self.attempts = attempts
        self.first_pause = first_pause
        self.longest_pause = longest_pause


class Link:
    """One purpose, one connection at a time.

    `epoch` grows with each connection, so that what belongs to an earlier one can be told.  Whoever needs to act when
    the link comes up or goes down, or when the broker begins or ends to block it, adds a function to `listeners`.
    """

    def __init__(
        self,
        role: str,
        dialer: Dialer,
        reconnecting: Reconnecting,
        clock: Clock,
        *,
        blocked_timeout: float | None = None,
    ) -> None:
        """``blocked_timeout``: seconds that the broker may block the connection before it is made anew."""
        self.role = role
        self.epoch = 0
        #: The connection, while there is one.
        self.amqp: Amqp | None = None
        #: Why there is none.
        self.error: BrokerError = BrokerUnavailable(f"the {role} link is not open", backend=NAME)
        self.closed = False
        self.listeners: list[Callable[[], None]] = []
        self._dialer = dialer
        self._reconnecting = reconnecting
        self._clock = clock
        self._blocked_timeout = blocked_timeout
        self._patience: Timer | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._up: asyncio.Future[None] | None = None
        #: Most seconds before the next try to connect.
        self._pause = reconnecting.first_pause
        self._since = 0.0

    # --- using ---

    async def ready(self, timeout: float) -> Amqp:
        """Return the connection; wait for one for ``timeout`` seconds.  Raise `Closed`, or why there is none."""
        if self.amqp is not None:
            return self.amqp
        deadline = self._clock.monotonic() + timeout
        while True:
            if self.closed:
                raise Closed("the connection is closed", backend=NAME)
            if self.amqp is not None:
                return self.amqp
            if self._up is None:
                self._up = asyncio.get_running_loop().create_future()
            if not await wait(self._clock, self._up, deadline - self._clock.monotonic()):
                raise fresh(self.error)

    async def open_channel(self, timeout: float, kind: type[C], *arguments: Any) -> C:
        """Open a channel; wait for the connection for ``timeout`` seconds."""
        return await (await self.ready(timeout)).open_channel(kind, *arguments)

    @asynccontextmanager
    async def scratch(self, timeout: float) -> AsyncIterator[Channel]:
        """Give a channel for calls that the broker may answer by closing it."""
        channel = await self.open_channel(timeout, Channel)
        try:
            yield channel
        finally:
            channel.close_soon()

    async def ping(self, timeout: float) -> None:
        """Return when the broker answered; raise `BrokerUnavailable` after ``timeout`` seconds."""
        deadline = self._clock.monotonic() + timeout
        amqp = await self.ready(timeout)
        if amqp.blocked is not None:
            raise BrokerUnavailable(f"{amqp.peer} blocks publishers: {amqp.blocked}", backend=NAME)
        # The control channel answers nothing while the broker is not heard; a channel of its own needs no permission.
        asking = asyncio.get_running_loop().create_task(_ask(amqp), name="brokerkit-rabbitmq-ping")
        try:
            if not await wait(self._clock, asking, deadline - self._clock.monotonic()):
                raise BrokerUnavailable(f"no answer from {amqp.peer} in {timeout:g} s", backend=NAME)
            asking.result()
        finally:
            asking.cancel()
            await asyncio.wait((asking,))

    # --- staying up ---

    async def open(self) -> None:
        """Connect for the first time and stay connected from then on.  Raise why it cannot be done."""
        pause = self._reconnecting.first_pause
        for attempt in range(1, self._reconnecting.attempts + 1):
            try:
                await self._connect()
                break
            except BrokerError as error:
                if not error.retryable or attempt == self._reconnecting.attempts:
                    self.closed = True
                    raise
            await self._clock.sleep(pause)
            pause = min(pause * 2, self._reconnecting.longest_pause)
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=f"brokerkit-rabbitmq-{self.role}")

    async def _connect(self) -> None:
        errors: list[BrokerError] = []
        for address in self._reconnecting.addresses:
            try:
                amqp = await self._dialer.dial(address, self.role)
            except (AccessRefused, ConfigurationError):
                # The other hosts of a cluster know the same users.
                raise
            except BrokerError as error:
                errors.append(error)
                continue
            self._came_up(amqp)
            return
        raise errors[0] if len(errors) == 1 else _all_failed(errors)

    def _came_up(self, amqp: Amqp) -> None:
        self.epoch += 1
        self.amqp = amqp
        self._since = self._clock.monotonic()
        amqp.on_change = self._changed
        up, self._up = self._up, None
        if up is not None and not up.done():
            up.set_result(None)
        self._notify()

    def _changed(self) -> None:
        amqp = self.amqp
        blocked = amqp is not None and amqp.blocked is not None
        if not blocked and self._patience is not None:
            self._patience.cancel()
            self._patience = None
        elif blocked and self._patience is None and self._blocked_timeout is not None:
            self._patience = self._clock.call_later(self._blocked_timeout, self._lose_patience)
        self._notify()

    def _lose_patience(self) -> None:
        self._patience = None
        if self.amqp is not None:
            seconds = f"{self._blocked_timeout:g} s"
            self.amqp.abort(BrokerUnavailable(f"the broker blocked the connection for {seconds}", backend=NAME))

    def _notify(self) -> None:
        for listener in tuple(self.listeners):
            listener()

    async def _keep(self) -> None:
        while True:
            amqp = self.amqp
            if amqp is not None:
                await asyncio.wait((amqp.lost,))
                self._went_down(amqp)
            if self.closed:
                return
            await self._reconnect()

    def _went_down(self, amqp: Amqp) -> None:
        self.amqp = None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self.error = amqp.error or self.error
        if not amqp.dismissed or self._clock.monotonic() - self._since >= self._reconnecting.longest_pause:
            # Otherwise the broker ends each connection as soon as it is used, for a limit or a permission.
            self._pause = self._reconnecting.first_pause
        if not self.closed:
            log.warning("the %s link is lost, connecting again: %s", self.role, self.error)
        self._notify()

    async def _reconnect(self) -> None:
        how = self._reconnecting
        while not self.closed:
            # All clients of a broker lose it together; without jitter they would all come back together.
            await self._clock.sleep(random.uniform(0, self._pause))
            self._pause = min(self._pause * 2, how.longest_pause)
            try:
                await self._connect()
            except BrokerError as error:
                if str(error) != str(self.error):
                    log.warning("the %s link stays down: %s", self.role, error)
                self.error = error
                continue
            log.info("the %s link is back", self.role)
            return

    # --- ending ---

    async def aclose(self, *, hang_up: bool = False) -> None:
        """Close the connection in good order, or only its socket with ``hang_up``.  Idempotent."""
        self.closed = True
        amqp, keeper = self.amqp, self._keeper
        up, self._up = self._up, None
        if up is not None and not up.done():
            up.set_result(None)
        if amqp is not None:
            if hang_up:
                amqp.hang_up()
                await asyncio.wait((amqp.lost,))
            else:
                await amqp.close()
        if keeper is not None and keeper is not asyncio.current_task():
            if amqp is None:
                keeper.cancel()
            await asyncio.wait((keeper,))
        self.amqp = None
        self.listeners.clear()


def _all_failed(errors: Sequence[BrokerError]) -> BrokerError:
    texts = "; ".join(error.message for error in errors)
    failure = BrokerUnavailable(texts, backend=NAME, retryable=any(error.retryable for error in errors))
    failure.__cause__ = errors[0].__cause__
    return failure


async def _ask(amqp: Amqp) -> None:
    channel = await amqp.open_channel(Channel)
    await channel.close()
