"""Worker processes die again and again; the books must balance."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from pathlib import Path

import pytest

from brokerkit import AsyncManager
from brokerkit.clock import SystemClock
from brokerkit.testing.process_pool import ProcessPool
from tests.faults.crew import POISON, TOPIC, Books, work

CLOCK = SystemClock()
CONCURRENCY = 50
KILL_EVERY = 2.0


async def unfinished(manager: AsyncManager) -> int:
    stats = await manager.monitor.stats(TOPIC, "crew")
    return (stats.ready or 0) + (stats.unsettled or 0) + (stats.delayed or 0)


async def send(manager: AsyncManager, bodies: list[bytes]) -> list[str]:
    outcomes = await manager.send_many(TOPIC, bodies)
    assert not [outcome.error for outcome in outcomes if outcome.error]
    return [outcome.message_id for outcome in outcomes]


def done(folder: Path) -> set[str]:
    """Return the ids whose completion the idempotency store holds."""
    database = sqlite3.connect(folder / "done.db")
    try:
        rows = database.execute("SELECT key FROM keys WHERE state = 2").fetchall()
    finally:
        database.close()
    return {key.rpartition("\x1f")[2] for (key,) in rows}


async def drain_under_kills(manager: AsyncManager, pool: ProcessPool, deadline: float) -> int:
    """Kill one worker every two seconds until nothing is left; return how many were killed."""
    kills = 0
    end = CLOCK.monotonic() + deadline
    victims = itertools.cycle(pool.processes)
    while await unfinished(manager):
        assert CLOCK.monotonic() < end, f"{await unfinished(manager)} messages are left after {deadline} s"
        until = CLOCK.monotonic() + KILL_EVERY
        while CLOCK.monotonic() < until and await unfinished(manager):
            await asyncio.sleep(0.05)
        if await unfinished(manager):
            victim = next(victims)
            victim.kill()
            kills += 1
    return kills


@pytest.mark.parametrize(("idempotent", "count", "pause"), [(False, 100_000, 0.02), (True, 100_000, 0.02)])
async def test_nothing_is_lost_while_a_worker_is_killed_every_two_seconds(
    tmp_path: Path, idempotent: bool, count: int, pause: float
) -> None:
    url = f"sqlite:///{tmp_path / 'broker.db'}?lease=5"
    async with AsyncManager(settings={"url": url}) as manager:
        ids = await send(manager, [b"x" * 64] * count)
        async with ProcessPool() as pool:
            for _ in range(4):
                worker = pool.start(work, str(tmp_path), CONCURRENCY, pause, 100, idempotent)
                worker.supervise()
            for worker in pool.processes:
                await worker.started()
            kills = await drain_under_kills(manager, pool, deadline=240.0)
            for worker in pool.processes:
                await worker.stop()
        dead = (await manager.monitor.stats(TOPIC, "crew")).dead

    books = Books.read(tmp_path)
    lost = set(ids) - set(books.ends)
    repeated = books.repeated()
    print(f"\nledger: sent {count}, kills {kills}, lost {len(lost)}, repeated {len(repeated)}, dead {dead}")
    assert not lost
    assert dead == 0
    assert kills >= 2
    assert len(repeated) <= kills * CONCURRENCY
    for message_id, completions in books.completions.items():
        late = [start for start in books.starts[message_id] if start > min(completions)]
        assert not late, f"{message_id} ran again after its completion was recorded"
    # A worker may die between the commit and the line in its log, so the store itself says what is done.
    assert not idempotent or done(tmp_path) == set(ids)


async def test_poison_is_started_exactly_max_attempts_times_and_its_neighbours_are_handled(tmp_path: Path) -> None:
    limit, poisons, innocents = 3, 4, 3_000
    url = f"sqlite:///{tmp_path / 'broker.db'}?lease=5"
    async with AsyncManager(settings={"url": url}) as manager:
        bodies = [b"innocent"] * innocents
        for number in range(poisons):
            bodies[number * innocents // poisons + 100] = POISON
        ids = await send(manager, bodies)
        poison = {message_id for message_id, body in zip(ids, bodies, strict=True) if body == POISON}
        async with ProcessPool() as pool:
            for _ in range(4):
                worker = pool.start(work, str(tmp_path), 10, 0.01, limit, False)
                worker.supervise()
            end = CLOCK.monotonic() + 120.0
            while await unfinished(manager):
                assert CLOCK.monotonic() < end, f"{await unfinished(manager)} messages are left"
                await asyncio.sleep(0.05)
            letters = await manager.admin.dead_letters(TOPIC, "crew", limit=1_000)
            for worker in pool.processes:
                await worker.stop()

    books = Books.read(tmp_path)
    print(f"\npoison starts {[len(books.starts[message_id]) for message_id in poison]}, dead {len(letters)}")
    assert {message_id: len(books.starts[message_id]) for message_id in poison} == dict.fromkeys(poison, limit)
    assert {letter.message.message_id for letter in letters} == poison
    assert {letter.reason for letter in letters} == {"worker-crash"}
    assert set(ids) - poison <= set(books.ends)
