"""Members that come and go: nothing is lost, and in peace nothing comes twice."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from brokerkit.spi import Inbound
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.consumer import RocketMQConsumer
from brokerkit_rocketmq.routes import MessageQueue
from tests.rocketmq.consuming import LONG, Scene, bodies, consuming, drain, take


def queues_of(consumer: RocketMQConsumer) -> set[MessageQueue]:
    """Return the queues that a consumer reads, those of retries left out."""
    return {queue for queue in consumer._holdings.queues if not queue.topic.startswith("%RETRY%")}


async def shared_out(scene: Scene, *members: RocketMQConsumer) -> None:
    """Return once the queues of the topic are shared out among exactly these members, evenly."""
    everything = set(await scene.queues())

    def even() -> bool:
        shares = [queues_of(member) for member in members]
        sizes = sorted(map(len, shares))
        return set().union(*shares) == everything and sum(sizes) == len(everything) and sizes[-1] - sizes[0] <= 1

    await eventually(even, within=LONG, what=f"{len(members)} even shares")


async def test_queues_are_shared_out_evenly_among_those_who_are_there(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=6) as scene:
        members = [await scene.consume() for _ in range(4)]
        await shared_out(scene, *members)
        await members.pop().aclose()
        await shared_out(scene, *members)
        await members.pop(0).aclose()
        await shared_out(scene, *members)
        members.append(await scene.consume())
        await shared_out(scene, *members)


async def test_one_more_member_than_queues_has_nothing_to_do(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=2) as scene:
        members = [await scene.consume() for _ in range(3)]

        def shares() -> list[int]:
            return sorted(len(queues_of(member)) for member in members)

        await eventually(lambda: shares() == [0, 1, 1], within=LONG, what="two members with a queue each")
        await scene.put(0, b"0")
        await scene.put(1, b"1")
        got = [body for member in members for body in bodies(await drain(member, 0.5))]
        assert sorted(got) == [b"0", b"1"]


async def joined_at_work(scene: Scene) -> tuple[RocketMQConsumer, RocketMQConsumer, list[Inbound]]:
    """Return a member that is at work on all messages of two queues, one that joined it, and those messages."""
    await scene.put(0, b"a", b"b")
    await scene.put(1, b"c", b"d")
    first = await scene.consume()
    held = await take(first, 4)
    for message in held:
        first.mark_started(message)
    second = await scene.consume()
    await shared_out(scene, first, second)
    return first, second, held


async def test_a_queue_changes_hands_only_when_what_is_at_work_is_settled(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=2) as scene:
        first, second, held = await joined_at_work(scene)
        # The second one waits for what the first one has in its hands.
        assert await second.receive(10, 0.5) == ()
        assert all(map(first.live, held)), "the first one may still settle what it was given"
        await first.ack(held)
        await scene.all_committed()
        await scene.put(0, b"e")
        await scene.put(1, b"f")
        (got,) = await take(second, 1)
        assert got.redelivered is False
        assert sorted([got.body, *bodies(await take(first, 1))]) == [b"e", b"f"]
        assert await second.receive(10, 0.3) == ()
        assert first.stale == 0


async def test_what_takes_too_long_comes_to_the_next_member_and_is_stale_here(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=2) as scene:
        first, second, held = await joined_at_work(scene)
        again = await take(second, 2)
        assert {message.redelivered for message in again} == {True}
        mine = [message for message in held if message.body not in bodies(again)]
        stale = [message for message in held if message.body in bodies(again)]
        assert all(map(first.live, mine))
        assert not any(map(first.live, stale))
        await first.ack(held)
        assert first.stale == 2
        await second.ack(again)
        await scene.all_committed()


async def test_what_no_handler_has_begun_goes_to_the_next_member_at_once(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=2) as scene:
        await scene.put(0, b"a0", b"a1")
        await scene.put(1, b"b0", b"b1")
        first = await scene.consume()
        held = await take(first, 4)
        begun = [message for message in held if message.body.endswith(b"1")]
        for message in begun:
            first.mark_started(message)
        second = await scene.consume()
        await shared_out(scene, first, second)
        await eventually(lambda: sum(map(first.live, held)) == 3, LONG, "one message of the other queue taken back")
        assert all(map(first.live, begun))
        await first.ack(begun)
        kept = [message for message in held if message not in begun and first.live(message)]
        await first.ack(kept)
        # Its copy, as the one after it is settled, may come to either.
        (got,) = await receive_soon(first, second)
        assert got.redelivered is False
        assert {got.body, *bodies(kept)} == {b"a0", b"b0"}


async def receive_soon(*consumers: RocketMQConsumer) -> list[Inbound]:
    """Return what comes first to one of the consumers, and acknowledge it."""
    found: list[Inbound] = []

    async def came() -> bool:
        for consumer in consumers:
            messages = await consumer.receive(10, 0.1)
            await consumer.ack(messages)
            found.extend(messages)
        return bool(found)

    await eventually(came, within=LONG, what="a message")
    return found


async def test_members_that_come_and_go_in_peace_handle_everything_once(rocketmq_old: RocketMQControl) -> None:
    async with consuming(rocketmq_old, queues=8) as scene:
        seen: Counter[bytes] = Counter()
        count = 600

        async def work(member: RocketMQConsumer) -> None:
            while True:
                got = await member.receive(5, 1.0)
                await asyncio.sleep(0.005)
                seen.update(bodies(got))
                await member.ack(got)

        async def join() -> tuple[RocketMQConsumer, asyncio.Task[None]]:
            member = await scene.consume(prefetch=10)
            return member, asyncio.create_task(work(member))

        async def leave(member: RocketMQConsumer, task: asyncio.Task[None]) -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await member.aclose()

        async def send() -> None:
            for number in range(count):
                await scene.put(number % 8, b"%d" % number)
                await asyncio.sleep(0.005)

        sending = asyncio.create_task(send())
        members = [await join()]
        for _ in range(3):
            members.append(await join())
            await asyncio.sleep(0.3)
        for _ in range(3):
            await leave(*members.pop(0))
            await asyncio.sleep(0.3)
        await sending
        await eventually(lambda: len(seen) == count, within=LONG, what=f"{count} messages")
        await scene.all_committed()
        await leave(*members.pop())
        # A member that was cancelled with messages in its hands gives them back: only those may come twice.
        twice = {body: times for body, times in seen.items() if times > 1}
        assert len(twice) <= 4 * 5, twice


@pytest.mark.parametrize("settled", [True, False], ids=["settled", "unsettled"])
async def test_a_member_that_dies_leaves_its_queues_at_once(rocketmq: RocketMQControl, settled: bool) -> None:
    async with consuming(rocketmq, queues=2) as scene, scene.proxy() as proxy:
        first = await scene.consume()
        dying = await scene.consume(through=proxy)
        await shared_out(scene, first, dying)
        await scene.put(0, b"0")
        await scene.put(1, b"1")
        (theirs,) = await take(dying, 1)
        (mine,) = await take(first, 1)
        if settled:
            await dying.ack([theirs])
            await dying.settled()
        proxy.refuse()
        proxy.reset()
        await shared_out(scene, first)
        expected = [] if settled else [theirs.body]
        again = await take(first, len(expected))
        assert bodies(again) == expected
        await first.ack([mine, *again])
        await scene.all_committed()
        assert await first.receive(10, 0.3) == ()


async def test_a_member_that_was_away_comes_back_by_itself(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=2) as scene, scene.proxy() as proxy:
        consumer = await scene.consume(through=proxy)
        proxy.refuse()
        proxy.reset()
        await eventually(lambda: not consumer._client.links.up(), within=LONG, what="no connection")
        await scene.put(0, b"0")
        assert await consumer.receive(10, 0.5) == ()
        proxy.accept()
        (message,) = await take(consumer, 1)
        assert message.body == b"0"
        await consumer.ack([message])
        await scene.all_committed()
