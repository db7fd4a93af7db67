"""``python -m benchmarks``: run benchmarks and print ratios."""

from __future__ import annotations

import argparse
import platform
import sqlite3
import sys

from benchmarks.measure import Row, show


def against_peers(rounds: int, scale: float) -> list[Row]:
    from benchmarks.embedded import against_peers

    return against_peers(rounds, scale)


def overhead(rounds: int, scale: float) -> list[Row]:
    from benchmarks.core import overhead

    return overhead(rounds, scale)


def flatness(rounds: int, scale: float) -> list[Row]:
    from benchmarks.backlog import flatness

    return flatness(rounds, scale)


def processes(rounds: int, scale: float) -> list[Row]:
    from benchmarks.processes import processes

    return processes(rounds, scale)


def footprint(rounds: int, scale: float) -> list[Row]:
    from benchmarks.footprint import footprint

    return footprint(rounds, scale)


def rabbitmq(rounds: int, scale: float) -> list[Row]:
    from benchmarks.rabbitmq.comparison import comparison

    return comparison(rounds, scale)


BENCHMARKS = {
    "embedded": ("embedded broker on a file against its peers", against_peers),
    "core": ("core overhead on memory://", overhead),
    "backlog": ("cost with much waiting", flatness),
    "processes": ("several processes on one file", processes),
    "footprint": ("import, idle, memory", footprint),
    "rabbitmq": ("RabbitMQ against its peers, a raw socket and the Java client", rabbitmq),
}


def main() -> int:
    """Run the chosen benchmarks; exit 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per contender; the median counts (default 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of messages (default 1)")
    parser.add_argument("--profile", action="store_true", help="show where the CPU time goes on RabbitMQ instead")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)[0]!r}; known are {', '.join(BENCHMARKS)}")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}")
    if arguments.profile:
        from benchmarks.rabbitmq.profile import profile

        profile(arguments.scale)
        return 0
    reached = True
    for name in arguments.names or BENCHMARKS:
        title, run = BENCHMARKS[name]
        print(f"\n{title} ({name})", flush=True)
        reached &= show(title, run(arguments.rounds, arguments.scale))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
