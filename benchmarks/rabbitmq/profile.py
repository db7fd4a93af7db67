"""Where the CPU time of publishing and handling goes: cProfile of each, the functions with most time of their own."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable

from benchmarks.rabbitmq import ours
from benchmarks.rabbitmq.sides import Figure
from brokerkit.testing.services.rabbitmq import RabbitMQNode, find_installation
from brokerkit.testing.services.service import Missing

__all__ = ["profile"]

_LINES = 25


def profile(scale: float) -> None:
    """Print the profiles, made on a private node.  The profiler itself doubles the time of everything."""
    found = find_installation()
    if isinstance(found, Missing):
        print(found)
        return
    count = max(1_000, int(30_000 * scale))
    with RabbitMQNode(installation=found) as node:
        for name, run in (("send_many", ours.send_many), ("concurrent send", ours.sends), ("handled", ours.handled)):
            print(f"\n{name}, {count:,} messages")
            _profiled(run, node.url, count)


def _profiled(run: Callable[[str, int], Figure], url: str, count: int) -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    run(url, count)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(_LINES)
