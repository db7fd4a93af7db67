"""Brokers that are killed forget the offsets of the last five seconds: messages are repeated then, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from brokerkit.testing.deadlines import eventually
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rocketmq import RocketMQOptions, RocketMQServer
from tests.rocketmq.scene import GROUP, a_topic, manager_on
from tests.rocketmq.servers import NEW, installation_or_skip
from tests.traffic import balanced, working

#: Seconds; servers that start while other tests run are slow.
LONG = 120.0


@pytest.fixture(scope="module")
def forgetful() -> Iterator[RocketMQServer]:
    """A 5.5.0, which says that a group has no offset where a 4.9.4 says 0."""
    with RocketMQServer(RocketMQOptions(sync_flush=True), installation=installation_or_skip(NEW)) as server:
        yield server


def forget(server: RocketMQServer) -> None:
    """Kill the broker and start it without any offset."""
    broker = server.broker()
    broker.kill()
    for path in (broker.directory / "store/config").glob("consumerOffset*"):
        path.unlink()
    broker.start()


async def test_a_group_whose_first_offsets_are_forgotten_begins_at_the_first_message(forgetful: RocketMQServer) -> None:
    """Not at the last one, as a group does that is declared for the first time."""
    topic, ledger = a_topic(), Ledger()
    async with manager_on(forgetful.url, send_timeout=LONG) as sender:
        await sender.admin.declare(topic, GROUP)
        for _ in range(20):
            ledger.confirmed(await sender.send(topic, b"x"))
        await asyncio.to_thread(forget, forgetful)
        async with working(manager_on(forgetful.url), ledger, topic):
            await balanced(ledger, doubled=0, within=LONG)


async def test_who_knows_better_goes_on_and_who_does_not_begins_at_the_first_message(forgetful: RocketMQServer) -> None:
    topic, ledger = a_topic(), Ledger()
    async with manager_on(forgetful.url, send_timeout=LONG) as sender:

        async def confirmed(count: int) -> None:
            for outcome in await sender.send_many(topic, [b"x"] * count):
                assert outcome.error is None
                ledger.confirmed(outcome.message_id)

        async def all_told() -> bool:
            stats = await sender.monitor.stats(topic, GROUP)
            return (stats.ready, stats.unsettled or 0) == (0, 0)

        async with working(manager_on(forgetful.url), ledger, topic):
            await confirmed(40)
            await balanced(ledger, doubled=0, within=LONG)
            await asyncio.to_thread(forget, forgetful)
            await confirmed(40)
            await balanced(ledger, doubled=0, within=LONG)
            await eventually(all_told, LONG, "the offsets to be committed again")
        await confirmed(40)
        await asyncio.to_thread(forget, forgetful)
        async with working(manager_on(forgetful.url), ledger, topic):
            await balanced(ledger, doubled=80, within=LONG)
            await eventually(lambda: len(ledger.doubled) == 80, LONG, "everything again that is stored")
            assert max(ledger.doubled.values()) == 2
