"""Forks of a process that has files of SQLite open: nothing hangs and nothing is lost, whoever closes first."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from brokerkit.errors import Closed
from brokerkit.sqlite_forks import Forks
from brokerkit.testing.deadlines import eventually_sync

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

#: Seconds; a generous deadline.
PATIENCE = 120

#: All that the group has: by a process that was not there before.
RECEIVE = """
from brokerkit import Manager, Topic
with Manager({url!r}) as manager, manager.consume(Topic("jobs", str, groups=["workers"])) as deliveries:
    while (delivery := deliveries.receive(2)) is not None:
        print(delivery.payload(str))
        delivery.ack()
"""

PARENT_CLOSES = """
import os
from brokerkit import Manager, Topic
topic = Topic("jobs", str, groups=["workers"])
manager = Manager({url!r})
manager.send(topic, "parent before")
(ready, tell_ready), (closed, tell_closed) = os.pipe(), os.pipe()
child = os.fork()
if not child:
    manager.send(topic, "child before")
    os.write(tell_ready, b"-")
    os.read(closed, 1)
    manager.send(topic, "child after")
    {end}
    os._exit(0)
os.read(ready, 1)
{parent}
manager.close()
os.write(tell_closed, b"-")
_, status = os.waitpid(child, 0)
assert status == 0, status
"""

WHILE_WRITING = """
import os, threading
from brokerkit import Manager, Topic
topic = Topic("jobs", str, groups=["workers"])
manager = Manager({url!r})
manager.send(topic, "first")
done, confirmed = threading.Event(), []
def write():
    while not done.is_set():
        confirmed.extend(manager.send_many(topic, ["parent"] * 20))
threads = [threading.Thread(target=write) for _ in range(2)]
for thread in threads:
    thread.start()
for number in range({forks}):
    child = os.fork()
    if not child:
        manager.send(topic, f"child {{number}}")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
done.set()
for thread in threads:
    thread.join()
manager.close()
assert all(outcome.error is None for outcome in confirmed)
print(len(confirmed))
"""

IDEMPOTENCY = """
import asyncio, os
from brokerkit.clock import SystemClock
from brokerkit.idempotency import Claimed, Done
from brokerkit.idempotency_sqlite import SqliteIdempotencyStore
store = SqliteIdempotencyStore({path!r}, SystemClock())
closed, tell_closed = os.pipe()

async def complete(key):
    assert isinstance(await store.claim(key, "me", 60.0, 1), Claimed)
    assert await store.complete(key, "me", b"", b"")

async def begin():
    await store.open()
    await complete("parent")
    child = os.fork()
    if child:
        await store.aclose()
        os.write(tell_closed, b"-")
    return child

async def use():
    await store.open()
    await complete("child")
    os.read(closed, 1)
    await complete("child after")
    await store.aclose()

async def look():
    await store.open()
    for key in ("parent", "child", "child after"):
        assert isinstance(await store.claim(key, "other", 60.0, 1), Done), key
    await store.aclose()

loop = asyncio.new_event_loop()
child = loop.run_until_complete(begin())
if not child:
    asyncio.run(use())
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
asyncio.run(look())
"""


def output_of(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("end", ["manager.close()", "pass"], ids=["closed", "not closed"])
def test_what_a_child_sends_is_kept_when_its_parent_closes_first(tmp_path: Path, end: str) -> None:
    url = f"sqlite:///{tmp_path}/fork.db"
    output_of(PARENT_CLOSES.format(url=url, end=end, parent="manager.send(topic, 'parent after')"))
    assert sorted(output_of(RECEIVE.format(url=url))) == [
        "child after",
        "child before",
        "parent after",
        "parent before",
    ]


def test_a_parent_that_did_nothing_after_the_fork_closes_as_well(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fork.db"
    output_of(PARENT_CLOSES.format(url=url, end="pass", parent="pass"))
    assert sorted(output_of(RECEIVE.format(url=url))) == ["child after", "child before", "parent before"]


def test_forks_while_threads_write_hold_up_nobody_and_lose_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fork.db"
    (confirmed,) = output_of(WHILE_WRITING.format(url=url, forks=20))
    received = output_of(RECEIVE.format(url=url))
    assert sorted(set(received)) == sorted(["first", "parent", *(f"child {number}" for number in range(20))])
    assert len(received) == 1 + int(confirmed) + 20


def test_what_a_child_completes_is_remembered_when_its_parent_closes_first(tmp_path: Path) -> None:
    assert output_of(IDEMPOTENCY.format(path=f"{tmp_path}/done.db")) == []


# --- the gate itself ------------------------------------------------------------------------------------------


class Held:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def let_go(self) -> None:
        self.told.append("let go")

    def abandon(self) -> None:
        self.told.append("abandon")


def made(holder: Held) -> Forks:
    """Return a gate whose hooks only the test calls."""
    forks = Forks()
    forks._hooked = True
    forks.add(holder)
    return forks


def test_a_fork_waits_for_who_is_inside_and_nobody_enters_meanwhile() -> None:
    holder = Held()
    forks = made(holder)
    order: list[str] = []

    def fork() -> None:
        forks._before()
        order.append("forked")
        forks._in_parent()

    def enter() -> None:
        with forks:
            order.append("entered")

    with forks:
        forking = threading.Thread(target=fork)
        forking.start()
        eventually_sync(lambda: forks._forking, PATIENCE, "the fork begins")
        entering = threading.Thread(target=enter)
        entering.start()
        assert holder.told == []
        order.append("left")
    forking.join(PATIENCE)
    entering.join(PATIENCE)
    assert order == ["left", "forked", "entered"]
    assert holder.told == ["let go"]
    forks.check()


def test_a_child_made_in_the_middle_of_a_transaction_is_told_that_it_cannot_open_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("brokerkit.sqlite_forks._PATIENCE", 0.05)
    holder = Held()
    forks = made(holder)
    forks.__enter__()  # in a thread that the child has not
    forks._before()
    assert holder.told == []
    forks._in_child()
    assert holder.told == ["abandon"]
    for _ in range(2):
        with pytest.raises(Closed, match="make it again"):
            forks.check()
        with forks:
            # It holds up nobody.
            pass
        # Its own children have what it has.
        forks._before()
        forks._in_child()


def test_the_parent_of_such_a_child_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brokerkit.sqlite_forks._PATIENCE", 0.05)
    forks = made(Held())
    with forks:
        forks._before()
        forks._in_parent()
    forks.check()
    with forks:
        pass
