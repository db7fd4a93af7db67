"""Faults of NameServers: one of two gone, all of them gone, and back without what they knew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from brokerkit.errors import BrokerUnavailable
from brokerkit.testing.deadlines import eventually, within
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rocketmq import RocketMQServer
from tests.rocketmq.scene import GROUP, a_topic, manager_on
from tests.traffic import CLOCK, Traffic, balanced, working

#: Seconds; servers that start while other tests run are slow.
LONG = 120.0

#: Routes are looked at all the time, so that what cannot be asked is noticed.
CURIOUS = {"route_refresh": 0.5}


async def test_without_any_name_server_sends_and_pulls_go_on_and_a_new_topic_waits(
    own_pair: RocketMQServer, record_property: Callable[[str, object], None]
) -> None:
    topic, other, ledger, second = a_topic(), a_topic(), Ledger(), Ledger("a new topic")
    async with (
        working(manager_on(own_pair.url, CURIOUS), ledger, topic),
        manager_on(own_pair.url, CURIOUS, send_timeout=LONG) as sender,
        Traffic(sender, ledger, topic) as traffic,
    ):
        await traffic.more(10)
        for name_server in own_pair.name_servers:
            await asyncio.to_thread(name_server.kill)
        handled = len(ledger.handled_ids)
        await traffic.more(200)
        await eventually(lambda: len(ledger.handled_ids) >= handled + 100, LONG, "messages while there is none")
        with pytest.raises(BrokerUnavailable):
            await within(LONG, manager_on(own_pair.url).connect(), "a refusal")
        began = CLOCK.monotonic()
        waiting = asyncio.create_task(sender.send(other, b"x", message_id="new"))
        second.sent("new")
        while CLOCK.monotonic() - began < 3.0:
            await CLOCK.sleep(0.1)
            assert not waiting.done(), waiting
        await traffic.more(20)
        await asyncio.to_thread(own_pair.start)
        await asyncio.to_thread(own_pair.register)
        assert await within(LONG, waiting, "the send to a new topic") == "new"
        second.confirmed("new")
        async with working(manager_on(own_pair.url, CURIOUS), second, other):
            await balanced(second, doubled=0, within=LONG)
        await traffic.more(20)
        await traffic.stop()
        assert not traffic.failed
        record_property("doubled", await balanced(ledger, doubled=0, within=LONG))


async def test_one_of_two_name_servers_is_enough_for_everything(
    own_pair: RocketMQServer, record_property: Callable[[str, object], None]
) -> None:
    topic, ledger = a_topic(), Ledger()
    async with (
        working(manager_on(own_pair.url, CURIOUS), ledger, topic),
        manager_on(own_pair.url, CURIOUS) as sender,
        Traffic(sender, ledger, topic) as traffic,
    ):
        for name_server in own_pair.name_servers:
            await traffic.more(20)
            await asyncio.to_thread(name_server.kill)
            new = a_topic()
            async with manager_on(own_pair.url, CURIOUS) as late:
                await within(LONG, late.admin.declare(new, GROUP), "a declaration")
                await within(LONG, late.send(new, b"x"), "a send to a new topic")
            await traffic.more(20)
            await asyncio.to_thread(own_pair.start)
            await asyncio.to_thread(own_pair.register)
        await traffic.stop()
        assert not traffic.failed
        record_property("doubled", await balanced(ledger, doubled=0, within=LONG))


async def test_name_servers_that_come_back_without_what_they_knew_disturb_nothing(
    own_pair: RocketMQServer, record_property: Callable[[str, object], None]
) -> None:
    """For some seconds they know no broker, or one of two: that does not mean that there is no other."""
    topic, ledger = a_topic(), Ledger()
    async with (
        working(manager_on(own_pair.url, CURIOUS), ledger, topic),
        manager_on(own_pair.url, CURIOUS) as sender,
        Traffic(sender, ledger, topic) as traffic,
    ):
        await traffic.more(20)
        for name_server in own_pair.name_servers:
            await asyncio.to_thread(name_server.restart)
        # They are told within ten seconds; nobody hurries it.
        registered = asyncio.create_task(asyncio.to_thread(own_pair.wait_until_registered))
        while not registered.done():
            await traffic.more(10)
        await registered
        await traffic.more(20)
        await traffic.stop()
        assert not traffic.failed
        record_property("doubled", await balanced(ledger, doubled=0, within=LONG))
