"""What the brokers are told of progress, and what a next consumer makes of it."""

from __future__ import annotations

import asyncio

import pytest

from brokerkit.errors import BrokerError, BrokerUnavailable
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.marks import Mark, Trial
from brokerkit_rocketmq.pulling import PullLimits
from tests.rocketmq.consuming import LONG, Scene, bodies, consuming, take


async def dies_with(scene: Scene, proxy: FaultProxy, count: int) -> None:
    """Let a consumer be handed so many messages, and its process die before it settled one."""
    await take(await scene.consume(prefetch=count, through=proxy), count)
    await scene.all_marked(count)
    proxy.refuse()
    proxy.reset()


async def test_settled_returns_when_the_broker_has_all_progress(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=2) as scene:
        await scene.put(0, b"a", b"b", b"c")
        await scene.put(1, b"d")
        consumer = await scene.consume()
        messages = await take(consumer, 4)
        assert await scene.committed() == [0, 0]
        await scene.all_marked(3, 1)
        await consumer.ack([message for message in messages if message.body != b"b"])
        await consumer.settled()
        assert await scene.committed() == [1, 1], "everything below is settled, b is not"
        await consumer.ack([message for message in messages if message.body == b"b"])
        await consumer.settled()
        assert await scene.committed() == [3, 1]


async def test_progress_is_committed_without_being_asked(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        await scene.send(*[b"x"] * 20)
        consumer = await scene.consume()
        await consumer.ack(await take(consumer, 20))
        await scene.all_committed()


async def test_a_consumer_that_closes_leaves_no_hole_and_no_suspect(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1) as scene:
        await scene.put(0, *(b"%d" % number for number in range(8)))
        consumer = await scene.consume(prefetch=6)
        held = await take(consumer, 6)
        await consumer.ack([held[1], held[3]])
        await consumer.release([held[0]])
        await consumer.aclose()
        # 0 and 2 lie below a settled one: they have copies.
        assert await scene.committed() == [4]
        assert await scene.marked() == [4]
        after = await scene.consume()
        rest = await take(after, 6)
        assert sorted(bodies(rest)) == [b"0", b"2", b"4", b"5", b"6", b"7"]
        assert {message.message_id for message in rest} >= {held[0].message_id, held[2].message_id}
        assert not any(message.redelivered for message in rest)
        assert await after.receive(10, 0.5) == ()


async def test_what_a_dead_process_had_in_its_hands_is_redelivered(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1) as scene, scene.proxy() as proxy:
        await scene.put(0, *(b"%d" % number for number in range(8)))
        dying = await scene.consume(prefetch=4, through=proxy)
        held = await take(dying, 4)
        await dying.ack(held[:1])
        await dying.settled()
        proxy.refuse()
        proxy.reset()
        after = await scene.consume(prefetch=20)
        rest = await take(after, 7)
        assert bodies(rest) == [b"%d" % number for number in range(1, 8)]
        assert [message.redelivered for message in rest] == [True] * 3 + [False] * 4


async def test_only_the_suspect_that_was_tried_is_charged_for_the_next_crash(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1) as scene:
        await scene.put(0, *(b"%d" % number for number in range(6)))
        async with scene.proxy() as first, scene.proxy() as second:
            for proxy, crashes in ((first, 0), (second, 1)):
                dying = await scene.consume(prefetch=4, through=proxy)
                held = await take(dying, 4)
                assert [message.crashes for message in held] == [crashes] * 4
                assert [message.started for message in held] == ([None] * 4 if proxy is first else [True] * 4)
                if proxy is second:
                    await dying.begin_trial(held[1])
                    assert max(mark or 0 for mark in await scene.marked()) > 1 << 62
                else:
                    await scene.all_marked(4)
                proxy.refuse()
                proxy.reset()
            after = await scene.consume(prefetch=20)
            rest = await take(after, 6)
            assert [message.crashes for message in rest] == [1, 2, 1, 1, 0, 0]
            assert [message.started for message in rest] == [True] * 4 + [None] * 2
            # Given back by who tries it: that start ended no process.
            await after.begin_trial(rest[1])
            await after.release([rest[1]])
            (again,) = await take(after, 1)
            assert (again.body, again.crashes, again.started) == (b"1", 2, True)
            await after.ack([rest[0], again, *rest[2:]])
            await after.settled()
            await after.aclose()
            assert await scene.committed() == await scene.marked() == [6]


async def test_a_trial_outlives_what_is_written_of_hand_outs_at_the_same_time(rocketmq: RocketMQControl) -> None:
    """A broker handles marks that come together in any order."""
    async with consuming(rocketmq, queues=1) as scene, scene.proxy() as proxy:
        await scene.put(0, b"suspect")
        await dies_with(scene, proxy, 1)
        consumer = await scene.consume(prefetch=200)
        (suspect,) = await take(consumer, 1)
        assert suspect.started
        for number in range(1, 60):
            await scene.put(0, b"%d" % number)
            # Each is marked, and the first one of each round is not waited for.
            _, received = await asyncio.gather(consumer.begin_trial(suspect), take(consumer, 1))
            assert received[0].redelivered is False
            reader, _ = suspect.token
            await reader.all_marked()
            assert await scene.marked() == [Mark(number + 1, Trial(0, number + 1)).number]


async def test_a_drain_with_suspects_brings_back_those_alone_and_keeps_their_count(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1) as scene, scene.proxy() as proxy:
        await scene.put(0, *(b"%d" % number for number in range(8)))
        await dies_with(scene, proxy, 2)
        consumer = await scene.consume(prefetch=20)
        messages = await take(consumer, 8)
        assert [message.started for message in messages] == [True] * 2 + [None] * 6
        await consumer.ack(messages[2:])
        await consumer.begin_trial(messages[0])
        await consumer.aclose()
        assert await scene.committed() == await scene.marked() == [8]
        after = await scene.consume(prefetch=20)
        rest = await take(after, 2)
        assert sorted(bodies(rest)) == [b"0", b"1"]
        assert [message.headers["bk-attempt"] for message in rest] == ["2", "2"]
        assert not any(message.redelivered for message in rest)
        assert await after.receive(10, 0.5) == ()


async def test_what_comes_again_to_the_same_process_is_no_suspect(rocketmq_old: RocketMQControl) -> None:
    async with consuming(rocketmq_old, queues=1) as scene, scene.proxy() as proxy:
        await scene.put(0, *(b"%d" % number for number in range(4)))
        consumer = await scene.consume(prefetch=4, through=proxy)
        held = await take(consumer, 4)
        await consumer.ack(held[:1])
        await consumer.settled()
        proxy.reset()
        await eventually(lambda: not consumer.live(held[1]), within=LONG)
        again = await take(consumer, 3)
        assert bodies(again) == [b"1", b"2", b"3"]
        assert {(message.redelivered, message.started, message.crashes) for message in again} == {(True, False, 0)}


async def test_suspects_go_first_and_others_do_not_get_far_ahead(rocketmq_old: RocketMQControl) -> None:
    async with consuming(rocketmq_old, queues=1) as scene, scene.proxy() as proxy:
        await scene.put(0, *(b"%02d" % number for number in range(40)))
        await dies_with(scene, proxy, 8)
        after = await scene.consume(prefetch=10)
        first = await take(after, 10)
        assert bodies(first) == [b"%02d" % number for number in range(10)]
        await after.ack(first[5:])
        assert await after.receive(10, 1.0) == (), "0 is not settled, and 10 from there on are handed out"
        await after.ack(first[:5])
        rest = await take(after, 10)
        assert bodies(rest) == [b"%02d" % number for number in range(10, 20)]


async def test_a_queue_without_an_offset_is_read_from_its_beginning(rocketmq: RocketMQControl) -> None:
    """One that was added after the group was declared: whatever is in it was sent to the group, too."""
    async with consuming(rocketmq, queues=1, start="latest") as scene:
        await scene.put(0, b"old")
        consumer = await scene.consume()
        (message,) = await take(consumer, 1)
        assert message.body == b"old"
        await consumer.ack([message])
        await consumer.settled()
        await scene.widen(2)
        await scene.put(1, b"new")
        (message,) = await take(consumer, 1)
        assert message.body == b"new"

        async def is_known() -> bool:
            return await scene.committed() == [1, 0]

        await eventually(is_known, within=LONG, what="an offset for the new queue")


async def test_settled_does_not_claim_what_was_lost_with_the_connection(rocketmq_old: RocketMQControl) -> None:
    async with consuming(rocketmq_old, queues=1) as scene, scene.proxy() as proxy:
        await scene.put(0, b"a", b"b")
        consumer = await scene.consume(through=proxy)
        messages = await take(consumer, 2)
        proxy.refuse()
        await consumer.ack(messages)
        proxy.reset()
        with pytest.raises(BrokerUnavailable):
            await consumer.settled()
        await eventually(lambda: not consumer.live(messages[0]), within=LONG)
        with pytest.raises(BrokerUnavailable, match="had not reached"):
            await consumer.settled()
        proxy.accept()

        async def is_settled() -> bool:
            try:
                await consumer.settled()
            except BrokerError:
                return False
            return True

        await eventually(is_settled, within=LONG, what="what was settled before the loss, committed after it")
        assert await scene.committed() == [2]


async def test_one_message_that_is_not_settled_bounds_what_is_remembered_above_it(
    rocketmq_old: RocketMQControl,
) -> None:
    async with consuming(rocketmq_old, queues=1) as scene:
        everything = [b"%02d" % number for number in range(90)]
        await scene.put(0, *everything)
        consumer = await scene.consume(limits=PullLimits(batch=8, most=8, span=30), prefetch=20)
        (stuck,) = await take(consumer, 1)
        came = [stuck]
        while messages := await consumer.receive(20, 3.0):
            await consumer.ack(messages)
            came += messages
        reader, _ = stuck.token
        assert 30 <= len(came) <= 30 + 8
        assert reader.progress.span == len(came)
        await consumer.ack([stuck])
        while len(came) < len(everything):
            messages = await take(consumer, 1)
            await consumer.ack(messages)
            came += messages
        assert bodies(came) == everything
        await scene.all_committed()


async def test_marks_are_kept_on_a_broker_that_did_not_know_their_group(rocketmq: RocketMQControl) -> None:
    """As on one that was added after the group was declared; 5.x refuses the offsets of groups it does not know."""
    async with consuming(rocketmq, queues=1) as scene:
        making = Making(scene.client, LONG)
        shadow = scene.names.shadow(scene.topic, "g")
        await making.delete_groups([shadow], await making.masters())
        await scene.put(0, b"a", b"b")
        consumer = await scene.consume()
        (message, _) = await take(consumer, 2)
        assert message.redelivered is False

        async def is_marked() -> bool:
            return await scene.marked() == [2]

        await eventually(is_marked, within=LONG, what="the mark")
