"""Frames of AMQP 0-9-1: their layout, and the hot ones made by hand.

A frame is kind (1 byte), channel (2), size of the payload (4), payload, end mark (1); section 4.2.3 of the
protocol.  A message is a method frame, a header frame and as many body frames as ``frame_max`` makes it need.
"""

from __future__ import annotations

import struct

__all__ = [
    "ACK",
    "BODY",
    "CANCEL",
    "DELIVER",
    "END",
    "GET_EMPTY",
    "GET_OK",
    "HEADER",
    "HEARTBEAT",
    "HEARTBEAT_FRAME",
    "METHOD",
    "NACK",
    "OVERHEAD",
    "RETURN",
    "ack_frame",
    "content_frames",
    "method_frame",
    "nack_frame",
    "publish_frame",
]

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = 0xCE
#: Bytes of a frame around its payload.
OVERHEAD = 8
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"

#: Class 60 (basic) in the high 16 bits, the method in the low ones.
_BASIC = 60 << 16
PUBLISH = _BASIC | 40
RETURN = _BASIC | 50
DELIVER = _BASIC | 60
GET_OK = _BASIC | 71
GET_EMPTY = _BASIC | 72
ACK = _BASIC | 80
CANCEL = _BASIC | 30
NACK = _BASIC | 120

_HEAD = struct.Struct(">BHI")
_METHOD_HEAD = struct.Struct(">BHII")
_ACK_FRAME = struct.Struct(">BHIIQBB")
#: Kind, channel, size, class, weight, body size.
_CONTENT_HEAD = struct.Struct(">BHIHHQ")
_END = b"\xce"


def method_frame(channel: int, method: int, arguments: bytes) -> bytes:
    """Return a method frame."""
    return _METHOD_HEAD.pack(METHOD, channel, 4 + len(arguments), method) + arguments + _END


def ack_frame(channel: int, tag: int, multiple: bool) -> bytes:
    """Return basic.ack."""
    return _ACK_FRAME.pack(METHOD, channel, 13, ACK, tag, multiple, END)


def nack_frame(channel: int, tag: int, *, multiple: bool = False, requeue: bool = True) -> bytes:
    """Return basic.nack."""
    return _ACK_FRAME.pack(METHOD, channel, 13, NACK, tag, multiple | requeue << 1, END)


def publish_frame(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """Return basic.publish; the same for every message to one address, so it is worth keeping.

    Raise ValueError for a name of more than 255 bytes.
    """
    names = []
    for what, name in (("exchange", exchange), ("routing key", routing_key)):
        raw = name.encode()
        if len(raw) > 255:
            raise ValueError(f"the {what} {name[:40]!r}… has {len(raw)} bytes, at most 255 are allowed")
        names.append(bytes((len(raw),)) + raw)
    return method_frame(channel, PUBLISH, b"\0\0" + b"".join(names) + (b"\1" if mandatory else b"\0"))


def content_frames(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Return the header frame and the body frames of a message.  ``properties`` fit into one frame."""
    size = len(body)
    head = _CONTENT_HEAD.pack(HEADER, channel, 12 + len(properties), 60, 0, size)
    if size <= frame_max - OVERHEAD:
        if not size:
            return head + properties + _END
        return b"".join((head, properties, _END, _HEAD.pack(BODY, channel, size), body, _END))
    parts = [head, properties, _END]
    step = frame_max - OVERHEAD
    for start in range(0, size, step):
        piece = body[start : start + step]
        parts += (_HEAD.pack(BODY, channel, len(piece)), piece, _END)
    return b"".join(parts)
