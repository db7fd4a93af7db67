"""Consumers whose topic is declared anew, whose queues go while they cannot be read, and whose close is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.consumer import RocketMQConsumer
from tests.rocketmq.consuming import CLOCK, LONG, bodies, consuming, drain, take


async def test_a_topic_that_is_declared_anew_is_read_from_its_first_message(rocketmq: RocketMQControl) -> None:
    """Its offsets begin at 0 again, and there are soon more messages than were read of the former one."""
    async with consuming(rocketmq, queues=1) as scene:
        consumer = await scene.consume(prefetch=200)
        await scene.send(*(b"old" for _ in range(10)))
        assert len(await drain(consumer, 2.0)) == 10
        await scene.all_committed()
        # Longer than a consumer relies on what it has committed.
        await asyncio.sleep(1.5)
        spec = scene.topics[scene.topic]
        await scene.topology.delete(scene.topic, None, ("g",))
        await scene.topology.declare(spec, spec.groups["g"])
        wanted = {b"new %d" % number for number in range(100)}
        await scene.send(*wanted)
        seen: set[bytes] = set()
        deadline = CLOCK.monotonic() + LONG
        while not wanted <= seen:
            assert CLOCK.monotonic() < deadline, f"{len(wanted - seen)} were skipped"
            messages = await consumer.receive(100, 1.0)
            seen |= {message.body for message in messages}
            await consumer.ack(messages)


async def test_a_close_that_is_cancelled_goes_on_and_leaves_no_task(rocketmq_old: RocketMQControl) -> None:
    async with consuming(rocketmq_old, queues=1, ordered=True) as scene:
        await scene.send(b"x")
        for steps in range(6):
            before = asyncio.all_tasks()
            consumer: RocketMQConsumer = await scene.consume(ordered=True)
            assert await consumer.receive(1, LONG)
            closing = asyncio.create_task(consumer.aclose())
            for _ in range(steps + 1):
                await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            await eventually(lambda: asyncio.all_tasks() <= before, within=LONG, what="no task left")  # noqa: B023


async def test_what_is_sent_to_a_topic_that_was_made_anew_while_the_link_was_lost_is_not_skipped(
    rocketmq: RocketMQControl,
) -> None:
    """Its first offsets are those that the consumer has settled in the topic that was."""
    async with consuming(rocketmq, queues=1) as scene, scene.proxy() as proxy:
        await scene.put(0, b"old 0", b"old 1", b"old 2")
        consumer = await scene.consume(through=proxy)
        await consumer.ack(await take(consumer, 3))
        await consumer.settled()
        proxy.refuse()
        proxy.reset()
        await eventually(lambda: not consumer._holdings.readers, within=LONG)
        spec = scene.topics[scene.topic]
        await scene.topology.delete(scene.topic, None, ("g",))
        await scene.topology.declare(spec, spec.groups["g"])
        new = [b"new %d" % number for number in range(5)]
        await scene.put(0, *new)
        proxy.accept()
        messages = await take(consumer, 5)
        assert bodies(messages) == new
        assert [(message.redelivered, message.started) for message in messages] == [(False, None)] * 5


async def test_a_commit_that_comes_late_hides_nothing_of_a_topic_that_was_made_anew(rocketmq: RocketMQControl) -> None:
    """It was under way while the topic was deleted, and is the offset of the new one now."""
    async with consuming(rocketmq, queues=1) as scene:
        await scene.put(0, b"old 0", b"old 1", b"old 2")
        consumer = await scene.consume()
        await consumer.ack(await take(consumer, 3))
        await consumer.settled()
        (queue,) = await scene.queues()
        spec = scene.topics[scene.topic]
        await scene.topology.delete(scene.topic, None, ("g",))
        await scene.topology.declare(spec, spec.groups["g"])
        await scene.asking.commit(scene.names.group(scene.topic, "g"), queue, 3)
        new = [b"new %d" % number for number in range(3)]
        await scene.put(0, *new)
        assert bodies(await take(consumer, 3)) == new


async def test_what_was_settled_before_the_broker_forgot_it_does_not_come_again(rocketmq: RocketMQControl) -> None:
    """As when a broker dies within the 5 s that offsets are kept in memory."""
    async with consuming(rocketmq, queues=1) as scene, scene.proxy() as proxy:
        await scene.put(0, *(b"%d" % number for number in range(6)))
        consumer = await scene.consume(through=proxy)
        messages = await take(consumer, 6)
        await consumer.ack([*messages[:3], messages[4]])
        await consumer.settled()
        proxy.refuse()
        proxy.reset()
        await eventually(lambda: not consumer._holdings.readers, within=LONG)
        (queue,) = await scene.queues()
        await scene.asking.commit(scene.names.group(scene.topic, "g"), queue, 1)
        proxy.accept()
        again = await take(consumer, 2)
        assert bodies(again) == [b"3", b"5"]
        await consumer.ack(again)
        await consumer.settled()
        assert await scene.committed() == [6]
