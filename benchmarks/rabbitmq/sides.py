"""`Side`: a contender in a process of its own, and `Figure`, what it measured."""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks.measure import Stopwatch

__all__ = ["BODY", "CONCURRENCY", "PREFETCH", "THREADS", "WINDOW", "Figure", "Side", "Tally", "by_tasks"]

BODY = b"x" * 512
#: Messages sent and not confirmed.
WINDOW = 1_000
#: Of consumers: messages delivered and not acknowledged, async handlers and threads at work.
PREFETCH = 500
CONCURRENCY = 100
THREADS = 8

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Figure:
    """How long ``count`` messages took, in seconds of wall time and of CPU time of the process."""

    count: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.count / self.seconds

    @property
    def cost(self) -> float:
        """Microseconds of CPU time for one message."""
        return 1e6 * self.cpu / self.count


class Side:
    """A process that keeps its imports and its heap from one round to the next and shares them with nobody."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def run(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Return what ``function`` returns there."""
        return self._pool.submit(function, *arguments, **options).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


class Tally:
    """Counts handled messages, from whatever thread, and measures from the first one to the last of ``count``."""

    def __init__(self, count: int, done: Callable[[Figure], None]) -> None:
        self._count = count
        self._done = done
        self._next = itertools.count(1).__next__
        self._began = 0.0
        self._cpu = 0.0

    def note(self) -> None:
        """One more was handled."""
        number = self._next()
        if number == 1:
            self._began, self._cpu = time.perf_counter(), time.process_time()
        elif number == self._count:
            self._done(Figure(self._count - 1, time.perf_counter() - self._began, time.process_time() - self._cpu))


async def by_tasks(send: Callable[[], Awaitable[object]], count: int, window: int = WINDOW) -> Figure:
    """Send ``count`` messages by as many tasks as the window is wide, each one after the other."""
    await send()
    left = iter(range(count))

    async def sender() -> None:
        for _ in left:
            await send()

    watch = Stopwatch()
    with watch.running():
        await asyncio.gather(*(sender() for _ in range(min(window, count))))
    return Figure(count, watch.wall, watch.cpu)


# --- between this process and a peer's worker, which its own command starts: the environment and a file ---

URL, COUNT, RESULT = "BENCH_AMQP_URL", "BENCH_COUNT", "BENCH_RESULT"


def peer_url() -> str:
    """Where a peer's module finds the node."""
    return os.environ[URL]


def peer_tally() -> Tally:
    """A tally that leaves its figure where `read_figure` finds it."""
    target = Path(os.environ.get(RESULT, os.devnull))

    def write(figure: Figure) -> None:
        part = target.with_suffix(".part")
        part.write_text(json.dumps(asdict(figure)))
        part.rename(target)

    return Tally(int(os.environ.get(COUNT, "0")), write)


def read_figure(file: Path) -> Figure | None:
    """Return what a worker measured; None when it has not finished."""
    return Figure(**json.loads(file.read_text())) if file.exists() else None
