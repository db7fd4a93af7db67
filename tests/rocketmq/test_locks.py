"""What becomes of locks that nobody needs any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from brokerkit.testing.clock import VirtualClock
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl, RocketMQServer
from brokerkit_rocketmq.client import Client
from brokerkit_rocketmq.locks import Locks
from brokerkit_rocketmq.remoting.codes import RequestCode
from tests.rocketmq.clients import membership
from tests.rocketmq.consuming import CLOCK, LONG, Scene, consuming


async def locked_by(scene: Scene, client_id: str) -> int:
    """Try to lock the queues for a client; return how many it has."""
    group = scene.names.group(scene.topic, "g")
    return await scene.asking.locked(RequestCode.LOCK_BATCH_MQ, group, client_id, await scene.queues())


async def unlock(scene: Scene, client_id: str) -> None:
    group = scene.names.group(scene.topic, "g")
    await scene.asking.locked(RequestCode.UNLOCK_BATCH_MQ, group, client_id, await scene.queues())


@asynccontextmanager
async def locking(scene: Scene, clock: VirtualClock | None = None) -> AsyncIterator[Locks]:
    """Yield the locks of a member; with ``clock`` only their own time is that one's."""
    client = Client(scene.client_options, CLOCK)
    await client.open()
    locks = Locks(client, scene.source(ordered=True), clock or CLOCK, lambda _: None)
    try:
        yield locks
    finally:
        await locks.aclose()
        await client.aclose()


async def test_a_lock_that_was_asked_for_in_vain_is_given_back(rocketmq_old: RocketMQControl) -> None:
    async with consuming(rocketmq_old, queues=1, ordered=True) as scene, locking(scene) as locks:
        (queue,) = await scene.queues()
        # Its connection is there: the next request is written at once.
        await locks.acquire(queue)
        await locks.release([queue])
        acquiring = asyncio.create_task(locks.acquire(queue))
        for _ in range(5):
            await asyncio.sleep(0)
        acquiring.cancel()
        await asyncio.gather(acquiring, return_exceptions=True)
        assert acquiring.cancelled() and not locks.held

        async def is_free() -> bool:
            return await locked_by(scene, "somebody else") == 1

        await eventually(is_free, within=LONG / 2, what="a free queue")
        await unlock(scene, "somebody else")
        await locks.acquire(queue)
        assert locks.held == {queue}


async def test_the_lock_of_a_member_that_left_is_taken_for_as_long_as_it_may_live(
    rocketmq_old: RocketMQControl,
) -> None:
    clock = VirtualClock()
    async with consuming(rocketmq_old, queues=1, ordered=True) as scene, locking(scene, clock) as locks:
        (queue,) = await scene.queues()
        locks.members(["former", "present"])
        locks.members(["present"])
        assert await locked_by(scene, "present") == 1
        await clock.advance(71.0)
        # What "former" locks now it can only have locked as a member that came back.
        await unlock(scene, "present")
        assert await locked_by(scene, "former") == 1
        acquiring = asyncio.create_task(locks.acquire(queue))
        await eventually(lambda: clock.pending > 0, within=LONG, what="an attempt that failed")
        assert await locked_by(scene, "third") == 0, "it was not taken from the one who has it"
        locks.members(["former", "present"])
        locks.members(["present"])
        await clock.advance(1.0)

        async def is_locked() -> bool:
            await clock.advance(1.0)
            return acquiring.done()

        await eventually(is_locked, within=LONG, what="the lock of a member that has just left")
        assert locks.held == {queue}


async def test_a_lock_is_not_taken_from_a_member_that_one_broker_has_lost_sight_of(own_pair: RocketMQServer) -> None:
    clock = VirtualClock()
    # An ordered topic of ours is on one broker; one that was there before may be on several.
    async with consuming(own_pair, queues=1) as scene, locking(scene, clock) as locks:
        (queue,) = [one for one in await scene.queues() if one.broker == "broker-b"]
        group = scene.names.group(scene.topic, "g")
        unreachable = {own_pair.broker("broker-a").describe().address: "127.0.0.1:1"}
        dial = replace(scene.client_options.dial, address_map=unreachable)
        owner = Client(replace(scene.client_options, dial=dial), CLOCK)
        try:
            await owner.open()
            await owner.register_consumer(membership(group, queue.topic))
            assert await scene.asking.members(group, "broker-a") == frozenset()
            assert await scene.asking.members(group, "broker-b") == {owner.client_id}
            assert await scene.asking.locked(RequestCode.LOCK_BATCH_MQ, group, owner.client_id, [queue]) == 1
            # This is what broker-a tells.
            locks.members([owner.client_id, "me"])
            locks.members(["me"])
            acquiring = asyncio.create_task(locks.acquire(queue))
            for _ in range(3):
                await eventually(lambda: clock.pending > 0, within=LONG, what="an attempt that failed")
                await clock.advance(1.0)
            assert not acquiring.done()
        finally:
            await owner.aclose()

        async def is_locked() -> bool:
            await clock.advance(1.0)
            return acquiring.done()

        await eventually(is_locked, within=LONG, what="the lock of a member that has left both brokers")
        assert locks.held == {queue}
