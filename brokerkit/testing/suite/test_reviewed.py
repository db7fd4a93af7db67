"""Found by review of the design: topology, delays, order, duplicates and what surrounds them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from brokerkit.errors import Unroutable
from brokerkit.idempotency import MemoryIdempotencyStore
from brokerkit.message import Message
from brokerkit.settings import TopicSettings
from brokerkit.spi import Capability
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import (
    case,
    collect,
    eventually,
    needs,
    receive_exactly,
    receive_nothing,
    requires,
)
from brokerkit.testing.suite.seen import Seen, late, nothing_is_left, policy, quiet, started
from brokerkit.topic import Group, Topic

# --- who gets a message ---------------------------------------------------------------------------------------


@case
async def test_topic_without_group(harness: Harness) -> None:
    """A send that no group would get is stored for later groups, or raises `Unroutable`, or is dropped if asked."""
    topic = harness.topic(groups=())
    async with harness.manager() as manager:
        if Capability.FROM_START in harness.capabilities:
            sent = await manager.send(topic, b"x")
            later: Topic[bytes] = Topic(topic.name, bytes, groups=[Group("later", start="earliest")])
            await manager.admin.declare(later, "later", start="earliest")
            async with manager.consume(later, group="later") as deliveries:
                await receive_exactly(deliveries, [sent], within=harness.timing.within())
            return
        with pytest.raises(Unroutable) as caught:
            await manager.send(topic, b"x")
        assert topic.name in str(caught.value)
        assert "group" in str(caught.value), "the text does not name the cure"
    other = harness.topic("drop", groups=())
    async with harness.manager() as manager:
        manager.configure_topic(other.name, TopicSettings(unroutable="drop"))
        assert await manager.send(other, b"x")


@case
@requires(Capability.TAGS)
async def test_tag_nobody_wants(harness: Harness) -> None:
    """A message with a tag outside every filter is stored for later groups, raises `Unroutable`, or is dropped."""
    topic = harness.topic(groups=[Group("g", tag="a||b")])
    async with harness.manager() as manager:
        wanted = await manager.send(topic, b"wanted", tag="a")
        if Capability.FROM_START in harness.capabilities:
            unwanted = await manager.send(topic, b"unwanted", tag="z")
            await manager.admin.declare(topic, "later", start="earliest")
            async with manager.consume(topic, group="later") as deliveries:
                await receive_exactly(deliveries, [wanted, unwanted], within=harness.timing.within(2))
        else:
            with pytest.raises(Unroutable):
                await manager.send(topic, b"unwanted", tag="z")
        async with manager.consume(topic, group="g", tag="a||b") as deliveries:
            await receive_exactly(deliveries, [wanted], within=harness.timing.within())
            await receive_nothing(deliveries, harness.timing.quiet)
    other = harness.topic("drop", groups=[Group("g", tag="a||b")])
    async with harness.manager() as manager:
        manager.configure_topic(other.name, TopicSettings(unroutable="drop"))
        assert await manager.send(other, b"x", tag="z")


@case
@requires(Capability.CONSUMER_GROUPS)
async def test_latest_group_does_not_read_old(harness: Harness) -> None:
    """A group that begins at the latest gets what was sent after its declaration, consumer or not, and nothing else."""
    topic = harness.topic()
    async with harness.manager() as manager:
        old = [await manager.send(topic, b"old") for _ in range(3)]
        await manager.admin.declare(topic, "late", start="latest")
        new = [await manager.send(topic, b"new") for _ in range(3)]
        async with manager.consume(topic, group="late") as deliveries:
            await receive_exactly(deliveries, new, within=harness.timing.within(3))
            await receive_nothing(deliveries, harness.timing.quiet)
        async with manager.consume(topic, group="g") as deliveries:
            await receive_exactly(deliveries, [*old, *new], within=harness.timing.within(6))


@case
@requires(Capability.TAGS, Capability.CONSUMER_GROUPS)
async def test_tag_set_changed_on_redeploy(harness: Harness) -> None:
    """With a new filter the group's old messages are not handled by it, and no other group loses one of them."""
    name = harness.name()
    before: Topic[bytes] = Topic(name, bytes, groups=[Group("g", tag="a"), "all"])
    after: Topic[bytes] = Topic(name, bytes, groups=[Group("g", tag="b"), "all"])
    async with harness.manager() as manager:
        old = [await manager.send(before, b"old", tag="a") for _ in range(3)]
    async with harness.manager() as manager:
        # The new filter holds from the moment that its consumer is there.
        async with manager.consume(after, group="g", tag="b") as deliveries:
            await harness.clock.sleep(harness.timing.rebalance)
            new = [await manager.send(after, b"new", tag="b") for _ in range(3)]
            await receive_exactly(deliveries, new, within=harness.timing.within(6))
            await receive_nothing(deliveries, harness.timing.quiet)
        async with manager.consume(after, group="all") as deliveries:
            await receive_exactly(deliveries, [*old, *new], within=harness.timing.within(6))


# --- delays ---------------------------------------------------------------------------------------------------


@case
@requires(Capability.DELAYED_SEND, Capability.MANAGE)
async def test_blocked_delay_target_blocks_only_itself(harness: Harness) -> None:
    """When due messages cannot be delivered because their topic is gone, the delays of other topics stay on time."""
    gone, other = harness.topic("gone"), harness.topic("other")
    async with harness.manager() as manager, manager.consume(other) as deliveries:
        for _ in range(10):
            await manager.send(gone, b"x", delay=1.0)
        sent = [await manager.send(other, b"x", delay=1.0 + number / 10) for number in range(10)]
        async with harness.manager() as owner:
            await owner.admin.delete(gone)
        came = await receive_exactly(deliveries, sent, within=harness.timing.within(10, delay=2.0))
        for delivery in came:
            behind = delivery.message.receive_time - delivery.message.due
            assert 0 <= behind <= late(harness), f"{behind:.2f} s after it was due"


@case
@requires(Capability.DELAYED_SEND, Capability.CONSUMER_GROUPS, Capability.MANAGE)
async def test_group_declared_during_the_delay(harness: Harness) -> None:
    """The groups of a delayed message are those there are when it is due, one declared meanwhile included."""
    topic = harness.topic()
    async with harness.manager() as manager:
        sent = await manager.send(topic, b"later", delay=3.0)
        await manager.admin.declare(topic, "late")
        for group in ("late", "g"):
            async with manager.consume(topic, group=group) as deliveries:
                await receive_exactly(deliveries, [sent], within=harness.timing.within(2, delay=3.0))
                await receive_nothing(deliveries, harness.timing.quiet)


# --- order ----------------------------------------------------------------------------------------------------


@case
@requires(Capability.ORDERED)
async def test_ordered_drain_does_not_overtake(harness: Harness) -> None:
    """When a worker of an ordered group stops with prefetched messages, the next one goes on in their order."""
    topic = harness.topic(ordered=True)
    count, seen = 30, Seen()

    async def work(message: Message) -> None:
        seen(message)
        await harness.clock.sleep(0.02)

    first = harness.manager()
    first.add_handler(topic, work, prefetch=20, ordered=True, retry=policy(harness))
    async with started(first):
        sent = [await first.send(topic, b"%d" % number) for number in range(count)]
        await seen.reach(5, within=harness.timing.within(5))
    handled = len(seen.starts)
    second = harness.manager()
    second.add_handler(topic, work, prefetch=20, ordered=True, retry=policy(harness))
    async with started(second):
        await seen.cover(set(sent), within=harness.timing.within(count))
    assert handled < count, "the first worker handled everything: nothing was drained"
    assert seen.ids == sent
    await nothing_is_left(harness, topic)


# --- duplicates and chains ------------------------------------------------------------------------------------


@case
async def test_claim_loser_burns_no_attempt(harness: Harness) -> None:
    """Of concurrent duplicates with one allowed attempt one runs; the others wait, end done, and none is dead."""
    topic, seen = harness.topic(), Seen()
    store = MemoryIdempotencyStore(harness.clock)

    async def work(message: Message) -> None:
        seen(message)
        await harness.clock.sleep(1.5)

    workers = [harness.manager(idempotency=store) for _ in range(2)]
    for worker in workers:
        worker.add_handler(topic, work, idempotent=True, retry=policy(harness, max_attempts=1))
    async with started(workers[0]), started(workers[1]), harness.manager() as sender:
        for _ in range(4):
            await sender.send(topic, b"x", message_id="order-1")
        await seen.reach(1, within=harness.timing.within(4))
        # Longer than the winner runs and the losers wait for another look.
        await seen.stay(1, harness.timing.quiet + 1.5 + 2.0)
    assert seen.attempts("order-1") == [1]
    if Capability.BROWSE in harness.capabilities:
        async with harness.manager() as manager:
            assert await manager.admin.dead_letters(topic.name, "g") == []
    await nothing_is_left(harness, topic)


@case
@needs("cut")
async def test_stale_delivery_sends_no_retry(harness: Harness) -> None:
    """A failure after the connection was lost starts no second chain of retries: the message comes once more."""
    topic, seen, manager = harness.topic(), Seen(), harness.manager()
    confirmed = asyncio.Event()

    @manager.handler(topic, retry=policy(harness, max_attempts=5))
    async def work(message: Message) -> None:
        if seen(message) == 1:
            # A broker may deliver before it confirms; a send without its confirm would be made again.
            await confirmed.wait()
            await harness.cut(0)
            await harness.clock.sleep(harness.timing.quiet)
            raise ValueError("after the connection was lost")

    async with started(manager):
        sent = await manager.send(topic, b"x")
        confirmed.set()
        await seen.reach(2, within=harness.timing.healed() + harness.timing.within(2))
        await seen.stay(2, quiet(harness) + harness.timing.reconnect)
    assert set(seen.ids) == {sent}
    await nothing_is_left(harness, topic)


# --- broadcast ------------------------------------------------------------------------------------------------


@case
@requires(Capability.BROADCAST)
async def test_broadcast_failure_retries_in_process(harness: Harness) -> None:
    """A failing broadcast handler is tried again where it is, then reported; the other consumers notice nothing."""
    topic = harness.topic()
    failing, healthy = Seen(), Seen()
    reported: list[Any] = []
    first, second = harness.manager(), harness.manager()

    @first.handler(topic, group="watch", broadcast=True, retry=policy(harness, max_attempts=3))
    async def fail(message: Message) -> None:
        failing(message)
        raise ValueError("broken here")

    @second.handler(topic, group="watch", broadcast=True)
    async def work(message: Message) -> None:
        healthy(message)

    def given_up() -> list[Any]:
        # Each failed attempt is reported, too, as ``failed``.
        return [event for event in reported if event.kind != "failed"]

    first.on_error(reported.append)
    async with started(first), started(second), harness.manager() as sender:
        await harness.clock.sleep(harness.timing.rebalance)
        sent = await sender.send(topic, b"x")
        await failing.reach(3, within=harness.timing.within(3, delay=0.3))
        await eventually(given_up, within=harness.timing.within(), what="a call of the error hook")
        await healthy.reach(1, within=harness.timing.within())
        await failing.stay(3, quiet(harness))
        await healthy.stay(1, harness.timing.quiet)
    assert failing.attempts(sent) == [1, 2, 3]
    (event,) = given_up()
    assert (event.topic, event.message.message_id) == (topic.name, sent)
    assert "broken here" in str(event.error)


# --- headers, dead letters ------------------------------------------------------------------------------------

#: Names and values that one broker or client gives a meaning to, cuts or drops.
INTERPRETED = {
    "DELAY": "3",
    "KEYS": "one two",
    "TAGS": "other",
    "UNIQ_KEY": "not-the-id",
    "WAIT": "false",
    "CLUSTER": "c",
    "RETRY_TOPIC": "elsewhere",
    "TIMER_DELAY_SEC": "60",
    "x-death": '[{"count": 3}]',
    "x-delay": "5000",
    "x-first-death-queue": "elsewhere",
    "x-match": "any",
    "CC": "elsewhere",
    "BCC": "elsewhere",
    "content-type": "text/html",
    "empty": "",
    "separators": "a\x01b\x02c",
}


@case
async def test_headers_that_brokers_interpret(harness: Harness) -> None:
    """Headers that mean something to a broker arrive as they were sent and cause nothing, on a second attempt too."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        sent = await manager.send(topic, b"x", headers=INTERPRETED, key="k")
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within(), ack=False)
        assert (delivery.message.headers, delivery.message.key, delivery.message.tag) == (INTERPRETED, "k", None)
        assert delivery.attempt == 1
        await delivery.nack()
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within())
        assert (delivery.message.headers, delivery.message.key, delivery.message.tag) == (INTERPRETED, "k", None)
        assert delivery.attempt == 2
        await receive_nothing(deliveries, harness.timing.quiet)


@case
@requires(Capability.DEAD_LETTER, Capability.BROWSE)
async def test_browse_keeps_order(harness: Harness) -> None:
    """Looking at 3 of 10 dead letters shows the oldest three and changes neither the order nor the number."""
    topic = harness.topic()
    within = harness.timing.within(10)
    async with harness.manager() as manager:
        sent = [await manager.send(topic, b"%d" % number) for number in range(10)]
        async with manager.consume(topic, prefetch=1) as deliveries:
            for _ in sent:
                (delivery,) = await collect(deliveries, 1, within=within, ack=False)
                await delivery.reject("not today")

        async def look(limit: int) -> list[str | None]:
            letters = await manager.admin.dead_letters(topic.name, "g", limit=limit)
            return [letter.message.message_id for letter in letters]

        async def all_there() -> bool:
            return len(await look(100)) == 10

        await eventually(all_there, within=within, what="ten dead letters")
        order = await look(100)
        assert sorted(str(name) for name in order) == sorted(sent)
        for _ in range(3):
            assert await look(3) == order[:3]
        assert await look(100) == order
        async with manager.consume(topic) as deliveries:
            await receive_nothing(deliveries, harness.timing.quiet)
