"""Consumers of topics on several brokers, and of copies: what one of them does must not hold up the others."""

from __future__ import annotations

import asyncio

from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQOptions, RocketMQServer
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from tests.rocketmq.consuming import LONG, Scene, bodies, consuming, take
from tests.rocketmq.servers import installation_or_skip


async def copied(scene: Scene) -> bool:
    """Whether the copy knows the topic and the offsets of the group: it asks its master every 10 s."""
    link = await scene.client.link("broker-a", broker_id=1)
    for queue, offset in zip(await scene.queues(), await scene.committed(), strict=True):
        for topic in (queue.topic, scene.names.retry(scene.topic, "g")):
            asked = {"consumerGroup": "nobody", "topic": topic, "queueId": "0", "queueOffset": "0", "maxMsgNums": "1"}
            how = {"sysFlag": "4", "commitOffset": "0", "suspendTimeoutMillis": "0", "subscription": "*"}
            frame = await link.call(RequestCode.PULL_MESSAGE, {**asked, **how, "subVersion": "0"}, timeout=LONG)
            if frame.code == ResponseCode.TOPIC_NOT_EXIST:
                return False
        group = scene.names.group(scene.topic, "g")
        fields = {"consumerGroup": group, "topic": queue.topic, "queueId": str(queue.queue_id)}
        frame = await link.call(RequestCode.QUERY_CONSUMER_OFFSET, fields, timeout=LONG)
        if frame.fields.get("offset") != str(offset):
            return False
    return True


async def test_one_of_two_brokers_lost_does_not_stop_the_queues_of_the_other() -> None:
    options = RocketMQOptions(masters=2, sync_flush=True)
    with RocketMQServer(options, installation=installation_or_skip()) as server:
        async with consuming(server, queues=2) as scene:
            consumer = await scene.consume()
            for broker in ("broker-a", "broker-b"):
                await scene.put(0, broker.encode(), broker=broker)
            first = await take(consumer, 2)
            await consumer.ack(first)
            await scene.put(1, b"waiting", broker="broker-a")
            (waiting,) = await take(consumer, 1)
            await asyncio.to_thread(server.broker("broker-a").kill)
            for number in range(20):
                await scene.put(number % 2, b"%d" % number, broker="broker-b")
            got = await take(consumer, 20, within=20.0)
            assert sorted(map(int, bodies(got))) == list(range(20))
            await consumer.ack(got)
            assert not consumer.live(waiting)
            await asyncio.to_thread(server.broker("broker-a").start)
            # What was acknowledged does not come again, although the broker forgot it.
            again = await take(consumer, 1)
            assert bodies(again) == [b"waiting"]
            await scene.put(0, b"after", broker="broker-a")
            after = await take(consumer, 1)
            assert bodies(after) == [b"after"]
            await consumer.ack([*again, *after])
            assert await consumer.receive(10, 0.5) == ()
            await scene.all_committed()


async def test_a_copy_is_read_while_its_master_is_away() -> None:
    options = RocketMQOptions(slaves=1, sync_replication=True, settings={"slaveReadEnable": "true"})
    with RocketMQServer(options, installation=installation_or_skip()) as server:
        async with consuming(server, queues=2) as scene:
            for number in range(10):
                await scene.put(number % 2, b"%d" % number)
            consumer = await scene.consume(prefetch=10)
            first = await take(consumer, 4)
            await consumer.ack(first)
            await consumer.settled()
            await eventually(lambda: copied(scene), within=LONG, what="topics and offsets on the copy")
            await asyncio.to_thread(server.broker("broker-a").kill)
            rest = await take(consumer, 6)
            assert sorted(map(int, bodies(first) + bodies(rest))) == list(range(10))
            await consumer.ack(rest)
            await asyncio.to_thread(server.broker("broker-a").start)
            await scene.put(0, b"10")
            (message,) = await take(consumer, 1)
            assert message.body == b"10"
            await consumer.ack([message])
            await scene.all_committed()


async def test_all_brokers_away_and_back_again() -> None:
    with RocketMQServer(installation=installation_or_skip()) as server:
        async with consuming(server, queues=2) as scene:
            consumer = await scene.consume()
            await scene.put(0, b"before")
            held = await take(consumer, 1)
            await asyncio.to_thread(server.stop)
            assert await consumer.receive(1, 1.0) == ()
            assert not consumer.live(held[0])
            await asyncio.to_thread(server.start)
            again = await take(consumer, 1)
            assert bodies(again) == [b"before"]
            assert again[0].redelivered is True
            await consumer.ack(again)

            async def is_there() -> bool:
                return consumer._client.client_id in await scene.members()

            await eventually(is_there, within=LONG, what="the member")
            await scene.all_committed()
