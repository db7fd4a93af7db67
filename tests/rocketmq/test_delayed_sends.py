"""Delayed sends on real servers: by levels on 4.9, by timers on 5.x."""

from __future__ import annotations

from brokerkit.spi import ToGroup
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from tests.rocketmq.sending import CLOCK, LONG, a_topic, outbound, sending


async def test_a_delayed_message_comes_when_it_is_due_and_no_other_waits_for_it(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic) as scene:
        began = CLOCK.time()
        late, soon = outbound(topic, b"late", due=began + 3.0), outbound(topic, b"soon")
        assert await scene.send(late, soon) == [None, None]
        assert await scene.stored_ids(topic, 1) == [soon.message_id]
        ids = await scene.stored_ids(topic, 2)
        waited = CLOCK.time() - began
    assert sorted(ids) == sorted([late.message_id, soon.message_id])
    # 4.9 has a level of 1 s and no other below 5 s; a timer comes less than a second early.  The rest is the core's.
    assert waited >= (0.9 if rocketmq.address.major < 5 else 1.9)


async def test_what_is_due_already_is_not_delayed(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic) as scene:
        message = outbound(topic, due=CLOCK.time() - 5)
        assert await scene.send(message) == [None]
        assert await scene.stored_ids(topic, 1) == [message.message_id]
        (stored,) = await scene.stored(topic.name)
    assert "DELAY" not in stored.properties and "TIMER_DELIVER_MS" not in stored.properties


async def test_the_broker_says_how_it_was_asked_to_wait(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic) as scene:
        due = CLOCK.time() + 2.5
        assert await scene.send(outbound(topic, due=due)) == [None]
        await scene.stored_ids(topic, 1)
        (stored,) = await scene.stored(topic.name)
    if rocketmq.address.major < 5:
        assert stored.properties["DELAY"] == "1"
    else:
        assert abs(int(stored.properties["TIMER_DELIVER_MS"]) / 1000 - due) < 2.0


async def test_a_retry_can_be_delayed(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with sending(rocketmq, topic) as scene:
        retry = scene.connection._names.retry(topic.name, "work")
        began = CLOCK.time()
        message = outbound(ToGroup(topic.name, "work"), b"again", due=began + 2.5, headers={"bk-attempt": "2"})
        assert await scene.send(message) == [None]
        await eventually(lambda: scene.stored_ids(retry, 1), LONG, "the retry")
        assert CLOCK.time() - began >= 0.9
        (stored,) = await scene.stored(retry)
    assert (stored.body, stored.properties["UNIQ_KEY"]) == (b"again", message.message_id)
    assert (stored.reconsume_times, stored.properties["RETRY_TOPIC"]) == (1, topic.name)


async def test_delayed_messages_share_no_batch(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic) as scene:
        began = CLOCK.time()
        messages = [outbound(topic, due=began + 2.0 if number % 3 == 0 else None) for number in range(30)]
        await scene.store(messages, at_once=True)
        prompt = await scene.stored_ids(topic, 20)
        assert set(prompt) >= {message.message_id for message in messages if message.due is None}
        ids = await scene.stored_ids(topic, 30)
    assert sorted(ids) == sorted(message.message_id for message in messages)
