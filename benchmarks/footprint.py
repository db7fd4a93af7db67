"""What brokerkit takes when it does nothing, and whether it grows."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.workload import BODY, TOPIC
from brokerkit import AsyncManager

__all__ = ["footprint"]

_IDLE_SECONDS = 10.0


def footprint(rounds: int, scale: float) -> list[Row]:
    """Import time, CPU of an idle worker, memory over many handled messages."""
    count = max(50_000, int(1_000_000 * scale))
    with tempfile.TemporaryDirectory() as folder:
        idle = asyncio.run(_idle(f"sqlite:///{Path(folder) / 'idle.db'}"))
    with tempfile.TemporaryDirectory() as folder:
        growth = asyncio.run(_growth(f"sqlite:///{Path(folder) / 'grow.db'}?durability=normal", count))
    imports = min(_import_seconds() for _ in range(max(3, rounds)))
    return [
        Row("import brokerkit", imports, "s", 0.3, at_most=True, note="more than a bare interpreter, best run"),
        Row("idle worker, share of a core", 100 * idle, "%", 1, at_most=True),
        Row(f"memory growth over {count:,} handled", growth / 2**20, "MiB", 20, at_most=True),
    ]


def _import_seconds() -> float:
    def run(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    return run("import brokerkit") - run("pass")


async def _idle(url: str) -> float:
    async with AsyncManager(settings={"url": url}) as manager:

        async def handler(body: bytes) -> None:
            return None

        manager.add_handler(TOPIC, handler)
        await manager.start()
        await asyncio.sleep(1.0)
        before = time.process_time()
        await asyncio.sleep(_IDLE_SECONDS)
        return (time.process_time() - before) / _IDLE_SECONDS


async def _growth(url: str, count: int) -> float:
    async with AsyncManager(settings={"url": url}) as manager:
        seen = 0
        enough = asyncio.Event()

        async def handler(body: bytes) -> None:
            nonlocal seen
            seen += 1
            enough.set()

        manager.add_handler(TOPIC, handler, concurrency=50, prefetch=200)
        await manager.start()
        sent = 0
        baseline = 0
        while sent < count:
            await manager.send_many(TOPIC, [BODY] * 2_000)
            sent += 2_000
            while seen < sent - 4_000:
                enough.clear()
                await enough.wait()
            if not baseline and sent >= count // 5:
                baseline = _resident()
        return _resident() - baseline


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
