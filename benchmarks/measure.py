"""Rounds, medians and tables.

Absolute times wobble on shared machines by 30 %; so every contender runs once per round, interleaved, and what is
reported is the ratio of medians.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Row", "Stopwatch", "interleave", "show"]


@dataclass
class Stopwatch:
    """Wall and CPU seconds of one stretch."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure the body of the with statement."""
        gc.collect()
        # Dirty pages of the filling would be written during the measurement.
        os.sync()
        cpu, wall = _cpu(), time.perf_counter()
        yield
        self.wall = time.perf_counter() - wall
        self.cpu = _cpu() - cpu

    def rate(self, count: int) -> float:
        """Return how many a second."""
        return count / self.wall


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass
class Row:
    """One line of a result: a figure, what it must reach, and whether it does."""

    what: str
    value: float
    unit: str = ""
    target: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


def interleave(rounds: int, contenders: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Run every contender once per round; return the median of each."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            value = run()
            figures[name].append(value)
            print(f"    round {number + 1}/{rounds}  {name:<38} {value:>12,.1f}", flush=True)
    return {name: statistics.median(values) for name, values in figures.items()}


def show(title: str, rows: list[Row]) -> bool:
    """Print a table; return whether all targets were reached."""
    print(f"\n{title}")
    width = max(len(row.what) for row in rows)
    for row in rows:
        goal = "" if row.target is None else f"{'at most' if row.at_most else 'at least'} {row.target:g}"
        mark = {True: "ok", False: "MISSED", None: ""}[row.reached]
        print(f"  {row.what:<{width}}  {row.value:>12,.2f} {row.unit:<6} {goal:<16} {mark:<7} {row.note}")
    return all(row.reached is not False for row in rows)
