"""One connection through the fault proxy: two lanes, each a reader and a writer with a queue between them.

Plain sockets and not asyncio transports: whether a byte is sent is decided in the same turn in which it is
handed to the kernel, so a freeze is exact and a cut hits its offset.
"""

from __future__ import annotations

import asyncio
import enum
import fcntl
import random
import socket
import struct
import sys
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from brokerkit.clock import Clock

__all__ = ["Answer", "Direction", "Link", "Weather"]

#: From the client to the broker, and back.
Direction = Literal["up", "down"]

_READ_SIZE = 1 << 16

#: Bytes that one lane holds back (delay) before it stops reading, as a link's own buffers would.
_LANE_CAPACITY = 1 << 22

#: Seconds that the bytes before a cut may take to reach the other kernel.
_DRAIN_SECONDS = 10.0


class _End(enum.Enum):
    """How a lane ended at its source."""

    FIN = enum.auto()
    RST = enum.auto()


class Answer:
    """Stands between client and broker on one connection; subclass it and override what should differ.

    Both methods get bytes as they were read, cut anywhere, and return ``(forward, reply)``: what goes on in the
    same direction and what goes back to where the bytes came from, in that order.  They run on the proxy's own
    thread.  `ConnectionError` out of them resets the connection; any other error does so too, and is raised when
    the proxy closes.
    """

    def upstream(self, data: bytes) -> tuple[bytes, bytes]:
        """Handle what the client sent; return what the broker gets and what the client gets."""
        return data, b""

    def downstream(self, data: bytes) -> tuple[bytes, bytes]:
        """Handle what the broker sent; return what the client gets and what the broker gets."""
        return data, b""


@dataclass(slots=True)
class Weather:
    """What all links suffer alike.  Read and written on the proxy's loop only."""

    delay: float = 0.0
    jitter: float = 0.0
    piece: int | None = None
    pause: float = 0.0
    swallowed: frozenset[Direction] = frozenset()


class Lane:
    """One direction of a link."""

    def __init__(self, link: Link, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        self.direction = direction
        self.received = 0
        self.forwarded = 0
        #: Bytes that may still be forwarded before the link is cut; None for all.
        self.left: int | None = None
        self._link = link
        self._source = source
        self._sink = sink
        self._queue: deque[tuple[float, bytes | _End]] = deque()
        self._held = 0
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()

    def put(self, data: bytes | _End) -> None:
        """Queue ``data``, or the end of the lane, behind what is there; it leaves after the delay of now."""
        weather, now = self._link.weather, self._link.clock.monotonic()
        if weather.delay or weather.jitter:
            now += weather.delay + random.uniform(0, weather.jitter)
        # The queue is taken in order: jitter does not reorder a byte stream.
        self._queue.append((now, data))
        self._held += 0 if isinstance(data, _End) else len(data)
        self._arrived.set()

    async def read(self, other: Lane) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._held > _LANE_CAPACITY:
                self._taken.clear()
                await self._taken.wait()
            await self._link.thawed()
            try:
                data = await loop.sock_recv(self._source, _READ_SIZE)
            except ConnectionError:
                self.put(_End.RST)
                return
            if not data:
                self.put(_End.FIN)
                return
            self.received += len(data)
            if self.direction in self._link.weather.swallowed:
                continue
            if self._link.answer is not None:
                handle = self._link.answer.upstream if self.direction == "up" else self._link.answer.downstream
                data, reply = handle(data)
                if reply:
                    other.put(reply)
            if data:
                self.put(data)

    async def write(self) -> None:
        clock = self._link.clock
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            due, data = self._queue.popleft()
            if (early := due - clock.monotonic()) > 0:
                await clock.sleep(early)
            if isinstance(data, _End):
                await self._link.thawed()
                if data is _End.RST:
                    raise ConnectionResetError("the other side reset its connection")
                self._sink.shutdown(socket.SHUT_WR)
                return
            await self._forward(memoryview(data))
            self._held -= len(data)
            self._taken.set()

    async def _forward(self, view: memoryview) -> None:
        weather = self._link.weather
        while view:
            await self._link.thawed()
            if self.left == 0:
                raise ConnectionResetError("cut")
            size = len(view) if self.left is None else min(len(view), self.left)
            if weather.piece is not None:
                size = min(size, weather.piece)
            try:
                sent = self._sink.send(view[:size])
            except BlockingIOError:
                await _writable(self._sink)
                continue
            self.forwarded += sent
            view = view[sent:]
            if self.left is not None:
                self.left -= sent
                if self.left <= 0:
                    await _drained(self._sink, self._link.clock)
                    raise ConnectionResetError("cut")
            if weather.piece is not None:
                await self._link.clock.sleep(weather.pause)


@dataclass(slots=True, kw_only=True, eq=False)
class Link:
    """A client's connection and the proxy's own to the broker."""

    client: socket.socket
    address: tuple[socket.AddressFamily, Any]
    weather: Weather
    clock: Clock
    answer: Answer | None = None
    #: (bytes, directions) of a cut that waits for this link.
    cut: tuple[int, tuple[Direction, ...]] | None = None
    on_error: Callable[[BaseException], None]
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    lanes: tuple[Lane, ...] = ()
    #: How the link ends: by RST on both sides, or by FIN.
    resets: bool = True

    async def thawed(self) -> None:
        """Return, without yielding where possible, in a turn in which the link is not frozen."""
        while not self.flowing.is_set():
            await self.flowing.wait()

    def cut_after(self, n_bytes: int, directions: tuple[Direction, ...]) -> None:
        """Cut after ``n_bytes`` more bytes in one of ``directions``."""
        if not self.lanes:
            self.cut = (n_bytes, directions)
        for lane in self.lanes:
            if lane.direction in directions:
                lane.left = n_bytes

    async def run(self) -> None:
        """Forward until both directions ended or something broke; close both sockets in any case."""
        family, address = self.address
        broker = socket.socket(family, socket.SOCK_STREAM)
        try:
            broker.setblocking(False)
            for end in (self.client, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(broker, address)
            up = Lane(self, "up", self.client, broker)
            down = Lane(self, "down", broker, self.client)
            self.lanes = (up, down)
            if self.cut is not None:
                self.cut_after(*self.cut)
            async with asyncio.TaskGroup() as group:
                for lane, other in ((up, down), (down, up)):
                    group.create_task(lane.read(other))
                    group.create_task(lane.write())
            self.resets = False
        except* OSError:
            pass  # the peer is told by the reset below
        except* Exception as errors:
            for error in errors.exceptions:
                self.on_error(error)
        finally:
            for end in (self.client, broker):
                _close(end, reset=self.resets)


def _close(end: socket.socket, *, reset: bool) -> None:
    if reset:
        # Zero linger makes close() send RST and drop what was not sent (socket(7), SO_LINGER).
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def resume() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(sock, resume)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


async def _drained(sock: socket.socket, clock: Clock) -> None:
    """Return when the peer's kernel has all bytes: a reset drops those that are still in ours."""
    if not sys.platform.startswith("linux"):
        return
    deadline = clock.monotonic() + _DRAIN_SECONDS
    while clock.monotonic() < deadline:
        # SIOCOUTQ of tcp(7), which has the number of TIOCOUTQ.
        waiting = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        if waiting == 0:
            return
        await clock.sleep(0.001)
