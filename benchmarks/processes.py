"""Several processes on one file: how long they wait for each other, and how fast a message gets across."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import struct
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, cast

from benchmarks.measure import Row
from benchmarks.workload import BODY, TOPIC
from brokerkit import AsyncManager
from brokerkit.embedded.connection import EmbeddedConnection
from brokerkit.embedded.sqlite import SqliteStore

__all__ = ["processes"]

_WORKERS = 4


def processes(rounds: int, scale: float) -> list[Row]:
    """Four workers and a sender at full speed; then one message at a time to a waiting process."""
    seconds = max(2.0, 8.0 * scale)
    with tempfile.TemporaryDirectory() as folder:
        waits, rate = _contention(f"sqlite:///{Path(folder) / 'many.db'}", seconds)
    with tempfile.TemporaryDirectory() as folder:
        latencies = _latency(f"sqlite:///{Path(folder) / 'wake.db'}", max(100, int(500 * scale)))
    return [
        Row("wait for the write lock, p99", 1e3 * _p99(waits), "ms", 20, at_most=True, note=f"{len(waits):,} waits"),
        Row("wait for the write lock, p50", 1e3 * statistics.median(waits), "ms"),
        Row("handled meanwhile by four workers", rate, "/s"),
        Row("to a waiting process, p99", 1e3 * _p99(latencies), "ms", 50, at_most=True),
        Row("to a waiting process, p50", 1e3 * statistics.median(latencies), "ms"),
    ]


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def _contention(url: str, seconds: float) -> tuple[list[float], float]:
    context = multiprocessing.get_context("spawn")
    results: Queue[Any] = context.Queue()
    stop = context.Event()
    asyncio.run(_declare(url))
    crew = [context.Process(target=_work, args=(url, stop, results)) for _ in range(_WORKERS)]
    crew.append(context.Process(target=_send, args=(url, stop, results)))
    for process in crew:
        process.start()
    for _ in crew:
        if results.get(timeout=60) != "ready":
            raise RuntimeError("a process did not start")
    time.sleep(seconds)
    stop.set()
    waits: list[float] = []
    handled = 0
    for _ in crew:
        own, count = results.get(timeout=60)
        waits += own
        handled += count
    for process in crew:
        process.join()
    return waits, handled / seconds


async def _declare(url: str) -> None:
    async with AsyncManager(settings={"url": url}) as manager:
        await manager.admin.declare(TOPIC)


def _work(url: str, stop: Event, results: Queue[Any]) -> None:
    async def main() -> None:
        handled = 0

        async def handler(body: bytes) -> None:
            nonlocal handled
            handled += 1

        async with AsyncManager(settings={"url": url}) as manager:
            manager.add_handler(TOPIC, handler, concurrency=50, prefetch=200)
            await manager.start()
            results.put("ready")
            await asyncio.to_thread(stop.wait)
            results.put((await _waits(manager), handled))

    asyncio.run(main())


def _send(url: str, stop: Event, results: Queue[Any]) -> None:
    async def main() -> None:
        async with AsyncManager(settings={"url": url}) as manager:
            results.put("ready")
            while not stop.is_set():
                await manager.send_many(TOPIC, [BODY] * 500)
            results.put((await _waits(manager), 0))

    asyncio.run(main())


async def _waits(manager: AsyncManager) -> list[float]:
    connection = cast(EmbeddedConnection, await manager.connection())
    return list(cast(SqliteStore, connection.store).lock_waits)


def _latency(url: str, count: int) -> list[float]:
    context = multiprocessing.get_context("spawn")
    results: Queue[Any] = context.Queue()
    stop = context.Event()
    asyncio.run(_declare(url))
    process = context.Process(target=_receive, args=(url, stop, results))
    process.start()
    if results.get(timeout=60) != "ready":
        raise RuntimeError("the receiver did not start")

    async def main() -> list[float]:
        found = []
        async with AsyncManager(settings={"url": url}) as manager:
            for _ in range(count):
                # CLOCK_MONOTONIC is one clock for all processes of a machine.
                await manager.send(TOPIC, struct.pack("<d", time.monotonic()))
                found.append(await asyncio.to_thread(results.get, True, 30.0))
                await asyncio.sleep(0.01)
        return found

    try:
        return asyncio.run(main())
    finally:
        stop.set()
        process.join()


def _receive(url: str, stop: Event, results: Queue[Any]) -> None:
    async def main() -> None:
        async def handler(body: bytes) -> None:
            results.put(time.monotonic() - struct.unpack("<d", body)[0])

        async with AsyncManager(settings={"url": url}) as manager:
            manager.add_handler(TOPIC, handler)
            await manager.start()
            results.put("ready")
            await asyncio.to_thread(stop.wait)

    asyncio.run(main())
