"""Where the CPU time of sending and handling goes: cProfile of each, the functions with most time of their own."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.rabbitmq.sides import Figure
from benchmarks.rocketmq import ours
from brokerkit.testing.services.rocketmq import RocketMQServer, find_rocketmq
from brokerkit.testing.services.service import Missing

__all__ = ["profile"]

_LINES = 25


def profile(scale: float, versions: Sequence[str]) -> None:
    """Print the profiles, made on a private server.  The profiler itself doubles the time of everything."""
    found = find_rocketmq(versions[0])
    if isinstance(found, Missing):
        print(found)
        return
    count = max(1_000, int(30_000 * scale))
    with RocketMQServer(installation=found) as server:
        for name, run in (
            ("send_many", ours.send_many),
            ("1,000 concurrent send", partial(ours.sends, window=1_000)),
            ("handled", ours.handled),
        ):
            print(f"\n{name}, {count:,} messages on {found.version}")
            _profiled(run, server.url, count)


def _profiled(run: Callable[[str, int], Figure], url: str, count: int) -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    run(url, count)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(_LINES)
