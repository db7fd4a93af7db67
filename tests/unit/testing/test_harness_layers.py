"""The layers that make faults, the minimal backend, and the cases that have no subject on a file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.embedded.connection import EmbeddedConnection
from brokerkit.errors import AccessRefused, BrokerUnavailable, Closed, SendRefused, SendTimeout, Unroutable
from brokerkit.spi import AtomicSettle, Connection, ConnectOptions, Manage, ToGroup, ToTopic
from brokerkit.testing import EmbeddedHarness, InterposedBackend, MinimalBackend
from brokerkit.testing.suite._cases import (
    collect,
    outbound,
    receive_exactly,
    send,
)

SOON = 20.0


@pytest.fixture
async def harness() -> AsyncIterator[EmbeddedHarness]:
    harness = EmbeddedHarness("memory://unit")
    await harness.begin("test_unit", frozenset({"restart"}))
    yield harness
    await harness.end()


async def test_refused_sends_are_refused_and_the_others_pass(harness: EmbeddedHarness) -> None:
    layer = cast(InterposedBackend, harness.backend)
    one, other = harness.name("one"), harness.name("other")
    async with harness.connection() as connection:
        for topic in (one, other):
            await harness.declare(connection, topic)
        producer = await connection.open_producer()
        async with layer.refusing(ToTopic(one)):
            outcomes = await producer.send([outbound(one), outbound(other), outbound(one)])
            assert [type(outcome) for outcome in outcomes] == [SendRefused, type(None), SendRefused]
            consumer = await harness.consumer(connection, other)
            (inbound,) = await collect(consumer, 1, within=SOON, ack=False)
            with pytest.raises(SendRefused):
                await cast(AtomicSettle, consumer).settle_with(inbound, [outbound(one)])
            assert consumer.live(inbound)
        await cast(AtomicSettle, consumer).settle_with(inbound, [outbound(one)])
        assert not consumer.live(inbound)
        assert await producer.send([outbound(one)]) == [None]
        assert layer.calls["send"] == 2
        assert layer.calls["settle_with"] == 2


async def test_stalled_sends_time_out(harness: EmbeddedHarness) -> None:
    layer = cast(InterposedBackend, harness.backend)
    topic = harness.name()
    async with harness.connection(attempt_timeout=0.2) as connection:
        await harness.declare(connection, topic)
        producer = await connection.open_producer()
        async with layer.stalling():
            began = time.monotonic()
            (outcome,) = await producer.send([outbound(topic)])
            assert isinstance(outcome, SendTimeout)
            assert time.monotonic() - began >= 0.2
        assert await producer.send([outbound(topic)]) == [None]


async def test_a_restart_makes_tokens_stale_and_everything_else_goes_on(harness: EmbeddedHarness) -> None:
    topic = harness.name()
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        producer = await connection.open_producer()
        consumer = await harness.consumer(connection, topic)
        ids = await send(producer, outbound(topic), outbound(topic))
        old = await receive_exactly(consumer, ids, within=SOON, ack=False)
        waiting = asyncio.create_task(consumer.receive(1, SOON))
        async with harness.restart():
            (outcome,) = await producer.send([outbound(topic)])
            assert isinstance(outcome, BrokerUnavailable)
            with pytest.raises(BrokerUnavailable):
                await connection.ping(1.0)
            with pytest.raises(BrokerUnavailable):
                await harness.backend.connect(harness.connect_options())
            assert not waiting.done()
            assert not any(consumer.live(each) for each in old)
        again = [*await waiting]
        await consumer.ack(old)
        await consumer.ack(again)
        left = [each for each in ids if each not in {message.message_id for message in again}]
        await receive_exactly(consumer, left, within=SOON)
        await connection.ping(SOON)
        await consumer.aclose()
        with pytest.raises(Closed):
            await consumer.receive(1, SOON)


async def test_a_consumer_can_be_closed_while_the_broker_is_down(harness: EmbeddedHarness) -> None:
    topic = harness.name()
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        consumer = await harness.consumer(connection, topic)
        async with harness.restart():
            waiting = asyncio.create_task(consumer.receive(1, 3600.0))
            await asyncio.sleep(0)
            await consumer.aclose()
            with pytest.raises(Closed):
                await waiting


async def test_the_minimal_backend_offers_nothing_and_works(harness: EmbeddedHarness) -> None:
    backend = MinimalBackend(EmbeddedBackend())
    spec_of = harness.topics
    topic, lonely = harness.name(), harness.name()
    async with harness.connection() as declarer:
        await harness.declare(declarer, topic)
        await harness.declare(declarer, lonely, None)
    connection = await backend.connect(ConnectOptions(url="memory://min", topics=spec_of))
    try:
        assert isinstance(connection, Connection)
        assert not isinstance(connection, Manage)
        assert connection.capabilities(topic) == frozenset()
        producer = await connection.open_producer()
        (sent,) = await send(producer, outbound(topic))
        (outcome,) = await producer.send([outbound(lonely)])
        assert isinstance(outcome, Unroutable)
        consumer = await harness.consumer(connection, topic)
        (inbound,) = await receive_exactly(consumer, [sent], within=SOON, ack=False)
        assert (inbound.redelivered, inbound.started) == (None, None)
        assert await producer.send([outbound(topic, destination=ToGroup(topic, "g"))]) == [None]
        await consumer.ack([inbound])
    finally:
        await connection.aclose()


async def test_the_file_survives_a_process_that_is_killed_in_a_transaction(tmp_path: Path) -> None:
    harness = EmbeddedHarness(f"sqlite:///{tmp_path / 'broker.db'}")
    await harness.probe()
    await harness.begin("test_killed", frozenset({"kill"}))
    topic = harness.name()
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        producer = await connection.open_producer()
        consumer = await harness.consumer(connection, topic)
        ids = await send(producer, outbound(topic), outbound(topic))
        await harness.kill()
        ids += await send(producer, outbound(topic))
        await receive_exactly(consumer, ids, within=SOON)
    await harness.end()


async def test_a_foreign_message_has_an_id_only_where_the_store_needs_one(tmp_path: Path) -> None:
    for url, has_id in (("memory://foreign", False), (f"sqlite:///{tmp_path / 'broker.db'}", True)):
        harness = EmbeddedHarness(url)
        await harness.begin("test_foreign", frozenset())
        topic = harness.name()
        async with harness.connection() as connection:
            await harness.declare(connection, topic)
            await harness.inject_foreign(topic, b"x", {"x-death": [{"count": 1}], "n": 3, "text": "t"})
            consumer = await harness.consumer(connection, topic)
            (inbound,) = await collect(consumer, 1, within=SOON)
        assert (inbound.message_id is not None) == has_id
        assert dict(inbound.headers) == {"x-death": '[{"count": 1}]', "n": "3", "text": "t"}
        await harness.end()


# --- the cases that have no subject on a file, on a backend that gives them one -----------------------------------


class _Fenced(EmbeddedBackend):
    """Has an address where nobody answers, and one that wants credentials."""

    async def connect(self, options: ConnectOptions) -> EmbeddedConnection:
        if options.url == "memory://nowhere":
            raise BrokerUnavailable("nobody answers at nowhere")
        if options.url == "memory://wrong":
            raise AccessRefused("the broker refused the user name or the password")
        return await super().connect(options)


class _Linked(EmbeddedHarness):
    bad_url = "memory://wrong"
    unreachable_url = "memory://nowhere"

    async def begin(self, case: str, needs: frozenset[str]) -> None:
        await super().begin(case, needs | {"restart"})

    async def drop_connection(self) -> None:
        async with self.restart():
            pass


@pytest.mark.parametrize(
    "name",
    [
        "test_unsettled_redelivered_after_connection_loss",
        "test_stale_token_never_settles_another_message",
        "test_unreachable_broker_raises_in_time",
        "test_wrong_credentials_are_not_retryable",
    ],
)
def test_cases_about_links_pass_where_there_is_a_link(name: str) -> None:
    from brokerkit.testing import suite

    getattr(suite, name)(harness=_Linked("memory://linked", _Fenced()))


def test_the_case_about_stale_tokens_finds_a_consumer_that_settles_them() -> None:
    from brokerkit.testing import suite

    class SettlesStale(_Linked):
        """Its links forget nothing: an old token settles whatever message has its place now."""

        async def begin(self, case: str, needs: frozenset[str]) -> None:
            await super().begin(case, needs)
            self.backend = _SettlesStale(self.backend)

        def restart(self) -> Any:
            return cast(_SettlesStale, self.backend).inner_layer.stopped()

    with pytest.raises(AssertionError):
        suite.test_stale_token_never_settles_another_message(harness=SettlesStale("memory://stale"))


class _SettlesStale:
    """Settles by message id instead of by token."""

    def __init__(self, inner: Any) -> None:
        self.inner_layer = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner_layer, name)

    async def connect(self, options: ConnectOptions) -> Any:
        connection = await self.inner_layer.connect(options)
        open_consumer = connection.open_consumer

        async def open_and_spoil(consumer_options: Any) -> Any:
            consumer = await open_consumer(consumer_options)
            receive, ack = consumer.receive, consumer.ack
            latest: dict[str | None, Any] = {}

            async def receive_and_note(limit: int, timeout: float) -> Any:
                found = await receive(limit, timeout)
                latest.update((each.message_id, each) for each in found)
                return found

            async def ack_latest(messages: Any) -> None:
                await ack([latest.get(each.message_id, each) for each in messages])

            consumer.receive, consumer.ack = receive_and_note, ack_latest
            return consumer

        connection.open_consumer = open_and_spoil
        return connection
