"""Optional features: delays, time to live, priority."""

from __future__ import annotations

import random

from brokerkit.settings import TopicSettings
from brokerkit.spi import Capability
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import case, collect, eventually, id_of, receive_exactly, receive_nothing, requires
from brokerkit.testing.suite.seen import late


@case
@requires(Capability.DELAYED_SEND)
async def test_delayed_send(harness: Harness) -> None:
    """A delayed message comes once, not before its delay is over and not much later."""
    topic = harness.topic()
    delay = 1.5
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        start = harness.clock.time()
        sent = await manager.send(topic, b"later", delay=delay)
        end = harness.clock.time()
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within(delay=delay))
        came = harness.clock.time()
        assert came >= start + delay, f"{start + delay - came:.3f} s too early"
        assert came <= end + delay + late(harness), f"{came - end - delay:.3f} s too late"
        assert start + delay <= (delivery.message.due or 0.0) <= end + delay
        await receive_nothing(deliveries, harness.timing.quiet)


@case
@requires(Capability.DELAYED_SEND)
async def test_delays_are_independent(harness: Harness) -> None:
    """A short delay that is sent after a long one ends first, and both end on time."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        start = harness.clock.time()
        long = await manager.send(topic, b"long", delay=5.0)
        short = await manager.send(topic, b"short", delay=1.0)
        sent = harness.clock.time()
        came = await receive_exactly(deliveries, [short, long], within=harness.timing.within(2, delay=5.0))
    assert [id_of(delivery) for delivery in came] == [short, long]
    for delivery, delay in zip(came, (1.0, 5.0), strict=True):
        assert delivery.message.receive_time >= start + delay
        assert delivery.message.receive_time <= sent + delay + late(harness)


@case
async def test_ttl_expires(harness: Harness) -> None:
    """A message comes while its time to live lasts, and not afterwards; it is no dead letter unless that is asked."""
    topic = harness.topic()
    async with harness.manager() as manager:
        fresh = await manager.send(topic, b"fresh", ttl=600.0)
        async with manager.consume(topic) as deliveries:
            await receive_exactly(deliveries, [fresh], within=harness.timing.within())
        await manager.send(topic, b"stale", ttl=0.5)
        kept = await manager.send(topic, b"kept", ttl=600.0)
        await harness.clock.sleep(0.6)
        async with manager.consume(topic) as deliveries:
            await receive_exactly(deliveries, [kept], within=harness.timing.within(2))
            await receive_nothing(deliveries, harness.timing.quiet)
        if Capability.BROWSE in harness.capabilities:
            assert await manager.admin.dead_letters(topic.name, "g") == []
    if Capability.BROWSE in harness.capabilities:
        await _expired_becomes_dead(harness)


async def _expired_becomes_dead(harness: Harness) -> None:
    topic = harness.topic("asked")
    async with harness.manager() as manager:
        manager.configure_topic(topic.name, TopicSettings(expired="dead"))
        sent = await manager.send(topic, b"stale", ttl=0.5)
        await harness.clock.sleep(0.6)
        async with manager.consume(topic) as deliveries:
            await receive_nothing(deliveries, harness.timing.quiet)
        letters = await eventually(
            lambda: manager.admin.dead_letters(topic.name, "g"),
            within=harness.timing.within(),
            what="a dead letter for the expired message",
        )
    assert [(letter.message.message_id, letter.reason) for letter in letters] == [(sent, "expired")]


@case
@requires(Capability.STRICT_PRIORITY)
async def test_priority_order(harness: Harness) -> None:
    """Of messages that wait together, those with a higher priority come first, and equal ones in their order."""
    topic = harness.topic()
    priorities = [*range(10), *range(10)]
    random.Random(7).shuffle(priorities)
    async with harness.manager() as manager:
        for number, priority in enumerate(priorities):
            await manager.send(topic, b"%d" % number, priority=priority)
        async with manager.consume(topic, prefetch=1) as deliveries:
            came = await collect(deliveries, len(priorities), within=harness.timing.within(len(priorities)))
    found = [(delivery.message.priority, int(delivery.message.body)) for delivery in came]
    assert found == sorted(found, key=lambda each: (-each[0], each[1]))
    assert {number: priority for priority, number in found} == dict(enumerate(priorities))
