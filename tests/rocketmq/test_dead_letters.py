"""Dead letters on real brokers: read, taken out of the middle, never lost and never out of their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from brokerkit.errors import AccessRefused, BrokerUnavailable, Closed, TopicNotFound
from brokerkit.spi import Inbound, Outbound, ToDead, TopicSpec
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.producer import Limits, RocketMQProducer
from brokerkit_rocketmq.remoting.properties import encode_properties
from tests.rocketmq.administration import CLOCK, Scene, a_topic, administering
from tests.rocketmq.servers import WORKER


async def bury(scene: Scene, topic: TopicSpec, *numbers: int, body: bytes = b"x") -> None:
    for number in numbers:
        await scene.store(
            Outbound(
                destination=ToDead(topic.name, "work"),
                body=body,
                message_id=f"d-{number}",
                headers={"n": str(number), "bk-reason": "rejected", "empty": "", "hostile \x01": "\x02"},
                key="k",
                tag="t",
            )
        )


async def browsed(scene: Scene, topic: TopicSpec, limit: int = 1000) -> list[str | None]:
    return [one.message_id for one in await scene.dead.browse(topic.name, "work", limit)]


def ids(messages: list[Inbound]) -> list[str | None]:
    return [one.message_id for one in messages]


def d(*numbers: int) -> list[str]:
    return [f"d-{number}" for number in numbers]


async def test_browsing_shows_the_oldest_first_and_changes_nothing(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        assert await browsed(scene, topic) == []
        await bury(scene, topic, *range(50))
        for _ in range(2):
            assert await browsed(scene, topic) == d(*range(50))
        assert await browsed(scene, topic, 3) == d(0, 1, 2)
        (first,) = await scene.dead.browse(topic.name, "work", 1)
    assert (first.topic, first.group, first.body, first.key, first.tag) == (topic.name, "work", b"x", "k", "t")
    assert first.headers == {"n": "0", "bk-reason": "rejected", "empty": "", "hostile \x01": "\x02"}


async def test_what_is_acknowledged_is_gone_and_the_rest_stays_in_its_order(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        await bury(scene, topic, *range(10))
        async with scene.taking(topic.name, "work", d(1, 4, 8)) as reader:
            taken = list(await reader.receive(10, 1.0))
            assert ids(taken) == d(1, 4, 8)
            assert all(reader.live(one) for one in taken)
            await reader.ack(taken)
            assert not any(reader.live(one) for one in taken)
            assert await reader.receive(10, 1.0) == []
        left = [0, 2, 3, 5, 6, 7, 9]
        assert await browsed(scene, topic) == d(*left)
        await bury(scene, topic, 10)
        async with scene.taking(topic.name, "work", d(9, 0)) as reader:
            await reader.ack(await reader.receive(10, 1.0))
        assert await browsed(scene, topic) == d(2, 3, 5, 6, 7, 10)
        found = await scene.dead.browse(topic.name, "work", 10)
        assert {name for one in found for name in one.headers} == {"n", "bk-reason", "empty", "hostile \x01"}
        assert all(one.body == b"x" for one in found)
        async with scene.taking(topic.name, "work") as reader:
            while batch := await reader.receive(4, 1.0):
                assert len(batch) <= 4
                await reader.ack(batch)
        assert await browsed(scene, topic) == []
        assert (await scene.figures.stats(topic.name, "work")).dead == 0


async def test_what_is_released_or_left_stays_where_it_is(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        await bury(scene, topic, *range(4))
        async with scene.taking(topic.name, "work") as reader:
            (first, *_) = await reader.receive(3, 1.0)
            await reader.release([first])
        assert await browsed(scene, topic) == d(0, 1, 2, 3)
        # Nothing was stored again for that.
        assert (await scene.figures.stats(topic.name, "work")).dead == 4


async def test_acknowledged_ones_with_nothing_before_them_are_gone_at_once(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        await bury(scene, topic, *range(5))
        async with scene.taking(topic.name, "work") as reader:
            taken = await reader.receive(2, 1.0)
            await reader.ack(taken)
            assert await browsed(scene, topic) == d(2, 3, 4)


async def test_two_readers_exclude_each_other(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene, administering(rocketmq, timeout=2.0) as other:
        await scene.declare(topic)
        other.topics[topic.name] = topic
        await bury(scene, topic, 0, 1)
        async with scene.taking(topic.name, "work") as reader:
            with pytest.raises(BrokerUnavailable, match="somebody else works on the dead letters") as caught:
                async with other.taking(topic.name, "work"):
                    pass
            assert caught.value.retryable
            assert await browsed(other, topic) == d(0, 1)
            await reader.ack(await reader.receive(1, 1.0))
        async with other.taking(topic.name, "work") as reader:
            assert ids(list(await reader.receive(10, 1.0))) == d(1)


async def test_one_reader_waits_for_the_other_to_end(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        await bury(scene, topic, *range(20))

        async def discard(number: int) -> None:
            async with scene.taking(topic.name, "work", d(number)) as reader:
                await reader.ack(await reader.receive(1, 1.0))

        await asyncio.gather(*(discard(number) for number in (3, 7, 11)))
        assert await browsed(scene, topic) == d(*(number for number in range(20) if number not in (3, 7, 11)))


async def test_a_crash_between_copy_and_commit_loses_and_doubles_nothing(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        await bury(scene, topic, *range(6))
        queues, dead = await scene.dead._dead(topic.name, "work")
        letters = await dead.find(queues)
        # What `settle` does before it commits, and then the process is gone.
        await dead._bury(letters[:3])
        assert (await scene.figures.stats(topic.name, "work")).dead == 9
        assert await browsed(scene, topic) == d(*range(6))
        async with scene.taking(topic.name, "work", d(2)) as reader:
            taken = await reader.receive(10, 1.0)
            assert ids(list(taken)) == d(2)
            await reader.ack(taken)
        assert await browsed(scene, topic) == d(0, 1, 3, 4, 5)
        async with scene.taking(topic.name, "work") as reader:
            while batch := await reader.receive(100, 1.0):
                await reader.ack(batch)
        assert await browsed(scene, topic) == []


async def test_letters_of_foreign_clients_keep_their_ids_and_their_bytes(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        native = scene.names.dead(topic.name, "work")
        await scene.store_raw(native, b"\0a\0", encode_properties({"color": "red"}))
        await scene.store_raw(native, b"b", encode_properties({"UNIQ_KEY": "theirs", "x": "y"}))
        before = await scene.dead.browse(topic.name, "work", 10)
        assert [one.body for one in before] == [b"\0a\0", b"b"]
        async with scene.taking(topic.name, "work", ["theirs"]) as reader:
            await reader.ack(await reader.receive(10, 1.0))
        (after,) = await scene.dead.browse(topic.name, "work", 10)
    assert after.message_id == before[0].message_id
    assert (after.body, dict(after.headers)) == (b"\0a\0", dict(before[0].headers))


async def test_dead_letters_in_several_queues_come_in_the_order_of_their_deaths(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    rocketmq.create_topic(f"%DLQ%work||{topic.name.replace('.', '|')}", queues=3)
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        for number in range(9):
            message = Outbound(destination=ToDead(topic.name, "work"), body=b"", message_id=f"d-{number}")
            await scene.store(message, queue=number % 3)
            await asyncio.sleep(0.003)  # the broker tells milliseconds apart
        assert await browsed(scene, topic) == d(*range(9))
        async with scene.taking(topic.name, "work", d(4, 8)) as reader:
            await reader.ack(await reader.receive(10, 1.0))
        assert await browsed(scene, topic) == d(0, 1, 2, 3, 5, 6, 7)


async def test_large_letters_are_read_a_few_at_a_time(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        await bury(scene, topic, *range(12), body=b"x" * 500_000)
        async with scene.taking(topic.name, "work", d(5)) as reader:
            (one,) = await reader.receive(10, 1.0)
            assert len(one.body) == 500_000
            await reader.ack([one])
        assert await browsed(scene, topic) == d(0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)


async def test_a_closed_reader_and_a_missing_group_are_told(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        async with scene.taking(topic.name, "work") as reader:
            assert await reader.receive(10, 1.0) == []
        await reader.aclose()
        with pytest.raises(Closed):
            await reader.receive(10, 1.0)
        with pytest.raises(TopicNotFound, match="group 'nobody'"):
            await scene.dead.browse(topic.name, "nobody", 10)


async def test_a_group_whose_dead_letters_were_never_stored_has_none(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        rocketmq.delete_topic(scene.names.dead(topic.name, "work"))
        assert await browsed(scene, topic) == []
        async with scene.taking(topic.name, "work") as reader:
            assert await reader.receive(10, 1.0) == []
        assert (await scene.figures.stats(topic.name, "work")).dead == 0


# --- a topic that is missing ---


@asynccontextmanager
async def sender(scene: Scene) -> AsyncIterator[RocketMQProducer]:
    producer = RocketMQProducer(
        scene.client,
        scene.names,
        scene.codec,
        Limits(attempt_timeout=30.0, max_message_size=4 << 20),
        group="tests",
        clock=CLOCK,
        on_close=lambda _: None,
        missing=scene.making.missing,
    )
    try:
        yield producer
    finally:
        await producer.aclose()


def a_letter(topic: TopicSpec, number: int) -> Outbound:
    return Outbound(destination=ToDead(topic.name, "work"), body=b"x", message_id=f"d-{number}")


async def test_the_topic_of_a_group_that_somebody_else_made_comes_with_the_first_letter(
    rocketmq: RocketMQControl,
) -> None:
    """Java leaves it to the broker, which makes it when a member gives up a message."""
    topic = a_topic("work")
    async with administering(rocketmq) as scene, sender(scene) as producer:
        await scene.declare(topic)
        native = scene.names.dead(topic.name, "work")
        masters = await scene.making.masters()
        for number in range(2):
            # The second time the producer has a route that is wrong.
            await scene.making.delete_topics([native], masters)
            outcomes = await producer.send([a_letter(topic, 2 * number), a_letter(topic, 2 * number + 1)])
            assert outcomes == [None, None]
            assert sorted(filter(None, await browsed(scene, topic))) == d(2 * number, 2 * number + 1)
        route = await scene.making.route(native)
        assert route is not None and len(route.readable) == len(route.writable) == len(masters)


async def test_a_letter_to_a_group_that_is_gone_makes_no_topic(rocketmq_old: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq_old) as scene, sender(scene) as producer:
        await scene.declare(topic)
        await scene.topology.delete(topic.name, "work")
        (outcome,) = await producer.send([a_letter(topic, 0)])
        assert isinstance(outcome, TopicNotFound)
        assert await scene.making.route(scene.names.dead(topic.name, "work")) is None


async def test_who_may_not_make_the_topic_is_told_what_to_create(guarded_pair: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(guarded_pair) as scene:
        await scene.declare(topic)
        native = scene.names.dead(topic.name, "work")
        await scene.making.delete_topics([native], await scene.making.masters())
        worker = guarded_pair.address.url(WORKER.login)
        async with administering(guarded_pair, url=worker) as mine, sender(mine) as producer:
            mine.topics[topic.name] = topic
            (outcome,) = await producer.send([a_letter(topic, 0)])
    assert isinstance(outcome, AccessRefused)
    assert f"mqadmin updateTopic -t '{native}' -r 1 -w 1" in str(outcome)
