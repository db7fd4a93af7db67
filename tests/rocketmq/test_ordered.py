"""Ordered groups: one reader a queue, whoever comes, goes or dies."""

from __future__ import annotations

import asyncio

from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.consumer import RocketMQConsumer
from brokerkit_rocketmq.remoting.codes import RequestCode
from tests.rocketmq.consuming import LONG, Scene, bodies, consuming, take


async def locked_by(scene: Scene, client_id: str) -> int:
    """Try to lock the queues for a client; return how many it has."""
    queues = await scene.queues()
    group = scene.names.group(scene.topic, "g")
    return await scene.asking.locked(RequestCode.LOCK_BATCH_MQ, group, client_id, queues)


async def test_the_queue_is_locked_while_it_is_read_and_free_after_the_close(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1, ordered=True) as scene:
        consumer = await scene.consume(ordered=True)
        await scene.put(0, b"1")
        await take(consumer, 1)
        assert await locked_by(scene, "somebody else") == 0
        await consumer.aclose()
        assert await locked_by(scene, "somebody else") == 1


async def test_messages_of_a_queue_come_in_order_and_unsettled_ones_again_in_theirs(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1, ordered=True) as scene:
        await scene.put(0, *(b"%03d" % number for number in range(100)))
        first = await scene.consume(ordered=True, prefetch=30)
        held = await take(first, 30)
        assert bodies(held) == [b"%03d" % number for number in range(30)]
        await first.ack(held[:10])
        await first.aclose()
        second = await scene.consume(ordered=True, prefetch=100)
        rest = await take(second, 90)
        assert bodies(rest) == [b"%03d" % number for number in range(10, 100)]


async def test_the_next_member_waits_until_the_former_one_is_done(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=2, ordered=True) as scene:
        first = await scene.consume(ordered=True)
        await scene.put(0, b"a", b"b")
        await scene.put(1, b"c", b"d")
        held = await take(first, 4)
        second = await scene.consume(ordered=True)
        # Longer than elsewhere: a message that still runs must not be overtaken.
        assert await second.receive(10, 5.0) == ()
        assert all(map(first.live, held))
        await first.ack(held)
        await scene.put(0, b"e")
        await scene.put(1, b"f")
        got = await take(second, 1)
        assert sorted(bodies(got) + bodies(await take(first, 1))) == [b"e", b"f"]
        assert first.stale == 0


async def test_the_locks_of_a_dead_member_are_taken_from_it(rocketmq: RocketMQControl) -> None:
    """The broker would keep them for a minute."""
    async with consuming(rocketmq, queues=2, ordered=True) as scene, scene.proxy() as proxy:
        first = await scene.consume(ordered=True)
        dying = await scene.consume(ordered=True, through=proxy)
        await scene.put(0, b"0")
        await scene.put(1, b"1")
        (mine,) = await take(first, 1)
        (theirs,) = await take(dying, 1)
        proxy.refuse()
        proxy.reset()
        (again,) = await take(first, 1, within=20.0)
        assert again.body == theirs.body
        await first.ack([mine, again])
        await scene.all_committed()


async def test_a_member_whose_link_flickers_keeps_its_locks(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1, ordered=True) as scene, scene.proxy() as proxy:
        consumer = await scene.consume(ordered=True, through=proxy)
        await scene.put(0, b"1", b"2", b"3")
        held = await take(consumer, 3)
        await consumer.ack(held[:1])
        proxy.reset()
        again = await take(consumer, 2, within=20.0)
        assert bodies(again) == [b"2", b"3"]


async def test_order_holds_while_members_come_and_go(rocketmq_old: RocketMQControl) -> None:
    async with consuming(rocketmq_old, queues=3, ordered=True) as scene:
        first_seen: dict[int, list[int]] = {0: [], 1: [], 2: []}

        async def work(member: RocketMQConsumer) -> None:
            while True:
                for message in await member.receive(4, 1.0):
                    queue, number = map(int, message.body.split())
                    if number not in first_seen[queue]:
                        first_seen[queue].append(number)
                    await asyncio.sleep(0.002)
                    await member.ack([message])

        async def join() -> tuple[RocketMQConsumer, asyncio.Task[None]]:
            member = await scene.consume(ordered=True, prefetch=10)
            return member, asyncio.create_task(work(member))

        async def leave(member: RocketMQConsumer, task: asyncio.Task[None]) -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await member.aclose()

        async def send() -> None:
            for number in range(100):
                for queue in range(3):
                    await scene.put(queue, b"%d %d" % (queue, number))
                await asyncio.sleep(0.01)

        sending = asyncio.create_task(send())
        members = [await join()]
        for _ in range(2):
            await asyncio.sleep(0.5)
            members.append(await join())
        for _ in range(2):
            await asyncio.sleep(0.5)
            await leave(*members.pop(0))
        await sending
        whole = list(range(100))
        await eventually(
            lambda: all(len(seen) == 100 for seen in first_seen.values()), within=LONG, what="every message"
        )
        await leave(*members.pop())
        assert list(first_seen.values()) == [whole] * 3
