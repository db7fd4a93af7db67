"""Faults of groups: members that come and go faster than queues can change hands, and members that die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack

from brokerkit.spi import ConsumerOptions
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.rocketmq_proxies import RocketMQProxies
from brokerkit.testing.services.rocketmq import RocketMQControl
from tests.rocketmq.scene import GROUP, a_topic, connected, made, manager_on, send, take
from tests.traffic import CLOCK, LONG, Traffic, balanced, working

_CONCURRENCY = 5


async def test_a_storm_of_joining_and_leaving_members_loses_nothing(
    rocketmq: RocketMQControl, record_property: Callable[[str, object], None]
) -> None:
    """Three to six members at a time, one or two of which are replaced every moment, while messages flow."""
    topic, ledger, chance = a_topic(), Ledger(), random.Random(6)
    section = {"queues": 8}
    moves = 0
    async with AsyncExitStack() as everything:
        sender = await everything.enter_async_context(manager_on(rocketmq.url, section))
        await sender.admin.declare(topic, GROUP)
        members: list[AsyncExitStack] = []

        async def join() -> None:
            member = await everything.enter_async_context(AsyncExitStack())
            worker = working(
                manager_on(rocketmq.url, section),
                ledger,
                topic,
                pause=0.005,
                concurrency=_CONCURRENCY,
                prefetch=2 * _CONCURRENCY,
            )
            await member.enter_async_context(worker)
            members.append(member)

        async def leave() -> None:
            await members.pop(chance.randrange(len(members))).aclose()

        await asyncio.gather(*(join() for _ in range(3)))
        async with Traffic(sender, ledger, topic, pause=0.002, at_once=8) as traffic:
            for _ in range(8):
                changes = [join() for _ in range(chance.randint(1, 2))]
                if len(members) > 3:
                    changes += [leave() for _ in range(chance.randint(1, 2))]
                moves += len(changes)
                await asyncio.gather(*changes)
                await traffic.more(chance.randint(10, 60))
            await traffic.stop()
            assert not traffic.failed
        # Of each queue that changes hands, what the former member holds for too long.
        doubled = await balanced(ledger, doubled=moves * 2 * _CONCURRENCY)
        assert await sender.admin.dead_letters(topic, GROUP) == []
    record_property("doubled", doubled)
    record_property("joined and left", moves)


async def test_members_that_leave_while_they_join_leave_no_ghost(rocketmq_old: RocketMQControl) -> None:
    """A heartbeat that the broker handles after the end of its connection makes a member of nobody, for two minutes."""
    topic, chance = a_topic(), random.Random(1)
    native = f"{GROUP}||{topic.name}"

    async def join_and_leave() -> None:
        async with connected(rocketmq_old.url, topic) as connection:
            joining = asyncio.create_task(connection.open_consumer(ConsumerOptions(topic=topic.name, group=GROUP)))
            await asyncio.sleep(chance.random() * 0.05)
            joining.cancel()
            await asyncio.wait((joining,))

    async with connected(rocketmq_old.url, topic) as connection:
        for _ in range(6):
            await asyncio.gather(*(join_and_leave() for _ in range(5)))

        async def nobody() -> bool:
            return await connection.native_admin.members_of(native) == []

        await eventually(nobody, LONG, "a group without members")


async def test_what_a_dead_member_had_fetched_is_looked_into_quickly(
    rocketmq_old: RocketMQControl, record_property: Callable[[str, object], None]
) -> None:
    """Each of these may have killed it, so they run one by one; the next one does not wait for a pause each time."""
    topic, ledger, count = a_topic(), Ledger(), 300
    with RocketMQProxies(rocketmq_old.address) as proxies:
        async with connected(rocketmq_old.url, topic) as sender, connected(proxies.url, topic) as dying:
            consumer = await dying.open_consumer(ConsumerOptions(topic=topic.name, group=GROUP, prefetch=count))
            for _ in range(count // 20):
                assert await send(sender, made(topic, ledger, 20), ledger) == [None] * 20
            await take(consumer, count)
            for proxy in proxies.all:
                proxy.refuse()
            proxies.reset()
            began = CLOCK.monotonic()
            # It prefetches less than there is to be looked into.
            async with working(manager_on(rocketmq_old.url), ledger, topic, concurrency=10, prefetch=20):
                record_property("doubled", await balanced(ledger, doubled=0))
            seconds = CLOCK.monotonic() - began
            record_property("seconds", seconds)
            # With a pause of 0.25 s each it would be 75.
            assert seconds < count * 0.25 * 0.6
            for proxy in proxies.all:
                proxy.accept()
