"""Frames: what travels in both directions, and how it is cut out of a stream of bytes.

``int32 total | int8 kind, int24 header length | header | body``, big endian; ``total`` counts what follows it
(``RemotingCommand`` of apache/rocketmq).  Kind 0 is a header in JSON, kind 1 a binary one; each frame is read by
its own kind, and written in JSON, which every version takes and which alone can carry codes above 32,767.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brokerkit_rocketmq.remoting.codes import FLAG_ONEWAY, FLAG_RESPONSE, LANGUAGES
from brokerkit_rocketmq.remoting.errors import FrameError, Oversized

__all__ = [
    "FRAME_MAX",
    "PROTOCOL_VERSION",
    "Frame",
    "FrameParser",
    "HeadTemplate",
    "encode_request",
    "encode_response",
    "render_head",
    "rendered_request",
]

#: Bytes of the largest frame with its length: what the servers read (``NettyDecoder``); more drops the connection.
FRAME_MAX = 16 * 1024 * 1024

#: The version that our requests carry, V4_9_4: the least for which a NameServer answers routes in standard JSON.
PROTOCOL_VERSION = 401

_JSON, _BINARY = 0, 1
_SIZES = struct.Struct(">II")
_BINARY_HEAD = struct.Struct(">hBhiii")
_LENGTH = struct.Struct(">i")
_NAME_LENGTH = struct.Struct(">h")

_text = json.encoder.encode_basestring_ascii
_parse_json = json.JSONDecoder().raw_decode


@dataclass(slots=True)
class Frame:
    """A request or an answer.  ``opaque`` pairs the two; ``version`` and ``language`` are those of the sender."""

    code: int
    opaque: int
    flag: int
    fields: dict[str, str]
    body: bytes
    remark: str | None
    version: int
    language: str

    @property
    def is_response(self) -> bool:
        return bool(self.flag & FLAG_RESPONSE)

    @property
    def is_oneway(self) -> bool:
        return bool(self.flag & FLAG_ONEWAY)


# --- writing ----------------------------------------------------------------------------------------------------


def render_head(
    code: int, fields: Mapping[str, str] | None = None, *, oneway: bool = False, version: int = PROTOCOL_VERSION
) -> tuple[bytes, bytes]:
    """Return the JSON header of a request as what stands before the number ``opaque`` and what stands after it.

    A request that is sent often is rendered once, or by the caller in this form.
    """
    flag = FLAG_ONEWAY if oneway else 0
    before = f'{{"code":{code:d},"language":"PYTHON","version":{version:d},"flag":{flag},"opaque":'
    return before.encode("ascii"), _fields(fields)


class HeadTemplate:
    """The header of requests that differ in the number of one field."""

    __slots__ = ("_before", "_left", "_right")

    def __init__(self, code: int, fields: Mapping[str, str], field: str) -> None:
        """``field`` is one of ``fields``, which are text; its value there does not matter."""
        self._before, after = render_head(code, {**fields, field: "0"})
        name = f'"{field}":"'.encode("ascii")
        left, _, right = after.partition(name + b"0")
        self._left, self._right = left + name, right

    def render(self, number: int) -> tuple[bytes, bytes]:
        """Return what `render_head` would."""
        return self._before, b"%b%d%b" % (self._left, number, self._right)


def rendered_request(before: bytes, opaque: int, after: bytes, body_size: int, limit: int = FRAME_MAX) -> bytes:
    """Return the sizes and the header of a request; the body follows.  Raise `Oversized` above ``limit`` bytes."""
    header = b"%b%d%b" % (before, opaque, after)
    length = len(header)
    if length + body_size + 8 > limit:
        raise Oversized(f"a request of {length + body_size + 8:,} bytes is over the limit of {limit:,} bytes")
    return _SIZES.pack(length + body_size + 4, length) + header


def encode_request(
    code: int, opaque: int, fields: Mapping[str, str] | None = None, body: bytes = b"", *, oneway: bool = False
) -> bytes:
    """Return a request as bytes.  Raise `Oversized` when a peer would not read it."""
    before, after = render_head(code, fields, oneway=oneway)
    return rendered_request(before, opaque, after, len(body)) + body


def encode_response(
    code: int, opaque: int, fields: Mapping[str, str] | None = None, body: bytes = b"", remark: str | None = None
) -> bytes:
    """Return the answer to the request ``opaque`` as bytes.  Raise `Oversized` when a peer would not read it."""
    text = "null" if remark is None else _text(remark)
    before = (
        f'{{"code":{code:d},"language":"PYTHON","version":{PROTOCOL_VERSION},"flag":{FLAG_RESPONSE},'
        f'"remark":{text},"opaque":'
    )
    return rendered_request(before.encode("ascii"), opaque, _fields(fields), len(body)) + body


def _fields(fields: Mapping[str, str] | None) -> bytes:
    if not fields:
        return b"}"
    pairs = ",".join([f"{_text(name)}:{_text(value)}" for name, value in fields.items()])
    return f',"extFields":{{{pairs}}}}}'.encode("ascii")


# --- reading ----------------------------------------------------------------------------------------------------


class FrameParser:
    """Cuts a stream of bytes into frames."""

    __slots__ = ("_held", "_limit", "_missing", "_pieces")

    def __init__(self, limit: int = FRAME_MAX) -> None:
        """``limit``: bytes of the largest frame that is read."""
        self._limit = limit
        #: The beginning of a frame whose rest has not come, and how many bytes are missing before it can be looked at.
        self._pieces: list[bytes] = []
        self._held = 0
        self._missing = 0

    @property
    def held(self) -> int:
        """Bytes that are kept because the frame they belong to is not complete."""
        return self._held

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that ``data`` completes.

        Raise `FrameError` for what is no frame or larger than the limit; nothing can be fed after that.
        """
        if self._held:
            # Pieces are joined once for a frame, not once for a piece.
            self._pieces.append(data)
            self._held += len(data)
            self._missing -= len(data)
            if self._missing > 0:
                return []
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._held = 0
        frames: list[Frame] = []
        offset, end = 0, len(data)
        while end - offset >= 8:
            total, word = _SIZES.unpack_from(data, offset)
            length = word & 0xFFFFFF
            if total + 4 > self._limit:
                raise FrameError(f"a frame of {total + 4:,} bytes is over the limit of {self._limit:,} bytes")
            if length + 4 > total:
                raise FrameError(f"a header of {length:,} bytes in a frame of {total:,} bytes")
            stop = offset + 4 + total
            if stop > end:
                self._keep(data, offset, stop - end)
                return frames
            start = offset + 8
            body = start + length
            kind = word >> 24
            if kind == _JSON:
                frames.append(_json_frame(data, start, body, stop))
            elif kind == _BINARY:
                frames.append(_binary_frame(data, start, body, stop))
            else:
                raise FrameError(f"a header of the unknown kind {kind}")
            offset = stop
        if offset < end:
            self._keep(data, offset, offset + 8 - end)
        return frames

    def _keep(self, data: bytes, offset: int, missing: int) -> None:
        rest = data[offset:] if offset else data
        self._pieces.append(rest)
        self._held = len(rest)
        self._missing = missing


def _json_frame(data: bytes, start: int, body: int, stop: int) -> Frame:
    try:
        text = str(data[start:body], "utf-8")
        header, end = _parse_json(text)
        if end != len(text):
            raise FrameError("a JSON header with more behind it")
        code, opaque, flag = header["code"], header["opaque"], header["flag"]
        fields = header.get("extFields")
        remark, version = header.get("remark"), header.get("version", 0)
        language = header.get("language", "OTHER")
    except FrameError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise FrameError(f"a JSON header that cannot be read: {type(exc).__name__}") from exc
    if not (type(code) is type(opaque) is type(flag) is type(version) is int):
        raise FrameError("a JSON header whose numbers are none")
    if fields is None:
        fields = {}
    elif type(fields) is not dict:
        raise FrameError("a JSON header whose extFields are no object")
    else:
        for value in fields.values():
            if type(value) is not str:
                fields = _as_texts(fields)
                break
    if type(language) is not str:
        language = "OTHER"
    return Frame(
        code, opaque, flag, fields, data[body:stop], None if remark is None else str(remark), version, language
    )


def _as_texts(fields: dict[str, Any]) -> dict[str, str]:
    """Java maps hold texts only; a peer in another language may write numbers, and null for what is absent."""
    texts = {}
    for name, value in fields.items():
        if isinstance(value, str):
            texts[name] = value
        elif isinstance(value, bool):
            texts[name] = "true" if value else "false"
        elif isinstance(value, int | float):
            texts[name] = str(value)
        elif value is not None:
            raise FrameError(f"a JSON header whose extFields hold a {type(value).__name__}")
    return texts


def _binary_frame(data: bytes, start: int, body: int, stop: int) -> Frame:
    """``RocketMQSerializable``: numbers, the remark, then pairs of name and value, each with its length before it."""
    try:
        code, language, version, opaque, flag, size = _BINARY_HEAD.unpack_from(data, start)
        at = start + _BINARY_HEAD.size
        remark, at = _piece(data, at, size, body)
        (size,) = _LENGTH.unpack_from(data, at)
        at += 4
        if size < 0 or at + size > body:
            raise FrameError("a binary header whose lengths do not fit")
        fields: dict[str, str] = {}
        last = at + size
        while at < last:
            (size,) = _NAME_LENGTH.unpack_from(data, at)
            name, at = _piece(data, at + 2, size, last)
            (size,) = _LENGTH.unpack_from(data, at)
            value, at = _piece(data, at + 4, size, last)
            if value or name:
                fields[name] = value
    except (ValueError, struct.error) as exc:
        raise FrameError(f"a binary header that cannot be read: {type(exc).__name__}") from exc
    name = LANGUAGES[language] if language < len(LANGUAGES) else "OTHER"
    return Frame(code, opaque, flag, fields, data[body:stop], remark or None, version, name)


def _piece(data: bytes, at: int, size: int, end: int) -> tuple[str, int]:
    stop = at + size
    if size < 0 or stop > end:
        raise FrameError("a binary header whose lengths do not fit")
    return str(data[at:stop], "utf-8"), stop
