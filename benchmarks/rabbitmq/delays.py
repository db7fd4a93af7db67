"""Many pending delays: the memory of a worker, and how late the messages are that come due beside them."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.rabbitmq.ours import manager_on
from benchmarks.rabbitmq.sides import BODY
from brokerkit import AsyncManager, Topic

__all__ = ["Delays", "delays"]

LATER: Topic[bytes] = Topic("bench.later", bytes, groups=["workers"])

_RATE = 200
_CALL = 1_000
#: Seconds after which the first message comes due, so that all of them are on their way by then.
_LEAD = 3.0
#: Delays of those that stay pending, in seconds.
_SHORTEST, _LONGEST = 3_600.0, 30 * 86_400.0
#: Seconds without a message after which those that are missing are taken for lost.
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Delays:
    """pending: how many; growth: bytes of the worker; lateness: seconds, in order; rate: sends a second."""

    pending: int
    growth: int
    lateness: list[float]
    rate: float


def delays(url: str, pending: int, seconds: float) -> Delays:
    """Send ``pending`` messages for another day, then for some ``seconds`` 200 a second that come due."""
    due = int(_RATE * seconds)
    with _worker(url, due) as worker:
        before = worker.recv()
        began = time.perf_counter()
        asyncio.run(_send_pending(url, pending))
        rate = pending / (time.perf_counter() - began)
        asyncio.run(_send_due(url, due))
        if not worker.poll(_LEAD + seconds + _PATIENCE):
            raise RuntimeError("some delayed messages did not come")
        lateness, after = worker.recv()
    return Delays(pending, after - before, sorted(lateness), rate)


async def _send_pending(url: str, count: int) -> None:
    async with manager_on(url) as manager:
        calls = range(0, count, _CALL)
        for start in calls:
            delay = _SHORTEST + (_LONGEST - _SHORTEST) * start / count
            outcomes = await manager.send_many(LATER, [BODY] * min(_CALL, count - start), delay=delay)
            if any(outcome.error for outcome in outcomes):
                raise RuntimeError("a delayed send failed")


async def _send_due(url: str, count: int) -> None:
    async with manager_on(url) as manager:
        # So that what the first delayed message declares is there.
        await manager.send(LATER, struct.pack("<d", 0.0), delay=_SHORTEST)
        first = time.time() + _LEAD
        dues = [first + number / _RATE for number in range(count)]
        await asyncio.gather(*(_send_one(manager, due) for due in dues))


async def _send_one(manager: AsyncManager, due: float) -> None:
    await manager.send(LATER, struct.pack("<d", due), delay=due - time.time())


@contextmanager
def _worker(url: str, count: int) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(url, count, theirs))
    process.start()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def _work(url: str, count: int, pipe: Connection) -> None:
    async def main() -> None:
        lateness: list[float] = []
        enough = asyncio.Event()

        async def handler(body: bytes) -> None:
            lateness.append(time.time() - struct.unpack("<d", body)[0])
            if len(lateness) == count:
                enough.set()

        async with manager_on(url) as manager:
            manager.add_handler(LATER, handler)
            await manager.start()
            pipe.send(_resident())
            await enough.wait()
            pipe.send((lateness, _resident()))

    asyncio.run(main())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
