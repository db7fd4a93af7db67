"""A raw socket: how fast the broker and Python's sockets are when nothing is done between them.

Every send is the same frame, encoded once for each queue; of the answers only the lengths and the codes are looked at.
The properties are those of a message of brokerkit, so that the broker has the same work.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence

from benchmarks.measure import Stopwatch
from benchmarks.rabbitmq.sides import BODY, Figure
from brokerkit.testing.services.rocketmq import ask

__all__ = ["QUEUES", "fill", "pull", "round_trips", "send", "send_batches"]

#: Of each topic, on the one broker.
QUEUES = 8

#: org.apache.rocketmq.remoting.protocol.RequestCode
_PULL, _GET_MAX_OFFSET, _SEND, _SEND_BATCH = 11, 30, 310, 320
_TOPIC = "bench-raw"
_LONE_TOPIC = "bench-raw-lone"
#: Of one pull; what a broker gives at most by default.
_PULLED = 32
_MOST = 1 << 18
#: How an answer begins that says yes; the brokers of 4.9 and 5.x write their fields in this order.
_YES = b'{"code":0,'


def send(broker: str, count: int, window: int) -> Figure:
    """Send ``count`` messages with a full window of answers that have not come."""
    return _sent(broker, [_send_frame(_TOPIC, queue) for queue in range(QUEUES)], count, window, 1)


def send_batches(broker: str, count: int, window: int) -> Figure:
    """Do the same with batches of 32, of which ``window`` messages are under way."""
    frames = [_batch_frame(_TOPIC, queue, _PULLED) for queue in range(QUEUES)]
    return _sent(broker, frames, count // _PULLED, max(1, window // _PULLED), _PULLED)


def fill(broker: str, topic: str, count: int) -> None:
    """Store at least ``count`` messages in a topic, evenly over its queues."""
    turn = _PULLED * QUEUES
    client = _Client(broker)
    try:
        frames = [_batch_frame(topic, queue, _PULLED) for queue in range(QUEUES)]
        client.send(frames, (count + turn - 1) // turn * QUEUES, 32)
    finally:
        client.close()


def _sent(broker: str, frames: Sequence[bytes], count: int, window: int, each: int) -> Figure:
    client = _Client(broker)
    try:
        client.send(frames, 16, 16)
        watch = Stopwatch()
        with watch.running():
            client.send(frames, count, window)
        return Figure(count * each, watch.wall, watch.cpu)
    finally:
        client.close()


def pull(broker: str, count: int) -> Figure:
    """Pull what is stored, a request in flight for each queue, without decoding it."""
    ends = []
    for queue in range(QUEUES):
        answer = ask(broker, _GET_MAX_OFFSET, {"topic": _TOPIC, "queueId": str(queue)})
        ends.append(int(answer.fields["offset"]))
    starts = [max(0, end - count // QUEUES - 1) for end in ends]
    client = _Client(broker)
    try:
        watch = Stopwatch()
        with watch.running():
            taken = client.pull(starts, ends)
        return Figure(taken, watch.wall, watch.cpu)
    finally:
        client.close()


def round_trips(broker: str, count: int) -> list[float]:
    """Return the seconds of each of ``count`` sends, one after the other."""
    frame = [_send_frame(_LONE_TOPIC, 0)]
    client = _Client(broker)
    try:
        took = []
        client.send(frame, 20, 1)
        for _ in range(count):
            began = time.perf_counter()
            client.send(frame, 1, 1)
            took.append(time.perf_counter() - began)
        return took
    finally:
        client.close()


class _Client:
    """A blocking socket to one broker."""

    def __init__(self, broker: str) -> None:
        host, _, port = broker.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def send(self, frames: Sequence[bytes], count: int, window: int) -> None:
        """Send ``count`` requests, the frames in turn; return when all are answered."""
        block = b"".join(frames)
        turn = len(frames)
        sent = answered = 0
        while answered < count:
            room = min(window - (sent - answered), count - sent)
            # A quarter of the window at a time is faster than a write for each answer.
            if room and (room >= max(1, window // 4) or sent + room == count):
                first = sent % turn
                data = (
                    b"".join(frames[first:]) + block * ((room + turn) // turn) if first else block * (room // turn + 1)
                )
                self._socket.sendall(data[: room * len(frames[0])])
                sent += room
            answered += self._answers()

    def _answers(self) -> int:
        data = self._rest + self._receive()
        offset = found = 0
        while len(data) - offset >= 4:
            (length,) = struct.unpack_from(">i", data, offset)
            if len(data) - offset - 4 < length:
                break
            if not data.startswith(_YES, offset + 8):
                raise RuntimeError(f"the broker did not take a message: {data[offset + 8 : offset + 308]!r}")
            offset += 4 + length
            found += 1
        self._rest = data[offset:]
        return found

    def pull(self, starts: Sequence[int], ends: Sequence[int]) -> int:
        """Read every queue from its start to its end; return how many messages came."""
        positions = list(starts)
        for queue, start in enumerate(starts):
            self._socket.sendall(_pull_frame(queue, start))
        open_queues, taken = len(starts), 0
        data = b""
        while open_queues:
            data += self._receive()
            offset = 0
            while len(data) - offset >= 8:
                length, header = struct.unpack_from(">ii", data, offset)
                if len(data) - offset - 4 < length:
                    break
                if not data.startswith(_YES, offset + 8):
                    raise RuntimeError(f"the broker found nothing: {data[offset + 8 : offset + 308]!r}")
                fields = json.loads(data[offset + 8 : offset + 8 + header])
                queue, offset_now = fields["opaque"], int(fields["extFields"]["nextBeginOffset"])
                taken += offset_now - positions[queue]
                positions[queue] = offset_now
                if offset_now < ends[queue]:
                    self._socket.sendall(_pull_frame(queue, offset_now))
                else:
                    open_queues -= 1
                offset += 4 + length
            data = data[offset:]
        return taken

    def _receive(self) -> bytes:
        data = self._socket.recv(_MOST)
        if not data:
            raise ConnectionError("the broker closed the raw connection")
        return data

    def close(self) -> None:
        """Drop the connection."""
        self._socket.close()


# --- frames -------------------------------------------------------------------------------------------------------

#: What brokerkit adds to a message without options.
_PROPERTIES = (
    ("UNIQ_KEY", "0123456789abcdef01234567-ffff"),
    ("bk-ct", "application/octet-stream"),
    ("bk-time", repr(1_800_000_000.123456)),
)


def _properties() -> str:
    return "".join(f"{name}\x01{value}\x02" for name, value in _PROPERTIES)


def _frame(code: int, fields: Mapping[str, str], body: bytes = b"", opaque: int = 0) -> bytes:
    header = {"code": code, "language": "PYTHON", "version": 401, "opaque": opaque, "flag": 0, "extFields": fields}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack(">ii", 4 + len(encoded) + len(body), len(encoded)) + encoded + body


def _send_fields(topic: str, queue: int, properties: str, batch: str) -> dict[str, str]:
    # The short names of SendMessageRequestHeaderV2.
    return {
        "a": "bench", "b": topic, "c": "TBW102", "d": "8", "e": str(queue), "f": "0",
        "g": "1800000000123", "h": "0", "i": properties, "j": "0", "k": "false", "m": batch,
    }  # fmt: skip


def _send_frame(topic: str, queue: int) -> bytes:
    return _frame(_SEND, _send_fields(topic, queue, _properties(), "false"), BODY)


def _batch_frame(topic: str, queue: int, count: int) -> bytes:
    encoded = _properties().encode()
    size = 22 + len(BODY) + len(encoded)
    one = struct.pack(">iiiii", size, 0, 0, 0, len(BODY)) + BODY + struct.pack(">h", len(encoded)) + encoded
    return _frame(_SEND_BATCH, _send_fields(topic, queue, "", "true"), one * count)


def _pull_frame(queue: int, start: int) -> bytes:
    fields = {
        "consumerGroup": "bench-raw", "topic": _TOPIC, "queueId": str(queue), "queueOffset": str(start),
        "maxMsgNums": str(_PULLED), "sysFlag": "4", "commitOffset": "0", "suspendTimeoutMillis": "0",
        "subscription": "*", "subVersion": "0", "expressionType": "TAG",
    }  # fmt: skip
    return _frame(_PULL, fields, opaque=queue)
