"""Consumers on real servers: what comes and in which pieces, filters, and what happens when things go away."""

from __future__ import annotations

import asyncio
import json

import pytest

from brokerkit.errors import Closed, ConfigurationError, TopicNotFound
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.pulling import PullLimits
from brokerkit_rocketmq.remoting.bodies import parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.remoting.names import java_hash
from tests.rocketmq.consuming import LONG, bodies, consuming, drain, take

# --- what comes ---


async def test_a_message_comes_as_soon_as_it_is_sent(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        consumer = await scene.consume()
        receiving = asyncio.create_task(take(consumer, 1))
        (sent,) = await scene.send(b"\x00body", headers={"colour": "blue"}, key="k", tag="t")
        (message,) = await receiving
        assert (message.message_id, message.body, message.headers) == (sent, b"\x00body", {"colour": "blue"})
        assert (message.key, message.tag, message.redelivered) == ("k", "t", False)
        assert (message.topic, message.group) == (scene.topic, "g")


async def test_every_message_of_every_queue_comes_once(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        sent = []
        for start in range(0, 1000, 50):
            sent += await scene.send(*(b"%d" % number for number in range(start, start + 50)))
        consumer = await scene.consume(prefetch=100)
        seen: list[str | None] = []
        while len(seen) < len(sent):
            got = await take(consumer, min(10, len(sent) - len(seen)))
            seen += [message.message_id for message in got]
            await consumer.ack(got)
        assert sorted(map(str, seen)) == sorted(sent)
        assert await consumer.receive(10, 0.3) == ()


async def test_no_more_than_prefetch_is_unsettled(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        await scene.send(*[b"x"] * 30)
        consumer = await scene.consume(prefetch=7)
        held = await take(consumer, 7)
        assert await consumer.receive(100, 0.5) == ()
        await consumer.ack(held[:2])
        assert len(await take(consumer, 2)) == 2
        assert await consumer.receive(100, 0.5) == ()


async def test_what_waits_here_is_bounded_by_number_and_by_bytes(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1) as scene:
        for _ in range(40):
            await scene.send(*[b"x" * 20_000] * 5)
        few = await scene.consume(prefetch=1, limits=PullLimits(batch=4, most=4))
        await take(few, 1)
        await asyncio.sleep(1.0)
        (reader,) = [reader for reader in few._holdings.readers if reader.queue.topic == scene.topic]
        assert 1 <= len(reader.buffer) <= 8
        await few.aclose()
        small = await scene.consume(prefetch=1, limits=PullLimits(batch=4, most=1000, most_bytes=100_000))
        await small.ack(await take(small, 1))
        await asyncio.sleep(1.0)
        (reader,) = [reader for reader in small._holdings.readers if reader.queue.topic == scene.topic]
        assert 20_000 <= reader.buffered <= 100_000 + 8 * 21_000
        assert len(await drain(small, 2.0)) == 199


async def test_a_cancelled_receive_loses_nothing(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        consumer = await scene.consume(prefetch=50)
        sending = asyncio.create_task(scene.send(*(b"%d" % number for number in range(50))))
        seen: list[bytes] = []
        for attempt in range(2000):
            receiving = asyncio.create_task(consumer.receive(3, 0.5))
            await asyncio.wait([receiving], timeout=0.001 * (attempt % 5))
            receiving.cancel()
            (got,) = await asyncio.gather(receiving, return_exceptions=True)
            if not isinstance(got, BaseException):
                seen += bodies(got)
                await consumer.ack(got)
            if len(seen) >= 50:
                break
        await sending
        assert sorted(seen) == sorted(b"%d" % number for number in range(50))


async def test_closing_wakes_a_receive_that_waits(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        consumer = await scene.consume()
        receiving = asyncio.create_task(consumer.receive(1, 3600.0))
        await asyncio.sleep(0.1)
        await consumer.aclose()
        done, _ = await asyncio.wait([receiving], timeout=LONG)
        assert done
        with pytest.raises(Closed):
            receiving.result()
        with pytest.raises(Closed):
            await consumer.receive(1, 0.0)
        await consumer.aclose()


# --- giving back ---


async def test_what_is_released_comes_again_first_and_in_its_order(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1) as scene:
        await scene.put(0, *(b"%d" % number for number in range(6)))
        consumer = await scene.consume(prefetch=3)
        first = await take(consumer, 3)
        await consumer.release([first[2], first[0]])
        assert not consumer.live(first[0])
        assert consumer.live(first[1])
        again = await take(consumer, 2)
        assert bodies(again) == [b"0", b"2"]
        assert [message.redelivered for message in again] == [True, True]
        await consumer.ack([first[1], *again])
        rest = await take(consumer, 3)
        assert bodies(rest) == [b"3", b"4", b"5"]
        assert [message.redelivered for message in rest] == [False] * 3


async def test_what_is_settled_twice_is_stale_and_counted(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        await scene.send(b"1", b"2")
        consumer = await scene.consume()
        one, other = await take(consumer, 2)
        await consumer.ack([one])
        await consumer.ack([one])
        await consumer.release([one])
        assert consumer.stale == 2
        assert consumer.live(other)
        await consumer.release([other])
        (again,) = await take(consumer, 1)
        assert again.body == other.body


# --- filters ---


async def test_tags_are_compared_again_here(rocketmq: RocketMQControl) -> None:
    """ "Aa" and "BB" have one hash in Java, and brokers compare hashes."""
    assert java_hash("Aa") == java_hash("BB")
    async with consuming(rocketmq) as scene:
        consumer = await scene.consume(tag="Aa||c")
        for tag in ("Aa", "BB", "c", "d"):
            await scene.send(tag.encode(), tag=tag)
        await scene.send(b"none")
        got = await take(consumer, 2)
        assert sorted(bodies(got)) == [b"Aa", b"c"]
        assert await consumer.receive(10, 0.5) == ()
        await consumer.ack(got)
        # Also what the filter kept away is done with.
        await scene.all_committed()


async def test_a_condition_in_sql_filters_by_properties(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        consumer = await scene.consume(native={"sql": "price > 10 AND colour = 'blue'"})
        for price, colour in (("5", "blue"), ("20", "blue"), ("30", "red")):
            await scene.send(price.encode(), headers={"price": price, "colour": colour})
        (message,) = await take(consumer, 1)
        assert message.body == b"20"
        assert await consumer.receive(10, 0.5) == ()


@pytest.mark.parametrize("native", [{"sql": "price >"}, {"sql": ""}, {"sqll": "1 = 1"}], ids=str)
async def test_a_condition_that_cannot_work_is_refused(rocketmq: RocketMQControl, native: dict[str, str]) -> None:
    async with consuming(rocketmq) as scene:
        with pytest.raises(ConfigurationError, match="sql"):
            await scene.consume(native=native)


# --- what goes away ---


async def test_a_deleted_topic_is_an_error(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        consumer = await scene.consume()
        await scene.topology.delete(scene.topic, None, ["g"])

        async def raises() -> bool:
            try:
                await consumer.receive(1, 0.2)
            except TopicNotFound as error:
                return scene.topic in str(error)
            return False

        await eventually(raises, within=LONG, what="TopicNotFound")


async def test_a_deleted_group_is_an_error_or_goes_on_by_itself(rocketmq: RocketMQControl) -> None:
    """The heartbeat of a member may make a deleted group anew before anybody notices; never is there silence."""
    async with consuming(rocketmq) as scene:
        consumer = await scene.consume()
        await scene.topology.delete(scene.topic, "g")

        async def is_no_silence() -> bool:
            try:
                await scene.send(b"x")
                return bool(await consumer.receive(1, 0.5))
            except TopicNotFound:
                return True

        await eventually(is_no_silence, within=LONG, what="TopicNotFound, or messages")


async def test_a_topic_that_is_deleted_and_declared_anew_is_read_from_its_beginning(rocketmq: RocketMQControl) -> None:
    """Offsets begin anew, too: the one that the consumer waits for may be that of the second message."""
    async with consuming(rocketmq, queues=1) as scene:
        consumer = await scene.consume()
        await scene.put(0, b"before")
        await consumer.ack(await take(consumer, 1))
        await consumer.settled()
        spec = scene.topics[scene.topic]
        await scene.topology.delete(scene.topic, None, ["g"])
        await scene.topology.declare(spec, spec.groups["g"])
        await scene.put(0, b"after")

        async def came_or_ended() -> bool:
            try:
                return bodies(await consumer.receive(1, 0.5)) == [b"after"]
            except TopicNotFound:
                return True

        await eventually(came_or_ended, within=LONG, what="the message of the new topic, or TopicNotFound")


async def test_a_lost_connection_makes_tokens_stale_and_the_messages_come_again(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene, scene.proxy() as proxy:
        await scene.send(b"1", b"2", b"3")
        consumer = await scene.consume(through=proxy)
        old = await take(consumer, 3)
        await consumer.ack(old[:1])
        await consumer.settled()
        proxy.reset()
        again = await take(consumer, 2)
        assert sorted(bodies(again)) == sorted(bodies(old)[1:])
        assert [message.redelivered for message in again] == [True, True]
        assert not any(map(consumer.live, old))
        assert all(map(consumer.live, again))
        await consumer.ack(old)
        assert consumer.stale == 3
        await consumer.ack(again)
        assert await consumer.receive(10, 0.5) == ()
        await scene.all_committed()


async def test_what_was_settled_while_the_broker_was_away_does_not_come_again(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1) as scene, scene.proxy() as proxy:
        await scene.put(0, *(b"%d" % number for number in range(6)))
        consumer = await scene.consume(through=proxy)
        held = await take(consumer, 6)
        proxy.refuse()
        # In the hole between what the broker heard and the end of the link.
        await consumer.ack([held[0], held[1], held[4]])
        proxy.reset()
        proxy.accept()
        again = await take(consumer, 3)
        assert bodies(again) == [b"2", b"3", b"5"]
        assert await consumer.receive(10, 0.5) == ()


async def test_a_silent_link_is_found_and_replaced(rocketmq_old: RocketMQControl) -> None:
    async with consuming(rocketmq_old, heartbeat=1.0) as scene, scene.proxy() as proxy:
        consumer = await scene.consume(through=proxy)
        proxy.freeze(existing_only=True)
        (sent,) = await scene.send(b"x")
        (message,) = await take(consumer, 1, within=20.0)
        assert message.message_id == sent


# --- what administrators see ---


async def test_a_member_is_listed_and_leaves(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        consumer = await scene.consume()
        (member,) = await scene.members()
        broker = (await scene.queues())[0].broker
        group = scene.names.group(scene.topic, "g")
        await scene.send(b"x")
        await take(consumer, 1)
        fields = {"consumerGroup": group, "clientId": member, "jstackEnable": "false"}
        frame = await scene.client.call(broker, RequestCode.GET_CONSUMER_RUNNING_INFO, fields)
        assert frame.code == 0, frame.remark
        table = parse_body(frame.body)["mqTable"]
        shown = {json.dumps(dict(queue), sort_keys=True): info for queue, info in table.items()}
        assert len(shown) == 5, "four queues and that of the retries"
        assert sum(info["cachedMsgCount"] for info in shown.values()) == 1
        await consumer.aclose()
        assert await scene.members() == frozenset()


async def test_administrators_set_the_offsets_back(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        for queue in range(4):
            await scene.put(queue, b"%d-1" % queue, b"%d-2" % queue)
        consumer = await scene.consume()
        first = await take(consumer, 8)
        await consumer.ack(first[:-1])
        await consumer.settled()
        fields = {
            "topic": scene.names.topic(scene.topic),
            "group": scene.names.group(scene.topic, "g"),
            "timestamp": "0",
            "isForce": "true",
        }
        broker = (await scene.queues())[0].broker
        frame = await scene.client.call(broker, RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, fields)
        assert frame.code == 0, frame.remark
        again = await take(consumer, 8, within=LONG)
        assert sorted(bodies(again)) == sorted(bodies(first))
        assert not any(map(consumer.live, first))
        await consumer.ack(again)
        await scene.all_committed()
