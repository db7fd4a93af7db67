"""The wire of unit tests: a transport that records, and frames as a broker writes them, made by pika."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, TypeVar

from pika import frame, spec

from brokerkit.clock import SystemClock
from brokerkit_rabbitmq.channel import Channel
from brokerkit_rabbitmq.protocol import Amqp, Tuning

FRAME_MAX = 8192

C = TypeVar("C", bound=Channel)


class RecordingTransport(asyncio.Transport):
    """Keeps what is written; ends when it is told to, as that of a socket does."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.written = bytearray()
        self.ended: str | None = None
        self._protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self._end("close")

    def abort(self) -> None:
        self._end("abort")

    def _end(self, how: str) -> None:
        if self.ended is None:
            self.ended = how
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


class Wire:
    """A connection without a login, and the other end of it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.amqp = Amqp(loop, SystemClock(), Tuning(0, FRAME_MAX, 100), 30.0)
        self.amqp.peer = "broker:5672"
        self.transport = RecordingTransport(self.amqp)
        self.amqp.connection_made(self.transport)

    def feed(self, data: bytes) -> None:
        self.amqp.data_received(data)

    async def written(self) -> list[Any]:
        """Return the frames written since the last call, decoded by pika."""
        # Who was woken writes in the next turn of the loop, and it leaves at the end of that.
        for _ in range(3):
            await asyncio.sleep(0)
        data = bytes(self.transport.written)
        self.transport.written.clear()
        return list(frames_of(data))

    async def methods(self) -> list[Any]:
        return [part.method for part in await self.written()]

    async def open(self, kind: type[C], *arguments: Any) -> C:
        opening = asyncio.ensure_future(self.amqp.open_channel(kind, *arguments))
        while not (written := await self.written()):
            pass
        (request,) = written
        assert isinstance(request.method, spec.Channel.Open)
        self.feed(method(request.channel_number, spec.Channel.OpenOk()))
        return await opening


def frames_of(data: bytes) -> Iterator[Any]:
    while data:
        used, part = frame.decode_frame(data)
        assert used, f"half a frame was written: {data[:40]!r}"
        yield part
        data = data[used:]


def method(channel: int, content: Any) -> bytes:
    return bytes(frame.Method(channel, content).marshal())


def message(channel: int, content: Any, properties: bytes, body: bytes, piece: int = FRAME_MAX - 8) -> bytes:
    """Return the frames of a message whose body comes in pieces of ``piece`` bytes."""
    head = (
        (12 + len(properties)).to_bytes(4)
        + (60).to_bytes(2)
        + (0).to_bytes(2)
        + len(body).to_bytes(8)
        + properties
        + b"\xce"
    )
    parts = [method(channel, content), b"\x02", channel.to_bytes(2), head]
    parts += (frame.Body(channel, body[start : start + piece]).marshal() for start in range(0, len(body), piece))
    return b"".join(parts)
