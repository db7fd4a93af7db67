"""An ordered topic with several queues: the order of each key is kept, and there is room for several consumers."""

from __future__ import annotations

from collections import defaultdict
from uuid import uuid4

from brokerkit import AsyncManager, Group, Topic
from brokerkit.spi import Capability
from brokerkit.testing.services.rocketmq import RocketMQControl

_KEYS = [f"customer-{number}" for number in range(8)]


async def test_an_ordered_topic_with_several_queues_keeps_the_order_of_each_key(rocketmq: RocketMQControl) -> None:
    topic = Topic(f"keyed-{uuid4().hex[:8]}", int, groups=[Group("g", ordered=True)], ordered=True)
    topics = {topic.name: {"rocketmq": {"queues": 4}}}
    came: dict[str | None, list[int]] = defaultdict(list)
    async with AsyncManager(rocketmq.url, topics=topics) as manager:
        for number in range(80):
            await manager.send(topic, number, key=_KEYS[number % len(_KEYS)])
        offered = manager.capabilities(topic)
        assert Capability.ORDERED_BY_KEY in offered
        assert Capability.ORDERED not in offered
        async with manager.consume(topic) as deliveries:
            for _ in range(80):
                delivery = await deliveries.receive(30.0)
                assert delivery is not None
                came[delivery.message.key].append(delivery.payload())
                await delivery.ack()
    assert sorted(map(str, came)) == _KEYS
    assert all(numbers == sorted(numbers) for numbers in came.values())
