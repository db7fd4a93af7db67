"""Purging groups on real brokers, without members and with those of ours."""

from __future__ import annotations

import pytest

from brokerkit.errors import TopicNotFound
from brokerkit.spi import Outbound, ToGroup, TopicSpec, ToTopic
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.client import Client
from brokerkit_rocketmq.consumer import RocketMQConsumer
from brokerkit_rocketmq.registrations import Registration, Subscription
from brokerkit_rocketmq.remoting.codes import ResponseCode
from brokerkit_rocketmq.sources import Source
from tests.rocketmq.administration import CLOCK, Scene, a_topic, administering


def message(topic: TopicSpec, number: int) -> Outbound:
    return Outbound(destination=ToTopic(topic.name), body=b"%d" % number, message_id=f"m-{number}")


def consumer_of(scene: Scene, topic: TopicSpec) -> RocketMQConsumer:
    names = scene.names
    source = Source(
        topic=topic.name,
        group="work",
        native_topic=names.topic(topic.name),
        native_group=names.group(topic.name, "work"),
        retry_topic=names.retry(topic.name, "work"),
        shadow_group=names.shadow(topic.name, "work"),
    )
    return RocketMQConsumer(Client(scene.client.options, CLOCK), source, scene.codec, clock=CLOCK)


async def test_a_purge_empties_one_group_and_counts_exactly(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work", "other")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        for number in range(20):
            await scene.store(message(topic, number), queue=number % 8)
        await scene.commit(topic.name, "work", 2, queue=0)
        await scene.store(Outbound(destination=ToGroup(topic.name, "work"), body=b"", message_id="retry"))
        assert await scene.purging.purge(topic.name, "work") == 19
        assert (await scene.figures.stats(topic.name, "work")).ready == 0
        assert (await scene.figures.stats(topic.name, "other")).ready == 20
        assert await scene.purging.purge(topic.name, "work") == 0
        await scene.store(message(topic, 20))
        assert (await scene.figures.stats(topic.name, "work")).ready == 1


async def test_a_purge_leaves_what_waits_for_its_delay(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        due = CLOCK.time() + 2.5
        await scene.store(Outbound(destination=ToTopic(topic.name), body=b"later", message_id="later", due=due))
        await scene.store(message(topic, 0))
        assert await scene.purging.purge(topic.name, "work") == 1
        consumer = consumer_of(scene, topic)
        await consumer.open()
        try:
            (later,) = await consumer.receive(10, 30.0)
        finally:
            await consumer.aclose()
    assert later.message_id == "later"


async def test_members_go_on_behind_what_was_purged(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq_old) as scene:
        await scene.declare(topic)
        for number in range(100):
            await scene.store(message(topic, number), queue=number % 8)
        consumer = consumer_of(scene, topic)
        await consumer.open()
        try:
            await consumer.ack(await consumer.receive(5, 30.0))
            await consumer.settled()
            purged = await scene.purging.purge(topic.name, "work")
            assert 0 < purged <= 95
            await scene.store(message(topic, 100), queue=3)
            seen = []
            deadline = CLOCK.monotonic() + 30.0
            while "m-100" not in seen and CLOCK.monotonic() < deadline:
                got = await consumer.receive(20, 1.0)
                seen += [one.message_id for one in got]
                await consumer.ack(got)
            assert seen == ["m-100"]
        finally:
            await consumer.aclose()
        assert (await scene.figures.stats(topic.name, "work")).ready == 0


async def test_members_of_a_5_x_learn_from_their_next_pull_where_to_go_on(rocketmq_new: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq_new) as scene, administering(rocketmq_new) as member:
        await scene.declare(topic)
        for number in range(10):
            await scene.store(message(topic, number), queue=3)
        group, native = scene.names.group(topic.name, "work"), scene.names.topic(topic.name)
        await member.client.register_consumer(Registration(group=group, subscriptions=(Subscription(native),)))
        assert await scene.purging.purge(topic.name, "work") == 10
        # Looking at figures, which reads the oldest message, does not take the news away from the member.
        await scene.store(message(topic, 10), queue=3)
        assert (await scene.figures.stats(topic.name, "work")).oldest_age is not None
        queue = (await member.client.routes.route(native)).readable[3]
        frame, following = await member.making.asking.pull(group, queue, 2)
        assert (frame.code, frame.remark, following) == (ResponseCode.PULL_OFFSET_MOVED, "OFFSET_RESET", 10)


async def test_a_group_that_does_not_exist_cannot_be_purged(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        with pytest.raises(TopicNotFound, match="group 'nobody'"):
            await scene.purging.purge(topic.name, "nobody")
