"""What brokerkit is made to do on RabbitMQ, through its public API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from benchmarks.measure import Stopwatch
from benchmarks.rabbitmq.sides import BODY, CONCURRENCY, PREFETCH, THREADS, Figure, Tally, by_tasks
from brokerkit import AsyncManager, Topic
from brokerkit_rabbitmq.backend import RabbitMQBackend

T = TypeVar("T")

__all__ = ["handled", "handled_in_threads", "lone_sends", "manager_on", "send_many", "sends"]

#: What `send_many` fills and async handlers empty, what concurrent sends fill and threads empty, and the rest.
BATCHES: Topic[bytes] = Topic("bench.batches", bytes, groups=["workers"])
SINGLES: Topic[bytes] = Topic("bench.singles", bytes, groups=["workers"])
LONE: Topic[bytes] = Topic("bench.lone", bytes, groups=["workers"])


def manager_on(url: str) -> AsyncManager:
    """Return a manager with default settings."""
    return AsyncManager(backend=RabbitMQBackend(), settings={"url": url})


def send_many(url: str, count: int) -> Figure:
    """One call of `send_many`."""

    async def work(manager: AsyncManager) -> Figure:
        await manager.send(BATCHES, BODY)
        bodies = [BODY] * count
        watch = Stopwatch()
        with watch.running():
            outcomes = await manager.send_many(BATCHES, bodies)
        failed = [outcome.error for outcome in outcomes if outcome.error is not None]
        if failed:
            raise failed[0]
        return Figure(count, watch.wall, watch.cpu)

    return _run(url, work)


def sends(url: str, count: int) -> Figure:
    """Concurrent calls of `send`."""

    async def work(manager: AsyncManager) -> Figure:
        return await by_tasks(lambda: manager.send(SINGLES, BODY), count)

    return _run(url, work)


def lone_sends(url: str, count: int) -> list[float]:
    """Return the seconds of each of ``count`` sends, one after the other."""

    async def work(manager: AsyncManager) -> list[float]:
        took = []
        for _ in range(20):
            await manager.send(LONE, BODY)
        for _ in range(count):
            began = time.perf_counter()
            await manager.send(LONE, BODY)
            took.append(time.perf_counter() - began)
        return took

    return _run(url, work)


def handled(url: str, count: int) -> Figure:
    """A worker with a trivial async handler empties what `send_many` filled."""

    async def work(manager: AsyncManager) -> Figure:
        done: asyncio.Future[Figure] = asyncio.get_running_loop().create_future()
        tally = Tally(count, done.set_result)

        async def handler(body: bytes) -> None:
            tally.note()

        manager.add_handler(BATCHES, handler, concurrency=CONCURRENCY, prefetch=PREFETCH)
        await manager.start()
        return await done

    return _run(url, work)


def handled_in_threads(url: str, count: int) -> Figure:
    """A worker with a trivial sync handler empties what `sends` filled."""

    async def work(manager: AsyncManager) -> Figure:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Figure] = loop.create_future()

        def finish(figure: Figure) -> None:
            loop.call_soon_threadsafe(done.set_result, figure)

        tally = Tally(count, finish)

        def handler(body: bytes) -> None:
            tally.note()

        manager.add_handler(SINGLES, handler, concurrency=THREADS, prefetch=PREFETCH)
        await manager.start()
        return await done

    return _run(url, work)


def _run(url: str, work: Callable[[AsyncManager], Awaitable[T]]) -> T:
    async def main() -> T:
        async with manager_on(url) as manager:
            return await work(manager)

    return asyncio.run(main())
