"""What arrives is what was sent, and what cannot arrive so is refused before it is sent."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from brokerkit.errors import ConfigurationError, MessageTooLarge, PayloadError
from brokerkit.export import ExportTask
from brokerkit.idempotency import MemoryIdempotencyStore
from brokerkit.message import Message
from brokerkit.names import MAX_NAME
from brokerkit.spi import Capability
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.harness import Harness
from brokerkit.testing.interposed import InterposedBackend
from brokerkit.testing.suite._cases import (
    WEIRD_STRINGS,
    case,
    collect,
    needs,
    outbound,
    receive_exactly,
    receive_nothing,
    requires,
    send,
)
from brokerkit.topic import Topic

__all__ = [
    "test_body_is_opaque_bytes",
    "test_export_task_round_trip",
    "test_foreign_message_is_delivered",
    "test_headers_round_trip_hostile_strings",
    "test_illegal_combination_is_refused_before_io",
    "test_invalid_headers_are_refused_before_io",
    "test_message_id_survives_redelivery",
    "test_native_is_the_client_type",
    "test_oversized_body_raises",
    "test_topic_names_round_trip",
    "test_undecodable_task_does_not_stall",
]


@case
async def test_body_is_opaque_bytes(harness: Harness) -> None:
    """Bodies are bytes to the broker: empty, with NUL, invalid UTF-8 or a MiB long, they arrive unchanged."""
    bodies = [b"", b"\x00", b"a\x00b\x00", b"\xff\xfe\x80", bytes(range(256)) * 4096]
    topic = harness.topic(type=bytes)
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        sent = {await manager.send(topic, body): body for body in bodies}
        received = await receive_exactly(deliveries, sent, within=harness.timing.within())
        assert {each.message.message_id: each.message.body for each in received} == sent
        assert sorted(each.payload(bytes) for each in received) == sorted(bodies)


@case
async def test_headers_round_trip_hostile_strings(harness: Harness) -> None:
    """Names and values of headers arrive as they are, whatever a broker's encoding uses as separators."""
    cases: list[dict[str, str]] = [
        {},
        {"empty": ""},
        {f"value-{number}": text for number, text in enumerate(WEIRD_STRINGS)},
        {text: f"name {number}" for number, text in enumerate(WEIRD_STRINGS)},
        {text: text for text in WEIRD_STRINGS},
    ]
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        sent = {await manager.send(topic, b"x", headers=headers): headers for headers in cases}
        received = await receive_exactly(deliveries, sent, within=harness.timing.within())
        for each in received:
            assert dict(each.message.headers) == sent[each.message.message_id]


@case
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"half\ud800": "x"}, id="surrogate in a name"),
        pytest.param({"x": "half\udfff"}, id="surrogate in a value"),
        pytest.param({"x": 1}, id="int value"),
        pytest.param({"x": b"bytes"}, id="bytes value"),
        pytest.param({"x": None}, id="None value"),
        pytest.param({1: "x"}, id="int name"),
        pytest.param({"": "x"}, id="empty name"),
        pytest.param({"bk-attempt": "7"}, id="reserved name"),
        pytest.param({"BK-anything": "7"}, id="reserved name in capitals"),
    ],
)
async def test_invalid_headers_are_refused_before_io(harness: Harness, headers: dict[Any, Any]) -> None:
    """Headers that no broker could carry faithfully raise `PayloadError`, and nothing was asked of the broker."""
    watched = InterposedBackend(harness.backend)
    manager = harness.manager(backend=watched)
    with pytest.raises(PayloadError):
        await manager.send(harness.topic(), b"x", headers=headers)
    assert not watched.calls
    await manager.aclose()


@case
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"ttl": -1.0}, id="negative ttl"),
        pytest.param({"ttl": 0}, id="ttl 0"),
        pytest.param({"delay": -0.5}, id="negative delay"),
        pytest.param({"delay": float("nan")}, id="delay nan"),
        pytest.param({"delay": float("inf")}, id="delay inf"),
        pytest.param({"delay": "5"}, id="delay as text"),
        pytest.param({"delay": 1.0, "due": 4e9}, id="delay and due"),
        pytest.param({"due": datetime(2999, 1, 1)}, id="naive due"),
        pytest.param({"priority": 10}, id="priority 10"),
        pytest.param({"priority": -1}, id="priority -1"),
        pytest.param({"tag": "a||b"}, id="filter as a tag"),
        pytest.param({"key": 7}, id="int key"),
        pytest.param({"message_id": ""}, id="empty id"),
        pytest.param({"correlation_id": "half\ud800"}, id="surrogate in the correlation id"),
        pytest.param({"dealy": 1.0}, id="unknown option"),
        pytest.param({"ordered": True, "key": "k", "delay": 1.0}, id="delay on an ordered topic"),
    ],
)
async def test_illegal_combination_is_refused_before_io(harness: Harness, options: dict[str, Any]) -> None:
    """Options that make no sense, alone or together, raise `PayloadError`, and nothing was asked of the broker."""
    chosen = dict(options)
    topic = harness.topic(ordered=chosen.pop("ordered", False))
    watched = InterposedBackend(harness.backend)
    manager = harness.manager(backend=watched)
    with pytest.raises((PayloadError, TypeError) if "dealy" in chosen else PayloadError):
        await manager.send(topic, b"x", **chosen)
    assert not watched.calls
    await manager.aclose()


@case
async def test_topic_names_round_trip(harness: Harness) -> None:
    """Every legal name works up to the longest, no two are confused, and all others are refused before any I/O."""
    base = harness.name()
    longest = harness.adopt(base.ljust(MAX_NAME - len("g"), "x"))
    pairs = [
        (harness.adopt(f"{base}.b"), "c"),
        (base, "b.c"),
        (harness.adopt(f"{base}.B"), "c"),
        (harness.adopt(f"{base}_b-0"), "A-Z_9.z"),
        (longest, "g"),
    ]
    async with harness.manager() as manager:
        topics: list[Topic[Any]] = [Topic(name, groups=[group]) for name, group in pairs]
        sent = {topic.name: await manager.send(topic, topic.name.encode()) for topic in topics}
        for topic in topics:
            async with manager.consume(topic) as deliveries:
                (delivery,) = await receive_exactly(deliveries, [sent[topic.name]], within=harness.timing.within())
                assert (delivery.message.topic, delivery.message.body) == (topic.name, topic.name.encode())
                await receive_nothing(deliveries, harness.timing.quiet / 5)

    watched = InterposedBackend(harness.backend)
    manager = harness.manager(backend=watched)
    illegal = ["", ".", "a..b", ".a", "a.", "a/b", "a b", "a|b", "a:b", "ü", "a\n", "bk.x", "x" * (MAX_NAME + 1)]
    for name in illegal:
        with pytest.raises(ConfigurationError):
            await manager.send(name, b"x")
        with pytest.raises(ConfigurationError):
            Topic(name)
    for name in illegal:
        with pytest.raises(ConfigurationError):
            Topic("t", groups=[name])
    with pytest.raises(ConfigurationError):
        Topic("t" * (MAX_NAME - 1), groups=["gg"])
    assert not watched.calls
    await manager.aclose()


@case
async def test_export_task_round_trip(harness: Harness) -> None:
    """An export task arrives as an equal export task."""
    topic = harness.topic(type=ExportTask)
    task = ExportTask(
        template_id="invoice",
        data={"number": 7, "lines": [{"text": "中文 €", "price": 1.5}], "none": None, "yes": True},
        output_format="pdf",
        task_id="t-1",
        priority=4,
    )
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        sent = await manager.send(topic, task)
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within())
        assert delivery.payload(ExportTask) == task


@case
async def test_message_id_survives_redelivery(harness: Harness) -> None:
    """A message has one id: on every attempt, after a release, and for the next consumer."""
    topic = harness.topic()
    async with harness.manager() as manager:
        sent = await manager.send(topic, b"x", message_id="chosen-by-the-sender-1")
        assert sent == "chosen-by-the-sender-1"
        async with manager.consume(topic) as deliveries:
            for attempt in (1, 2):
                (delivery,) = await collect(deliveries, 1, within=harness.timing.within(), ack=False)
                assert (delivery.message.message_id, delivery.attempt) == (sent, attempt)
                await delivery.nack()
        async with manager.consume(topic) as deliveries:
            (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within())
            assert delivery.attempt == 3
    name = harness.name("spi")
    async with harness.connection() as connection:
        await harness.declare(connection, name)
        (sent,) = await send(await connection.open_producer(), outbound(name))
        consumer = await harness.consumer(connection, name)
        for _ in range(2):
            (inbound,) = await receive_exactly(consumer, [sent], within=harness.timing.within(), ack=False)
            await consumer.release([inbound])


@case
@needs("inject_foreign")
async def test_foreign_message_is_delivered(harness: Harness) -> None:
    """What others send is delivered as it is, and two that look the same are two, even to an idempotent handler."""
    topic = harness.topic(type=bytes)
    deaths = [{"count": 3, "queue": "q", "reason": "expired"}]
    seen: list[tuple[bytes, str | None]] = []
    async with harness.manager(idempotency=MemoryIdempotencyStore(harness.clock)) as manager:
        async with manager.consume(topic):
            pass  # the topic and its group exist now
        for _ in range(2):
            await harness.inject_foreign(topic.name, b"\x00foreign", {"x-death": deaths, "number": 7, "text": "yes"})

        async with manager.consume(topic) as deliveries:
            first = await collect(deliveries, 2, within=harness.timing.within(), ack=False)
            for each in first:
                assert each.message.body == b"\x00foreign"
                assert all(isinstance(value, str) for value in each.message.headers.values())
                assert each.message.headers["text"] == "yes"
        ids = sorted(str(each.message.message_id) for each in first)

        async def handle(body: bytes, message: Message) -> None:
            seen.append((body, message.message_id))

        manager.add_handler(topic, handle, idempotent=True, retry=harness.retry())
        await manager.start()
        await eventually(lambda: len(seen) >= 2, within=harness.timing.within(), what="both were handled")
        await manager.stop()
    assert [body for body, _ in seen] == [b"\x00foreign"] * 2
    if "None" not in ids:
        # Where the broker gives ids of its own, redelivery keeps them; elsewhere brokerkit gives one when it sends a
        # message again.
        assert sorted(str(name) for _, name in seen) == ids


@case
@requires(Capability.DEAD_LETTER)
@needs("inject_foreign")
async def test_undecodable_task_does_not_stall(harness: Harness) -> None:
    """A body that cannot be decoded becomes a dead letter at once, and the messages behind it are handled."""
    topic = harness.topic(type=int)
    seen: list[int] = []

    async def handle(number: int) -> None:
        seen.append(number)

    async with harness.manager() as manager:
        manager.add_handler(topic, handle, concurrency=1, retry=harness.retry(max_attempts=5))
        await manager.send(topic, 1)
        await harness.inject_foreign(topic.name, b"\xff{ this is no number")
        await manager.send(topic, 2)
        await manager.start()
        await eventually(lambda: sorted(seen) == [1, 2], within=harness.timing.within(), what="both were handled")
        letters = await eventually(
            lambda: manager.admin.dead_letters(topic, "g"), within=harness.timing.within(), what="a dead letter"
        )
        await manager.stop()
    (letter,) = letters
    assert (letter.reason, letter.message.body, letter.attempts) == ("undecodable", b"\xff{ this is no number", 1)


@case
@needs("max_bytes")
async def test_oversized_body_raises(harness: Harness) -> None:
    """A body over the limit raises `MessageTooLarge`, which is not retryable, and the connection goes on working."""
    assert harness.max_bytes is not None
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        with pytest.raises(MessageTooLarge) as raised:
            await manager.send(topic, bytes(harness.max_bytes + 1))
        assert not raised.value.retryable
        sent = await manager.send(topic, b"small")
        await receive_exactly(deliveries, [sent], within=harness.timing.within())


@case
async def test_native_is_the_client_type(harness: Harness) -> None:
    """A delivery gives access to the message of the client library, for what is not portable."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        sent = await manager.send(topic, b"x")
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within())
        native = delivery.native
        assert harness.native_type is None or isinstance(native, harness.native_type)
