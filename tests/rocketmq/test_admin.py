"""What only RocketMQ has, asked of real brokers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from brokerkit import AsyncManager, Manager
from brokerkit.errors import BrokerUnavailable, CapabilityNotSupported, ConfigurationError, TopicNotFound
from brokerkit.spi import Inbound, Outbound, TopicSpec, ToTopic
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.client import Client
from brokerkit_rocketmq.consumer import RocketMQConsumer
from brokerkit_rocketmq.marks import Mark, Trial
from brokerkit_rocketmq.remoting.messages import StoredMessage
from brokerkit_rocketmq.sources import Source
from tests.rocketmq.administration import CLOCK, LONG, Scene, a_topic, administering


def message(topic: TopicSpec, number: int, key: str | None = None) -> Outbound:
    return Outbound(
        destination=ToTopic(topic.name),
        body=b"%d" % number,
        message_id=f"{topic.name}-{number}",
        key=key,
        headers={"n": str(number)},
    )


@asynccontextmanager
async def a_member(scene: Scene, topic: TopicSpec) -> AsyncIterator[RocketMQConsumer]:
    names = scene.names
    source = Source(
        topic=topic.name,
        group="work",
        native_topic=names.topic(topic.name),
        native_group=names.group(topic.name, "work"),
        retry_topic=names.retry(topic.name, "work"),
        shadow_group=names.shadow(topic.name, "work"),
    )
    consumer = RocketMQConsumer(Client(scene.client.options, CLOCK), source, scene.codec, clock=CLOCK)
    try:
        await consumer.open()
        yield consumer
    finally:
        await consumer.aclose()


async def test_lag_is_told_by_queue_with_retries_and_age(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work", queues=4)
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        for number in range(6):
            await scene.store(message(topic, number), queue=number % 3)
        await scene.commit(topic.name, "work", 1, queue=2)
        lag = await scene.admin.lag(topic.name, "work")
        assert lag.by_queue == {"0": 2, "1": 2, "2": 1, "3": 0}
        assert (lag.total, lag.retries) == (5, 0)
        assert lag.oldest_age is not None
        assert 0 <= lag.oldest_age < LONG
        assert lag.queues["2"].committed == 1
        with pytest.raises(TopicNotFound, match="group 'nobody'"):
            await scene.admin.lag(topic.name, "nobody")


async def test_figures_of_a_topic_and_its_group(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work", queues=2)
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        before = CLOCK.time()
        await scene.store(message(topic, 0), queue=1)
        empty, filled = await scene.admin.topic_stats(topic.name)
        assert (empty.queue_id, empty.end, empty.updated) == (0, 0, None)
        assert (filled.queue_id, filled.first, filled.end) == (1, 0, 1)
        assert filled.updated is not None
        assert abs(filled.updated - before) < LONG
        stored = await scene.admin.stored_rate(topic.name)
        assert stored.minute.count >= 0
        assert (await scene.admin.delivered_rate(topic.name, "work")).day.count == 0
        # What never was is no error.
        assert (await scene.admin.throughput("TOPIC_PUT_NUMS", "nobody-sent-this")).minute.per_second == 0.0


async def test_brokers_tell_about_themselves(rocketmq: RocketMQControl) -> None:
    async with administering(rocketmq) as scene:
        (broker,) = await scene.admin.brokers()
        assert (broker.name, broker.id, broker.cluster) == ("broker-a", 0, rocketmq.address.cluster)
        assert broker.address == rocketmq.address.brokers[0].address
        assert broker.version == f"V{rocketmq.address.version.replace('.', '_')}"
        assert broker.problem is None
        assert broker.disk_used is not None
        assert 0 < broker.disk_used < 1
        assert broker.started is not None
        assert 0 < CLOCK.time() - broker.started < 86_400
        assert "putTps" in await scene.admin.runtime_info("broker-a")
        with pytest.raises(BrokerUnavailable, match="no-broker"):
            await scene.admin.runtime_info("no-broker")


async def test_topics_and_groups_are_made_and_deleted_by_their_native_names(rocketmq: RocketMQControl) -> None:
    native = a_topic().name.replace(".", "_")
    async with administering(rocketmq) as scene:
        await scene.admin.create_topic(native, queues=3)
        await scene.admin.create_group(native)
        assert native in await scene.admin.topics()
        assert native in await scene.admin.groups()
        assert len((await scene.client.routes.route(native)).writable) == 3
        await scene.admin.delete_topic(native)
        await scene.admin.delete_group(native)
        await scene.admin.delete_topic(native)
        assert native not in await scene.admin.topics()
        assert native not in await scene.admin.groups()


async def test_offsets_are_reset_while_nobody_is_connected(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work", queues=2)
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        await scene.store(message(topic, 0))
        await CLOCK.sleep(0.05)
        # 4.9.4 takes the message that is nearest.
        between = CLOCK.time() + 0.04
        await CLOCK.sleep(0.05)
        await scene.store(message(topic, 1))
        await scene.commit(topic.name, "work", 2)
        async with a_member(scene, topic) as consumer:
            assert await consumer.receive(10, 0.2) == ()
        assert await scene.admin.reset_offsets(topic.name, "work", "earliest") == {"broker-a:0": 0, "broker-a:1": 0}
        async with a_member(scene, topic) as consumer:
            found = await consumer.receive(10, LONG)
            # They are not suspected of having brought their consumer down.
            assert [(one.message_id, one.redelivered) for one in found] == [
                (f"{topic.name}-{number}", False) for number in range(len(found))
            ]
        await scene.admin.reset_offsets(topic.name, "work", between)
        assert (await scene.admin.lag(topic.name, "work")).by_queue == {"0": 1, "1": 0}
        await scene.admin.reset_offsets(topic.name, "work", "latest")
        assert (await scene.admin.lag(topic.name, "work")).total == 0
        with pytest.raises(ConfigurationError, match="'earliest' or 'latest'"):
            await scene.admin.reset_offsets(topic.name, "work", "yesterday")


async def test_what_comes_again_after_a_reset_is_not_suspected(rocketmq: RocketMQControl) -> None:
    """What a process that died had in its hands is read again because somebody wants it to be."""
    topic = a_topic("work", queues=1)
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        for number in range(4):
            await scene.store(message(topic, number))
        (queue,) = (await scene.client.routes.route(scene.names.topic(topic.name))).readable
        shadow = scene.names.shadow(topic.name, "work")
        assert shadow is not None
        for committed, mark in ((0, Mark(4)), (2, Mark(4)), (4, Mark(4)), (2, Mark(4, trial=Trial(2, starts=1)))):
            await scene.commit(topic.name, "work", committed)
            await scene.making.asking.commit(shadow, queue, mark.number)
            await scene.admin.reset_offsets(topic.name, "work", "earliest")
            async with a_member(scene, topic) as consumer:
                found: list[Inbound] = []
                while len(found) < 4:
                    found += await consumer.receive(4, LONG)
                assert [one.redelivered for one in found] == [False] * 4, (committed, mark)
        # A group that only members of another kind have is not marked by anybody.
        await scene.admin.delete_group(shadow)
        assert await scene.admin.reset_offsets(topic.name, "work", "latest") == {"broker-a:0": 4}
        assert await scene.admin.reset_offsets(topic.name, "work", "earliest") == {"broker-a:0": 0}


async def test_a_member_goes_back_when_offsets_are_reset(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic("work", queues=2)
    async with administering(rocketmq_old) as scene:
        await scene.declare(topic)
        for number in range(4):
            await scene.store(message(topic, number), queue=number % 2)
        async with a_member(scene, topic) as consumer:
            seen: list[str] = []

            async def all_of_them(times: int) -> bool:
                found = await consumer.receive(10, 0.5)
                await consumer.ack(found)
                seen.extend(one.message_id or "" for one in found)
                return sorted(seen) == sorted(f"{topic.name}-{number}" for number in range(4) for _ in range(times))

            await eventually(lambda: all_of_them(1), LONG, "each message once")
            await consumer.settled()
            await scene.admin.reset_offsets(topic.name, "work", "earliest")
            await eventually(lambda: all_of_them(2), LONG, "each message twice")


async def test_members_are_listed_with_what_they_say(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        assert await scene.admin.members(topic.name, "work") == []
        async with a_member(scene, topic) as consumer:
            (member,) = await scene.admin.members(topic.name, "work")
            assert member.client_id == consumer._client.client_id
            assert member.language == "PYTHON"
            assert member.address.startswith("127.0.0.1:")
            info = await scene.admin.running_info(topic.name, "work", member.client_id)
            assert "mqTable" in info
            with pytest.raises(BrokerUnavailable):
                await scene.admin.running_info(topic.name, "work", "nobody")


async def test_a_message_is_found_by_its_ids_and_by_its_keys(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        for number in range(4):
            await scene.store(message(topic, number, key=f"k-{number % 2}"), queue=number)

        async def indexed() -> bool:
            return len(await scene.admin.messages_by_key(topic.name, "k-1")) == 2

        await eventually(indexed, LONG, "both messages with the key")
        found = await scene.admin.messages_by_key(topic.name, "k-1")
        assert [one.headers["n"] for one in found] == ["1", "3"]
        assert len(await scene.admin.messages_by_key(topic.name, "k-1", limit=1)) == 1
        assert await scene.admin.messages_by_key(topic.name, "k-1", until=CLOCK.time() - 3600) == []
        assert await scene.admin.messages_by_key(topic.name, "k-9") == []
        one = await scene.admin.message(topic.name, f"{topic.name}-2")
        assert one is not None
        assert (one.body, one.headers) == (b"2", {"n": "2"})
        assert isinstance(one.native, StoredMessage)
        again = await scene.admin.message(topic.name, one.native.offset_id)
        assert again is not None
        assert again.message_id == one.message_id
        assert await scene.admin.message(topic.name, "no-such-id") is None
        assert await scene.admin.message(topic.name, "7F00000100002A9F00000000000004B0") is None


# --- from the public API ----------------------------------------------------------------------------------------


async def test_applications_reach_it_through_their_manager(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with AsyncManager(settings={"url": rocketmq.url}) as manager:
        await manager.admin.declare(topic.name, "work")
        await manager.send(topic.name, b"x", message_id="m-1")

        async def one_behind() -> bool:
            lag = await manager.admin.native(lambda admin: admin.lag(topic.name, "work"))
            return bool(lag.total == 1)

        await eventually(one_behind, LONG, "a lag of one message")
        await manager.admin.delete(topic.name)


def test_blocking_applications_reach_it_through_theirs(rocketmq_old: RocketMQControl) -> None:
    with Manager(settings={"url": rocketmq_old.url}) as manager:
        (broker,) = manager.admin.native(lambda admin: admin.brokers())
    assert broker.version == "V4_9_4"


async def test_a_backend_without_such_an_administration_says_so() -> None:
    async with AsyncManager(settings={"url": "memory://"}) as manager:
        with pytest.raises(CapabilityNotSupported, match="embedded has no administration beyond the portable one"):
            await manager.admin.native(lambda admin: admin.brokers())
        assert await manager.admin.diagnose() == []


async def test_queues_of_several_brokers_are_told_apart(guarded_pair: RocketMQControl) -> None:
    topic = a_topic("work", queues=2)
    async with administering(guarded_pair) as scene:
        await scene.declare(topic)
        await scene.store(message(topic, 0), broker="broker-b", queue=1)
        lag = await scene.admin.lag(topic.name, "work")
        assert lag.by_queue == {"broker-a:0": 0, "broker-a:1": 0, "broker-b:0": 0, "broker-b:1": 1}
        assert len(await scene.admin.topic_stats(topic.name)) == 4
        assert [broker.name for broker in await scene.admin.brokers()] == ["broker-a", "broker-b"]
