"""Tags, broadcast, due time, follow-ups, request and reply."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest

from brokerkit.errors import PayloadError, ReplyTimeout
from brokerkit.spi import Capability
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import (
    case,
    eventually,
    id_of,
    needs,
    receive_exactly,
    receive_nothing,
    requires,
)
from brokerkit.testing.suite.seen import late, nothing_is_left, policy, started
from brokerkit.testing.suite.workers import Crew, job_for, work
from brokerkit.topic import Group

# --- tags -----------------------------------------------------------------------------------------------------


@case
@requires(Capability.TAGS)
async def test_tag_filter(harness: Harness) -> None:
    """A group on ``a||b`` gets exactly the messages with these tags; one on ``*`` gets all, untagged ones included."""
    filtered, everything = Group("ab", tag="a||b"), Group("all")
    both = Capability.CONSUMER_GROUPS in harness.capabilities
    topic = harness.topic(groups=[filtered, everything] if both else [filtered])
    async with harness.manager() as manager:
        tags = ["a", "b", "c", "ab", "A"]
        sent = {tag: await manager.send(topic, b"x", tag=tag) for tag in tags}
        untagged = await manager.send(topic, b"x") if both else None
        within = harness.timing.within(6)
        async with manager.consume(topic, group="ab", tag="a||b") as deliveries:
            came = await receive_exactly(deliveries, [sent["a"], sent["b"]], within=within)
            await receive_nothing(deliveries, harness.timing.quiet)
        assert {delivery.message.tag for delivery in came} == {"a", "b"}
        if both:
            async with manager.consume(topic, group="all") as deliveries:
                came = await receive_exactly(deliveries, [*sent.values(), untagged or ""], within=within)
            expected: dict[str | None, str | None] = {name: tag for tag, name in sent.items()}
            expected[untagged] = None
            assert {id_of(delivery): delivery.message.tag for delivery in came} == expected


# --- broadcast ------------------------------------------------------------------------------------------------


@case
@requires(Capability.BROADCAST)
async def test_broadcast_reaches_every_consumer(harness: Harness) -> None:
    """Each of three broadcast consumers gets every message sent while it is connected; competing groups get theirs."""
    topic = harness.topic()
    within = harness.timing.within(10)
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(harness.manager())
        await manager.admin.declare(topic, "g")
        listeners = []
        for _ in range(3):
            listener = await stack.enter_async_context(harness.manager())
            listeners.append(await stack.enter_async_context(listener.consume(topic, group="watch", broadcast=True)))
        # A new listener counts as connected once the broker has spread the word.
        await harness.clock.sleep(harness.timing.rebalance)
        sent = [await manager.send(topic, b"%d" % number) for number in range(10)]
        for deliveries in listeners:
            await receive_exactly(deliveries, sent, within=within)
            await receive_nothing(deliveries, harness.timing.quiet)
        competing = await stack.enter_async_context(manager.consume(topic, group="g"))
        await receive_exactly(competing, sent, within=within)
        await receive_nothing(competing, harness.timing.quiet)


# --- due time -------------------------------------------------------------------------------------------------


@case
@requires(Capability.DELAYED_SEND)
async def test_due_time_in_the_past_is_now(harness: Harness) -> None:
    """A due time that has passed means at once, an aware one is honoured, and a naive one is refused."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        with pytest.raises(PayloadError, match=r"naive|aware|time zone|timezone"):
            await manager.send(topic, b"naive", due=datetime.now())
        now = harness.clock.time()
        past = [
            await manager.send(topic, b"epoch", due=now - 100.0),
            await manager.send(topic, b"aware", due=datetime.fromtimestamp(now, UTC) - timedelta(days=3)),
        ]
        await receive_exactly(deliveries, past, within=harness.timing.within(2))
        assert harness.clock.time() - now < harness.timing.within(2)
        soon = datetime.fromtimestamp(harness.clock.time(), UTC) + timedelta(seconds=1)
        future = await manager.send(topic, b"soon", due=soon)
        (delivery,) = await receive_exactly(deliveries, [future], within=harness.timing.within(delay=1.0))
        assert soon.timestamp() <= delivery.message.receive_time <= soon.timestamp() + late(harness)


@case
@requires(Capability.DELAYED_SEND, Capability.DURABLE)
@needs("restart")
async def test_delay_survives_restart(harness: Harness) -> None:
    """A delayed message that was sent before a restart of the broker comes after it, on time."""
    topic = harness.topic()
    async with harness.manager() as manager:
        delay = 3.0 + harness.timing.reconnect
        sent = await manager.send(topic, b"later", delay=delay)
        due = harness.clock.time() + delay
        async with harness.restart():
            pass
        back = harness.clock.time()
        async with manager.consume(topic) as deliveries:
            (delivery,) = await receive_exactly(
                deliveries, [sent], within=harness.timing.healed() + harness.timing.within(delay=delay)
            )
    came = delivery.message.receive_time
    assert came >= delivery.message.due
    assert came <= max(due, back + harness.timing.healed()) + late(harness)


@case
@requires(Capability.DELAYED_SEND)
async def test_long_and_short_delays_mixed(harness: Harness) -> None:
    """Of 1,000 delays between 0.2 s and 5 s none ends early, none is lost, and all end within the tolerance."""
    topic = harness.topic()
    count, rng = 1000, random.Random(5)
    delays = [0.2 + 4.8 * rng.random() for _ in range(count)]
    early: list[str] = []
    tardy: list[str] = []
    async with harness.manager() as manager, manager.consume(topic, prefetch=200) as deliveries:
        sent = await asyncio.gather(*(manager.send(topic, b"x", delay=delay) for delay in delays))
        within = harness.timing.within(count, delay=5.0)
        came = await receive_exactly(deliveries, sent, within=within)
        await receive_nothing(deliveries, harness.timing.quiet)
    # A thousand messages at once take their time to be handed out, too.
    allowed = late(harness) + count * harness.timing.per_message * harness.timing.factor
    for delivery in came:
        behind = delivery.message.receive_time - delivery.message.due
        if behind < 0:
            early.append(f"{behind:.3f}")
        if behind > allowed:
            tardy.append(f"{behind:.3f}")
    assert not early, f"{len(early)} came early: {early[:10]}"
    assert not tardy, f"{len(tardy)} came more than {allowed:.1f} s late: {tardy[:10]}"
    # In order of due time, within the tolerance: nobody is overtaken by one that was due much later.
    latest = 0.0
    for delivery in came:
        assert delivery.message.due >= latest - allowed, "a message was overtaken by one that was due much later"
        latest = max(latest, delivery.message.due)


# --- follow-ups -----------------------------------------------------------------------------------------------


@case
@requires(Capability.MULTIPROCESS)
async def test_follow_up_is_sent_before_ack(harness: Harness) -> None:
    """A worker that dies between follow-up and acknowledgement may double the follow-up, but never loses it."""
    topic, following = harness.topic(), harness.topic("following")
    count = 10
    within = harness.timing.within(2 * count)
    async with harness.manager() as manager, Crew() as crew, manager.consume(following) as deliveries:
        sent = [await manager.send(topic, b"%d" % number, headers={"n": str(number)}) for number in range(count)]
        parents: list[str | None] = []

        async def follow(what: str) -> None:
            """Take follow-ups until there is one of each message."""
            del parents[:]

            async def complete() -> bool:
                delivery = await deliveries.receive(0.1)
                if delivery is not None:
                    parents.append(delivery.message.parent_id)
                    await delivery.ack()
                return set(parents) >= set(sent)

            await eventually(complete, within=within, what=f"a follow-up of each message {what}")
            assert set(parents) == set(sent)

        first = crew.start(work, job_for(harness, topic, follow_up=following.name, unacknowledged=True))
        await follow("although no acknowledgement reached the broker")
        first.kill()
        second = crew.start(work, job_for(harness, topic, follow_up=following.name))
        await follow("from the worker that got the messages again")
        assert await second.stop() == 0, second.output
    await nothing_is_left(harness, topic)


# --- request and reply ----------------------------------------------------------------------------------------


@case
@requires(Capability.INBOX)
async def test_request_reply_concurrent(harness: Harness) -> None:
    """50 requests at once take the time of one, each gets its own answer, and a late answer disturbs nobody."""
    topic = harness.topic()
    count, pause = 50, 0.5
    within = harness.timing.within(count)
    server, client = harness.manager(), harness.manager()

    @server.handler(topic, concurrency=count, prefetch=2 * count, retry=policy(harness))
    async def double(number: int) -> int:
        await harness.clock.sleep(1.0 if number < 0 else pause)
        return 2 * number

    async with started(server), client:
        # The first one opens the inbox, and on some brokers it waits for the rebalance.
        assert await client.request(topic, 0, reply=int, timeout=within) == 0
        begun = harness.clock.monotonic()
        answers = await asyncio.gather(
            *(client.request(topic, number, reply=int, timeout=within) for number in range(count))
        )
        elapsed = harness.clock.monotonic() - begun
        assert answers == [2 * number for number in range(count)]
        assert elapsed < count * pause / 2, f"{count} requests took {elapsed:.1f} s: one after the other"
        with pytest.raises(ReplyTimeout):
            await client.request(topic, -7, reply=int, timeout=0.2)
        for number in range(3):
            assert await client.request(topic, number, reply=int, timeout=within) == 2 * number
    await nothing_is_left(harness, topic)
