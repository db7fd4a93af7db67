"""`RocketMQProducer` on real servers: batches, outcomes, refusals, deadlines."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest

from brokerkit.errors import (
    BrokerUnavailable,
    Closed,
    MessageTooLarge,
    SendRefused,
    SendTimeout,
    TopicNotFound,
)
from brokerkit.spi import ToDead, ToGroup, ToInbox, TopicSpec
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.remoting.codes import ResponseCode
from brokerkit_rocketmq.remoting.frames import Frame
from tests.rocketmq.sending import CLOCK, LONG, Scene, a_topic, outbound, proxied, refusing, sending

#: Seconds after which an attempt of these tests is given up on purpose.
SHORT = 3.0


# --- what is stored -----------------------------------------------------------------------------------------------


async def test_a_message_is_stored_as_it_is(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic) as scene:
        message = outbound(topic, b"a\0b", key="k 1", tag="t", headers={"h": "ü"}, type="T")
        assert await scene.send(message) == [None]
        await scene.stored_ids(topic, 1)
        (stored,) = await scene.stored(topic.name)
    assert (stored.body, stored.properties["UNIQ_KEY"]) == (b"a\0b", message.message_id)
    assert (stored.properties["TAGS"], stored.properties["h"], stored.reconsume_times) == ("t", "ü", 0)


async def test_messages_of_many_calls_leave_in_batches_and_each_is_stored_once(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic) as scene:
        messages = [outbound(topic, b"%d" % number) for number in range(500)]
        await scene.store(messages)
        ids = await scene.stored_ids(topic, 500)
        stored = await scene.stored(topic.name)
    assert Counter(ids) == Counter(message.message_id for message in messages)
    assert {each.properties["UNIQ_KEY"]: each.body for each in stored} == {
        message.message_id: message.body for message in messages
    }
    # Single messages would have gone to the eight queues in turn.
    assert max(Counter(each.born_timestamp for each in stored).values()) >= 50


async def test_messages_that_each_follow_an_answer_leave_together(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic(queues=8)
    async with sending(rocketmq_old, topic) as scene:
        # Each is born in a millisecond of its own, and a batch has the time of one of its messages.
        sent = [outbound(topic) for _ in range(1280)]
        for number, message in enumerate(sent, 1):
            message.timestamp = float(number)
        messages = iter(sent)

        async def one_after_the_other() -> None:
            for message in messages:
                await scene.store([message])

        await asyncio.gather(*(one_after_the_other() for _ in range(128)))
        await scene.stored_ids(topic, 1280)
        requests = {each.born_timestamp for each in await scene.stored(topic.name)}
    # Eight requests of 16 messages are under way at a time; on a busy machine some leave earlier.
    assert len(requests) < 1280 / 4


async def test_single_messages_go_to_all_queues_in_turn(rocketmq: RocketMQControl) -> None:
    topic = a_topic(queues=4)
    async with sending(rocketmq, topic) as scene:
        for _ in range(8):
            assert await scene.send(outbound(topic)) == [None]
        await scene.stored_ids(topic, 8)
        stored = await scene.stored(topic.name)
    assert Counter(each.queue_id for each in stored) == dict.fromkeys(range(4), 2)


async def test_outcomes_are_in_the_order_of_the_messages(rocketmq: RocketMQControl) -> None:
    topic, missing = a_topic(), a_topic()
    async with sending(rocketmq, topic, max_message_size=1000) as scene:
        good, bad, lost = outbound(topic), outbound(topic, b"x" * 1001), outbound(missing)
        outcomes = await scene.send(good, bad, lost, outbound(topic))
        assert [type(outcome) for outcome in outcomes] == [type(None), MessageTooLarge, TopicNotFound, type(None)]
        assert len(await scene.stored_ids(topic, 2)) == 2


async def test_nothing_to_send_is_no_request(rocketmq_old: RocketMQControl) -> None:
    async with sending(rocketmq_old) as scene:
        assert await scene.send() == []


async def test_more_than_the_window_arrives_through_it(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq_old, topic) as scene:
        messages = [outbound(topic, b"x" * 2000) for _ in range(3000)]
        await scene.store(messages, at_once=True)
        assert sorted(await scene.stored_ids(topic, 3000)) == sorted(message.message_id for message in messages)


async def test_large_messages_share_no_batch(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic) as scene:
        messages = [outbound(topic, b"x" * (3 << 20)) for _ in range(4)] + [outbound(topic)]
        await scene.store(messages)
        await scene.stored_ids(topic, 5)
        stored = await scene.stored(topic.name)
    assert sorted(len(each.body) for each in stored) == [1, *[3 << 20] * 4]


async def test_empty_and_compressed_messages_have_their_bodies(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic, compress_over=100) as scene:
        messages = [outbound(topic, b""), outbound(topic, b"y" * 5000), outbound(topic, b"z")]
        assert await scene.send(*messages) == [None] * 3
        await scene.stored_ids(topic, 3)
        codec = scene.connection._codec
        bodies = {
            each.message_id: each.body
            for each in (codec.decode(one, topic.name, "g") for one in await scene.stored(topic.name))
        }
    assert bodies == {message.message_id: message.body for message in messages}


async def test_retries_dead_letters_and_replies_have_topics_of_their_own(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with sending(rocketmq, topic) as scene:
        names = scene.connection._names
        retry, dead = names.retry(topic.name, "work"), names.dead(topic.name, "work")
        again = outbound(ToGroup(topic.name, "work"), b"again", headers={"bk-attempt": "3"})
        buried = outbound(ToDead(topic.name, "work"), b"buried", headers={"bk-attempt": "3"})
        assert await scene.send(again, buried) == [None, None]
        await scene.stored_ids(retry, 1)
        await scene.stored_ids(dead, 1)
        (stored,) = await scene.stored(retry)
        assert (stored.body, stored.properties["RETRY_TOPIC"], stored.reconsume_times) == (b"again", topic.name, 2)
        (stored,) = await scene.stored(dead)
        assert (stored.body, stored.properties["UNIQ_KEY"]) == (b"buried", buried.message_id)


async def test_a_message_to_an_unknown_group_is_not_found(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic) as scene:
        (outcome,) = await scene.send(outbound(ToGroup(topic.name, "nobody")))
        assert isinstance(outcome, TopicNotFound)


async def test_a_message_to_an_inbox_that_is_gone_is_dropped(rocketmq: RocketMQControl) -> None:
    # In a new namespace there has never been an inbox.
    async with sending(rocketmq, namespace=a_topic().name) as scene:
        assert await scene.send(outbound(ToInbox("gone"))) == [None]


# --- options ------------------------------------------------------------------------------------------------------


async def test_a_oneway_send_is_stored_without_an_answer(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic) as scene:
        messages = [outbound(topic, native={"oneway": True}) for _ in range(20)]
        await scene.store(messages, at_once=True)
        assert sorted(await scene.stored_ids(topic, 20)) == sorted(message.message_id for message in messages)


async def test_a_oneway_send_waits_for_no_answer(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic()
    async with (
        proxied(rocketmq_old) as (proxies, addresses),
        sending(rocketmq_old, topic, address_map=addresses) as scene,
    ):
        assert await scene.send(outbound(topic)) == [None]
        proxies["broker-a"].swallow("down")
        assert await scene.send(outbound(topic, native={"oneway": True})) == [None]


# --- refusals -----------------------------------------------------------------------------------------------------


async def test_a_message_that_the_broker_refuses_fails_alone(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic()

    def refuse(frame: Frame) -> tuple[int, str] | None:
        return (ResponseCode.MESSAGE_ILLEGAL, "the message is illegal") if b"poison" in frame.body else None

    async with (
        refusing(rocketmq_old, refuse) as addresses,
        sending(rocketmq_old, topic, address_map=addresses) as scene,
    ):
        assert await scene.send(outbound(topic)) == [None]
        bodies = [b"good"] * 10 + [b"poison"] + [b"good"] * 10
        outcomes = await scene.send_each([outbound(topic, body) for body in bodies])
        assert [outcome is None for outcome in outcomes] == [body == b"good" for body in bodies]
        assert len(await scene.stored_ids(topic, 21)) == 21


@pytest.mark.parametrize("code", [ResponseCode.FLUSH_DISK_TIMEOUT, ResponseCode.SLAVE_NOT_AVAILABLE])
async def test_what_is_stored_unsafely_is_unknown(rocketmq_old: RocketMQControl, code: int) -> None:
    topic = a_topic()
    async with (
        refusing(rocketmq_old, lambda _: (code, "later")) as addresses,
        sending(rocketmq_old, topic, address_map=addresses) as scene,
    ):
        outcomes = await scene.send(outbound(topic), outbound(topic))
        assert [type(outcome) for outcome in outcomes] == [SendTimeout, SendTimeout]


async def test_a_busy_broker_gets_a_pause(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic()
    seen: list[float] = []

    def refuse(frame: Frame) -> tuple[int, str] | None:
        seen.append(CLOCK.monotonic())
        return (ResponseCode.SYSTEM_BUSY, "[TIMEOUT_CLEAN_QUEUE]broker busy") if len(seen) <= 3 else None

    async with (
        refusing(rocketmq_old, refuse) as addresses,
        sending(rocketmq_old, topic, address_map=addresses) as scene,
    ):
        for _ in range(3):
            (outcome,) = await scene.send(outbound(topic))
            assert isinstance(outcome, SendRefused) and outcome.retryable
        assert await scene.send(outbound(topic)) == [None]
    pauses = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert pauses[0] >= 0.05 and pauses[1] >= 0.1 and pauses[2] >= 0.2


async def test_a_topic_that_was_deleted_is_not_found_and_is_used_again_when_it_is_back(
    rocketmq: RocketMQControl,
) -> None:
    topic = a_topic(queues=2)
    async with sending(rocketmq, topic) as scene:
        assert await scene.send(outbound(topic)) == [None]
        await scene.connection.delete(topic.name, None)
        (outcome,) = await scene.send(outbound(topic))
        assert isinstance(outcome, TopicNotFound) and not outcome.retryable
        await scene.declare(topic)
        assert await scene.send(outbound(topic)) == [None]


# --- time and the end ---------------------------------------------------------------------------------------------


async def test_a_send_without_an_answer_ends_in_time(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic()
    async with (
        proxied(rocketmq_old) as (proxies, addresses),
        sending(rocketmq_old, topic),
        sending(rocketmq_old, attempt_timeout=SHORT, address_map=addresses) as scene,
    ):
        await eventually(lambda: _sends(scene, topic), LONG, "a first send")
        proxies["broker-a"].freeze()
        began = CLOCK.monotonic()
        # More than are written, so some wait: not one of these is stored.
        outcomes = await scene.send(*(outbound(topic, b"x" * 3000) for _ in range(2000)))
        assert SHORT <= CLOCK.monotonic() - began < LONG
        assert {type(outcome) for outcome in outcomes} <= {SendTimeout, BrokerUnavailable}
        assert isinstance(outcomes[0], SendTimeout) and isinstance(outcomes[-1], BrokerUnavailable)
        proxies["broker-a"].thaw()
        await eventually(lambda: _sends(scene, topic), LONG, "a send after the silence")


async def _sends(scene: Scene, topic: TopicSpec) -> bool:
    return await scene.send(outbound(topic)) == [None]


async def test_a_lost_connection_makes_the_outcome_unknown_and_another_takes_its_place(
    rocketmq_old: RocketMQControl,
) -> None:
    topic = a_topic()
    async with (
        proxied(rocketmq_old) as (proxies, addresses),
        sending(rocketmq_old) as reading,
        sending(rocketmq_old, topic, address_map=addresses) as scene,
    ):
        assert await scene.send(outbound(topic)) == [None]
        proxies["broker-a"].swallow("down")
        messages = [outbound(topic) for _ in range(10)]
        under_way = asyncio.create_task(scene.send(*messages))
        await reading.stored_ids(topic, 11)
        proxies["broker-a"].reset()
        outcomes = await under_way
        assert {type(outcome) for outcome in outcomes} == {SendTimeout}
        proxies["broker-a"].heal()
        await eventually(lambda: _sends(scene, topic), LONG, "a send on a new connection")


async def test_a_broker_that_cannot_be_reached_is_told_at_once(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic()
    async with (
        proxied(rocketmq_old) as (proxies, addresses),
        sending(rocketmq_old, topic, address_map=addresses) as scene,
    ):
        assert await scene.send(outbound(topic)) == [None]
        proxies["broker-a"].refuse()
        proxies["broker-a"].reset()
        await eventually(lambda: not scene.connection.client.links.up(), LONG, "the loss is noticed")
        began = CLOCK.monotonic()
        (outcome,) = await scene.send(outbound(topic))
        assert isinstance(outcome, BrokerUnavailable) and CLOCK.monotonic() - began < LONG / 2
        proxies["broker-a"].accept()
        await eventually(lambda: _sends(scene, topic), LONG, "a send when it is back")


async def test_a_cancelled_send_harms_no_other(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with sending(rocketmq, topic) as scene:
        messages = [outbound(topic) for _ in range(60)]
        tasks = [asyncio.create_task(scene.send(message)) for message in messages]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                task.cancel()
            elif number % 10 == 0:
                await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        survivors = [message.message_id for message, result in zip(messages, results, strict=True) if result == [None]]
        cancelled = [result for result in results if isinstance(result, asyncio.CancelledError)]
        assert len(cancelled) + len(survivors) == 60 and cancelled
        counts = Counter(await scene.stored_ids(topic, len(survivors)))
    assert set(survivors) <= set(counts) and set(counts.values()) == {1}


async def test_close_waits_for_the_answers_that_are_under_way(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic()
    async with (
        proxied(rocketmq_old) as (proxies, addresses),
        sending(rocketmq_old, topic, address_map=addresses) as scene,
    ):
        assert await scene.send(outbound(topic)) == [None]
        proxies["broker-a"].delay(0.5)
        messages = [outbound(topic) for _ in range(3)]
        under_way = asyncio.create_task(scene.send(*messages))
        await asyncio.sleep(0)
        await scene.producer.aclose()
        assert under_way.done()
        assert await under_way == [None] * 3
        with pytest.raises(Closed):
            await scene.send(outbound(topic))
        await scene.producer.aclose()


async def test_close_ends_in_time_when_no_answer_comes(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic()
    async with (
        proxied(rocketmq_old) as (proxies, addresses),
        sending(rocketmq_old, topic),
        sending(rocketmq_old, attempt_timeout=SHORT, address_map=addresses) as scene,
    ):
        await eventually(lambda: _sends(scene, topic), LONG, "a first send")
        proxies["broker-a"].freeze()
        under_way = asyncio.create_task(scene.send(outbound(topic)))
        await asyncio.sleep(0)
        began = CLOCK.monotonic()
        await scene.producer.aclose()
        assert CLOCK.monotonic() - began < LONG
        assert [type(outcome) for outcome in await under_way] == [SendTimeout]
        assert [task for task in asyncio.all_tasks() if "brokerkit-connect" in task.get_name()] == []


async def test_close_ends_in_time_for_what_a_broker_that_reads_no_more_has_no_room_for(
    rocketmq_old: RocketMQControl,
) -> None:
    topic = a_topic()
    messages = [outbound(topic, b"x" * (3 << 20)) for _ in range(4)]
    async with (
        proxied(rocketmq_old) as (proxies, addresses),
        sending(rocketmq_old, topic),
        sending(rocketmq_old, attempt_timeout=SHORT, heartbeat=60.0, address_map=addresses) as scene,
    ):
        await eventually(lambda: _sends(scene, topic), LONG, "a first send")
        proxies["broker-a"].freeze()
        earlier = asyncio.create_task(scene.send(*messages[1:]))
        await asyncio.sleep(SHORT / 2)
        # Its time ends after that of the others, and nothing is under way then that could tell it.
        later = asyncio.create_task(scene.send(messages[0]))
        await asyncio.sleep(0)
        began = CLOCK.monotonic()
        await scene.producer.aclose()
        assert CLOCK.monotonic() - began < LONG
        first, (outcome,) = await asyncio.gather(earlier, later)
        assert type(outcome) is BrokerUnavailable
        assert None not in first
