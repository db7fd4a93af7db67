"""What goes wrong is one of brokerkit's errors, says so before any I/O where it can, and keeps its cause."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from brokerkit.errors import (
    BrokerError,
    CapabilityNotSupported,
    Closed,
    ConfigurationError,
    DecodeError,
    PayloadError,
    SendRefused,
    SendTimeout,
    TopicNotFound,
)
from brokerkit.spi import (
    AtomicSettle,
    Backend,
    Browse,
    Capability,
    Connection,
    ConsumerDriver,
    DeadLetters,
    InboxDriver,
    Inboxes,
    Lease,
    Manage,
    ProducerDriver,
    Purge,
    StartMarks,
    Stats,
    ToTopic,
)
from brokerkit.testing.harness import Harness
from brokerkit.testing.interposed import InterposedBackend
from brokerkit.testing.suite._cases import case, needs, receive_exactly, requires, undeclared
from brokerkit.topic import Group, Topic

__all__ = [
    "test_declared_capability_has_its_methods",
    "test_error_map_is_total",
    "test_every_error_is_a_brokerkit_error",
    "test_receive_from_missing_topic_raises",
    "test_refused_send_is_an_error",
    "test_send_to_missing_topic_raises",
    "test_undeclared_capability_refuses",
    "test_unknown_figures_are_none",
]


@case
@requires(Capability.STRICT_TOPICS)
async def test_send_to_missing_topic_raises(harness: Harness) -> None:
    """Where nothing is declared, a send to a topic that does not exist raises `TopicNotFound`."""
    name = harness.name()
    async with harness.manager(topics={name: {"declare": "never"}}) as manager:
        with pytest.raises(TopicNotFound) as raised:
            await manager.send(name, b"x")
        assert name in str(raised.value)
        assert not raised.value.retryable


@case
@requires(Capability.STRICT_TOPICS)
async def test_receive_from_missing_topic_raises(harness: Harness) -> None:
    """Where nothing is declared, consuming a topic that does not exist raises `TopicNotFound` instead of waiting."""
    name = harness.name()
    async with harness.manager(topics={name: {"declare": "never"}}) as manager:
        with pytest.raises(TopicNotFound) as raised:
            async with manager.consume(name, group="g") as deliveries:
                await deliveries.receive(harness.timing.deadline)
        assert name in str(raised.value)


@case
@needs("refuse_sends")
async def test_refused_send_is_an_error(harness: Harness) -> None:
    """A broker's "no" to a send is a `SendRefused`, alone or in a batch, and nothing of it arrives."""
    topic = harness.topic()
    async with (
        harness.manager() as manager,
        harness.manager(send_timeout=3.0) as hasty,
        manager.consume(topic) as deliveries,
    ):
        before = await manager.send(topic, b"before")
        await hasty.connect()
        async with harness.refuse_sends(ToTopic(topic.name)):
            alone, batch = await asyncio.gather(
                hasty.send(topic, b"refused"),
                hasty.send_many(topic, [b"refused", b"refused"]),
                return_exceptions=True,
            )
        assert isinstance(batch, list), batch
        for error in (alone, *(outcome.error for outcome in batch)):
            assert topic.name in str(error)
            # A refusal may pass, so it is tried again; a last try that the end of the time cuts short may be stored.
            refusal = error.__cause__ if isinstance(error, SendTimeout) else error
            assert isinstance(refusal, SendRefused), repr(error)
        after = await manager.send(topic, b"after")
        await receive_exactly(deliveries, [before, after], within=harness.timing.within())


@case
async def test_every_error_is_a_brokerkit_error(harness: Harness) -> None:
    """Whatever is done wrong raises a `BrokerError` that knows whether it is retryable, where, and why."""
    topic: Topic[Any] = harness.topic(type=int)
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        sent = await manager.send(topic, b"no number")
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within())
        with pytest.raises(DecodeError) as undecodable:
            delivery.payload(int)
        assert undecodable.value.__cause__ is not None
        with pytest.raises(PayloadError) as unencodable:
            await manager.send(topic, object())
        assert unencodable.value.__cause__ is not None
        with pytest.raises(PayloadError) as illegal:
            await manager.send(topic, 1, priority=99)
        with pytest.raises(ConfigurationError) as misnamed:
            await manager.send("no/such name", 1)
        with pytest.raises(ConfigurationError) as groupless:
            async with manager.consume(topic, group="not/legal"):
                pass
    with pytest.raises(Closed) as closed:
        await manager.send(topic, 1)
    for raised in (undecodable, unencodable, illegal, misnamed, groupless, closed):
        error = raised.value
        assert isinstance(error, BrokerError)
        assert error.retryable is False
        assert str(error).strip()
    for raised in (unencodable, illegal):
        assert topic.name in str(raised.value), f"the text does not name the topic: {raised.value}"
    assert "no/such name" in str(misnamed.value)
    assert "not/legal" in str(groupless.value)


@case
async def test_error_map_is_total(harness: Harness) -> None:
    """Each exception of the client library becomes one of brokerkit's errors, and no foreign one does."""
    for error in harness.client_errors:
        mapped = harness.backend.map_error(error)
        assert isinstance(mapped, BrokerError), f"{type(error).__name__} is mapped to {mapped!r}"
        assert isinstance(mapped.retryable, bool)
        assert type(mapped) is not BrokerError, f"{type(error).__name__} says no more than that something failed"
    for foreign in (KeyError("x"), ZeroDivisionError(), AssertionError("x")):
        assert harness.backend.map_error(foreign) is None


# --- capabilities -----------------------------------------------------------------------------------------------

Attempt = Callable[[Any, Topic[Any], Harness], Awaitable[object]]


async def _consume(manager: Any, topic: Topic[Any], **options: Any) -> None:
    async with manager.consume(topic, **options):
        pass


async def _handle(manager: Any, topic: Topic[Any], **options: Any) -> None:
    async def handler(body: bytes) -> None:
        pass

    manager.add_handler(topic, handler, **options)
    try:
        await manager.start()
    finally:
        await manager.stop(timeout=0.1)


#: What a user does to ask for a capability.  Those that are no behaviour one can ask for are not listed: DURABLE,
#: MULTIPROCESS, SELECTIVE_ACK, REDELIVERED, ORDERED_BY_KEY, STRICT_PRIORITY, ATOMIC_SETTLE, START_MARKS, LEASE and
#: STRICT_TOPICS; and STATS, without which the monitor answers "unknown" (`test_unknown_figures_are_none`).
_ASKED: dict[Capability, list[Attempt]] = {
    Capability.CONSUMER_GROUPS: [lambda m, t, h: m.send(Topic(t.name, groups=["g", "second"]), b"x")],
    Capability.TAGS: [
        lambda m, t, h: m.send(Topic(h.name("tagged"), groups=[Group("g", tag="a||b")]), b"x"),
        lambda m, t, h: _consume(m, h.topic("consumed", groups=[]), group="g", tag="a"),
        lambda m, t, h: _handle(m, h.topic("handled", groups=[]), group="g", tag="a", retry=h.retry()),
    ],
    Capability.DELAYED_SEND: [
        lambda m, t, h: m.send(t, b"x", delay=3600.0),
        lambda m, t, h: m.send(t, b"x", due=h.clock.time() + 3600.0),
    ],
    Capability.DEAD_LETTER: [
        lambda m, t, h: _handle(m, t),
        lambda m, t, h: m.admin.dead_letters(t, "g"),
        lambda m, t, h: m.admin.redrive(t, "g"),
        lambda m, t, h: m.admin.discard(t, "g"),
    ],
    Capability.BROADCAST: [
        lambda m, t, h: _consume(m, t, broadcast=True),
        lambda m, t, h: _handle(m, t, broadcast=True, retry=h.retry()),
    ],
    Capability.INBOX: [lambda m, t, h: m.request(t, b"x", reply=bytes, timeout=1.0)],
    Capability.BROWSE: [lambda m, t, h: m.admin.dead_letters(t, "g")],
    Capability.ORDERED: [
        lambda m, t, h: m.send(Topic(h.name("ordered"), groups=["g"], ordered=True), b"x"),
        lambda m, t, h: m.send(Topic(h.name("group"), groups=[Group("g", ordered=True)]), b"x"),
        lambda m, t, h: _consume(m, h.topic("consumed"), ordered=True),
        lambda m, t, h: _handle(m, h.topic("handled"), ordered=True, retry=h.retry()),
    ],
    Capability.FROM_START: [lambda m, t, h: m.send(Topic(h.name(), groups=[Group("g", start="earliest")]), b"x")],
    Capability.MANAGE: [
        lambda m, t, h: m.admin.declare(t, "g"),
        lambda m, t, h: m.admin.verify(t, "g"),
        lambda m, t, h: m.admin.delete(t, "g"),
    ],
    Capability.PURGE: [lambda m, t, h: m.admin.purge(t, "g")],
}


@pytest.mark.parametrize("capability", [pytest.param(each, id=each.value) for each in _ASKED])
@case
async def test_undeclared_capability_refuses(harness: Harness, capability: Capability) -> None:
    """What the broker does not declare is refused with `CapabilityNotSupported` that names it, before any I/O."""
    if capability in harness.capabilities:
        pytest.skip(f"{harness.backend.name} declares {capability.value}")
    for attempt in _ASKED[capability]:
        watched = InterposedBackend(harness.backend)
        topic = harness.topic()
        async with harness.manager(backend=watched) as manager:
            await manager.connect()
            watched.calls.clear()
            with pytest.raises(CapabilityNotSupported) as raised:
                await attempt(manager, topic, harness)
            assert capability.value.replace("-", " ") in str(raised.value).replace("-", " ")
            assert not raised.value.retryable
            # Opening a producer is no I/O of the refused thing; declaring, sending or receiving would be.
            assert not set(watched.calls) - {"open_producer", "ping"}, f"asked the broker first: {watched.calls}"


@case
@undeclared(Capability.STATS)
async def test_unknown_figures_are_none(harness: Harness) -> None:
    """Where the broker tells no figures the monitor says that they are unknown, and never makes one up."""
    topic = harness.topic()
    async with harness.manager() as manager:
        await manager.send(topic, b"x")
        status = (await manager.monitor.queue_status(topic, "g")).stats
        assert (status.ready, status.unsettled, status.delayed, status.dead) == (None, None, None, None)
        lag = await manager.monitor.lag(topic, "g")
        assert (lag.ready, lag.delayed, lag.oldest_age) == (None, None, None)


@case
async def test_declared_capability_has_its_methods(harness: Harness) -> None:
    """Every capability that is declared has its methods, on the object that the SPI says."""
    topic = harness.name()
    assert isinstance(harness.backend, Backend)
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        declared = connection.capabilities(topic)
        producer = await connection.open_producer()
        consumer = await harness.consumer(connection, topic)
        assert isinstance(connection, Connection)
        assert isinstance(producer, ProducerDriver)
        assert isinstance(consumer, ConsumerDriver)
        assert declared <= harness.backend.capabilities, "the backend's upper bound does not bound its connections"
        on_connection: dict[Capability, Any] = {
            Capability.INBOX: Inboxes,
            Capability.MANAGE: Manage,
            Capability.PURGE: Purge,
            Capability.STATS: Stats,
            Capability.BROWSE: Browse,
            Capability.DEAD_LETTER: DeadLetters,
        }
        on_consumer: dict[Capability, Any] = {
            Capability.LEASE: Lease,
            Capability.ATOMIC_SETTLE: AtomicSettle,
            Capability.START_MARKS: StartMarks,
        }
        for place, protocols in ((connection, on_connection), (consumer, on_consumer)):
            for capability, protocol in protocols.items():
                if capability in declared:
                    assert isinstance(place, protocol), f"{capability.value} is declared without its methods"
        if Capability.INBOX in declared and isinstance(connection, Inboxes):
            inbox = await connection.open_inbox()
            assert isinstance(inbox, InboxDriver)
            assert inbox.address
            await inbox.aclose()
