"""`Outlet`: a broker as the producer sees it, with its connection, what is under way to it and how it did lately."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from brokerkit.errors import BrokerError
from brokerkit.spi import Clock, Timer
from brokerkit_rocketmq.remoting.codes import VERSION_5

if TYPE_CHECKING:
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.remoting.connection import RemotingConnection

__all__ = ["Outlet", "Outlets", "Waiting"]

#: Requests under way to one broker.  More only wait in the broker's own queue, where they are refused after 200 ms.
_MOST_REQUESTS = 32
#: Bytes under way to one broker; a single message may be larger.
_MOST_BYTES = 8 << 20
#: Seconds that a broker is avoided that did not answer, cannot be reached or takes no messages now.
_AVOID = 10.0
#: Seconds that nothing is sent to a broker that says that it is busy: doubled each time it says so again.
_FIRST_REST = 0.05
_LONGEST_REST = 1.0


class Waiting(Protocol):
    """What has messages for which there is no room yet."""

    def flush(self) -> None:
        """Go on as far as possible."""

    def unreachable(self, outlet: Outlet, error: BrokerError) -> None:
        """Give up what only this broker could have taken: a connection to it could not be made."""


class Outlet:
    """One broker.  Bounds what is under way to it, and knows whether another one should rather be tried."""

    __slots__ = (
        "_bytes",
        "_client",
        "_clock",
        "_connecting",
        "_listening",
        "_messages",
        "_most_requests",
        "_outlets",
        "_requests",
        "_rest",
        "_rested",
        "_rests_until",
        "_timeout",
        "avoided_until",
        "connection",
        "name",
    )

    def __init__(self, name: str, client: Client, outlets: Outlets, timeout: float, clock: Clock) -> None:
        self.name = name
        #: The connection that was used last; it may have ended.
        self.connection: RemotingConnection | None = None
        #: Monotonic; before it other brokers are preferred.
        self.avoided_until = 0.0
        self._client = client
        self._outlets = outlets
        self._timeout = timeout
        self._clock = clock
        self._connecting: asyncio.Task[None] | None = None
        #: Waits until the socket takes more.
        self._listening: asyncio.Task[None] | None = None
        self._requests = self._messages = self._bytes = 0
        self._most_requests = _MOST_REQUESTS
        self._rest = 0.0
        self._rests_until = 0.0
        self._rested: Timer | None = None

    # --- the connection ---

    @property
    def is_open(self) -> bool:
        connection = self.connection
        return connection is not None and connection.error is None

    @property
    def is_connecting(self) -> bool:
        return self._connecting is not None

    @property
    def five(self) -> bool:
        """Whether the broker is a 5.x."""
        connection = self.connection
        return connection is not None and (connection.server_version or 0) >= VERSION_5

    def connect(self) -> None:
        """Make a connection unless there is one or one is being made; whoever waits is told how it went."""
        if self._connecting is None and not self.is_open:
            self._connecting = asyncio.get_running_loop().create_task(
                self._connect(), name=f"brokerkit-connect-{self.name}"
            )

    async def _connect(self) -> None:
        failure: BrokerError | None = None
        try:
            link = await self._client.link(self.name)
            self.connection = await link.connected(self._timeout)
        except BrokerError as error:
            failure = error
            self.avoid()
        finally:
            self._connecting = None
        if failure is None:
            self._outlets.stir()
        else:
            self._outlets.give_up(self, failure)

    def close(self) -> list[asyncio.Task[None]]:
        """End the attempts that are under way; return their tasks."""
        if self._rested is not None:
            self._rested.cancel()
        tasks = [task for task in (self._connecting, self._listening) if task is not None]
        for task in tasks:
            task.cancel()
        return tasks

    # --- what is under way ---

    def has_room(self, now: float) -> bool:
        """Whether the open connection takes one more request; if not, whoever waits is told when it does."""
        if (
            self._requests >= self._most_requests
            or self._messages >= self._outlets.window
            or self._bytes >= _MOST_BYTES
            or now < self._rests_until
        ):
            return False
        connection = self.connection
        if connection is None or not connection.may_write:
            if connection is not None and self._listening is None:
                self._listening = asyncio.get_running_loop().create_task(
                    self._listen(connection), name=f"brokerkit-writable-{self.name}"
                )
            return False
        return True

    async def _listen(self, connection: RemotingConnection) -> None:
        try:
            await connection.writable()
        finally:
            self._listening = None
        self._outlets.stir()

    def took(self, messages: int, size: int) -> None:
        """Count a request with so many messages and bytes."""
        self._requests += 1
        self._messages += messages
        self._bytes += size

    def returned(self, messages: int, size: int) -> None:
        """A request that was counted is over."""
        self._requests -= 1
        self._messages -= messages
        self._bytes -= size

    # --- how it does ---

    def well(self) -> None:
        """It has stored something."""
        self.avoided_until = 0.0
        self._rest = 0.0
        if self._most_requests < _MOST_REQUESTS:
            self._most_requests += 1

    def avoid(self) -> None:
        """It did not answer, is gone, or takes no messages: the next ones go to others, where there are any."""
        self.avoided_until = self._clock.monotonic() + _AVOID

    def busy(self) -> None:
        """It says that it has too much to do: it gets half as much, after a pause."""
        now = self._clock.monotonic()
        if now < self._rests_until:
            # One of those that were under way already when it first said so.
            return
        self._most_requests = max(1, self._most_requests // 2)
        self._rest = min(max(self._rest * 2, _FIRST_REST), _LONGEST_REST)
        self._rests_until = self.avoided_until = now + self._rest
        self._rested = self._clock.call_later(self._rest, self._outlets.stir)


class Outlets:
    """The brokers that messages were sent to, and what waits for room on them."""

    def __init__(self, client: Client, clock: Clock, *, timeout: float, window: int) -> None:
        """``timeout``: seconds for a connection; ``window``: messages under way to one broker."""
        self.window = window
        self._client = client
        self._timeout = timeout
        self._clock = clock
        self._outlets: dict[str, Outlet] = {}
        #: In the order in which they began to wait.
        self._waiting: dict[Waiting, None] = {}

    def get(self, name: str) -> Outlet:
        """Return the outlet of a broker."""
        outlet = self._outlets.get(name)
        if outlet is None:
            outlet = self._outlets[name] = Outlet(name, self._client, self, self._timeout, self._clock)
        return outlet

    def wait(self, lane: Waiting) -> None:
        """Call ``lane`` when something has changed."""
        self._waiting[lane] = None

    def leave(self, lane: Waiting) -> None:
        """Do not call any more."""
        self._waiting.pop(lane, None)

    def stir(self) -> None:
        """There may be room: whoever waits goes on, the longest first; who has to wait again does so at the end."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        for lane in waiting:
            lane.flush()

    def give_up(self, outlet: Outlet, error: BrokerError) -> None:
        """Tell whoever waits that a connection could not be made."""
        waiting, self._waiting = self._waiting, {}
        for lane in waiting:
            lane.unreachable(outlet, error)

    def close(self) -> list[asyncio.Task[None]]:
        """Forget who waits, and end the attempts that are under way; return their tasks."""
        self._waiting.clear()
        return [task for outlet in self._outlets.values() for task in outlet.close()]
