"""Free ports for servers that want to be told theirs."""

from __future__ import annotations

import contextlib
import random
import socket

__all__ = ["free_port", "free_ports"]

#: Below the range that systems give to outgoing connections (32768 on Linux), so that a node which is down for a
#: moment finds its port free when it comes back.
_RANGE = (15_000, 32_000)

_ATTEMPTS = 200


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    return free_ports(1)[0]


def free_ports(count: int, *, consecutive: bool = False) -> list[int]:
    """Return ``count`` different free TCP ports, in one row if ``consecutive``; `OSError` when there are none."""
    # Not the seeded generator: parallel test runs with one seed would fight for the same ports.
    dice = random.SystemRandom()
    with contextlib.ExitStack() as held:
        if consecutive:
            for _ in range(_ATTEMPTS):
                first = dice.randrange(_RANGE[0], _RANGE[1] - count)
                row = list(range(first, first + count))
                with contextlib.ExitStack() as tried:
                    if all(_hold(port, tried) for port in row):
                        return row
        else:
            ports: list[int] = []
            for _ in range(_ATTEMPTS + count):
                port = dice.randrange(*_RANGE)
                if port not in ports and _hold(port, held):
                    ports.append(port)
                if len(ports) == count:
                    return ports
    raise OSError(f"no {count} free ports between {_RANGE[0]} and {_RANGE[1]} after {_ATTEMPTS} attempts")


def _hold(port: int, held: contextlib.ExitStack) -> bool:
    sock = held.enter_context(socket.socket())
    try:
        # All addresses: a server on any of them makes the port taken.  Lingering connections of an earlier server
        # count too, because not every broker sets SO_REUSEADDR.
        sock.bind(("", port))
    except OSError:
        return False
    return True
