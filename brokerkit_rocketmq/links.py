"""`Link`: a connection to one address that is made when it is needed, and again after it was lost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from brokerkit.errors import BrokerError, BrokerUnavailable, Closed
from brokerkit.spi import Clock, Timer, wait
from brokerkit_rocketmq.dialing import Dialer
from brokerkit_rocketmq.errors import NAME, fresh, is_acl_refusal, refused, unreachable
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.remoting.connection import RemotingConnection
from brokerkit_rocketmq.remoting.errors import ConnectionLost, NotConnected, RemotingError
from brokerkit_rocketmq.remoting.frames import Frame

__all__ = ["Link", "LinkOptions", "Links", "Probe"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds that the answer to a last heartbeat may take.
_FAREWELL = 2.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A request that any server of a kind answers: the first one on a connection, and the one that breaks a silence."""

    code: int
    fields: Mapping[str, str] | None = None
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """How links stay up and come back.  Times are seconds."""

    #: A silence of this length is broken by a probe; after two of them the connection is given up.
    heartbeat: float = 6.0
    #: Most seconds before the next attempt to connect: at first, and after attempts that failed.
    first_pause: float = 0.2
    longest_pause: float = 3.0


class Link:
    """One address, one connection at a time.

    Nothing is dialled until somebody needs it; all who do share one attempt.  `epoch` grows with each connection, so
    that what belongs to an earlier one can be told.  Functions in `listeners` are called with the link when it came
    up, before anybody who waited for that goes on, and when it went down.
    """

    def __init__(
        self,
        address: str,
        dialer: Dialer,
        probe: Callable[[], Probe],
        clock: Clock,
        options: LinkOptions,
        *,
        server_name: str | None = None,
    ) -> None:
        """``server_name``: the name in the certificate of the server, where it is not its host."""
        self.address = address
        self.epoch = 0
        #: The connection, while there is one.
        self.current: RemotingConnection | None = None
        #: Why there is none; None as long as nobody needed one.
        self.error: BrokerError | None = None
        #: What the server said last about its version (``MQVersion``); stays when the connection is lost.
        self.version: int | None = None
        self.closed = False
        self.listeners: list[Callable[[Link], None]] = []
        self._dialer = dialer
        self._probe = probe
        self._clock = clock
        self._options = options
        self._server_name = server_name
        self._attempt: asyncio.Task[RemotingConnection | BrokerError] | None = None
        self._pause = 0.0
        #: Monotonic: before it no attempt is made.
        self._not_before = 0.0
        self._since = 0.0
        self._pulse: Timer | None = None
        self._pulse_due = 0.0
        self._heard_at = 0.0
        self._silence = 0
        #: Heartbeats that were written.
        self._unanswered: set[asyncio.Future[Frame]] = set()

    # --- using ---

    @property
    def is_up(self) -> bool:
        connection = self.current
        return connection is not None and connection.error is None

    async def connected(self, timeout: float) -> RemotingConnection:
        """Return the connection; make one where there is none, in at most ``timeout`` seconds.

        A connection is made in one attempt, which begins after a pause when an earlier one failed.  Raise why it
        failed: `BrokerUnavailable`, or `AccessRefused` for credentials that the server does not take; `Closed` when
        the link was closed.
        """
        connection = self.current
        if connection is not None and connection.error is None:
            return connection
        attempt = self.dial()
        if not await wait(self._clock, attempt, timeout):
            raise self._still_down(timeout)
        if attempt.cancelled():
            raise Closed("the connection was closed meanwhile", backend=NAME)
        made = attempt.result()
        if isinstance(made, BrokerError):
            raise fresh(made)
        return made

    def dial(self) -> asyncio.Task[RemotingConnection | BrokerError]:
        """Return the attempt to connect that is under way; begin one where there is none.  Raise `Closed`."""
        if self.closed:
            raise Closed("the connection is closed", backend=NAME)
        if self._attempt is None:
            self._attempt = asyncio.get_running_loop().create_task(
                self._make(), name=f"brokerkit-rocketmq-dial-{self.address}"
            )
        return self._attempt

    async def call(
        self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"", *, timeout: float
    ) -> Frame:
        """Return the answer of the server, whatever response code it has; connecting counts towards ``timeout``.

        Raise what `RemotingConnection.request` says, `NotConnected` when no connection could be made, and
        `AccessRefused` or `Closed` as `connected` does.
        """
        deadline = self._clock.monotonic() + timeout
        try:
            connection = await self.connected(timeout)
        except BrokerUnavailable as exc:
            raise NotConnected(exc.message) from exc
        return await connection.call(code, fields, body, timeout=max(deadline - self._clock.monotonic(), 0.001))

    def _still_down(self, timeout: float) -> BrokerError:
        before = f"; before: {self.error.message}" if self.error is not None else ""
        return BrokerUnavailable(f"no connection to {self.address} in {timeout:g} s{before}", backend=NAME)

    # --- coming up ---

    async def _make(self) -> RemotingConnection | BrokerError:
        try:
            pause = self._not_before - self._clock.monotonic()
            if pause > 0:
                await self._clock.sleep(pause)
            connection = await self._dial()
        except BrokerError as error:
            if self.error is None or error.message != self.error.message:
                log.warning("no connection to %s: %s", self.address, error)
            self.error = error
            self._back_off()
            return error
        finally:
            self._attempt = None
        self._came_up(connection)
        return connection

    async def _dial(self) -> RemotingConnection:
        """A server counts as reached when it has answered: a frozen one still takes connections."""
        connection = await self._dialer.dial(self.address, server_name=self._server_name)
        try:
            frame = await self.introduce(connection, self._dialer.options.timeout)
            if is_acl_refusal(frame):
                raise refused(frame, f"connecting to {self.address}")
            if connection.error is not None:
                raise connection.error
        except RemotingError as exc:
            connection.abort()
            raise unreachable(exc, self.address) from exc
        except asyncio.CancelledError:
            try:
                await self._answered()
            finally:
                connection.abort()
            raise
        except BaseException:
            connection.abort()
            raise
        return connection

    async def introduce(self, connection: RemotingConnection, timeout: float) -> Frame:
        """Send the probe on a connection of this link and return its answer; raise `RemotingError`."""
        # It is waited for at the end, even if nobody does any more.
        return await asyncio.shield(self._greet(connection, timeout))

    def _greet(self, connection: RemotingConnection, timeout: float) -> asyncio.Future[Frame]:
        probe = self._probe()
        answer = connection.request(probe.code, probe.fields, probe.body, timeout=timeout)
        if probe.code == RequestCode.HEART_BEAT:
            self._unanswered.add(answer)
            answer.add_done_callback(self._unanswered.discard)
        return answer

    async def _answered(self) -> None:
        """Return when the broker has handled our heartbeats, or after two seconds.

        One that it handles after the end of its connection makes us a member again, who takes part in sharing out
        queues until the broker drops him two minutes later.
        """
        if self._unanswered:
            await wait(self._clock, asyncio.gather(*self._unanswered, return_exceptions=True), _FAREWELL)

    def _back_off(self) -> None:
        options = self._options
        self._pause = min(max(self._pause * 2, options.first_pause), options.longest_pause)
        # All clients of a broker lose it together; without jitter they would all come back together.
        self._not_before = self._clock.monotonic() + random.uniform(0, self._pause)

    def _came_up(self, connection: RemotingConnection) -> None:
        self.epoch += 1
        self.current = connection
        self.version = connection.server_version
        if self.error is not None:
            log.info("the connection to %s is back", self.address)
            self.error = None
        self._since = self._clock.monotonic()
        self._silence = 0
        self._end_pulse()
        self._schedule_pulse()
        connection.lost.add_done_callback(lambda _: self._went_down(connection))
        self._notify()

    def _went_down(self, connection: RemotingConnection) -> None:
        if self.current is not connection:
            return
        self.current = None
        self.version = connection.server_version
        self._end_pulse()
        if not self.closed and connection.error is not None:
            self.error = BrokerUnavailable(str(connection.error), backend=NAME)
            log.warning("the connection to %s is lost: %s", self.address, connection.error)
        if self._clock.monotonic() - self._since >= self._options.longest_pause:
            # Otherwise the server ends each connection as soon as it is used.
            self._pause = 0.0
        self._back_off()
        self._notify()

    def _notify(self) -> None:
        for listener in tuple(self.listeners):
            listener(self)

    # --- staying up ---

    def _schedule_pulse(self) -> None:
        pause = self._options.heartbeat / 3
        self._pulse_due = self._clock.monotonic() + pause
        self._pulse = self._clock.call_later(pause, self._beat)

    def _end_pulse(self) -> None:
        if self._pulse is not None:
            self._pulse.cancel()
            self._pulse = None

    def _beat(self) -> None:
        """Every third of a heartbeat: speak after one without a byte, give up after two."""
        self._pulse = None
        connection = self.current
        if connection is None:
            return
        late = self._clock.monotonic() - self._pulse_due > self._options.heartbeat / 3
        if connection.last_received != self._heard_at:
            self._heard_at = connection.last_received
            self._silence = 0
        elif not late:
            # After a stall of the loop what the server sent may lie in the socket: it is read before the next beat.
            self._silence += 1
        if self._silence >= 6:
            seconds = f"{2 * self._options.heartbeat:g} s"
            connection.abort(ConnectionLost(f"nothing was heard from {self.address} for {seconds}"))
            return
        if self._silence == 3:
            self._greet(connection, 2 * self._options.heartbeat)
        self._schedule_pulse()

    # --- ending ---

    async def aclose(self) -> None:
        """Close the connection and make no other.  Idempotent."""
        self.closed = True
        attempt = self._attempt
        if attempt is not None:
            attempt.cancel()
            await asyncio.wait((attempt,))
        self._end_pulse()
        connection = self.current
        if connection is not None:
            await self._answered()
            await connection.aclose()
            self.current = None
        self.listeners.clear()


class Links:
    """The links to all servers of one kind, one for each address."""

    def __init__(
        self, dialer: Dialer, probe: Callable[[], Probe], clock: Clock, options: LinkOptions | None = None
    ) -> None:
        """``probe`` gives the request that begins a connection and breaks a silence."""
        #: Called with each link that came up or went down.
        self.listeners: list[Callable[[Link], None]] = []
        self._dialer = dialer
        self._probe = probe
        self._clock = clock
        self._options = options or LinkOptions()
        self._links: dict[str, Link] = {}
        self._closed = False

    def get(self, address: str, *, server_name: str | None = None) -> Link:
        """Return the link to ``address``, which is ``host:port``.  No I/O."""
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = Link(
                address, self._dialer, self._probe, self._clock, self._options, server_name=server_name
            )
            link.closed = self._closed
            link.listeners.append(self._changed)
        return link

    def up(self) -> tuple[Link, ...]:
        """Return the links that have a connection."""
        return tuple(link for link in self._links.values() if link.is_up)

    def _changed(self, link: Link) -> None:
        for listener in tuple(self.listeners):
            listener(link)

    async def aclose(self) -> None:
        """Close all links; those that are asked for later are closed too.  Idempotent."""
        self._closed = True
        await asyncio.gather(*(link.aclose() for link in self._links.values()))
        self.listeners.clear()
