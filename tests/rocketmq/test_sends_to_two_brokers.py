"""Sends where a topic has queues on two brokers: both take part, and one alone is enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from brokerkit.errors import BrokerUnavailable, SendTimeout
from brokerkit.spi import Outbound, TopicSpec
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQOptions, RocketMQServer
from tests.rocketmq.sending import CLOCK, LONG, Scene, a_topic, outbound, proxied, sending
from tests.rocketmq.servers import installation_or_skip


@pytest.fixture(scope="module")
def two() -> Iterator[RocketMQServer]:
    with RocketMQServer(RocketMQOptions(masters=2), installation=installation_or_skip()) as server:
        yield server


async def brokers_of(scene: Scene, topic: str) -> Counter[str]:
    """Return how many messages of a topic each broker stores."""
    names = {broker: name for name, ids in scene.connection.client.routes.brokers.items() for broker in ids.values()}
    return Counter(names[each.store_host] for each in await scene.stored(topic))


async def _connected(scene: Scene, topic: TopicSpec) -> bool:
    await scene.send(outbound(topic))
    return len(await brokers_of(scene, topic.name)) == 2


async def test_both_brokers_get_messages(two: RocketMQServer) -> None:
    topic = a_topic(queues=2)
    async with sending(two, topic) as scene:
        for _ in range(8):
            assert await scene.send(outbound(topic)) == [None]
        await scene.stored_ids(topic, 8)
        assert await brokers_of(scene, topic.name) == {"broker-a": 4, "broker-b": 4}


async def test_batches_go_to_both_brokers(two: RocketMQServer) -> None:
    topic = a_topic(queues=2)
    async with sending(two, topic) as scene:
        # The first ones go to whichever is connected first.
        await eventually(lambda: _connected(scene, topic), LONG, "connections to both")
        await scene.store([outbound(topic) for _ in range(400)], at_once=True)
        await scene.stored_ids(topic, 400)
        counts = await brokers_of(scene, topic.name)
    assert min(counts["broker-a"], counts["broker-b"]) >= 100


async def test_the_next_try_goes_to_the_other_broker(two: RocketMQServer) -> None:
    topic = a_topic(queues=2)
    async with (
        proxied(two) as (proxies, addresses),
        sending(two, topic),
        sending(two, attempt_timeout=3.0, address_map=addresses) as scene,
    ):
        await eventually(lambda: _connected(scene, topic), LONG, "connections to both")
        proxies["broker-a"].freeze()
        failures = 0
        for _ in range(20):
            message = outbound(topic)
            (outcome,) = await scene.send(message)
            if outcome is not None:
                assert isinstance(outcome, SendTimeout | BrokerUnavailable)
                failures += 1
                assert await scene.send(message) == [None]
        # The frozen one costs one message its time, maybe two where it is tried again, and not every second one.
        assert failures <= 2
        proxies["broker-a"].thaw()


async def test_a_broker_that_is_gone_costs_nothing_and_takes_part_again(two: RocketMQServer) -> None:
    topic = a_topic(queues=2)
    async with proxied(two) as (proxies, addresses), sending(two, topic, address_map=addresses) as scene:
        for _ in range(4):
            assert await scene.send(outbound(topic)) == [None]
        proxies["broker-a"].refuse()
        proxies["broker-a"].reset()
        await eventually(lambda: len(scene.connection.client.links.up()) == 1, LONG, "the loss is noticed")
        began = CLOCK.monotonic()
        for _ in range(50):
            assert await scene.send(outbound(topic)) == [None]
        assert CLOCK.monotonic() - began < LONG / 2
        proxies["broker-a"].accept()

        async def both() -> bool:
            # It is avoided for some seconds.
            fresh = a_topic(queues=2)
            await scene.declare(fresh)
            await scene.store([outbound(fresh) for _ in range(4)])
            for _ in range(4):
                await scene.send(outbound(fresh))
            return len(await brokers_of(scene, fresh.name)) == 2

        await eventually(both, LONG, "messages on both brokers again")


async def test_an_ordered_topic_is_on_one_broker_and_waits_for_it(two: RocketMQServer) -> None:
    topic = a_topic(ordered=True)
    async with (
        proxied(two) as (proxies, addresses),
        sending(two, topic),
        sending(two, attempt_timeout=3.0, address_map=addresses) as scene,
    ):
        messages = [outbound(topic) for _ in range(3)]

        async def first() -> bool:
            return await scene.send(messages[0]) == [None]

        await eventually(first, LONG, "a first send")
        await scene.stored_ids(topic, 1)
        (home,) = await brokers_of(scene, topic.name)
        proxies[home].refuse()
        proxies[home].reset()
        await eventually(lambda: len(scene.connection.client.links.up()) == 1, LONG, "the loss is noticed")
        (outcome,) = await scene.send(messages[1])
        assert isinstance(outcome, BrokerUnavailable)
        proxies[home].accept()

        async def stored() -> bool:
            return await scene.send(messages[1], messages[2]) == [None, None]

        await eventually(stored, LONG, "the broker is back")
        ids = await scene.stored_ids(topic, 3)
        assert list(dict.fromkeys(ids)) == [message.message_id for message in messages]
        assert len(await brokers_of(scene, topic.name)) == 1


async def test_a_broker_that_is_killed_under_load_costs_no_confirmed_message(two: RocketMQServer) -> None:
    topic = a_topic(queues=4)
    async with sending(two, topic, attempt_timeout=10.0) as scene:
        confirmed: set[str] = set()
        failed = 0
        for number in range(100):
            if number == 20:
                two.broker("broker-b").kill()
            message = outbound(topic)

            async def stored(message: Outbound = message) -> bool:
                nonlocal failed
                (outcome,) = await scene.send(message)
                failed += outcome is not None
                assert outcome is None or outcome.retryable, outcome
                return outcome is None

            await eventually(stored, LONG, "the message is stored")
            confirmed.add(message.message_id)
        two.broker("broker-b").start()
        two.wait_until_registered()
        assert failed <= 5

        async def all_there() -> bool:
            return confirmed <= set(await scene.stored_ids(topic))

        await eventually(all_there, LONG, "every confirmed message")
