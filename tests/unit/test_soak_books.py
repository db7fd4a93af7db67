"""The books of the soak run see each way in which a message can go wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from brokerkit.clock import SystemClock
from brokerkit.idempotency import Claimed
from brokerkit.idempotency_sqlite import SqliteIdempotencyStore
from soak.books import Books
from soak.crew import RETENTION, STORE
from soak.faults import Strike
from soak.journal import COMPLETED, CONFIRMED, ENDED, SENT, STARTED, Journal, count

PLAIN, ONCE = 4, 7


async def complete(folder: Path, number: int) -> None:
    """Record a completion in the store, and not in the journal, as a worker does that is killed in between."""
    store = SqliteIdempotencyStore(folder / STORE, SystemClock(), RETENTION)
    await store.open()
    key = f"soak.once\x1fcrew\x1f{number}"
    assert isinstance(await store.claim(key, "owner", 60.0, 1), Claimed)
    assert await store.complete(key, "owner", None, None)
    await store.aclose()


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """One plain and one idempotent message that were sent, confirmed and handled once."""
    Journal(tmp_path, SENT).write(PLAIN, ONCE)
    Journal(tmp_path, CONFIRMED).write(PLAIN, ONCE)
    Journal(tmp_path, STARTED).write(ONCE)
    Journal(tmp_path, ENDED).write(PLAIN, ONCE)
    await complete(tmp_path, ONCE)
    return tmp_path


def test_the_books_of_messages_that_were_handled_once_balance(folder: Path) -> None:
    books = Books.read(folder)
    assert books.balanced
    assert (books.sent, books.confirmed, books.handled, books.completed) == (2, 2, 2, 1)
    assert books.evidence([]) == []


def test_a_confirmed_message_that_nobody_handled_is_lost_and_its_faults_are_named(folder: Path) -> None:
    Journal(folder, SENT).write(8)
    Journal(folder, CONFIRMED).write(8)
    now = SystemClock().time()
    near = Strike("reset", ("worker-1",), 1.0, 0.5, now - 1.0, now)
    far = Strike("broker kill", ("broker",), 1.0, 0.5, now - 900.0, now - 890.0)
    books = Books.read(folder)
    assert books.lost == [8]
    assert not books.balanced
    evidence = "\n".join(books.evidence([near, far]))
    assert "8 (plain)" in evidence
    assert "reset of worker-1" in evidence
    assert "broker kill" not in evidence


def test_a_message_without_a_confirm_may_be_handled_or_not(folder: Path) -> None:
    Journal(folder, SENT).write(8, 10)
    Journal(folder, ENDED).write(8)
    books = Books.read(folder)
    assert books.balanced
    assert books.sent - books.confirmed == 2


def test_a_second_run_of_a_plain_message_is_counted_and_allowed(folder: Path) -> None:
    Journal(folder, ENDED).write(PLAIN)
    books = Books.read(folder)
    assert books.balanced
    assert (books.twice_plain, books.most_runs) == (1, 2)


def test_a_start_after_a_completion_that_only_the_store_knows_is_found(folder: Path) -> None:
    later = SystemClock().time() + 5.0
    (folder / f"{STARTED}-another.journal").write_bytes(struct.pack("<Qd", ONCE, later))
    books = Books.read(folder)
    assert books.again == [ONCE]
    assert not books.balanced


def test_a_start_after_a_completion_that_the_store_forgot_is_found(folder: Path) -> None:
    (folder / STORE).unlink()
    now = SystemClock().time()
    (folder / f"{COMPLETED}-another.journal").write_bytes(struct.pack("<Qd", ONCE, now))
    (folder / f"{STARTED}-another.journal").write_bytes(struct.pack("<Qd", ONCE, now + 5.0))
    books = Books.read(folder)
    assert books.again == [ONCE]
    assert books.unrecorded == [ONCE]


def test_a_message_that_nobody_sent_is_found(folder: Path) -> None:
    Journal(folder, ENDED).write(1_000_000)
    books = Books.read(folder)
    assert books.unknown == [1_000_000]
    assert not books.balanced


def test_the_longest_wait_for_a_handler_is_told(folder: Path) -> None:
    later = SystemClock().time() + 40.0
    Journal(folder, SENT).write(8)
    Journal(folder, CONFIRMED).write(8)
    (folder / f"{ENDED}-another.journal").write_bytes(struct.pack("<Qd", 8, later))
    assert 39.0 < Books.read(folder).slowest < 45.0


def test_the_torn_record_of_a_killed_process_did_not_happen(folder: Path) -> None:
    (folder / f"{ENDED}-killed.journal").write_bytes(struct.pack("<Qd", PLAIN, SystemClock().time())[:9])
    assert Books.read(folder).runs == 2
    assert count(folder, ENDED) == 2


def test_the_books_of_a_run_without_messages_can_be_read(tmp_path: Path) -> None:
    books = Books.read(tmp_path)
    assert books.balanced
    assert books.rows()
