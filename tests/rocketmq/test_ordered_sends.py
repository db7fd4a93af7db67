"""Sends to ordered topics on real servers: one request at a time for each queue, and always the same queue."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from brokerkit.errors import BrokerUnavailable, SendRefused, SendTimeout
from brokerkit.spi import Outbound
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.queue_choice import queue_of_key, settled_queues
from brokerkit_rocketmq.remoting.codes import ResponseCode
from brokerkit_rocketmq.remoting.frames import Frame
from brokerkit_rocketmq.routes import MessageQueue, Route
from tests.rocketmq.sending import LONG, Scene, a_topic, in_order, outbound, proxied, refusing, sending


def ids_of(messages: Sequence[Outbound]) -> list[str]:
    return [message.message_id for message in messages]


async def insist(scene: Scene, message: Outbound) -> None:
    """Send one message until it is stored, as the core does in the turn of its topic."""

    async def is_stored() -> bool:
        (outcome,) = await scene.send(message)
        assert outcome is None or outcome.retryable, outcome
        return outcome is None

    await eventually(is_stored, LONG, "the message is stored")


async def test_concurrent_calls_are_stored_in_the_order_in_which_they_were_made(rocketmq: RocketMQControl) -> None:
    topic = a_topic(ordered=True)
    async with sending(rocketmq, topic) as scene:
        messages = [outbound(topic, b"%d" % number) for number in range(1000)]
        outcomes = await scene.send_each(messages)
        refused = {message.message_id for message, one in zip(messages, outcomes, strict=True) if one is not None}
        ids = await scene.stored_ids(topic, 1000 - len(refused))
    # A busy machine may refuse some; what is stored is in order.
    assert ids == [one for one in ids_of(messages) if one not in refused]


async def test_one_call_with_many_messages_is_stored_in_its_order(rocketmq: RocketMQControl) -> None:
    topic = a_topic(ordered=True)
    async with sending(rocketmq, topic) as scene:
        messages = [outbound(topic, b"x" * 3000) for _ in range(500)]
        await scene.store(messages, at_once=True)
        ids = await scene.stored_ids(topic, 500)
    assert in_order(ids, ids_of(messages)) == ids_of(messages)


async def test_a_key_stays_in_its_queue_and_in_order(rocketmq: RocketMQControl) -> None:
    topic = a_topic(ordered=True, queues=4)
    keys = [f"key-{number}" for number in range(10)]
    async with sending(rocketmq, topic) as scene:
        messages = [outbound(topic, b"%d" % number, key=keys[number % 10]) for number in range(400)]
        messages.append(outbound(topic, b"none"))
        await scene.store(messages, at_once=True)
        await scene.stored_ids(topic, 401)
        stored = await scene.stored(topic.name)
    queues: dict[str | None, set[int]] = defaultdict(set)
    bodies: dict[str | None, list[int]] = defaultdict(list)
    for each in stored:
        key = each.properties.get("KEYS")
        queues[key].add(each.queue_id)
        if key is not None:
            bodies[key].append(int(each.body))
    assert queues.pop(None) == {0}
    assert queues == {key: {queue_of_key(key, 4)} for key in keys}
    assert len(set.union(*queues.values())) > 1
    assert bodies == {key: list(range(number, 400, 10)) for number, key in enumerate(keys)}


async def test_order_survives_lost_connections(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic(ordered=True)
    async with (
        proxied(rocketmq_old) as (proxies, addresses),
        sending(rocketmq_old, topic) as reading,
        sending(rocketmq_old, topic, address_map=addresses) as scene,
    ):
        proxy = proxies["broker-a"]
        messages = [outbound(topic, b"%d" % number) for number in range(60)]
        for number, message in enumerate(messages):
            if number % 10 == 5:
                proxy.cut_at(400 + 97 * number, "up")
            await insist(scene, message)
        proxy.heal()
        ids = await reading.stored_ids(topic, 60)
    assert in_order(ids, ids_of(messages)) == ids_of(messages)


async def test_what_follows_a_message_that_failed_fails_with_it(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic(ordered=True)
    refused: list[Frame] = []

    def refuse_once(frame: Frame) -> tuple[int, str] | None:
        if b"second" not in frame.body or refused:
            return None
        refused.append(frame)
        return ResponseCode.SYSTEM_BUSY, "busy"

    async with (
        refusing(rocketmq_old, refuse_once) as addresses,
        sending(rocketmq_old, topic, address_map=addresses) as scene,
    ):
        warm = outbound(topic)
        await insist(scene, warm)
        messages = [outbound(topic, b"first")]
        # They leave in another request than the first.
        messages += [outbound(topic, b"second" + b"x" * 300_000) for _ in range(8)]
        other = outbound(topic, b"other")
        outcomes, (apart,) = await asyncio.gather(scene.send(*messages), scene.send(other))
        assert [type(outcome) for outcome in outcomes] == [type(None)] + [SendRefused] * 8
        # Another call is none of its business.
        assert apart is None
        assert await scene.stored_ids(topic, 3) == ids_of([warm, messages[0], other])


async def test_a_message_that_is_refused_for_ever_does_not_hold_up_what_follows(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic(ordered=True)

    def refuse(frame: Frame) -> tuple[int, str] | None:
        return (ResponseCode.MESSAGE_ILLEGAL, "the message is illegal") if b"poison" in frame.body else None

    async with (
        refusing(rocketmq_old, refuse) as addresses,
        sending(rocketmq_old, topic, address_map=addresses) as scene,
    ):
        bodies = [b"poison" if number == 7 else b"%d" % number for number in range(20)]
        messages = [outbound(topic, body) for body in bodies]
        outcomes = await scene.send(*messages)
        assert [outcome is None for outcome in outcomes] == [body != b"poison" for body in bodies]
        good = [message for message in messages if message.body != b"poison"]
        assert await scene.stored_ids(topic, 19) == ids_of(good)


async def test_an_ordered_send_without_its_broker_waits_for_no_other(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic(ordered=True)
    async with (
        proxied(rocketmq_old) as (proxies, addresses),
        sending(rocketmq_old, topic, attempt_timeout=5.0, address_map=addresses) as scene,
    ):
        await insist(scene, outbound(topic))
        proxies["broker-a"].refuse()
        proxies["broker-a"].reset()
        outcomes = await scene.send(outbound(topic), outbound(topic))
        assert {type(outcome) for outcome in outcomes} <= {BrokerUnavailable, SendTimeout, SendRefused}
        assert all(outcome is not None and outcome.retryable for outcome in outcomes)
        proxies["broker-a"].accept()
        await insist(scene, outbound(topic))


async def test_more_queues_take_part_once_nothing_is_under_way(rocketmq: RocketMQControl) -> None:
    topic = a_topic(ordered=True, queues=2)
    async with sending(rocketmq, topic) as scene:
        keys = [f"key-{number}" for number in range(20)]
        await scene.store([outbound(topic, b"0", key=key) for key in keys], at_once=True)
        rocketmq.create_topic(topic.name, queues=8)
        await scene.connection.client.routes.route(topic.name, refresh=True)
        await scene.store([outbound(topic, b"1", key=key) for key in keys], at_once=True)
        await scene.stored_ids(topic, 40)
        after = [each for each in await scene.stored(topic.name) if each.body == b"1"]
    assert {each.properties["KEYS"]: each.queue_id for each in after} == {key: queue_of_key(key, 8) for key in keys}


def test_queues_of_a_broker_that_is_away_keep_their_places() -> None:
    queues = tuple(MessageQueue("t", broker, number) for broker in "ab" for number in range(2))
    both = Route("t", {"a": {0: "x"}, "b": {0: "y"}}, queues, queues)
    one = Route("t", {"b": {0: "y"}}, queues[2:], queues[2:])
    fewer = Route("t", both.brokers, queues[1:], queues[1:])
    assert settled_queues((), both) == queues
    assert settled_queues(queues, one) == queues
    assert settled_queues(queues, fewer) == queues[1:]


def test_every_process_chooses_the_same_queue() -> None:
    assert [queue_of_key(key, 8) for key in (None, "", "order-1", "ключ", "\ud800")] == [0, 0, 7, 2, 0]
