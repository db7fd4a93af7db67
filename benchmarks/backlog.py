"""Cost must not grow with what waits: 1,000,000 ready messages, 100,000 delayed ones."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.workload import BODY, TOPIC
from brokerkit import AsyncManager
from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.spi import ConnectOptions, ConsumerOptions

__all__ = ["flatness"]

_TAKE = 200
_TAKES = 40


def flatness(rounds: int, scale: float) -> list[Row]:
    """Taking and settling with much waiting, against taking and settling with little."""
    lots = max(20_000, int(1_000_000 * scale))
    delayed = max(5_000, int(100_000 * scale))
    with tempfile.TemporaryDirectory() as folder:
        small, large = asyncio.run(_costs(f"sqlite:///{Path(folder) / 'a.db'}", 12_000, lots, rounds))
    with tempfile.TemporaryDirectory() as folder:
        without, beside = asyncio.run(_fresh(f"sqlite:///{Path(folder) / 'b.db'}", delayed))
    return [
        Row(f"take and settle, {lots:,} waiting / few", large / small, "x", 1.2, at_most=True,
            note=f"{large * 1e6:.1f} µs against {small * 1e6:.1f} µs"),
        Row(f"fresh message beside {delayed:,} delayed / none", beside / without, "x", 1.2, at_most=True,
            note=f"{beside * 1e3:.2f} ms against {without * 1e3:.2f} ms"),
    ]  # fmt: skip


async def _costs(url: str, few: int, lots: int, rounds: int) -> tuple[float, float]:
    async with AsyncManager(settings={"url": url}) as manager:
        small = []
        await manager.send_many(TOPIC, [BODY] * few)
        for _ in range(rounds):
            small.append(await _take(url, _TAKES))
            await manager.send_many(TOPIC, [BODY] * (_TAKE * _TAKES))
        await manager.send_many(TOPIC, [BODY] * lots)
        large = [await _take(url, _TAKES) for _ in range(rounds)]
        return statistics.median(small), statistics.median(large)


async def _take(url: str, takes: int) -> float:
    """Return the seconds that one message costs: received in batches, acknowledged."""
    connection = await EmbeddedBackend().connect(ConnectOptions(url=url))
    driver = await connection.open_consumer(ConsumerOptions(topic=TOPIC.name, group="workers", prefetch=2 * _TAKE))
    await driver.ack(await driver.receive(_TAKE, 5.0))
    os.sync()
    began = time.perf_counter()
    count = 0
    for _ in range(takes - 1):
        batch = await driver.receive(_TAKE, 5.0)
        await driver.ack(batch)
        count += len(batch)
    cost = (time.perf_counter() - began) / count
    await connection.aclose()
    return cost


async def _fresh(url: str, delayed: int) -> tuple[float, float]:
    async with AsyncManager(settings={"url": url}) as manager, manager.consume(TOPIC) as deliveries:

        async def one() -> float:
            began = time.perf_counter()
            await manager.send(TOPIC, BODY)
            delivery = await deliveries.receive(10.0)
            if delivery is None:
                raise RuntimeError("the fresh message did not come")
            took = time.perf_counter() - began
            await delivery.ack()
            return took

        without = statistics.median([await one() for _ in range(200)])
        await manager.send_many(TOPIC, [BODY] * delayed, delay=3600)
        beside = statistics.median([await one() for _ in range(200)])
    return without, beside
