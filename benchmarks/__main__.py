"""``python -m benchmarks``: run benchmarks and print ratios."""

from __future__ import annotations

import argparse
import platform
import sqlite3
import sys
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.measure import Row, show

#: What the RocketMQ benchmark runs on unless told otherwise.
ROCKETMQ_VERSIONS = ("4.9.4", "5.5.0")


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


def rocketmq(rounds: int, scale: float, versions: Sequence[str] = ROCKETMQ_VERSIONS) -> list[Row]:
    from benchmarks.rocketmq.comparison import comparison

    return comparison(rounds, scale, versions)


BENCHMARKS: dict[str, tuple[str, Callable[[int, float], list[Row]]]] = {
    "embedded": ("embedded broker on a file against its peers", against_peers),
    "core": ("core overhead on memory://", overhead),
    "backlog": ("cost with much waiting", flatness),
    "processes": ("several processes on one file", processes),
    "footprint": ("import, idle, memory", footprint),
    "rabbitmq": ("RabbitMQ against its peers, a raw socket and the Java client", rabbitmq),
    "rocketmq": ("RocketMQ against a raw socket and the clients of others", rocketmq),
}


def main() -> int:
    """Run the chosen benchmarks; exit 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per contender; the median counts (default 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of messages (default 1)")
    parser.add_argument(
        "--profile", action="store_true", help="show where the CPU time goes on RabbitMQ, or RocketMQ if named, instead"
    )
    parser.add_argument("--version", help=f"of RocketMQ (default: {' and '.join(ROCKETMQ_VERSIONS)})")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)[0]!r}; known are {', '.join(BENCHMARKS)}")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}")
    versions = (arguments.version,) if arguments.version else ROCKETMQ_VERSIONS
    if arguments.profile:
        _profile(arguments.names, arguments.scale, versions)
        return 0
    reached = True
    for name in arguments.names or BENCHMARKS:
        title, run = BENCHMARKS[name]
        if run is rocketmq:
            run = partial(rocketmq, versions=versions)
        print(f"\n{title} ({name})", flush=True)
        reached &= show(title, run(arguments.rounds, arguments.scale))
    return 0 if reached else 1


def _profile(names: Sequence[str], scale: float, versions: Sequence[str]) -> None:
    if "rocketmq" in names:
        from benchmarks.rocketmq.profile import profile as of_rocketmq

        of_rocketmq(scale, versions)
    else:
        from benchmarks.rabbitmq.profile import profile as of_rabbitmq

        of_rabbitmq(scale)


if __name__ == "__main__":
    sys.exit(main())
