"""Opening and closing."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from typing import Any

import pytest

from brokerkit.errors import AccessRefused, BrokerUnavailable, Closed
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.harness import Harness
from brokerkit.testing.interposed import InterposedBackend
from brokerkit.testing.suite._cases import case, collect, needs, outbound, receive_exactly, receive_nothing, send

__all__ = [
    "test_backend_imports_without_client",
    "test_close_before_use",
    "test_close_gives_back_prefetched",
    "test_close_is_idempotent",
    "test_close_wakes_pending_receive",
    "test_close_while_handler_runs",
    "test_concurrent_close",
    "test_connect_and_ping",
    "test_no_task_or_socket_leak",
    "test_receive_after_close_raises",
    "test_send_after_close_raises",
    "test_unreachable_broker_raises_in_time",
    "test_wrong_credentials_are_not_retryable",
]


@case
async def test_connect_and_ping(harness: Harness) -> None:
    """A connection can be made, answers a ping, and closes; so does a manager."""
    async with harness.connection() as connection:
        await connection.ping(harness.timing.within())
    manager = harness.manager()
    await manager.connect()
    assert manager.backend_name == harness.backend.name
    await manager.aclose()


@case
@needs("unreachable_url")
async def test_unreachable_broker_raises_in_time(harness: Harness) -> None:
    """Where nothing answers, `BrokerUnavailable` comes within the timeout instead of a hang."""
    timeout = 2.0
    began = harness.clock.monotonic()
    with pytest.raises(BrokerUnavailable) as raised:
        async with harness.connection(url=harness.unreachable_url, attempt_timeout=timeout):
            pass
    assert harness.clock.monotonic() - began < timeout + harness.timing.deadline
    assert raised.value.retryable


@case
@needs("bad_url")
async def test_wrong_credentials_are_not_retryable(harness: Harness) -> None:
    """Wrong credentials raise `AccessRefused`, which says that trying again is of no use."""
    with pytest.raises(AccessRefused) as raised:
        async with harness.manager(harness.bad_url):
            pass
    assert not raised.value.retryable


@case
async def test_close_is_idempotent(harness: Harness) -> None:
    """Closing twice is the same as closing once, for connections, producers, consumers and managers."""
    topic = harness.name()
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        producer = await connection.open_producer()
        consumer = await harness.consumer(connection, topic)
        for each in (producer, consumer, connection):
            await each.aclose()
            await each.aclose()
        await producer.aclose()
        await consumer.aclose()
    manager = harness.manager()
    await manager.connect()
    await manager.aclose()
    await manager.aclose()


@case
async def test_close_before_use(harness: Harness) -> None:
    """What was opened and never used closes without a trace, and a manager that did nothing made no connection."""
    watched = InterposedBackend(harness.backend)
    manager = harness.manager(backend=watched)
    await manager.aclose()
    assert not watched.calls
    topic = harness.name()
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        consumer = await harness.consumer(connection, topic)
        await consumer.aclose()
        producer = await connection.open_producer()
        await producer.aclose()


@case
async def test_send_after_close_raises(harness: Harness) -> None:
    """A send on something closed raises `Closed` and stores nothing."""
    topic = harness.topic()
    async with harness.manager() as reader, reader.consume(topic) as deliveries:
        watched = InterposedBackend(harness.backend)
        manager = harness.manager(backend=watched)
        kept = await manager.send(topic, b"before")
        await manager.aclose()
        watched.calls.clear()
        with pytest.raises(Closed):
            await manager.send(topic, b"after")
        assert not watched.calls["send"]
        async with harness.connection() as connection:
            producer = await connection.open_producer()
            await producer.aclose()
            with pytest.raises(Closed):
                await producer.send([outbound(topic.name)])
        await receive_exactly(deliveries, [kept], within=harness.timing.within())
        await receive_nothing(deliveries, harness.timing.quiet)


@case
async def test_receive_after_close_raises(harness: Harness) -> None:
    """A receive on something closed raises `Closed`."""
    topic = harness.topic()
    async with harness.manager() as manager:
        async with manager.consume(topic) as deliveries:
            pass
        with pytest.raises(Closed):
            await deliveries.receive(1.0)
    name = harness.name("spi")
    async with harness.connection() as connection:
        await harness.declare(connection, name)
        consumer = await harness.consumer(connection, name)
        await consumer.aclose()
        with pytest.raises(Closed):
            await consumer.receive(1, 1.0)


@case
async def test_close_wakes_pending_receive(harness: Harness) -> None:
    """A receive that waits ends promptly with `Closed` when the consumer, or its connection, is closed."""
    topic = harness.name()
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        for closes in ("consumer", "connection"):
            consumer = await harness.consumer(connection, topic)
            # Far longer than the case may take: only the close can end it.
            pending = asyncio.create_task(consumer.receive(1, 3600.0))
            assert not (await asyncio.wait([pending], timeout=0.1))[0]
            await (consumer if closes == "consumer" else connection).aclose()
            done, _ = await asyncio.wait([pending], timeout=harness.timing.deadline)
            pending.cancel()
            assert done, f"receive still waits after the {closes} was closed"
            assert isinstance(pending.exception(), Closed)


@case
async def test_close_while_handler_runs(harness: Harness) -> None:
    """A close does not wait for ever for a handler, and the message it held comes to another consumer."""
    topic = harness.topic()
    started = asyncio.Event()

    async def never_ends(body: bytes) -> None:
        started.set()
        await asyncio.Event().wait()

    manager = harness.manager()
    manager.add_handler(topic, never_ends, retry=harness.retry())
    sent = await manager.send(topic, b"held")
    await manager.start()
    await eventually(started.is_set, within=harness.timing.within(), what="the handler started")
    await manager.stop(timeout=0.2)
    await manager.aclose()
    async with harness.manager() as other, other.consume(topic) as deliveries:
        await receive_exactly(deliveries, [sent], within=harness.timing.within())


@case
async def test_close_gives_back_prefetched(harness: Harness) -> None:
    """Messages that were fetched and not settled are delivered to the next consumer, those not even seen included."""
    topic = harness.topic()
    async with harness.manager() as manager:
        outcomes = await manager.send_many(topic, [b"%d" % n for n in range(10)])
        ids = [outcome.message_id for outcome in outcomes]
        async with manager.consume(topic, prefetch=10) as deliveries:
            await collect(deliveries, 1, within=harness.timing.within(), ack=False)
        async with manager.consume(topic, prefetch=10) as deliveries:
            await receive_exactly(deliveries, ids, within=harness.timing.within(10))


@case
async def test_concurrent_close(harness: Harness) -> None:
    """Ten consumers that close at once, each with unsettled messages, lose nothing."""
    topic = harness.name()
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        producer = await connection.open_producer()
        ids = await send(producer, *(outbound(topic) for _ in range(40)))
        consumers = [await harness.consumer(connection, topic, prefetch=4) for _ in range(10)]
        await asyncio.gather(*(consumer.receive(2, harness.timing.quiet) for consumer in consumers))
        await asyncio.gather(*(consumer.aclose() for consumer in consumers))
        last = await harness.consumer(connection, topic)
        await receive_exactly(last, ids, within=harness.timing.within(40), duplicates=True)


@case
async def test_no_task_or_socket_leak(harness: Harness) -> None:
    """After everything was closed no task is pending, and nothing that should have been closed is collected."""
    topic = harness.topic()
    before = asyncio.all_tasks()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        async with harness.manager() as manager:
            sent = await manager.send(topic, b"x")
            async with manager.consume(topic) as deliveries:
                await receive_exactly(deliveries, [sent], within=harness.timing.within())
                await deliveries.receive(0.01)
        del manager, deliveries
        await eventually(lambda: asyncio.all_tasks() <= before, within=harness.timing.deadline, what="no task is left")
        gc.collect()
    leaks = [str(each.message) for each in caught if issubclass(each.category, ResourceWarning)]
    assert not leaks, f"left open: {leaks}"


_IMPORT_WITHOUT_CLIENT = """
import asyncio, importlib, sys
module, name, url, *missing = sys.argv[1:]
for each in missing:
    sys.modules[each] = None
backend_class = getattr(importlib.import_module(module), name)
if missing:
    from brokerkit.errors import ConfigurationError
    from brokerkit.spi import ConnectOptions
    try:
        asyncio.run(backend_class().connect(ConnectOptions(url=url)))
    except ConfigurationError as error:
        assert "pip install" in str(error), f"the text does not say what to install: {error}"
    else:
        sys.exit("connect raised nothing")
"""


@case
async def test_backend_imports_without_client(harness: Harness) -> None:
    """The backend imports where its client library is missing, and `connect` then says what to install."""
    kind: type[Any] = type(harness.backend)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _IMPORT_WITHOUT_CLIENT, kind.__module__, kind.__qualname__, harness.url or ""),
        *harness.client_modules,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
