"""`Address`: a host and a port, as configurations, routes and messages write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from brokerkit.errors import ConfigurationError

__all__ = ["NAME_SERVER_PORT", "Address", "parse_address"]

#: Where a NameServer listens unless it is told otherwise.
NAME_SERVER_PORT = 9876

_HOST = re.compile(r"[A-Za-z0-9._-]+\Z")


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """One end point."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, port: int | None = None) -> Address:
    """Return what ``host:port``, ``[::1]:port`` or, when there is a default ``port``, ``host`` or ``::1`` names.

    A NameServer writes IPv6 addresses of brokers without brackets; what follows the last colon is the port then.
    Raise `ConfigurationError` for what is no address.
    """
    host, colon, number = text.strip().rpartition(":")
    if port is not None and (not colon or text.strip().endswith("]") or _is_ipv6(text.strip())):
        host, number = text.strip(), str(port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    good = _is_ipv6(host) if ":" in host else _HOST.match(host) is not None
    if not good or not (number.isascii() and number.isdigit() and 0 < int(number[:6]) < 65536):
        raise ConfigurationError(f"{text!r} is no address of the form host:port", backend="rocketmq")
    return Address(host, int(number))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
