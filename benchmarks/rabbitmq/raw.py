"""A raw socket: how fast the broker and Python's sockets are when nothing is done between them.

Every message is the same frames, encoded once; answers are looked at only as far as it takes to count them.  The
properties are those of a message of brokerkit, so that the broker has the same work.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

from pika import URLParameters, frame, spec

from benchmarks.measure import Stopwatch
from benchmarks.rabbitmq.sides import BODY, PREFETCH, WINDOW, Figure

__all__ = ["consume", "publish", "publish_by_topic", "round_trips", "round_trips_by_topic"]

_QUEUE = "bench.raw"
_TOPIC = "bench.raw.topic"
_LONE_QUEUE = "bench.raw.lone"
_HEAD = struct.Struct(">BHI")
#: Class 60, methods 60 and 80.
_DELIVER, _ACK = (60).to_bytes(2, "big") + (60).to_bytes(2, "big"), (60).to_bytes(2, "big") + (80).to_bytes(2, "big")
_MOST = 1 << 18


def publish(url: str, count: int) -> Figure:
    """Publish with a full window of confirms."""
    client = _Client(url, _QUEUE)
    try:
        client.call(spec.Confirm.Select())
        client.publish(100)
        watch = Stopwatch()
        with watch.running():
            client.publish(count)
        return Figure(count, watch.wall, watch.cpu)
    finally:
        client.close()


def publish_by_topic(url: str, count: int) -> Figure:
    """Do what `publish` does through a topic exchange, as brokerkit has one; that costs the broker more."""
    client = _Client(url, _TOPIC, exchange=_TOPIC)
    try:
        client.call(spec.Confirm.Select())
        client.publish(100)
        watch = Stopwatch()
        with watch.running():
            client.publish(count)
        client.call(spec.Queue.Purge(0, _TOPIC))
        return Figure(count, watch.wall, watch.cpu)
    finally:
        client.close()


def consume(url: str, count: int) -> Figure:
    """Take messages and acknowledge them, one frame for all that one read brought."""
    client = _Client(url, _QUEUE)
    try:
        client.call(spec.Basic.Qos(0, PREFETCH, False))
        watch = Stopwatch()
        with watch.running():
            client.consume(_QUEUE, count)
        return Figure(count, watch.wall, watch.cpu)
    finally:
        client.close()


def round_trips(url: str, count: int) -> list[float]:
    """Return the seconds of each of ``count`` confirmed messages, one after the other."""
    return _round_trips(_Client(url, _LONE_QUEUE), count)


def round_trips_by_topic(url: str, count: int) -> list[float]:
    """Do what `round_trips` does through a topic exchange."""
    return _round_trips(_Client(url, _TOPIC, exchange=_TOPIC), count)


def _round_trips(client: _Client, count: int) -> list[float]:
    try:
        client.call(spec.Confirm.Select())
        took = []
        for _ in range(20):
            client.publish(1)
        for _ in range(count):
            began = time.perf_counter()
            client.publish(1)
            took.append(time.perf_counter() - began)
        return took
    finally:
        client.close()


class _Client:
    """A blocking socket after its login, with one channel and one quorum queue."""

    def __init__(self, url: str, queue: str, exchange: str = "") -> None:
        where = URLParameters(url)
        login = where.credentials
        self._socket = socket.create_connection((where.host, where.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        #: Delivery tags of confirms: all up to `_low` are confirmed, and those above it in `_above`.
        self._low = 0
        self._above: set[int] = set()
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._read_method()
        login_ok = spec.Connection.StartOk({}, "PLAIN", f"\0{login.username}\0{login.password}", "en_US")
        tune = self.call(login_ok, channel=0)
        self._write(0, spec.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        self.call(spec.Connection.Open(where.virtual_host), channel=0)
        self.call(spec.Channel.Open())
        self.call(spec.Queue.Declare(0, queue, durable=True, arguments={"x-queue-type": "quorum"}))
        if exchange:
            self.call(spec.Exchange.Declare(0, exchange, "topic", durable=True))
            self.call(spec.Queue.Bind(0, queue, exchange, "#"))
        self._message = _message(exchange, "" if exchange else queue)
        self._window = memoryview(self._message * WINDOW)
        self._sent = 0

    def call(self, method: Any, channel: int = 1) -> Any:
        """Write a method and return the reply."""
        self._write(channel, method)
        return self._read_method()

    def _write(self, channel: int, method: Any) -> None:
        self._socket.sendall(frame.Method(channel, method).marshal())

    def _read_method(self) -> Any:
        while True:
            used, found = frame.decode_frame(self._rest)
            if found is not None:
                self._rest = self._rest[used:]
                if isinstance(found.method, spec.Connection.Close | spec.Channel.Close):
                    raise RuntimeError(f"the broker closed: {found.method.reply_text}")
                return found.method
            self._rest += self._receive()

    def _receive(self) -> bytes:
        data = self._socket.recv(_MOST)
        if not data:
            raise ConnectionError("the broker closed the raw connection")
        return data

    def publish(self, count: int) -> None:
        """Publish ``count`` messages; return when all are confirmed."""
        size = len(self._message)
        last = self._sent + count
        while self._low < last:
            room = min(WINDOW - (self._sent - self._low - len(self._above)), last - self._sent)
            # A quarter of the window at a time is fastest; a write for each confirm is not.
            if room and (room >= WINDOW // 4 or self._sent + room == last):
                self._socket.sendall(self._window[: room * size])
                self._sent += room
            self._take_confirms(self._receive())

    def _take_confirms(self, data: bytes) -> None:
        data = self._rest + data
        # basic.ack is 21 bytes long; nothing else comes here.
        whole = len(data) - len(data) % 21
        for start in range(0, whole, 21):
            if data[start + 7 : start + 11] != _ACK:
                raise RuntimeError("the broker did not confirm")
            tag = int.from_bytes(data[start + 11 : start + 19], "big")
            if data[start + 19] & 1:
                self._low = max(self._low, tag)
                self._above = {other for other in self._above if other > tag}
            else:
                self._above.add(tag)
            while self._low + 1 in self._above:
                self._low += 1
                self._above.remove(self._low)
        self._rest = data[whole:]

    def consume(self, queue: str, count: int) -> None:
        """Take and acknowledge ``count`` messages."""
        self._write(1, spec.Basic.Consume(0, queue))
        seen, data = 0, self._rest
        while seen < count:
            data += self._receive()
            offset, tag = 0, b""
            while len(data) - offset >= 8:
                _, _, size = _HEAD.unpack_from(data, offset)
                if len(data) - offset < size + 8:
                    break
                if data[offset] == 1 and data[offset + 7 : offset + 11] == _DELIVER:
                    start = offset + 12 + data[offset + 11]
                    tag = data[start : start + 8]
                elif data[offset] == 3:
                    # Bodies are smaller than a frame, so this was the end of a message.
                    seen += 1
                offset += size + 8
            data = data[offset:]
            if tag:
                # May cover a message whose body is still to come; it will, on this connection.
                self._socket.sendall(b"\x01\x00\x01\x00\x00\x00\x0d" + _ACK + tag + b"\x01\xce")

    def close(self) -> None:
        """Drop the connection; what it did not acknowledge goes back."""
        self._socket.close()


def _message(exchange: str, routing_key: str) -> bytes:
    properties = spec.BasicProperties(
        content_type="application/octet-stream",
        headers={"bk-seq": 1, "bk-time": repr(1_800_000_000.123456)},
        delivery_mode=2,
        message_id="0123456789abcdef01234567-ffff",
        timestamp=1_800_000_000,
    )
    parts = (
        frame.Method(1, spec.Basic.Publish(0, exchange, routing_key, mandatory=True)),
        frame.Header(1, len(BODY), properties),
        frame.Body(1, BODY),
    )
    return b"".join(part.marshal() for part in parts)
