"""How long an operation on a file waits for others, and what is said about it when that was too long."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from brokerkit.clock import SystemClock
from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.embedded.operation import Operation
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.sqlite import SqliteStore
from brokerkit.embedded.store import Claimant
from brokerkit.errors import BrokerUnavailable, SendTimeout
from brokerkit.spi import ConnectOptions, ConsumerOptions, GroupSpec, Outbound, TopicSpec, ToTopic, wait

T = TopicSpec(name="t")
G = GroupSpec(name="g")
C = Claimant(topic="t", group="g", owner="a", lease=60.0)
#: Seconds that the stores of these tests let an operation wait.
SHORT = 0.3
#: Long enough for a machine under load; only failures wait for it.
DEADLINE = 20.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, settings=EmbeddedSettings(), clock=SystemClock(), attempt_timeout=SHORT)
    await store.open()
    await store.declare(T, G)
    yield store
    await store.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Do what another process does that hangs while it writes."""
    descriptor = os.open(f"{path}-lock", os.O_RDWR)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                continue
        yield
    finally:
        os.close(descriptor)


def message(name: str) -> Outbound:
    return Outbound(destination=ToTopic("t"), body=name.encode(), message_id=name)


async def within_deadline(future: asyncio.Future[Any]) -> None:
    assert await wait(SystemClock(), future, DEADLINE), "nothing came in time"


async def stored(store: SqliteStore) -> list[str]:
    return [str(item.message_id) for item in await store.claim(C, 100)]


async def test_the_time_of_one_try_is_that_of_the_connection(path: Path) -> None:
    connection = await EmbeddedBackend().connect(ConnectOptions(url=f"sqlite:///{path}", attempt_timeout=SHORT))
    await connection.declare(T, G)
    producer = await connection.open_producer()
    with locked(path):
        sends = asyncio.ensure_future(producer.send([message("a")]))
        await within_deadline(sends)
    (error,) = sends.result()
    assert type(error) is BrokerUnavailable
    assert "0.3 s" in str(error)
    await connection.aclose()


async def test_a_send_that_did_not_get_the_file_in_time_is_not_stored_later(store: SqliteStore, path: Path) -> None:
    with locked(path):
        first = await store.send([message("a")])
        second = await asyncio.gather(store.send([message("b")]), store.send([message("c")]))
    assert [type(error) for outcomes in (first, *second) for error in outcomes] == [BrokerUnavailable] * 3
    assert await store.send([message("d")]) == [None]
    assert await stored(store) == ["d"]


async def test_each_operation_has_its_own_time(store: SqliteStore, path: Path) -> None:
    loop = asyncio.get_running_loop()
    took = []

    async def timed(name: str) -> None:
        began = loop.time()
        assert type((await store.send([message(name)]))[0]) is BrokerUnavailable
        took.append(loop.time() - began)

    with locked(path):
        first = asyncio.ensure_future(timed("a"))
        await asyncio.sleep(SHORT / 2)
        await timed("b")
        await first
    assert all(seconds > SHORT * 0.9 for seconds in took)


async def test_a_send_whose_transaction_hangs_has_an_unknown_outcome(store: SqliteStore, path: Path) -> None:
    stuck = threading.Event()
    file = store._require()
    with locked(path):
        # Handed over to the thread, both will be in one transaction.
        hanging = asyncio.ensure_future(file.do(Operation(lambda tx: stuck.wait(DEADLINE), durable=False)))
        send = asyncio.ensure_future(store.send([message("a")]))
        claim = asyncio.ensure_future(store.claim(C, 10))
        await asyncio.sleep(SHORT / 4)
    try:
        for future in (hanging, send, claim):
            await within_deadline(future)
        assert type(send.result()[0]) is SendTimeout
        assert type(hanging.exception()) is BrokerUnavailable
        assert type(claim.exception()) is BrokerUnavailable
        late = asyncio.ensure_future(store.send([message("b")]))
        await within_deadline(late)
        assert type(late.result()[0]) is BrokerUnavailable
    finally:
        stuck.set()
    # Unknown, not refused: this one was stored.  What the claim took meanwhile was given back.
    names: list[str] = []
    while not names:
        try:
            names = await stored(store)
        except BrokerUnavailable:
            continue
    assert names == ["a"]


async def test_what_waits_behind_the_background_is_unavailable_in_time(store: SqliteStore, path: Path) -> None:
    with locked(path):
        sweep = asyncio.ensure_future(asyncio.to_thread(store.sweep))
        await asyncio.sleep(SHORT / 4)
        stats = asyncio.ensure_future(store.stats("t", "g"))
        await within_deadline(stats)
        assert type(stats.exception()) is BrokerUnavailable
        await within_deadline(sweep)
        assert type(sweep.exception()) is BrokerUnavailable
    assert (await store.stats("t", "g")).ready == 0


async def test_another_program_that_has_the_database_makes_it_unavailable_in_time(
    store: SqliteStore, path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sends = asyncio.gather(*(store.send([message(f"m{number}")]) for number in range(20)))
    await within_deadline(sends)
    assert {type(error) for (error,) in sends.result()} == {BrokerUnavailable}
    other.execute("ROLLBACK")
    other.close()
    while (await store.send([message("z")])) != [None]:
        continue
    assert await stored(store) == ["z"]


async def test_a_connection_closes_while_another_program_hangs_with_the_file(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = await EmbeddedBackend().connect(ConnectOptions(url=f"sqlite:///{path}", attempt_timeout=SHORT))
    await connection.declare(T, G)
    await connection.open_consumer(ConsumerOptions(topic="t", group="g"))
    with locked(path):
        closing = asyncio.ensure_future(connection.aclose())
        await within_deadline(closing)
        closing.result()
    assert "leases end by time" in caplog.text


async def test_closing_a_producer_waits_for_its_answers(path: Path) -> None:
    connection = await EmbeddedBackend().connect(ConnectOptions(url=f"sqlite:///{path}", attempt_timeout=5.0))
    await connection.declare(T, G)
    producer = await connection.open_producer()
    with locked(path):
        sends = asyncio.ensure_future(producer.send([message("a")]))
        await asyncio.sleep(0.05)
        closing = asyncio.ensure_future(producer.aclose())
        await asyncio.sleep(0.05)
        assert not closing.done()
    await within_deadline(closing)
    assert sends.done()
    assert sends.result() == [None]
    await connection.aclose()


async def test_a_cancelled_send_that_still_waits_is_not_stored(store: SqliteStore, path: Path) -> None:
    with locked(path):
        send = asyncio.ensure_future(store.send([message("a")]))
        await asyncio.sleep(SHORT / 4)
        send.cancel()
        await asyncio.wait((send,))
    assert await stored(store) == []


async def test_a_ping_says_that_somebody_keeps_the_file_and_writes_nothing(store: SqliteStore, path: Path) -> None:
    before = store.commits, sqlite3.connect(path).execute("PRAGMA data_version").fetchone(), wal(path)
    await store.ping(DEADLINE)
    with locked(path), pytest.raises(BrokerUnavailable, match=r"could not be written to for 0\.1 s"):
        await store.ping(0.1)
    await store.ping(DEADLINE)
    assert (before[2], before[0] + 2) == (wal(path), store.commits)


def wal(path: Path) -> bytes:
    """Return what was written; the janitor lengthens the file with zeros when it likes."""
    return Path(f"{path}-wal").read_bytes().rstrip(b"\0")
