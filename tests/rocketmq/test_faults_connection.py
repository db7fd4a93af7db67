"""Faults of links: cut in the middle of a request or of an answer, reset, silent, slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from brokerkit.errors import BrokerUnavailable, SendTimeout
from brokerkit.spi import ConsumerOptions
from brokerkit.testing.deadlines import eventually, within
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.rocketmq_proxies import RocketMQProxies
from brokerkit.testing.services.rocketmq import RocketMQControl
from tests.rocketmq.scene import (
    GROUP,
    a_topic,
    connected,
    made,
    manager_on,
    outbound,
    send,
    take,
)
from tests.traffic import CLOCK, LONG, Traffic, balanced, working

#: Seconds within which new messages flow again on a silent link, with default settings.
RESUMED = 20.0
#: More for a machine that is busy with other tests.
BUSY = 20.0

BODY = b"x" * 500


@pytest.fixture
def proxies(rocketmq_old: RocketMQControl) -> Iterator[RocketMQProxies]:
    with RocketMQProxies(rocketmq_old.address) as proxies:
        yield proxies


# --- a send ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["in the length", "after the length", "in the header", "before the body", "in the body", "before the end"]
)
async def test_a_cut_within_a_send_leaves_an_unknown_outcome_and_the_next_send_works(
    rocketmq_old: RocketMQControl, proxies: RocketMQProxies, place: str
) -> None:
    topic, ledger = a_topic(), Ledger(place)
    (proxy,) = proxies.brokers
    async with connected(proxies.url, topic) as connection, connected(rocketmq_old.url, topic) as reader:
        producer = await connection.open_producer()
        sizes = []
        for _ in range(3):
            before = proxy.counters.received_up
            assert await producer.send([outbound(topic, BODY)]) == [None]
            sizes.append(proxy.counters.received_up - before)
        # A heartbeat may have been among them; the number of a request gets longer now and then.
        whole = min(sizes)
        offset = {
            "in the length": 2,
            "after the length": 4,
            "in the header": 40,
            "before the body": whole - len(BODY),
            "in the body": whole - 100,
            "before the end": whole - 1,
        }[place]
        proxy.cut_at(offset, "up", on="current")
        (cut,) = made(topic, ledger, 1, BODY)
        (outcome,) = await within(LONG, producer.send([cut]), "the outcome of the message that was cut")
        assert isinstance(outcome, SendTimeout), outcome
        assert outcome.retryable
        # What the core does then: the same id again.
        assert await within(LONG, producer.send([cut]), "the next send") == [None]
        ledger.confirmed(cut.message_id)
        consumer = await reader.open_consumer(ConsumerOptions(topic=topic.name, group=GROUP))
        received = await take(consumer, 4)
        await consumer.ack(received)
        assert await consumer.receive(10, 0.3) == (), "a part of a message was stored"
        for message in received:
            if message.message_id == cut.message_id:
                ledger.handled(message.message_id)
    await balanced(ledger, doubled=0)


async def test_a_send_whose_answer_was_lost_is_sent_again_with_its_id_and_resolves_once(
    rocketmq_old: RocketMQControl, proxies: RocketMQProxies
) -> None:
    """The broker has stored the message when the link breaks."""
    topic, ledger = a_topic(), Ledger()
    (proxy,) = proxies.brokers
    async with manager_on(proxies.url) as sender, manager_on(rocketmq_old.url) as other:
        await sender.send(topic, b"first", message_id="first")
        ledger.confirmed("first")

        async def stored() -> bool:
            return (await other.monitor.stats(topic, GROUP)).ready == 2

        proxy.swallow("down")
        ledger.sent("lost")
        sending = asyncio.create_task(sender.send(topic, b"second", message_id="lost"))
        await eventually(stored, LONG, "the stored message")
        proxy.swallow(None)
        proxy.reset()
        assert await within(LONG, sending, "the send on the new link") == "lost"
        ledger.confirmed("lost")
    async with working(manager_on(rocketmq_old.url), ledger, topic):
        await eventually(lambda: ledger.doubled == {"lost": 2}, LONG, "the counted duplicate")
        await balanced(ledger, doubled=1)


# --- a pull ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [3, 50, 500, 2000, 5000])
async def test_a_cut_within_the_answer_to_a_pull_loses_nothing_and_repeats_only_what_was_in_hand(
    rocketmq_old: RocketMQControl, proxies: RocketMQProxies, offset: int, record_property: Callable[[str, object], None]
) -> None:
    """The offsets are in the length, in the header, in the first message and behind it."""
    topic, ledger = a_topic(), Ledger(f"cut at {offset}")
    (proxy,) = proxies.brokers
    async with connected(rocketmq_old.url, topic) as sender, connected(proxies.url, topic) as connection:
        consumer = await connection.open_consumer(ConsumerOptions(topic=topic.name, group=GROUP, prefetch=100))
        assert await send(sender, made(topic, ledger, 1), ledger) == [None]
        (first,) = await take(consumer, 1)
        await consumer.ack([first])
        ledger.handled(first.message_id or "")
        connections = proxy.counters.connections
        proxy.cut_at(offset, "down", on="current")
        assert await send(sender, made(topic, ledger, 20, BODY), ledger) == [None] * 20
        await eventually(lambda: proxy.counters.connections > connections, LONG, "a new connection after the cut")
        while received := await consumer.receive(100, LONG if ledger.lost else 0.3):
            await consumer.ack(received)
            for message in received:
                ledger.handled(message.message_id or "")
        record_property("doubled", await balanced(ledger, doubled=consumer.stale))


# --- links under load -----------------------------------------------------------------------------------------


async def test_resets_under_load_lose_nothing(
    proxies: RocketMQProxies, record_property: Callable[[str, object], None]
) -> None:
    topic, ledger, resets = a_topic(), Ledger(), 6
    async with (
        working(manager_on(proxies.url), ledger, topic, concurrency=10, prefetch=20),
        manager_on(proxies.url) as sender,
        Traffic(sender, ledger, topic, pause=0.001, at_once=4) as traffic,
    ):
        for _ in range(resets):
            await traffic.more(40)
            proxies.reset()
        await traffic.more(40)
        await traffic.stop()
        assert not traffic.failed
        # Each reset may double the sends under way and what is in hand.
        doubled = await balanced(ledger, doubled=resets * 24)
    record_property("doubled", doubled)


async def test_cuts_anywhere_under_load_lose_nothing(
    proxies: RocketMQProxies, record_property: Callable[[str, object], None]
) -> None:
    topic, ledger, cuts = a_topic(), Ledger(), (1, 37, 200, 999, 2048, 4321)
    async with (
        working(manager_on(proxies.url), ledger, topic, concurrency=10, prefetch=20),
        manager_on(proxies.url) as sender,
        Traffic(sender, ledger, topic, pause=0.001, at_once=4) as traffic,
    ):
        for offset in cuts:
            await traffic.more(40)
            for proxy in proxies.all:
                proxy.cut_at(offset, on="current")
        await traffic.more(40)
        await traffic.stop()
        assert not traffic.failed
        # Two links to the broker, one for sending and one for consuming, are cut at different times.
        doubled = await balanced(ledger, doubled=2 * len(cuts) * 24)
    record_property("doubled", doubled)


async def test_links_that_fall_silent_are_replaced_within_20_s_for_publishing_and_consuming(
    rocketmq_old: RocketMQControl, proxies: RocketMQProxies, record_property: Callable[[str, object], None]
) -> None:
    """Half-open, with default settings: no FIN, no RST, and new connections work."""
    topic, ledger = a_topic(), Ledger()
    async with (
        working(manager_on(proxies.url), ledger, topic),
        manager_on(proxies.url) as sender,
        manager_on(rocketmq_old.url) as bystander,
        Traffic(sender, ledger, topic) as traffic,
    ):
        await bystander.connect()
        await traffic.more(5)
        await balanced(ledger, doubled=0)
        began = CLOCK.monotonic()
        proxies.freeze(existing_only=True)
        confirmed = len(ledger.confirmed_ids)
        # The consumer has a link that works only when it has made a new one: this sender is not frozen.
        await bystander.send(topic, b"to the frozen consumer", message_id="probe")
        ledger.confirmed("probe")
        times: dict[str, float] = {}

        async def publishing() -> None:
            await eventually(lambda: len(ledger.confirmed_ids) >= confirmed + 4, RESUMED + BUSY, "publishing")
            times["publishing"] = CLOCK.monotonic() - began

        async def consuming() -> None:
            await eventually(lambda: "probe" in ledger.handled_ids, RESUMED + BUSY, "consuming")
            times["consuming"] = CLOCK.monotonic() - began

        await asyncio.gather(publishing(), consuming())
        for what, seconds in times.items():
            record_property(f"{what} resumed", seconds)
        proxies.thaw()
        await traffic.stop()
        assert not traffic.failed
        record_property("doubled", await balanced(ledger, doubled=10))
    assert max(times.values()) <= RESUMED, times


async def test_a_ping_on_a_silent_link_returns_in_its_own_time(proxies: RocketMQProxies) -> None:
    async with connected(proxies.url, a_topic()) as connection:
        await connection.ping(LONG)
        proxies.freeze()
        began = CLOCK.monotonic()
        with pytest.raises(BrokerUnavailable):
            await connection.ping(0.5)
        assert CLOCK.monotonic() - began < 10.0
        proxies.thaw()
        await connection.ping(LONG)


async def test_links_that_carry_a_few_bytes_at_a_time_and_late_lose_and_double_nothing(
    proxies: RocketMQProxies, record_property: Callable[[str, object], None]
) -> None:
    topic, ledger = a_topic(), Ledger()
    async with (
        working(manager_on(proxies.url, attempt_timeout=30.0), ledger, topic),
        manager_on(proxies.url, attempt_timeout=30.0) as sender,
        Traffic(sender, ledger, topic, at_once=4) as traffic,
    ):
        await traffic.more(5)
        for proxy in proxies.all:
            proxy.delay(0.2, jitter=0.2)
            proxy.slice(100)
        await traffic.more(20)
        await traffic.stop()
        assert not traffic.failed
        record_property("doubled", await balanced(ledger, doubled=0))
