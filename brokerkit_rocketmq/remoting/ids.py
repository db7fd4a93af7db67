"""Ids that brokers make: where a message is stored, as a text.

``MessageDecoder.createMessageId``: IP address (4 or 16 bytes), port and offset in the commit log, in hexadecimal.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

__all__ = ["OffsetId", "host_text", "offset_id", "parse_offset_id"]

_TAIL = struct.Struct(">iq")
_PORT = struct.Struct(">i")


@dataclass(frozen=True, slots=True)
class OffsetId:
    """Where a message is stored.  ``offset`` is the one in the commit log."""

    host: str
    port: int
    offset: int

    @property
    def address(self) -> str:
        """The broker as ``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def offset_id(store_host: bytes, offset: int) -> str:
    """Return the id; ``store_host`` is the address as stored: 4 or 16 bytes and the port."""
    return (store_host + offset.to_bytes(8, "big", signed=True)).hex().upper()


def parse_offset_id(text: str) -> OffsetId:
    """Return what the id says; raise ValueError when it is none."""
    try:
        raw = bytes.fromhex(text) if len(text) in (32, 56) else b""
    except ValueError:
        raw = b""
    if len(raw) not in (16, 28):
        raise ValueError(f"{text[:60]!r} is no offset id: it has 32 or 56 hexadecimal digits")
    port, offset = _TAIL.unpack(raw[-_TAIL.size :])
    if not 0 <= port <= 65535 or offset < 0:
        raise ValueError(f"{text[:60]!r} is no offset id: its port or its offset is impossible")
    return OffsetId(str(ipaddress.ip_address(raw[: -_TAIL.size])), port, offset)


def host_text(raw: bytes) -> str:
    """Return a stored address as ``host:port``."""
    family = socket.AF_INET if len(raw) == 8 else socket.AF_INET6
    host = socket.inet_ntop(family, raw[:-4])
    port = _PORT.unpack(raw[-4:])[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
