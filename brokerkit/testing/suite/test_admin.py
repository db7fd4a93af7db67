"""Admin: declaring, deleting, purging, counting and redriving do what they say and nothing else."""

from __future__ import annotations

import pytest

from brokerkit.errors import TopicNotFound, TopologyConflict
from brokerkit.settings import TopicSettings
from brokerkit.spi import Capability
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import (
    case,
    collect,
    eventually,
    id_of,
    receive_exactly,
    receive_nothing,
    requires,
)
from brokerkit.testing.suite.seen import nothing_is_left, quiet
from brokerkit.topic import Topic


@case
@requires(Capability.MANAGE)
async def test_declare_is_idempotent(harness: Harness) -> None:
    """Declaring twice, from one manager or from two, changes nothing: each message comes once."""
    topic = harness.topic()
    async with harness.manager() as first, harness.manager() as second:
        for manager in (first, first, second):
            await manager.admin.declare(topic, "g")
            await manager.admin.verify(topic, "g")
        sent = await first.send(topic, b"x")
        async with second.consume(topic) as deliveries:
            await receive_exactly(deliveries, [sent], within=harness.timing.within())
            await receive_nothing(deliveries, harness.timing.quiet)


@case
@requires(Capability.MANAGE, Capability.ORDERED)
async def test_conflicting_declare_raises(harness: Harness) -> None:
    """Declaring an existing topic with other properties raises `TopologyConflict`; the connection stays usable."""
    topic, other = harness.topic(), harness.topic("other")
    async with harness.manager() as first:
        await first.admin.declare(topic, "g")
    async with harness.manager() as second:
        with pytest.raises(TopologyConflict) as caught:
            await second.admin.declare(Topic(topic.name, bytes, groups=["g"], ordered=True), "g")
        assert topic.name in str(caught.value)
        assert not caught.value.retryable
        sent = await second.send(other, b"x")
        async with second.consume(other) as deliveries:
            await receive_exactly(deliveries, [sent], within=harness.timing.within())


@case
@requires(Capability.MANAGE, Capability.STRICT_TOPICS)
async def test_delete_then_send_raises(harness: Harness) -> None:
    """Once a topic is deleted, a producer that may not declare it gets `TopicNotFound`."""
    topic = harness.topic()
    async with harness.manager() as owner, harness.manager() as producer:
        await owner.admin.declare(topic, "g")
        producer.configure_topic(topic.name, TopicSettings(declare="never"))
        await producer.send(topic, b"x")
        await owner.admin.delete(topic)

        async def refused() -> bool:
            try:
                await producer.send(topic, b"y")
            except TopicNotFound as error:
                return topic.name in str(error)
            return False

        # A broker of several nodes may take a moment until all of them know.
        await eventually(refused, within=harness.timing.within(), what="TopicNotFound after the topic was deleted")


@case
@requires(Capability.PURGE)
async def test_purge_empties_one_group(harness: Harness) -> None:
    """A purge removes what is ready in one group; other groups, delayed messages and waiting retries are untouched."""
    groups = ["a", "b"] if Capability.CONSUMER_GROUPS in harness.capabilities else ["a"]
    topic = harness.topic(groups=groups)
    delays = Capability.DELAYED_SEND in harness.capabilities
    wait = 3.0
    async with harness.manager() as manager:
        ready = [await manager.send(topic, b"%d" % number) for number in range(5)]
        waiting: list[str] = []
        if delays:
            async with manager.consume(topic, group="a", prefetch=1) as deliveries:
                delivery = await deliveries.receive(harness.timing.within())
                assert delivery is not None, "nothing came"
                waiting.append(ready.pop(ready.index(delivery.message.message_id or "")))
                await delivery.nack(delay=wait)
            waiting.append(await manager.send(topic, b"later", delay=wait))
        if Capability.STATS in harness.capabilities:

            async def settled() -> bool:
                return bool((await manager.monitor.stats(topic, "a")).ready == len(ready))

            await eventually(settled, within=harness.timing.within(), what=f"{len(ready)} ready messages")
        assert await manager.admin.purge(topic.name, "a") == len(ready)
        within = harness.timing.within(7, delay=wait)
        async with manager.consume(topic, group="a") as deliveries:
            await receive_exactly(deliveries, waiting, within=within)
            await receive_nothing(deliveries, harness.timing.quiet)
        if "b" in groups:
            async with manager.consume(topic, group="b") as deliveries:
                await receive_exactly(deliveries, {*ready, *waiting}, within=within)


@case
@requires(Capability.STATS)
async def test_stats_count_ready_and_dead(harness: Harness) -> None:
    """The status of a group counts what is ready, delayed and dead; reading it creates nothing."""
    topic, missing = harness.topic(), harness.name("missing")
    async with harness.manager() as manager:
        for number in range(7):
            await manager.send(topic, b"%d" % number)
        dead = 0
        if Capability.DEAD_LETTER in harness.capabilities:
            dead = 2
            async with manager.consume(topic, prefetch=1) as deliveries:
                for _ in range(dead):
                    (delivery,) = await collect(deliveries, 1, within=harness.timing.within(), ack=False)
                    await delivery.reject("not ours")
        delayed = 0
        if Capability.DELAYED_SEND in harness.capabilities:
            delayed = 1
            await manager.send(topic, b"later", delay=3600.0)

        async def counted() -> bool:
            stats = (await manager.monitor.queue_status(topic, "g")).stats
            assert (stats.topic, stats.group) == (topic.name, "g")
            assert stats.source
            assert abs(stats.as_of - harness.clock.time()) < 60
            # What a broker does not know is None, and None is not wrong.
            return stats.ready == 7 - dead and stats.dead in (dead, None) and stats.delayed in (delayed, None)

        await eventually(counted, within=harness.timing.within(7), what=f"{7 - dead} ready and {dead} dead")
        lag = await manager.monitor.lag(topic.name, "g")
        assert lag.ready == 7 - dead
        for _ in range(2):
            with pytest.raises(TopicNotFound):
                await manager.monitor.queue_status(missing, "g")


@case
@requires(Capability.DEAD_LETTER, Capability.BROWSE)
async def test_redrive_dead_letters(harness: Harness) -> None:
    """Redriving 3 of 10 sends these to the failing group as first attempts and leaves the other 7 in their order."""
    groups = ["a", "b"] if Capability.CONSUMER_GROUPS in harness.capabilities else ["a"]
    topic = harness.topic(groups=groups)
    within = harness.timing.within(10)
    async with harness.manager() as manager:
        sent = [await manager.send(topic, b"%d" % number, headers={"n": str(number)}) for number in range(10)]
        if "b" in groups:
            async with manager.consume(topic, group="b") as deliveries:
                await receive_exactly(deliveries, sent, within=within)
        async with manager.consume(topic, group="a", prefetch=1) as deliveries:
            for _ in sent:
                (delivery,) = await collect(deliveries, 1, within=within, ack=False)
                await delivery.reject("not today")

        async def dead(count: int) -> list[str] | None:
            letters = await manager.admin.dead_letters(topic.name, "a")
            return [letter.message.message_id or "" for letter in letters] if len(letters) == count else None

        order = await eventually(lambda: dead(10), within=within, what="ten dead letters")
        assert sorted(order) == sorted(sent)
        chosen = [order[1], order[4], order[8]]
        assert await manager.admin.redrive(topic.name, "a", ids=chosen) == 3
        async with manager.consume(topic, group="a") as deliveries:
            again = await receive_exactly(deliveries, chosen, within=within)
            await receive_nothing(deliveries, harness.timing.quiet)
        assert [delivery.attempt for delivery in again] == [1, 1, 1]
        numbers = {delivery.message.message_id: delivery.message.headers for delivery in again}
        assert numbers == {name: {"n": str(sent.index(name))} for name in chosen}
        rest = [name for name in order if name not in chosen]
        assert await eventually(lambda: dead(7), within=within, what="seven dead letters") == rest
        assert await manager.admin.redrive(topic.name, "a", limit=1) == 1
        async with manager.consume(topic, group="a") as deliveries:
            (oldest,) = await collect(deliveries, 1, within=within)
        assert id_of(oldest) == rest[0]
        assert await manager.admin.discard(topic.name, "a") == 6
        assert await manager.admin.dead_letters(topic.name, "a") == []
        if "b" in groups:
            async with manager.consume(topic, group="b") as deliveries:
                await receive_nothing(deliveries, quiet(harness))
    await nothing_is_left(harness, topic, "a")


@case
@requires(Capability.MANAGE)
async def test_topology_deleted_under_consumer(harness: Harness) -> None:
    """A consumer whose topic is deleted raises `TopicNotFound`, or goes on once it exists again; never silence."""
    topic = harness.topic()
    async with harness.manager() as owner, harness.manager() as other, owner.consume(topic) as deliveries:
        await owner.send(topic, b"before")
        await collect(deliveries, 1, within=harness.timing.within())
        await other.admin.delete(topic)
        await other.admin.declare(topic, "g")
        expected = await other.send(topic, b"after")

        async def ended_or_came() -> bool:
            try:
                delivery = await deliveries.receive(1.0)
            except TopicNotFound:
                return True
            if delivery is None:
                return False
            await delivery.ack()
            return bool(delivery.message.message_id == expected)

        what = "TopicNotFound, or the message that was sent after the topic came back"
        await eventually(ended_or_came, within=harness.timing.healed(), what=what)
