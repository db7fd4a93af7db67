"""What brokerkit is made to do on RocketMQ, through its public API."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.measure import Stopwatch
from benchmarks.rabbitmq.sides import BODY, CONCURRENCY, PREFETCH, Figure, Tally, by_tasks
from benchmarks.rocketmq.raw import QUEUES
from brokerkit import AsyncManager, Topic
from brokerkit_rocketmq.backend import RocketMQBackend

T = TypeVar("T")

__all__ = ["growth", "handled", "lone_sends", "queue_statuses", "send_many", "sends"]

#: What `send_many` fills and handlers empty, what concurrent sends fill, and the rest.
BATCHES: Topic[bytes] = Topic("bench-batches", bytes, groups=["workers"])
SINGLES: Topic[bytes] = Topic("bench-singles", bytes, groups=["workers"])
LONE: Topic[bytes] = Topic("bench-lone", bytes, groups=["workers"])
FLOWING: Topic[bytes] = Topic("bench-flowing", bytes, groups=["workers"])
WIDE: Topic[bytes] = Topic("bench-wide", bytes, groups=["workers"])
#: Queues of `WIDE`.
MANY = 64

#: Messages of one call, and how many may be on their way, while memory is watched.
_CALL, _AHEAD = 2_000, 10_000


def _manager(url: str) -> AsyncManager:
    queues = {topic.name: QUEUES for topic in (BATCHES, SINGLES, LONE, FLOWING)} | {WIDE.name: MANY}
    topics = {name: {"rocketmq": {"queues": count}} for name, count in queues.items()}
    return AsyncManager(backend=RocketMQBackend(), settings={"url": url, "topics": topics})


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


def sends(url: str, count: int, window: int) -> Figure:
    """Concurrent calls of `send`."""

    async def work(manager: AsyncManager) -> Figure:
        return await by_tasks(lambda: manager.send(SINGLES, BODY), count, window)

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


def queue_statuses(url: str, count: int) -> list[float]:
    """Return the seconds of each of ``count`` queue statuses, with lag over 64 queues."""

    async def work(manager: AsyncManager) -> list[float]:
        await manager.send_many(WIDE, [BODY] * 200)
        await manager.monitor.queue_status(WIDE, "workers")
        took = []
        for _ in range(count):
            began = time.perf_counter()
            found = await manager.monitor.queue_status(WIDE, "workers")
            took.append(time.perf_counter() - began)
            if not found.stats.ready:
                raise RuntimeError("the lag is not seen")
        return took

    return _run(url, work)


def growth(url: str, count: int) -> int:
    """Return by how many bytes a process grows that sends and handles ``count`` messages, after the first fifth."""

    async def work(manager: AsyncManager) -> int:
        seen = 0
        enough = asyncio.Event()

        async def handler(body: bytes) -> None:
            nonlocal seen
            seen += 1
            enough.set()

        manager.add_handler(FLOWING, handler, concurrency=CONCURRENCY, prefetch=PREFETCH)
        await manager.start()
        sent = baseline = 0
        while sent < count:
            await manager.send_many(FLOWING, [BODY] * _CALL)
            sent += _CALL
            while seen < sent - _AHEAD:
                enough.clear()
                await enough.wait()
            if not baseline and sent >= count // 5:
                baseline = _resident()
        return _resident() - baseline

    return _run(url, work)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _run(url: str, work: Callable[[AsyncManager], Awaitable[T]]) -> T:
    async def main() -> T:
        async with _manager(url) as manager:
            return await work(manager)

    return asyncio.run(main())
