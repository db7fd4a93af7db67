"""Fault 36 of the reference, on three nodes: a leader that dies, and a cluster without a quorum."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from brokerkit.errors import BrokerError
from brokerkit.spi import ConsumerOptions, GroupSpec, TopicSpec
from brokerkit.testing.deadlines import eventually, within
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rabbitmq import RabbitMQCluster
from tests.rabbitmq.nodes import installation_or_skip
from tests.rabbitmq.scene import (
    CLOCK,
    QUEUE,
    Traffic,
    balanced,
    connected,
    made,
    manager_on,
    outbound,
    send,
    working,
)

#: Seconds; three nodes share the machine with other tests.
LONG = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RabbitMQCluster]:
    with RabbitMQCluster(installation=installation_or_skip()) as cluster:
        yield cluster


async def test_traffic_goes_on_when_the_leader_of_a_queue_dies(cluster: RabbitMQCluster) -> None:
    """Clients of the dead node go to the next host of their list; the queue gets another leader."""
    ledger = Ledger()
    url = cluster.url
    async with (
        working(manager_on(url), ledger, concurrency=5, prefetch=10) as worker,
        manager_on(url, send_timeout=LONG) as sender,
        Traffic(sender, ledger) as traffic,
    ):
        await traffic.more(20, LONG)
        leader = await asyncio.to_thread(cluster.leader_of, QUEUE)
        await asyncio.to_thread(leader.kill)
        began = CLOCK.monotonic()
        await traffic.more(20, LONG)
        await eventually(lambda: len(ledger.handled_ids) >= 30, LONG, "the worker")
        assert CLOCK.monotonic() - began < 60.0
        await asyncio.to_thread(cluster.start)
        await traffic.more(20, LONG)
        await traffic.stop()
        # The sends and the deliveries under way at the moment of the kill, and once more when the node came back.
        await balanced(ledger, doubled=2 * 11, within=LONG)
        assert not traffic.failed
        await worker.stop()
        await (await sender.connection()).delete("orders", None)  # type: ignore[attr-defined]


async def test_without_a_quorum_every_call_ends_in_its_time_and_with_one_all_goes_on(cluster: RabbitMQCluster) -> None:
    ledger = Ledger()
    later = TopicSpec(name="later", groups={"g": GroupSpec(name="g")})
    leader_url = cluster.nodes[0].url
    async with connected(leader_url, attempt_timeout=3.0) as connection:
        consumer = await connection.open_consumer(ConsumerOptions(topic="orders", group="work", prefetch=100))
        assert await send(connection, made(ledger, 20), ledger) == [None] * 20
        for node in cluster.nodes[1:]:
            await asyncio.to_thread(node.suspend)
        producer = await connection.open_producer()
        began = CLOCK.monotonic()
        outcomes = await within(LONG, producer.send([outbound() for _ in range(10)]), "the outcomes")
        assert CLOCK.monotonic() - began < 10.0
        assert all(isinstance(outcome, BrokerError) and outcome.retryable for outcome in outcomes), outcomes
        began = CLOCK.monotonic()
        delayed = await within(LONG, producer.send([outbound(due=CLOCK.time() + 40.0)]), "the delayed one")
        assert CLOCK.monotonic() - began < 10.0
        assert isinstance(delayed[0], BrokerError), delayed
        began = CLOCK.monotonic()
        with pytest.raises(BrokerError):
            await within(LONG, connection.declare(later, later.groups["g"]), "the declaration")
        declaring = CLOCK.monotonic() - began
        assert declaring < 60.0
        for node in cluster.nodes[1:]:
            await asyncio.to_thread(node.resume)
        await asyncio.to_thread(cluster.wait_until_whole)

        async def sent() -> bool:
            messages = made(ledger, 20)
            outcomes = await producer.send(messages)
            for message, outcome in zip(messages, outcomes, strict=True):
                if outcome is None:
                    ledger.confirmed(message.message_id)
            return list(outcomes) == [None] * 20

        await eventually(sent, LONG, "sends with a quorum")
        while not ledger.settled:
            for message in await consumer.receive(100, 1.0):
                await consumer.ack([message])
                if message.message_id in ledger.sent_ids:
                    ledger.handled(message.message_id or "")
    await balanced(ledger, doubled=20)
