"""Faults of brokers, with SYNC_FLUSH: killed, stopped, frozen, one of two gone, a copy in the master's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from brokerkit.testing.deadlines import eventually
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rocketmq import RocketMQBroker, RocketMQControl, RocketMQServer
from brokerkit_rocketmq.connection import RocketMQConnection
from tests.rocketmq.scene import a_topic, manager_on
from tests.traffic import CLOCK, Traffic, balanced, working

#: Seconds; servers that start while other tests run are slow.
LONG = 120.0

#: Sends under way, and messages in a worker's hands.
SENDING, IN_HAND = 16, 20


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_brokers_that_die_in_the_middle_of_everything_lose_nothing_that_was_confirmed(
    own_pair: RocketMQServer, how: str, record_property: Callable[[str, object], None]
) -> None:
    topic, ledger = a_topic(), Ledger(how)
    async with (
        working(manager_on(own_pair.url), ledger, topic, pause=0.01, concurrency=10, prefetch=IN_HAND),
        manager_on(own_pair.url, send_timeout=LONG) as sender,
        Traffic(sender, ledger, topic, pause=0.001, at_once=SENDING) as traffic,
    ):
        await traffic.more(100)
        for broker in own_pair.brokers:
            await asyncio.to_thread(broker.kill if how == "killed" else broker.stop)
        await asyncio.to_thread(own_pair.start)
        await traffic.more(100, LONG)
        await traffic.stop()
        assert not traffic.failed
        # One broker goes after the other: sends that were under way to each, and what was in hand of each.
        doubled = await balanced(ledger, doubled=2 * (SENDING + IN_HAND), within=LONG)
    record_property("doubled", doubled)


async def test_frozen_brokers_are_given_up_and_used_again_when_they_go_on(
    own_pair: RocketMQServer, record_property: Callable[[str, object], None]
) -> None:
    """SIGSTOP for more than two heartbeats; the kernel takes what is written and stores of it what it can later."""
    topic, ledger, fast = a_topic(), Ledger(), {"heartbeat": 1.0}
    worker = manager_on(own_pair.url, fast)
    async with (
        working(worker, ledger, topic, concurrency=5, prefetch=10),
        manager_on(own_pair.url, fast, attempt_timeout=2.0, send_timeout=LONG) as sender,
        Traffic(sender, ledger, topic) as traffic,
    ):
        await traffic.more(10)
        for broker in own_pair.brokers:
            await asyncio.to_thread(broker.suspend)
        stopped = CLOCK.monotonic()
        connection = await worker.connection()
        assert isinstance(connection, RocketMQConnection)
        await eventually(lambda: not connection.client.links.up(), LONG, "the links to be given up")
        assert (await sender.monitor.health(timeout=0.5)).status == "down"
        assert CLOCK.monotonic() - stopped < 20.0
        own_pair.resume()
        await traffic.more(10)
        await traffic.stop()
        assert not traffic.failed
        # The send under way and its repetitions while the brokers slept, and what was in the worker's hands.
        record_property("doubled", await balanced(ledger, doubled=20 + 10, within=LONG))


async def test_one_of_two_brokers_is_done_without_and_what_lies_on_it_comes_when_it_is_back(
    own_pair: RocketMQServer, record_property: Callable[[str, object], None]
) -> None:
    topic, ledger = a_topic(), Ledger()
    lost = own_pair.broker("broker-b")
    async with manager_on(own_pair.url) as sender:
        for _ in range(200):
            ledger.confirmed(await sender.send(topic, b"x"))
        await asyncio.to_thread(lost.kill)
        async with (
            working(manager_on(own_pair.url), ledger, topic, concurrency=10, prefetch=IN_HAND),
            Traffic(sender, ledger, topic, at_once=4) as traffic,
        ):
            await traffic.more(100)
            await eventually(lambda: len(ledger.handled_ids) >= 100, LONG, "what lies on the other one")
            assert ledger.lost, "nothing was on the broker that is away"
            await asyncio.to_thread(lost.start)
            await traffic.more(100)
            await traffic.stop()
            assert not traffic.failed
            record_property("doubled", await balanced(ledger, doubled=4 + IN_HAND, within=LONG))


@asynccontextmanager
async def a_copy(server: RocketMQServer) -> AsyncIterator[RocketMQBroker]:
    """Run a slave of broker-a that has everything that its master has."""
    copy = RocketMQBroker(server.options, server.installation, server.name_servers, broker_id=1)
    try:
        await asyncio.to_thread(copy.start)
        brokers = (server.broker("broker-a").describe(), copy.describe())
        control = RocketMQControl(replace(server.address, brokers=brokers))
        await asyncio.to_thread(control.wait_until_copied)
        yield copy
    finally:
        await asyncio.to_thread(copy.close)


async def test_a_slave_is_read_while_its_master_is_away_and_nothing_comes_twice_when_that_is_back(
    own_pair: RocketMQServer, record_property: Callable[[str, object], None]
) -> None:
    topic, ledger = a_topic(), Ledger()
    master = own_pair.broker("broker-a")
    async with manager_on(own_pair.url) as sender:
        for _ in range(200):
            ledger.confirmed(await sender.send(topic, b"x"))
        async with a_copy(own_pair):
            await asyncio.to_thread(master.kill)
            async with working(manager_on(own_pair.url), ledger, topic, concurrency=10, prefetch=IN_HAND):
                await balanced(ledger, doubled=0, within=LONG)
                await asyncio.to_thread(master.start)
                async with Traffic(sender, ledger, topic, at_once=4) as traffic:
                    await traffic.more(100)
                await balanced(ledger, doubled=IN_HAND, within=LONG)
                # The offsets of the group are compared with those of the broker every ten seconds.
                back = CLOCK.monotonic()
                while CLOCK.monotonic() - back < 12.0:
                    await CLOCK.sleep(0.5)
                    await balanced(ledger, doubled=IN_HAND)
        async with working(manager_on(own_pair.url), ledger, topic):
            ledger.confirmed(await sender.send(topic, b"last"))
            record_property("doubled", await balanced(ledger, doubled=IN_HAND, within=LONG))
