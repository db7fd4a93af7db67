"""A TCP proxy that does to a connection what networks do: reset, silence, delay, cuts, crumbs, lies."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from brokerkit.clock import SystemClock
from brokerkit.testing.link import Answer, Direction, Link, Weather

__all__ = ["Answer", "FaultProxy", "ProxyCounters"]

T = TypeVar("T")

Directions = Literal["up", "down", "either"]

#: Seconds within which the proxy's own thread answers a control call.
_CONTROL_TIMEOUT = 10.0

_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ProxyCounters:
    """What went through a proxy since it started.  "up" is from the client to the broker; sizes are bytes."""

    #: Connections that were accepted, and how many of them are open now.
    connections: int
    open: int
    received_up: int
    received_down: int
    forwarded_up: int
    forwarded_down: int


class FaultProxy:
    """A TCP proxy in front of ``host:port`` whose faults are switched on and off while connections run.

    It listens on `host`:`port` between ``start()`` and ``close()``, or inside ``with`` or ``async with``.  It runs
    on an event loop of its own in a background thread, so a test that blocks its loop does not stop it.  All
    methods may be called from any thread, return when they have taken effect, and combine; "up" is from the client
    to the broker.  A broker that cannot be reached shows as a connection that is accepted and then reset.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = _HOST
        self._target = (host, port)
        self._clock = SystemClock()
        self._weather = Weather()
        self._links: dict[asyncio.Task[None], Link] = {}
        self._ended = ProxyCounters(0, 0, 0, 0, 0, 0)
        self._frozen = False
        self._answer: Callable[[], Answer] | None = None
        self._cut_next: tuple[int, tuple[Direction, ...]] | None = None
        self._cut_every: tuple[int, tuple[Direction, ...]] | None = None
        self._errors: list[BaseException] = []
        self._reserved: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen on a free port of the loopback interface."""
        if self._thread is not None:
            raise RuntimeError("this proxy was started already: make a new FaultProxy for a new port")
        family, _, _, _, address = socket.getaddrinfo(*self._target, type=socket.SOCK_STREAM)[0]
        self._address = (family, address)
        # Bound and never listening: keeps the port ours while connections are refused.
        self._reserved = _bound(0)
        self._port = int(self._reserved.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"fault-proxy-{self._port}", daemon=True)
        self._thread.start()
        self.accept()

    def close(self) -> None:
        """Drop all connections and stop; raise the first error of an `Answer`.  No-op when closed before."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or self._reserved is None:
            return
        try:
            self.refuse()
            self.reset()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CONTROL_TIMEOUT)
            loop.close()
            self._loop = None
            self._reserved.close()
            self._reserved = None
        if self._errors:
            raise self._errors[0]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as own:
            if error is None:
                raise
            error.add_note(f"the fault proxy ended with {own!r}")

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    # --- where it is ------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port to connect to; the same for the whole life of the proxy."""
        if self._thread is None:
            raise RuntimeError("a FaultProxy has a port once it was started: use it in a with block")
        return self._port

    def url_for(self, url: str) -> str:
        """Return ``url`` with its address, or its whole list of addresses, replaced by the proxy's."""
        found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/?#]*@)?([^/?#@]*)(.*)", url, re.DOTALL)
        if found is None:
            raise ValueError("url_for() needs a URL of the form scheme://[user:password@]host[:port][/…]")
        return f"{found[1]}{found[2] or ''}{self.host}:{self.port}{found[4]}"

    @property
    def counters(self) -> ProxyCounters:
        """Return the counters as of now."""
        return self._call(self._count)

    # --- faults -----------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Drop all connections by RST, on both sides."""
        self._run(self._reset())

    def freeze(self, *, existing_only: bool = False) -> None:
        """Forward no byte and no FIN in either direction from now on, as a half-open link does.

        New connections are accepted and stay silent, unless ``existing_only``.
        """

        def freeze() -> None:
            self._frozen = not existing_only
            for link in self._links.values():
                link.flowing.clear()

        self._call(freeze)

    def thaw(self) -> None:
        """Forward what the frozen connections held back, and everything from now on."""

        def thaw() -> None:
            self._frozen = False
            for link in self._links.values():
                link.flowing.set()

        self._call(thaw)

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Let each byte take ``seconds`` plus up to ``jitter`` longer, each way; order is kept.  0 ends it."""

        def delay() -> None:
            self._weather.delay, self._weather.jitter = seconds, jitter

        self._call(delay)

    def slice(self, size: int | None, pause: float = 0.0) -> None:
        """Forward at most ``size`` bytes at a time, ``pause`` seconds apart.  None ends it."""
        if size is not None and size < 1:
            raise ValueError(f"slice() needs at least 1 byte, not {size}; None ends it")

        def crumble() -> None:
            self._weather.piece, self._weather.pause = size, pause

        self._call(crumble)

    def cut_at(
        self,
        n_bytes: int,
        direction: Directions = "either",
        *,
        on: Literal["next", "every", "current"] = "next",
    ) -> None:
        """Reset a connection when exactly ``n_bytes`` of one direction have reached the other side.

        ``on`` says which: the "next" new connection, "every" new one until `heal`, or all "current" ones, where the
        count starts now.  "either" means the direction that gets there first.  With 0 nothing is forwarded: the
        first byte cuts.
        """
        if n_bytes < 0:
            raise ValueError(f"cut_at() needs 0 or more bytes, not {n_bytes}")
        directions: tuple[Direction, ...] = ("up", "down") if direction == "either" else (direction,)

        def cut() -> None:
            if on == "next":
                self._cut_next = (n_bytes, directions)
            elif on == "every":
                self._cut_every = (n_bytes, directions)
            else:
                for link in self._links.values():
                    link.cut_after(n_bytes, directions)

        self._call(cut)

    def swallow(self, direction: Direction | Literal["both"] | None) -> None:
        """Read what is sent in ``direction`` and drop it.  None ends it."""
        swallowed: frozenset[Direction]
        if direction is None:
            swallowed = frozenset()
        elif direction == "both":
            swallowed = frozenset(("up", "down"))
        else:
            swallowed = frozenset((direction,))

        def swallow() -> None:
            self._weather.swallowed = swallowed

        self._call(swallow)

    def answer(self, make: Callable[[], Answer] | None) -> None:
        """Put a new ``make()`` between client and broker on each new connection.  None ends it."""

        def answer() -> None:
            self._answer = make

        self._call(answer)

    def refuse(self) -> None:
        """Refuse new connections, as a broker does that is not running.  Those that exist stay."""
        self._call(self._refuse)

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        self._call(self._accept)

    def heal(self) -> None:
        """End every fault: thaw, accept, and no delay, slice, cut, swallow or answer from now on."""

        def heal() -> None:
            weather = self._weather
            weather.delay = weather.jitter = weather.pause = 0.0
            weather.piece = None
            weather.swallowed = frozenset()
            self._cut_next = self._cut_every = self._answer = None
            for link in self._links.values():
                link.answer = link.cut = None
                for lane in link.lanes:
                    lane.left = None

        self._call(heal)
        self.thaw()
        self.accept()

    # --- on the proxy's own loop ------------------------------------------------------------------------------

    def _accept(self) -> None:
        if self._listener is None:
            self._listener = _bound(self._port)
            self._listener.listen(128)
            asyncio.get_running_loop().add_reader(self._listener, self._admit, self._listener)

    def _refuse(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _admit(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the client went away before it was accepted
        client.setblocking(False)
        try:
            answer = self._answer() if self._answer is not None else None
        except Exception as error:
            self._errors.append(error)
            client.close()
            return
        cut = self._cut_next or self._cut_every
        self._cut_next = None
        link = Link(
            client=client,
            address=self._address,
            weather=self._weather,
            clock=self._clock,
            answer=answer,
            cut=cut,
            on_error=self._errors.append,
        )
        if not self._frozen:
            link.flowing.set()
        task = asyncio.create_task(link.run())
        self._links[task] = link
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._ended = _add(self._ended, self._links.pop(task))
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    async def _reset(self) -> None:
        if tasks := tuple(self._links):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            # Their done callbacks run in this turn or before.
            await asyncio.sleep(0)

    def _count(self) -> ProxyCounters:
        total = self._ended
        for link in self._links.values():
            total = _add(total, link)
        return replace(total, open=len(self._links))

    # --- from outside -----------------------------------------------------------------------------------------

    def _call(self, action: Callable[[], T]) -> T:
        async def run() -> T:
            return action()

        return self._run(run())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise RuntimeError("the fault proxy is not running: use it in a with block")
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("an Answer cannot control its proxy: raise ConnectionError to reset its connection")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CONTROL_TIMEOUT)


def _bound(port: int) -> socket.socket:
    """Return a socket bound to the port, or to a free one for 0; several may be while only one of them listens."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((_HOST, port))
    except OSError:
        sock.close()
        raise
    return sock


def _add(total: ProxyCounters, link: Link) -> ProxyCounters:
    sums = {"connections": total.connections + 1}
    for lane in link.lanes:
        for what in ("received", "forwarded"):
            name = f"{what}_{lane.direction}"
            sums[name] = getattr(total, name) + getattr(lane, what)
    return replace(total, **sums)
