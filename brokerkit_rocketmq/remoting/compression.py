"""Compressed bodies: zlib, LZ4 frames and zstandard, with an upper bound of what comes out.

``MessageSysFlag``: bit 0 says that a body is compressed, bits 8 to 10 how.  zlib is in every client; LZ4 and zstandard
(5.x) need the packages ``lz4`` and ``zstandard``, which are imported when the first such body is read.
"""

from __future__ import annotations

import importlib
import zlib
from typing import Any

__all__ = [
    "COMPRESSED",
    "KINDS",
    "BodyTooLarge",
    "CompressionError",
    "LibraryMissing",
    "compress",
    "decompress",
    "kind_of",
]

COMPRESSED = 1
_KIND_SHIFT, _KIND_MASK = 8, 7
#: Names by the number in the flags; 0 is what clients before 5.0 write.
KINDS = {0: "zlib", 1: "lz4", 2: "zstd", 3: "zlib"}
#: Java's (``zipCompressLevel``).
_LEVEL = 5
#: A zstandard frame names the memory that reading it takes; senders' default levels stay below.
_ZSTD_WINDOW = 128 * 1024 * 1024
#: Bytes that are decompressed at once: four of them may stand for 128 KiB, so these for 4 MiB.
_ZSTD_CHUNK = 128


class CompressionError(ValueError):
    """A body cannot be decompressed; the text says why."""


class LibraryMissing(CompressionError):
    """The library for this kind of compression is not installed."""


class BodyTooLarge(CompressionError):
    """More would come out than is allowed."""


def compress(body: bytes) -> bytes:
    """Return the body as Java's client compresses it: zlib, which every client reads."""
    return zlib.compress(body, _LEVEL)


def kind_of(sys_flag: int) -> str | None:
    """Return the name of the compression in a message's flags: zlib, lz4, zstd, or None; ``kind-n`` if unknown."""
    if not sys_flag & COMPRESSED:
        return None
    number = sys_flag >> _KIND_SHIFT & _KIND_MASK
    return KINDS.get(number, f"kind-{number}")


def decompress(body: bytes, kind: str, limit: int) -> bytes:
    """Return the body as it was sent; ``kind`` as `kind_of` names it.

    Never takes much more memory than ``limit`` bytes.  Raise `LibraryMissing`, `BodyTooLarge` for more than that,
    `CompressionError` for anything that is no complete body of this kind.
    """
    if kind == "zlib":
        return _zlib(body, limit)
    if kind == "lz4":
        return _lz4(body, limit)
    if kind == "zstd":
        return _zstd(body, limit)
    raise CompressionError(f"the body is compressed in an unknown way, {kind}")


def _zlib(body: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as exc:
        raise CompressionError(f"the body is no zlib stream: {exc}") from exc
    return _checked(plain, limit, "zlib", complete=stream.eof)


def _lz4(body: bytes, limit: int) -> bytes:
    frame = _library("lz4.frame")
    stream = frame.LZ4FrameDecompressor()
    try:
        plain = stream.decompress(body, limit + 1)
    except (RuntimeError, EOFError, ValueError, MemoryError) as exc:
        raise CompressionError(f"the body is no LZ4 frame: {exc}") from exc
    return _checked(plain, limit, "LZ4", complete=stream.eof)


def _zstd(body: bytes, limit: int) -> bytes:
    zstandard = _library("zstandard")
    parts: list[bytes] = []
    size = 0
    # Not at once: that believes the size which the frame claims to have, and has no bound.
    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    try:
        for at in range(0, len(body), _ZSTD_CHUNK):
            part = stream.decompress(body[at : at + _ZSTD_CHUNK])
            parts.append(part)
            size += len(part)
            if size > limit or stream.eof:
                break
    except (zstandard.ZstdError, ValueError, MemoryError) as exc:
        raise CompressionError(f"the body is no zstandard frame: {exc}") from exc
    return _checked(b"".join(parts), limit, "zstandard", complete=stream.eof)


def _checked(plain: bytes, limit: int, what: str, *, complete: bool) -> bytes:
    if len(plain) > limit:
        raise BodyTooLarge(f"the decompressed body has more than {limit} bytes")
    if not complete:
        raise CompressionError(f"the {what} body is cut off")
    return plain


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise LibraryMissing(
            f"the body is compressed and the package {package} is not installed; pip install 'brokerkit[rocketmq]'"
        ) from None
