"""What brokerkit is made to do: sends in three ways, and handling by a worker."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.measure import Stopwatch
from brokerkit import AsyncManager, Topic

__all__ = ["BODY", "TOPIC", "on_file", "handled", "lone_sends", "many", "concurrent"]

BODY = b"x" * 512
TOPIC: Topic[bytes] = Topic("bench", bytes, groups=["workers"])

Work = Callable[[AsyncManager], Coroutine[Any, Any, float]]


def on_file(work: Work, durability: str = "full") -> float:
    """Run ``work`` with a manager on a fresh file."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_with_manager(f"sqlite:///{Path(folder) / 'bench.db'}?durability={durability}", work))


def in_memory(work: Work) -> float:
    """Run ``work`` with a manager on a fresh memory store."""
    return asyncio.run(_with_manager("memory://", work))


async def _with_manager(url: str, work: Work) -> float:
    async with AsyncManager(settings={"url": url}) as manager:
        return await work(manager)


def lone_sends(count: int, figure: str = "rate") -> Work:
    """One `await send` after the other."""

    async def work(manager: AsyncManager) -> float:
        await manager.send(TOPIC, BODY)
        watch = Stopwatch()
        with watch.running():
            for _ in range(count):
                await manager.send(TOPIC, BODY)
        return _figure(watch, count, figure)

    return work


def concurrent(count: int, tasks: int = 100, figure: str = "rate") -> Work:
    """``tasks`` tasks that each send one after the other."""

    async def work(manager: AsyncManager) -> float:
        await manager.send(TOPIC, BODY)
        left = iter(range(count))

        async def sender() -> None:
            for _ in left:
                await manager.send(TOPIC, BODY)

        watch = Stopwatch()
        with watch.running():
            await asyncio.gather(*(sender() for _ in range(tasks)))
        return _figure(watch, count, figure)

    return work


def many(count: int, figure: str = "rate") -> Work:
    """`send_many`."""

    async def work(manager: AsyncManager) -> float:
        await manager.send(TOPIC, BODY)
        bodies = [BODY] * count
        watch = Stopwatch()
        with watch.running():
            outcomes = await manager.send_many(TOPIC, bodies)
        if any(outcome.error for outcome in outcomes):
            raise RuntimeError("a send failed")
        return _figure(watch, count, figure)

    return work


def handled(count: int, figure: str = "rate", *, sync: bool = False, concurrency: int = 100) -> Work:
    """A worker with a trivial handler empties a full group."""

    async def work(manager: AsyncManager) -> float:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        seen = 0

        async def async_handler(body: bytes) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                done.set()

        def sync_handler(body: bytes) -> None:
            nonlocal seen
            seen += 1
            if seen >= count:
                loop.call_soon_threadsafe(done.set)

        manager.add_handler(
            TOPIC, sync_handler if sync else async_handler, concurrency=concurrency, prefetch=4 * concurrency
        )
        await manager.send_many(TOPIC, [BODY] * count)
        watch = Stopwatch()
        with watch.running():
            await manager.start()
            await done.wait()
        await manager.stop()
        return _figure(watch, count, figure)

    return work


def _figure(watch: Stopwatch, count: int, figure: str) -> float:
    return watch.rate(count) if figure == "rate" else 1e6 * watch.cpu / count
