"""The embedded drivers through the public SPI.  Add a URL to `STORES` to run everything on another store."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.embedded.connection import EmbeddedConnection
from brokerkit.embedded.consumer import EmbeddedConsumer
from brokerkit.embedded.memory import MemoryStore
from brokerkit.errors import Closed, ConfigurationError, MessageTooLarge, TopicNotFound, TopologyConflict
from brokerkit.spi import (
    AtomicSettle,
    Backend,
    Browse,
    Capability,
    Connection,
    ConnectOptions,
    ConsumerDriver,
    ConsumerOptions,
    DeadLetters,
    GroupSpec,
    Inbound,
    InboxDriver,
    Inboxes,
    Lease,
    Manage,
    Outbound,
    ProducerDriver,
    Purge,
    StartMarks,
    Stats,
    ToDead,
    ToGroup,
    ToInbox,
    TopicSpec,
    ToTopic,
)

_names = itertools.count()

STORES: dict[str, Callable[[Path], str]] = {
    "memory": lambda _: f"memory://drivers-{next(_names)}",
    "sqlite": lambda directory: f"sqlite:///{directory / 'broker.db'}",
}

T = TopicSpec(name="t")
G = GroupSpec(name="g")
#: Long enough for a machine under load; only failures wait for it.
DEADLINE = 20.0


@pytest.fixture(params=list(STORES))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return STORES[request.param](tmp_path)


@pytest.fixture
async def connect(url: str) -> AsyncIterator[Callable[..., object]]:
    opened: list[EmbeddedConnection] = []

    async def connect(query: str = "") -> EmbeddedConnection:
        connection = await EmbeddedBackend().connect(ConnectOptions(url=url + query))
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        await connection.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def broker(connect: Callable[..., object]) -> EmbeddedConnection:
    connection = await connect()  # type: ignore[misc]
    assert isinstance(connection, EmbeddedConnection)
    await connection.declare(T, G)
    return connection


def message(ident: str, destination: object = None, **fields: object) -> Outbound:
    return Outbound(
        destination=destination or ToTopic("t"),  # type: ignore[arg-type]
        body=fields.pop("body", ident.encode()),  # type: ignore[arg-type]
        message_id=ident,
        **fields,  # type: ignore[arg-type]
    )


async def send(connection: EmbeddedConnection, *messages: Outbound) -> None:
    producer = await connection.open_producer()
    assert await producer.send(messages) == [None] * len(messages)
    await producer.aclose()


async def consumer(connection: EmbeddedConnection, **options: object) -> EmbeddedConsumer:
    return await connection.open_consumer(ConsumerOptions(**{"topic": "t", "group": "g", **options}))  # type: ignore[arg-type]


async def receive_exactly(driver: ConsumerDriver, count: int) -> list[Inbound]:
    """Receive ``count`` messages, and no more, before the deadline."""
    end = time.monotonic() + DEADLINE
    received: list[Inbound] = []
    while len(received) < count:
        assert time.monotonic() < end, f"{len(received)} of {count} messages came"
        received += await driver.receive(count - len(received), 0.5)
    return received


async def nothing(driver: ConsumerDriver) -> bool:
    return not await driver.receive(1, 0.05)


def ids(messages: object) -> list[str | None]:
    return [message.message_id for message in messages]  # type: ignore[attr-defined]


class TestTransfer:
    async def test_every_field_arrives_as_it_was_sent(self, broker: EmbeddedConnection) -> None:
        sent = Outbound(
            destination=ToTopic("t"),
            body=b"\x00\xff body",
            message_id="id-1",
            headers={"a": "", "ü\n": "x" * 1000, "bk-attempt": "2"},
            due=5.0,
            key="k",
            tag="tag",
            type="Order",
            content_type="application/json",
            priority=3,
            timestamp=12.5,
            correlation_id="c",
            reply_to="r",
        )
        await send(broker, sent)
        (got,) = await receive_exactly(await consumer(broker), 1)
        same = "body message_id headers due key tag type content_type priority timestamp correlation_id reply_to"
        for name in same.split():
            assert getattr(got, name) == getattr(sent, name), name
        assert (got.topic, got.group) == ("t", "g")
        assert (got.redelivered, got.started, got.crashes, got.native) == (False, False, 0, None)

    async def test_what_the_sender_changes_after_the_send_does_not_arrive(self, broker: EmbeddedConnection) -> None:
        headers = {"a": "1"}
        sent = message("one", headers=headers)
        await send(broker, sent)
        headers["a"] = "2"
        sent.body = b"other"
        (got,) = await receive_exactly(await consumer(broker), 1)
        assert (got.body, got.headers) == (b"one", {"a": "1"})

    async def test_a_waiting_receive_gets_a_message_at_once(self, broker: EmbeddedConnection) -> None:
        reader = await consumer(broker)
        waiting = asyncio.ensure_future(reader.receive(10, DEADLINE))
        await asyncio.sleep(0)
        await send(broker, message("one"), message("two"))
        assert ids(await waiting) == ["one", "two"]

    async def test_receive_returns_nothing_after_its_timeout(self, broker: EmbeddedConnection) -> None:
        started = time.monotonic()
        assert await (await consumer(broker)).receive(1, 0.2) == ()
        assert time.monotonic() - started >= 0.1

    async def test_each_group_gets_everything_and_consumers_of_one_share(self, broker: EmbeddedConnection) -> None:
        await broker.declare(T, GroupSpec(name="h"))
        await send(broker, *(message(str(number)) for number in range(20)))
        one, two = await consumer(broker), await consumer(broker)
        shared = [*await receive_exactly(one, 10), *await receive_exactly(two, 10)]
        assert sorted(map(int, ids(shared))) == list(range(20))  # type: ignore[arg-type]
        assert ids(await receive_exactly(await consumer(broker, group="h"), 20)) == [str(n) for n in range(20)]

    async def test_a_bad_message_fails_alone(self, connect: Callable[..., object]) -> None:
        connection: EmbeddedConnection = await connect("?max_message_size=100")  # type: ignore[misc]
        await connection.declare(T, G)
        producer = await connection.open_producer()
        good, large, lost, stray = await producer.send(
            [
                message("good"),
                message("large", body=b"x" * 101),
                message("lost", ToTopic("missing")),
                message("stray", ToGroup("t", "missing")),
            ]
        )
        assert good is None
        assert isinstance(large, MessageTooLarge)
        assert "max_message_size" in str(large) and "101" in str(large) and "100" in str(large)
        assert isinstance(lost, TopicNotFound) and "'missing'" in str(lost)
        assert isinstance(stray, TopicNotFound) and "'missing'" in str(stray)
        assert ids(await (await consumer(connection)).receive(10, 1)) == ["good"]

    async def test_consumers_of_what_is_missing_are_refused(self, broker: EmbeddedConnection) -> None:
        for options in ({"topic": "missing"}, {"group": "missing"}, {"topic": "missing", "broadcast": True}):
            with pytest.raises(TopicNotFound, match="missing"):
                await consumer(broker, **options)

    async def test_deleting_the_group_ends_a_waiting_receive(self, broker: EmbeddedConnection) -> None:
        reader = await consumer(broker)
        waiting = asyncio.ensure_future(reader.receive(1, DEADLINE))
        await asyncio.sleep(0)
        await broker.delete("t", "g")
        with pytest.raises(TopicNotFound):
            await waiting


class TestSettlement:
    async def test_what_was_acknowledged_stays_gone_after_a_reopen(
        self, broker: EmbeddedConnection, connect: Callable[..., object]
    ) -> None:
        await send(broker, message("one"), message("two"))
        reader = await consumer(broker)
        await reader.ack((await receive_exactly(reader, 2))[:1])
        await broker.aclose()
        again: EmbeddedConnection = await connect()  # type: ignore[misc]
        got = await receive_exactly(await consumer(again), 1)
        assert ids(got) == ["two"]
        assert (got[0].redelivered, got[0].started) == (True, False)

    async def test_what_was_released_comes_again_in_its_place(self, broker: EmbeddedConnection) -> None:
        await send(broker, message("one"), message("two"), message("three"))
        reader = await consumer(broker)
        first, second = await receive_exactly(reader, 2)
        await reader.release([second])
        await reader.release([first])
        got = await receive_exactly(reader, 3)
        assert ids(got) == ["one", "two", "three"]
        assert [entry.redelivered for entry in got] == [True, True, False]

    async def test_stale_tokens_are_counted_and_settle_nothing(self, broker: EmbeddedConnection) -> None:
        await send(broker, message("one"))
        reader = await consumer(broker)
        old = await receive_exactly(reader, 1)
        await reader.release(old)
        new = await receive_exactly(reader, 1)
        await reader.ack(old)
        await reader.release(old)
        await reader.settle_with(old[0], [message("never")])
        assert reader.stale == 3
        assert not reader.live(old[0]) and reader.live(new[0])
        await reader.ack(new)
        await reader.ack(new)
        assert reader.stale == 4
        assert await nothing(reader)

    async def test_no_more_than_prefetch_is_unsettled(self, broker: EmbeddedConnection) -> None:
        await send(broker, *(message(str(number)) for number in range(5)))
        reader = await consumer(broker, prefetch=2)
        held = await reader.receive(10, 1)
        assert ids(held) == ["0", "1"]
        assert await nothing(reader)
        waiting = asyncio.ensure_future(reader.receive(10, DEADLINE))
        await asyncio.sleep(0)
        await reader.ack(held[:1])
        assert ids(await waiting) == ["2"]

    async def test_an_ended_lease_returns_the_message_and_the_place(self, connect: Callable[..., object]) -> None:
        connection: EmbeddedConnection = await connect("?lease=1")  # type: ignore[misc]
        await connection.declare(T, G)
        await send(connection, message("one"), message("two"))
        hung, other = await consumer(connection, prefetch=2), await consumer(connection)
        first, second = await receive_exactly(hung, 2)
        hung.mark_started(first)
        got = await receive_exactly(other, 2)
        assert ids(got) == ["one", "two"]
        assert [entry.redelivered for entry in got] == [True, True]
        assert [entry.started for entry in got] == [True, False]
        await other.ack(got)
        assert not hung.live(first)
        await hung.ack([first, second])
        assert hung.stale == 2
        await send(connection, message("three"))
        assert ids(await receive_exactly(hung, 1)) == ["three"]

    async def test_an_extended_lease_holds(self, connect: Callable[..., object]) -> None:
        connection: EmbeddedConnection = await connect("?lease=1")  # type: ignore[misc]
        await connection.declare(T, G)
        await send(connection, message("one"))
        reader, other = await consumer(connection), await consumer(connection)
        held = await receive_exactly(reader, 1)
        await reader.extend(held, DEADLINE)
        assert not await other.receive(1, 1.5)
        assert reader.live(held[0])
        await reader.ack(held)
        assert reader.stale == 0

    async def test_settle_with_does_all_of_it_or_nothing(self, broker: EmbeddedConnection) -> None:
        await send(broker, message("one"))
        reader = await consumer(broker)
        (held,) = await receive_exactly(reader, 1)
        with pytest.raises(TopicNotFound):
            await reader.settle_with(held, [message("follow-up"), message("lost", ToTopic("missing"))])
        assert reader.live(held)
        assert await nothing(reader)
        await reader.settle_with(held, [message("follow-up"), message("retry", ToGroup("t", "g"))])
        assert ids(await receive_exactly(reader, 2)) == ["follow-up", "retry"]
        assert (await broker.stats("t", "g")).unsettled == 2


class TestClosing:
    async def test_closing_gives_back_what_was_not_settled(self, broker: EmbeddedConnection) -> None:
        await send(broker, message("one"), message("two"))
        closing, other = await consumer(broker), await consumer(broker)
        held = await receive_exactly(closing, 2)
        waiting = asyncio.ensure_future(other.receive(5, DEADLINE))
        await asyncio.sleep(0)
        await closing.aclose()
        await closing.aclose()
        assert ids(await waiting) == ["one", "two"]
        assert not closing.live(held[0])
        await closing.ack(held)
        assert closing.stale == 2

    async def test_a_waiting_receive_ends_when_its_consumer_closes(self, broker: EmbeddedConnection) -> None:
        for close in ("consumer", "connection"):
            reader = await consumer(broker)
            waiting = asyncio.ensure_future(reader.receive(1, DEADLINE))
            await asyncio.sleep(0)
            started = time.monotonic()
            await (reader if close == "consumer" else broker).aclose()
            with pytest.raises(Closed):
                await waiting
            assert time.monotonic() - started < DEADLINE / 2

    async def test_everything_is_refused_after_close(self, broker: EmbeddedConnection) -> None:
        producer, reader = await broker.open_producer(), await consumer(broker)
        await asyncio.gather(broker.aclose(), broker.aclose())
        await producer.aclose()
        await reader.aclose()
        calls = [
            producer.send([message("one")]),
            reader.receive(1, 1),
            broker.open_producer(),
            consumer(broker),
            broker.open_inbox(),
            broker.take_dead("t", "g", None),
            broker.ping(1),
            broker.declare(T, G),
            broker.verify(T, G),
            broker.delete("t", None),
            broker.purge("t", "g"),
            broker.stats("t", "g"),
            broker.browse("t", "g", 1),
        ]
        for call in calls:
            with pytest.raises(Closed):
                await call

    async def test_two_receives_at_once_are_a_mistake_that_is_told(self, broker: EmbeddedConnection) -> None:
        reader = await consumer(broker)
        waiting = asyncio.ensure_future(reader.receive(1, DEADLINE))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one call at a time"):
            await reader.receive(1, 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    async def test_a_cancelled_receive_loses_nothing(self, broker: EmbeddedConnection) -> None:
        total = 200
        producer, reader = await broker.open_producer(), await consumer(broker, prefetch=total)
        received: list[Inbound] = []

        async def produce() -> None:
            for number in range(total):
                await producer.send([message(str(number))])
                await asyncio.sleep(0)

        sending = asyncio.ensure_future(produce())
        rounds = 0
        while not sending.done():
            rounds += 1
            receiving = asyncio.ensure_future(reader.receive(3, DEADLINE))
            for _ in range(rounds % 4):
                await asyncio.sleep(0)
            receiving.cancel()
            try:
                received += await receiving
            except asyncio.CancelledError:
                continue
        await sending
        received += await receive_exactly(reader, total - len(received))
        assert sorted(map(int, ids(received))) == list(range(total))  # type: ignore[arg-type]
        assert await nothing(reader)

    async def test_a_sender_and_a_receiver_that_never_suspend_leave_the_loop_its_turn(
        self, broker: EmbeddedConnection
    ) -> None:
        turns = 0

        async def beat() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beating = asyncio.ensure_future(beat())
        producer, reader = await broker.open_producer(), await consumer(broker)
        for number in range(500):
            await producer.send([message(str(number))])
        sent = turns
        for _ in range(500):
            await reader.ack(await reader.receive(1, 1))
        beating.cancel()
        assert sent >= 5
        assert turns - sent >= 5


class TestDelays:
    async def test_a_message_is_not_delivered_before_it_is_due(self, broker: EmbeddedConnection) -> None:
        reader = await consumer(broker)
        waiting = asyncio.ensure_future(reader.receive(1, DEADLINE))
        await asyncio.sleep(0)
        due = time.time() + 0.3
        await send(broker, message("late", due=due + 0.2), message("soon", due=due), message("past", due=1.0))
        assert ids(await waiting) == ["past"]
        arrived: dict[str | None, float] = {}
        while len(arrived) < 2:
            arrived |= dict.fromkeys(ids(await receive_exactly(reader, 1)), time.time())
        assert arrived["soon"] >= due
        assert arrived["late"] >= due + 0.2

    async def test_groups_are_those_of_the_moment_when_it_is_due(self, broker: EmbeddedConnection) -> None:
        await broker.declare(T, GroupSpec(name="old"))
        await send(broker, message("one", due=time.time() + 1.5))
        await broker.delete("t", "old")
        await broker.declare(T, GroupSpec(name="new"))
        assert ids(await receive_exactly(await consumer(broker, group="new"), 1)) == ["one"]
        await broker.declare(T, GroupSpec(name="old"))
        assert await nothing(await consumer(broker, group="old"))

    async def test_a_delayed_message_to_a_deleted_group_is_gone(self, broker: EmbeddedConnection) -> None:
        await send(broker, message("one", ToGroup("t", "g"), due=time.time() + 0.1))
        await broker.delete("t", "g")
        await broker.declare(T, G)
        assert not await (await consumer(broker)).receive(1, 0.4)


class TestOptional:
    async def test_a_broadcast_reaches_every_consumer_and_no_group(self, broker: EmbeddedConnection) -> None:
        readers = [await consumer(broker, group="b", broadcast=True) for _ in range(3)]
        picky = await consumer(broker, group="b", broadcast=True, tag="x||y")
        await send(broker, message("one", tag="x"), message("two"))
        for reader in readers:
            assert ids(await receive_exactly(reader, 2)) == ["one", "two"]
        assert ids(await receive_exactly(picky, 1)) == ["one"]
        assert await nothing(picky)
        assert (await broker.stats("t", "g")).ready == 2
        await readers[0].aclose()
        await send(broker, message("three"))
        assert ids(await receive_exactly(readers[1], 1)) == ["three"]

    async def test_an_inbox_gets_its_replies_and_ends_with_its_consumer(self, broker: EmbeddedConnection) -> None:
        inbox, other = await broker.open_inbox(), await broker.open_inbox()
        assert isinstance(inbox, InboxDriver) and inbox.address != other.address
        await send(broker, message("reply", ToInbox(inbox.address), correlation_id="c"))
        (got,) = await receive_exactly(inbox, 1)
        assert got.correlation_id == "c"
        assert await nothing(other)
        await inbox.aclose()
        await send(broker, message("late", ToInbox(inbox.address)), message("never", ToInbox("nowhere")))

    async def test_dead_letters_are_taken_in_order_and_stay_unless_acknowledged(
        self, broker: EmbeddedConnection
    ) -> None:
        await send(broker, *(message(str(number), ToDead("t", "g")) for number in range(6)))
        some = await broker.take_dead("t", "g", ["4", "1", "no such"])
        got = await some.receive(10, DEADLINE)
        assert ids(got) == ["1", "4"]
        await some.ack(got[:1])
        await some.release(got[1:])
        assert await some.receive(10, DEADLINE) == ()
        await some.aclose()
        everything = await broker.take_dead("t", "g", None)
        assert ids(await everything.receive(2, DEADLINE)) == ["0", "2"]
        assert ids(await everything.receive(20, DEADLINE)) == ["3", "4", "5"]
        assert await everything.receive(20, DEADLINE) == ()
        await everything.aclose()
        assert ids(await broker.browse("t", "g", 3)) == ["0", "2", "3"]
        assert ids(await broker.browse("t", "g", 100)) == ["0", "2", "3", "4", "5"]
        assert (await broker.stats("t", "g")).dead == 5

    async def test_higher_priorities_come_first(self, broker: EmbeddedConnection) -> None:
        await send(broker, *(message(f"{p}{n}", priority=p) for n in "ab" for p in (0, 9, 5)))
        assert ids(await receive_exactly(await consumer(broker), 6)) == ["9a", "9b", "5a", "5b", "0a", "0b"]

    async def test_a_key_of_an_ordered_group_has_one_owner_at_a_time(self, broker: EmbeddedConnection) -> None:
        await broker.declare(T, GroupSpec(name="o", ordered=True))
        await send(broker, *(message(f"{key}{n}", key=key) for n in range(3) for key in "ab"))
        one = await consumer(broker, group="o", ordered=True, prefetch=1)
        two = await consumer(broker, group="o", ordered=True)
        held = await receive_exactly(one, 1)
        assert ids(held) == ["a0"]
        assert ids(await two.receive(10, 1)) == ["b0", "b1", "b2"]
        assert await nothing(two)
        waiting = asyncio.ensure_future(two.receive(10, DEADLINE))
        await asyncio.sleep(0)
        await one.release(held)
        assert ids(await waiting) == ["a0", "a1", "a2"]

    async def test_purge_removes_only_what_is_ready(self, broker: EmbeddedConnection) -> None:
        await broker.declare(T, GroupSpec(name="h"))
        await send(broker, message("one"), message("two"), message("three"), message("late", due=time.time() + 2.0))
        await send(broker, message("dead", ToDead("t", "g")))
        reader = await consumer(broker)
        held = await reader.receive(1, 1)
        assert await broker.purge("t", "g") == 2
        stats = await broker.stats("t", "g")
        assert (stats.ready, stats.unsettled, stats.delayed, stats.dead, stats.consumers) == (0, 1, 1, 1, 1)
        assert stats.oldest_age is None
        await reader.ack(held)
        assert ids(await receive_exactly(reader, 1)) == ["late"]
        assert ids(await receive_exactly(await consumer(broker, group="h"), 4))[:3] == ["one", "two", "three"]

    async def test_declarations_are_verified_and_never_narrowed(self, broker: EmbeddedConnection) -> None:
        await broker.declare(T, GroupSpec(name="f", tag="a"))
        await broker.declare(T, GroupSpec(name="f", tag="b"))
        await broker.declare(T, GroupSpec(name="f", tag="a"))
        await broker.verify(T, GroupSpec(name="f", tag="a||b"))
        await send(broker, message("1", tag="a"), message("2", tag="b"), message("3", tag="c"), message("4"))
        assert ids(await (await consumer(broker, group="f")).receive(10, 1)) == ["1", "2"]
        with pytest.raises(TopologyConflict, match="'c'"):
            await broker.verify(T, GroupSpec(name="f", tag="c"))
        with pytest.raises(TopologyConflict, match="ordered"):
            await broker.declare(T, GroupSpec(name="f", ordered=True))
        with pytest.raises(TopologyConflict, match="ordered"):
            await broker.declare(TopicSpec(name="t", ordered=True), None)
        for topic, group in ((TopicSpec(name="x"), None), (T, GroupSpec(name="x"))):
            with pytest.raises(TopicNotFound, match="'x'"):
                await broker.verify(topic, group)
        with pytest.raises(TopicNotFound, match="'x'"):
            await broker.stats("t", "x")

    async def test_a_group_begins_where_it_was_declared_to_begin(self, broker: EmbeddedConnection) -> None:
        await send(broker, message("one", tag="a"), message("two"))
        reader = await consumer(broker)
        await reader.ack((await receive_exactly(reader, 2))[:1])
        await broker.declare(T, GroupSpec(name="early", start="earliest"))
        await broker.declare(T, GroupSpec(name="tagged", start="earliest", tag="a"))
        await broker.declare(T, GroupSpec(name="late", start="latest"))
        await send(broker, message("three"))
        assert ids(await receive_exactly(await consumer(broker, group="early"), 3)) == ["one", "two", "three"]
        assert ids(await receive_exactly(await consumer(broker, group="tagged"), 1)) == ["one"]
        assert ids(await receive_exactly(await consumer(broker, group="late"), 1)) == ["three"]


class TestOffers:
    async def test_every_offer_has_its_methods(self, broker: EmbeddedConnection) -> None:
        backend: Backend = EmbeddedBackend()
        connection: Connection = broker
        assert isinstance(backend, Backend) and isinstance(connection, Connection)
        inbox: InboxDriver = await broker.open_inbox()
        assert isinstance(inbox, InboxDriver)
        offered = broker.capabilities("t")
        expected = frozenset(Capability)
        if not broker.store.persistent:
            expected -= {Capability.DURABLE, Capability.MULTIPROCESS}
        assert offered == expected
        for protocol in (Manage, Purge, Stats, Browse, DeadLetters, Inboxes):
            assert isinstance(broker, protocol), protocol
        assert isinstance(await broker.open_producer(), ProducerDriver)
        reader = await consumer(broker)
        for driver in (ConsumerDriver, Lease, AtomicSettle, StartMarks):
            assert isinstance(reader, driver), driver
        assert isinstance(await broker.take_dead("t", "g", None), ConsumerDriver)

    async def test_a_subclass_may_offer_less(self, url: str) -> None:
        class Plain(EmbeddedBackend):
            capabilities = frozenset()

        connection = await Plain().connect(ConnectOptions(url=url))
        assert connection.capabilities("t") == frozenset()
        await connection.aclose()


class TestThreads:
    async def test_loops_in_several_threads_share_one_store(self, broker: EmbeddedConnection, url: str) -> None:
        total, threads = 300, 3
        received: list[str | None] = []
        faults: list[BaseException] = []

        # As patient as the test: a busy disk keeps the others waiting for the lock of the file.
        options = ConnectOptions(url=url, attempt_timeout=DEADLINE)

        async def work() -> None:
            connection = await EmbeddedBackend().connect(options)
            reader = await consumer(connection)
            end = time.monotonic() + DEADLINE
            while len(received) < total and time.monotonic() < end:
                got = await reader.receive(5, 0.2)
                await reader.ack(got)
                received.extend(ids(got))
            await connection.aclose()

        def run() -> None:
            try:
                asyncio.run(work())
            except BaseException as error:
                faults.append(error)

        workers = [threading.Thread(target=run) for _ in range(threads)]
        for worker in workers:
            worker.start()
        sender = await EmbeddedBackend().connect(options)
        producer = await sender.open_producer()
        for number in range(total):
            assert await producer.send([message(str(number))]) == [None]
            if number % 20 == 0:
                await asyncio.sleep(0.001)
        for worker in workers:
            await asyncio.to_thread(worker.join)
        assert faults == []
        assert sorted(map(int, received)) == list(range(total))  # type: ignore[arg-type]
        await sender.aclose()


class TestConnecting:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (ConnectOptions(url="memory://x?leese=3"), "did you mean 'lease'"),
            (ConnectOptions(url="memory://x", section={"durabilty": "full"}), "did you mean 'durability'"),
            (ConnectOptions(url="memory://x", section={"zzz": 1}), "known are path"),
            (ConnectOptions(url="memory://x?lease=soon"), "'lease' in the URL"),
            (ConnectOptions(url="memory://x", section={"lease": 0}), "'lease' in the embedded section"),
            (ConnectOptions(url="memory://x?lease=1&lease=2"), "twice"),
            (ConnectOptions(url="memory://x/y"), "without a further slash"),
            (ConnectOptions(url="sqlite://relative.db"), "three slashes"),
            (ConnectOptions(url="sqlite:///:memory:"), "memory://name"),
            (ConnectOptions(url="amqp://user:hunter2@host"), "sqlite:// or memory://"),
            (ConnectOptions(url="user:hunter2@host"), "sqlite:// or memory://"),
        ],
    )
    async def test_what_is_malformed_is_refused_with_the_cure(self, options: ConnectOptions, text: str) -> None:
        with pytest.raises(ConfigurationError, match=text) as caught:
            await EmbeddedBackend().connect(options)
        assert "hunter2" not in str(caught.value)

    async def test_a_store_without_a_name_is_private_and_ends_with_its_connection(self) -> None:
        one = await EmbeddedBackend().connect(ConnectOptions(url="memory://"))
        two = await EmbeddedBackend().connect(ConnectOptions(url="memory://"))
        await one.declare(T, G)
        with pytest.raises(TopicNotFound):
            await two.verify(T, G)
        await one.aclose()
        await two.aclose()

    async def test_a_forgotten_store_begins_empty(self) -> None:
        one = await EmbeddedBackend().connect(ConnectOptions(url="memory://forgotten"))
        await one.declare(T, G)
        await one.aclose()
        MemoryStore.forget("forgotten")
        two = await EmbeddedBackend().connect(ConnectOptions(url="memory://forgotten"))
        with pytest.raises(TopicNotFound):
            await two.verify(T, G)
        await two.aclose()


@pytest.mark.parametrize(
    "url", ["sqlite://user:s3cret@host/x.db", "memory://user:s3cret@name/x", "memory://%40:s3cret/"]
)
async def test_a_malformed_url_is_not_quoted_because_it_may_hold_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="malformed") as caught:
        await EmbeddedBackend().connect(ConnectOptions(url=url))
    assert "s3cret" not in str(caught.value)
