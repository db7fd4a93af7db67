"""Faults of groups: members that come and go faster than queues can change hands."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack

from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rocketmq import RocketMQControl
from tests.rocketmq.scene import GROUP, a_topic, manager_on
from tests.traffic import Traffic, balanced, working

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
