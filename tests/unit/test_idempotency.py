from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerUnavailable, Closed, ConfigurationError
from brokerkit.idempotency import (
    Busy,
    Claim,
    Claimed,
    Done,
    IdempotencyStore,
    MemoryIdempotencyStore,
    idempotency_key,
)
from brokerkit.idempotency_sqlite import SqliteIdempotencyStore
from brokerkit.testing.deadlines import eventually

T = TypeVar("T")

RETENTION = 1000.0
LEASE = 30.0


class ManualClock(SystemClock):
    """A wall clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> AsyncIterator[IdempotencyStore]:
    one: IdempotencyStore = (
        MemoryIdempotencyStore(clock, RETENTION)
        if request.param == "memory"
        else SqliteIdempotencyStore(tmp_path / "keys.db", clock, RETENTION)
    )
    await one.open()
    yield one
    await one.aclose()


def test_a_key_names_topic_group_and_message() -> None:
    assert idempotency_key("orders", "billing", "id") == "orders\x1fbilling\x1fid"


async def test_a_claimed_key_is_busy_for_everybody_even_for_its_owner(
    store: IdempotencyStore, clock: ManualClock
) -> None:
    assert await store.claim("k", "a", LEASE, 1) == Claimed(1)
    assert await store.claim("k", "b", LEASE, 1) == Busy(clock.now + LEASE)
    assert await store.claim("k", "a", LEASE, 1) == Busy(clock.now + LEASE)


async def test_a_completed_key_returns_what_was_stored_until_it_was_sent(store: IdempotencyStore) -> None:
    await store.claim("k", "a", LEASE, 1)
    assert await store.complete("k", "a", b"result", b"follow-ups")
    assert await store.claim("k", "b", LEASE, 1) == Done(b"result", b"follow-ups", False)
    await store.mark_sent("k", "b")
    assert await store.claim("k", "b", LEASE, 1) == Done(b"result", b"follow-ups", True)


async def test_nothing_to_send_counts_as_sent(store: IdempotencyStore) -> None:
    await store.claim("k", "a", LEASE, 1)
    assert await store.complete("k", "a", None, None)
    assert await store.claim("k", "a", LEASE, 1) == Done(None, None, True)


async def test_a_failed_attempt_frees_the_key_and_stays_counted(store: IdempotencyStore) -> None:
    await store.claim("k", "a", LEASE, 1)
    await store.abandon("k", "b")
    assert isinstance(await store.claim("k", "b", LEASE, 1), Busy)
    await store.abandon("k", "a")
    assert await store.claim("k", "b", LEASE, 2) == Claimed(2)
    assert await store.starts("k") == 2


async def test_a_crash_counts_although_the_message_comes_with_the_same_attempt(
    store: IdempotencyStore, clock: ManualClock
) -> None:
    await store.claim("k", "dead", LEASE, 1)
    clock.now += LEASE
    assert await store.claim("k", "b", LEASE, 1) == Claimed(2)


async def test_starts_that_the_store_has_not_seen_are_taken_from_the_message(store: IdempotencyStore) -> None:
    assert await store.starts("k") == 0
    assert await store.claim("k", "a", LEASE, 3) == Claimed(3)


async def test_a_claim_that_was_taken_over_cannot_be_completed_or_renewed(
    store: IdempotencyStore, clock: ManualClock
) -> None:
    await store.claim("k", "slow", LEASE, 1)
    clock.now += LEASE
    await store.claim("k", "b", LEASE, 1)
    assert not await store.complete("k", "slow", b"late", None)
    assert await store.renew(["k"], "slow", LEASE) == {"k"}
    assert await store.complete("k", "b", b"right", None)
    assert await store.claim("k", "c", LEASE, 1) == Done(b"right", None, False)


async def test_a_late_owner_whose_claim_nobody_took_keeps_it(store: IdempotencyStore, clock: ManualClock) -> None:
    await store.claim("k", "a", LEASE, 1)
    clock.now += LEASE + 1
    assert await store.renew(["k", "other"], "a", LEASE) == {"other"}
    assert await store.claim("k", "b", LEASE, 1) == Busy(clock.now + LEASE)
    clock.now += LEASE + 1
    assert await store.complete("k", "a", None, None)


async def test_a_forgotten_key_begins_anew(store: IdempotencyStore) -> None:
    await store.claim("k", "a", LEASE, 4)
    await store.forget("k")
    assert await store.starts("k") == 0
    assert await store.claim("k", "b", LEASE, 1) == Claimed(1)


async def test_a_key_expires_after_the_retention(store: IdempotencyStore, clock: ManualClock) -> None:
    await store.claim("k", "a", LEASE, 1)
    await store.complete("k", "a", b"result", None)
    clock.now += RETENTION - 1
    assert isinstance(await store.claim("k", "b", LEASE, 1), Done)
    clock.now += 1
    assert await store.claim("k", "b", LEASE, 1) == Claimed(1)
    assert await store.claim("k", "b", LEASE, 1) == Busy(clock.now + LEASE)


async def test_a_store_that_is_not_open_says_so(store: IdempotencyStore) -> None:
    await store.aclose()
    await store.aclose()
    with pytest.raises(Closed):
        await store.claim("k", "a", LEASE, 1)


async def test_many_concurrent_claims_of_one_key_give_it_once(store: IdempotencyStore) -> None:
    outcomes = await asyncio.gather(*(store.claim("k", f"owner-{n}", LEASE, 1) for n in range(50)))
    assert sum(isinstance(outcome, Claimed) for outcome in outcomes) == 1


async def test_memory_drops_expired_keys_on_the_way(clock: ManualClock) -> None:
    store = MemoryIdempotencyStore(clock, RETENTION)
    await store.open()
    await store.claim("running", "a", 10 * RETENTION, 1)
    for n in range(100):
        await store.claim(f"old-{n}", "a", LEASE, 1)
        await store.complete(f"old-{n}", "a", None, None)
    clock.now += RETENTION
    for n in range(50):
        await store.claim(f"new-{n}", "a", LEASE, 1)
    assert len(store) == 51
    assert isinstance(await store.claim("running", "b", LEASE, 1), Busy)


# --- the file ---------------------------------------------------------------------------------------------------


async def test_the_file_drops_expired_keys_on_the_way(clock: ManualClock, tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    store = SqliteIdempotencyStore(path, clock, RETENTION)
    await store.open()
    await store.claim("running", "a", 10 * RETENTION, 1)
    await asyncio.gather(*(store.claim(f"old-{n}", "a", LEASE, 1) for n in range(1000)))
    await asyncio.gather(*(store.complete(f"old-{n}", "a", None, None) for n in range(1000)))
    clock.now += RETENTION
    for n in range(20):
        await store.claim(f"new-{n}", "a", LEASE, 1)
    await store.aclose()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM keys").fetchone() == (21,)


async def test_the_file_keeps_everything_over_a_restart(clock: ManualClock, tmp_path: Path) -> None:
    for expected in (Claimed(1), Done(b"r", b"f", False)):
        store = SqliteIdempotencyStore(tmp_path / "keys.db", clock)
        await store.open()
        assert await store.claim("k", "a", LEASE, 1) == expected
        await store.complete("k", "a", b"r", b"f")
        await store.aclose()


async def test_a_cancelled_claim_is_undone(clock: ManualClock, tmp_path: Path) -> None:
    store = SqliteIdempotencyStore(tmp_path / "keys.db", clock)
    await store.open()
    task = asyncio.ensure_future(store.claim("k", "a", LEASE, 1))
    await asyncio.sleep(0)  # the task has made its call; the result comes by the loop, so not yet
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.starts("k") == 0
    assert await store.claim("k", "b", LEASE, 1) == Claimed(1)
    await store.aclose()


async def test_a_cancelled_claim_of_a_busy_key_leaves_it_alone(clock: ManualClock, tmp_path: Path) -> None:
    store = SqliteIdempotencyStore(tmp_path / "keys.db", clock)
    await store.open()
    await store.claim("k", "a", LEASE, 1)
    task = asyncio.ensure_future(store.claim("k", "a", LEASE, 1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(await store.claim("k", "b", LEASE, 1), Busy)
    await store.aclose()


async def test_a_bad_call_fails_alone(clock: ManualClock, tmp_path: Path) -> None:
    store = SqliteIdempotencyStore(tmp_path / "keys.db", clock)
    await store.open()
    good, bad = await asyncio.gather(
        store.claim("k", "a", LEASE, 1), store.claim("\ud800", "a", LEASE, 1), return_exceptions=True
    )
    assert good == Claimed(1)
    assert isinstance(bad, UnicodeEncodeError)
    await store.aclose()


async def test_a_file_of_something_else_is_refused(clock: ManualClock, tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (a)")
    with pytest.raises(ConfigurationError, match="is not an idempotency store"):
        await SqliteIdempotencyStore(path, clock).open()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        await SqliteIdempotencyStore(path, clock).open()
    with pytest.raises(ConfigurationError, match="directory must exist"):
        await SqliteIdempotencyStore(tmp_path / "missing" / "keys.db", clock).open()


_FIGHTER = """
import asyncio, sys
from brokerkit.clock import SystemClock
from brokerkit.idempotency import Claimed
from brokerkit.idempotency_sqlite import SqliteIdempotencyStore

async def main(path, owner):
    store = SqliteIdempotencyStore(path, SystemClock())
    await store.open()
    print("ready", flush=True)
    sys.stdin.readline()
    for first in range(0, 1000, 20):
        keys = [str(n) for n in range(first, first + 20)]
        outcomes = await asyncio.gather(*(store.claim(key, owner, 600.0, 1) for key in keys))
        won = [key for key, outcome in zip(keys, outcomes) if isinstance(outcome, Claimed)]
        assert all(await asyncio.gather(*(store.complete(key, owner, None, None) for key in won)))
        print(*won, flush=True)
    await store.aclose()

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


def test_two_processes_that_fight_for_keys_claim_each_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FIGHTER, str(tmp_path / "keys.db")]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen([*command, "a"], stdin=pipe, stdout=pipe, text=True) as a,
        subprocess.Popen([*command, "b"], stdin=pipe, stdout=pipe, text=True) as b,
    ):
        for fighter in (a, b):
            assert fighter.stdout is not None
            assert fighter.stdout.readline() == "ready\n"
        outputs = [""] * 2
        for fighter in (a, b):
            assert fighter.stdin is not None
            fighter.stdin.write("go\n")
            fighter.stdin.flush()
        outputs = [fighter.communicate(timeout=60)[0] for fighter in (a, b)]
    assert (a.returncode, b.returncode) == (0, 0)
    won = [int(word) for output in outputs for word in output.split()]
    assert sorted(won) == list(range(1000))


# --- both stores against a model --------------------------------------------------------------------------------


@dataclass
class ModelEntry:
    starts: int = 0
    owner: str | None = None
    lease_end: float = 0.0
    done: Done | None = None
    expires: float = 0.0


class Model:
    """What the docstrings of `IdempotencyStore` say, and nothing else."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.entries: dict[str, ModelEntry] = {}

    def entry(self, key: str) -> ModelEntry | None:
        found = self.entries.get(key)
        return found if found is not None and found.expires > self.clock.now else None

    def owned(self, key: str, owner: str) -> ModelEntry | None:
        found = self.entry(key)
        return found if found is not None and found.owner == owner else None

    def claim(self, key: str, owner: str, lease: float, attempt: int | None) -> Claim:
        found = self.entry(key)
        if found is not None and found.done is not None:
            return found.done
        if found is not None and found.owner is not None and found.lease_end > self.clock.now:
            return Busy(found.lease_end)
        known = 0 if found is None else found.starts
        starts = known + 1 if attempt is None else max(known + 1, attempt)
        until = self.clock.now + lease
        self.entries[key] = ModelEntry(starts, owner, until, None, until + RETENTION)
        return Claimed(starts)

    def complete(self, key: str, owner: str, result: bytes | None, follow_ups: bytes | None) -> bool:
        found = self.owned(key, owner)
        if found is None:
            return False
        done = Done(result, follow_ups, result is None and follow_ups is None)
        self.entries[key] = ModelEntry(found.starts, None, 0.0, done, self.clock.now + RETENTION)
        return True


KEYS = st.sampled_from("xyz")
OWNERS = st.sampled_from("ab")
BLOBS = st.sampled_from([None, b"", b"blob"])
LEASES = st.sampled_from([0.0, 10.0, LEASE])


class StoresMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.model = Model(self.clock)
        self.directory = tempfile.mkdtemp()
        self.runner = asyncio.Runner()
        self.stores: list[IdempotencyStore] = [
            MemoryIdempotencyStore(self.clock, RETENTION),
            SqliteIdempotencyStore(Path(self.directory) / "keys.db", self.clock, RETENTION),
        ]
        self.both(lambda store: store.open())

    def teardown(self) -> None:
        self.both(lambda store: store.aclose())
        self.runner.close()
        shutil.rmtree(self.directory)

    def both(self, call: Callable[[IdempotencyStore], Awaitable[T]]) -> T:
        async def run() -> list[T]:
            return [await call(store) for store in self.stores]

        memory, sqlite = self.runner.run(run())
        assert memory == sqlite
        return memory

    @rule(key=KEYS, owner=OWNERS, lease=LEASES, attempt=st.sampled_from([None, 1, 2, 5]))
    def claim(self, key: str, owner: str, lease: float, attempt: int | None) -> None:
        expected = self.model.claim(key, owner, lease, attempt)
        assert self.both(lambda store: store.claim(key, owner, lease, attempt)) == expected

    @rule(keys=st.sets(KEYS), owner=OWNERS, lease=LEASES)
    def renew(self, keys: set[str], owner: str, lease: float) -> None:
        owned = {key: found for key in keys if (found := self.model.owned(key, owner)) is not None}
        for found in owned.values():
            found.lease_end = self.clock.now + lease
            found.expires = found.lease_end + RETENTION
        assert self.both(lambda store: store.renew(keys, owner, lease)) == keys - set(owned)

    @rule(key=KEYS, owner=OWNERS, result=BLOBS, follow_ups=BLOBS)
    def complete(self, key: str, owner: str, result: bytes | None, follow_ups: bytes | None) -> None:
        expected = self.model.complete(key, owner, result, follow_ups)
        assert self.both(lambda store: store.complete(key, owner, result, follow_ups)) == expected

    @rule(key=KEYS, owner=OWNERS)
    def mark_sent(self, key: str, owner: str) -> None:
        found = self.model.entry(key)
        if found is not None and found.done is not None:
            found.done = Done(found.done.result, found.done.follow_ups, True)
        self.both(lambda store: store.mark_sent(key, owner))

    @rule(key=KEYS, owner=OWNERS)
    def abandon(self, key: str, owner: str) -> None:
        found = self.model.owned(key, owner)
        if found is not None:
            found.owner = None
            found.expires = self.clock.now + RETENTION
        self.both(lambda store: store.abandon(key, owner))

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.model.entries.pop(key, None)
        self.both(lambda store: store.forget(key))

    @rule(seconds=st.sampled_from([1.0, 10.0, LEASE, RETENTION - 5.0, RETENTION]))
    def advance(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def starts_agree(self) -> None:
        for key in "xyz":
            found = self.model.entry(key)
            expected = 0 if found is None else found.starts
            assert self.both(lambda store, key=key: store.starts(key)) == expected  # type: ignore[misc]


TestStores = StoresMachine.TestCase
TestStores.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# --- a file that hangs ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Do what another process does that was stopped while it wrote."""
    descriptor = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


async def test_a_process_that_hangs_with_the_file_makes_it_unavailable_in_time(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    # Seconds in which a busy disk opens it, too.
    store = SqliteIdempotencyStore(path, SystemClock(), timeout=3.0)
    await store.open()
    with locked(path):
        calls = [
            asyncio.ensure_future(call) for call in (store.claim("k", "a", LEASE, 1), store.claim("k", "b", LEASE, 1))
        ]
        done, _ = await asyncio.wait(calls, timeout=20.0)
        assert [type(call.exception()) for call in calls if call in done] == [BrokerUnavailable] * 2
    # Neither was done later.
    assert await store.claim("k", "c", LEASE, 1) == Claimed(1)
    await store.aclose()


async def test_a_file_that_another_process_hangs_with_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    store = SqliteIdempotencyStore(path, SystemClock(), timeout=0.3)
    with locked(path):
        opening = asyncio.ensure_future(store.open())
        await asyncio.wait((opening,), timeout=20.0)
        assert isinstance(opening.exception(), BrokerUnavailable)

    async def opens() -> bool:
        # 0.3 s may be too short on a busy machine.
        try:
            await store.open()
        except BrokerUnavailable:
            return False
        return True

    await eventually(opens, within=20.0, what="a store on the file that is free now")
    assert await store.claim("k", "c", LEASE, 1) == Claimed(1)
    await store.aclose()


async def test_closing_does_not_wait_for_a_process_that_hangs(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    # Seconds in which a busy disk opens it, too.
    store = SqliteIdempotencyStore(path, SystemClock(), timeout=3.0)
    await store.open()
    with locked(path):
        lost = asyncio.ensure_future(store.claim("k", "a", LEASE, 1))
        await asyncio.sleep(0.05)
        closing = asyncio.ensure_future(store.aclose())
        done, _ = await asyncio.wait((closing,), timeout=20.0)
        assert done
        await asyncio.wait((lost,))
        assert isinstance(lost.exception(), BrokerUnavailable)


class BrokenClock(ManualClock):
    """Fails when it is told to."""

    broken = False

    def time(self) -> float:
        if self.broken:
            raise ValueError("no time")
        return self.now


async def test_a_fault_of_another_kind_fails_the_call_and_not_the_store(tmp_path: Path) -> None:
    clock = BrokenClock()
    store = SqliteIdempotencyStore(tmp_path / "keys.db", clock)
    await store.open()
    clock.broken = True
    call = asyncio.ensure_future(store.forget("k"))
    done, _ = await asyncio.wait((call,), timeout=20.0)
    assert done
    assert isinstance(call.exception(), BrokerUnavailable)
    clock.broken = False
    assert await store.claim("k", "a", LEASE, 1) == Claimed(1)
    await store.aclose()
