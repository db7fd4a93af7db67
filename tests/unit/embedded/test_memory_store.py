"""What is true of the store in memory alone: names, clocks, forks, retention and cost."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import time
from collections.abc import Awaitable, Callable

import pytest

from brokerkit.clock import SystemClock
from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.embedded.memory import MemoryStore
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.store import Claimant
from brokerkit.errors import ConfigurationError, TopicNotFound
from brokerkit.spi import ConnectOptions, GroupSpec, Inbound, Outbound, TopicSpec, ToTopic
from brokerkit.testing.clock import VirtualClock

T = TopicSpec(name="t")
G = GroupSpec(name="g")
GROUP = Claimant(topic="t", group="g", owner="me")
_idents = itertools.count()


def made(**limits: float) -> MemoryStore:
    return MemoryStore(EmbeddedSettings.model_validate(limits), SystemClock())


def messages(count: int, *, due: float | None = None, body: bytes = b"body") -> list[Outbound]:
    return [Outbound(destination=ToTopic("t"), body=body, message_id=str(next(_idents)), due=due) for _ in range(count)]


async def ids_from_the_start(store: MemoryStore, name: str) -> list[str | None]:
    await store.declare(T, GroupSpec(name=name, start="earliest"))
    claimant = dataclasses.replace(GROUP, group=name)
    return [message.message_id for message in await store.claim(claimant, 100)]


async def test_a_claimed_message_has_every_field_that_inbound_has() -> None:
    store = made()
    await store.declare(T, G)
    await store.send(messages(1))
    (got,) = await store.claim(GROUP, 1)
    for field in dataclasses.fields(Inbound):
        assert hasattr(got, field.name), field.name


async def test_one_name_is_one_store_and_its_clock_is_agreed_on() -> None:
    backend, clock = EmbeddedBackend(), VirtualClock()
    one = await backend.connect(ConnectOptions(url="memory://clocks", clock=clock))
    await one.declare(T, G)
    two = await backend.connect(ConnectOptions(url="memory://clocks", clock=clock))
    await two.verify(T, G)
    with pytest.raises(ConfigurationError, match="another clock"):
        await backend.connect(ConnectOptions(url="memory://clocks"))
    await one.aclose()
    await two.aclose()
    # Nobody has it open: the next connection brings its own clock, and finds what was stored.
    three = await backend.connect(ConnectOptions(url="memory://clocks"))
    four = await backend.connect(ConnectOptions(url="memory://clocks"))
    await four.verify(T, G)
    await three.aclose()
    await four.aclose()


async def test_a_child_process_begins_with_an_empty_store() -> None:
    connection = await EmbeddedBackend().connect(ConnectOptions(url="memory://forked"))
    await connection.declare(T, G)
    child = os.fork()
    if child == 0:
        # No pytest in the child: it answers with its exit code.
        try:
            asyncio.events._set_running_loop(None)
            os._exit(0 if asyncio.run(_sends_after_a_fork()) else 1)
        finally:
            os._exit(2)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    await connection.verify(T, G)
    assert (await connection.stats("t", "g")).ready == 0
    await connection.aclose()


async def _sends_after_a_fork() -> bool:
    connection = await EmbeddedBackend().connect(ConnectOptions(url="memory://forked"))
    try:
        await connection.verify(T, G)
    except TopicNotFound:
        await connection.declare(T, G)
        outcomes = await (await connection.open_producer()).send(messages(1))
        return outcomes == [None] and (await connection.stats("t", "g")).ready == 1
    return False


async def test_the_newest_settled_messages_are_kept_and_no_unsettled_one_is_dropped() -> None:
    store = made(retention_messages=3)
    await store.declare(T, G)
    sent = messages(10)
    names: list[str | None] = [message.message_id for message in sent]
    await store.send(sent)
    assert await ids_from_the_start(store, "all") == names
    claimed = await store.claim(GROUP, 8)
    await store.ack(GROUP, claimed)
    await store.delete("t", "all")
    assert await ids_from_the_start(store, "rest") == names[5:]


async def test_a_topic_without_groups_keeps_its_messages_until_retention() -> None:
    for limits in ({"retention_messages": 3}, {"retention_bytes": 12}):
        store = made(**limits)
        await store.declare(T, None)
        sent = messages(5)
        await store.send(sent)
        assert await ids_from_the_start(store, "new") == [message.message_id for message in sent[2:]]


async def test_what_is_older_than_the_retention_age_is_not_read_again() -> None:
    clock = VirtualClock()
    store = MemoryStore(EmbeddedSettings(retention_age=60), clock)
    await store.declare(T, None)
    await store.send(messages(1))
    await clock.advance(100)
    fresh = messages(1)
    await store.send(fresh)
    assert await ids_from_the_start(store, "new") == [fresh[0].message_id]


async def best_of(rounds: int, call: Callable[[], Awaitable[object]]) -> float:
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        await call()
        best = min(best, time.perf_counter() - started)
    return best


@pytest.mark.parametrize(
    ("waiting", "delayed", "ordered"), [(100_000, 0, False), (0, 50_000, False), (20_000, 0, True)]
)
async def test_the_cost_does_not_grow_with_what_waits(waiting: int, delayed: int, ordered: bool) -> None:
    async def cost(store: MemoryStore) -> float:
        async def work() -> None:
            await store.send(messages(100))
            await store.ack(GROUP, await store.claim(GROUP, 100))

        return await best_of(20, work)

    few, many = made(), made()
    for store in (few, many):
        await store.declare(T, GroupSpec(name="g", ordered=ordered))
    await many.send(messages(waiting))
    await many.send(messages(delayed, due=time.time() + 3600))
    # A linear cost would be hundreds of times as high.
    assert await cost(many) < 10 * await cost(few)
