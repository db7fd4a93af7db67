"""Resilience: what a restart of the broker, or a dead address, means to producers, consumers and health."""

from __future__ import annotations

import asyncio

from brokerkit.spi import Capability
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import case, eventually, needs, receive_exactly, requires
from brokerkit.testing.suite.traffic import Traffic


@case
@needs("restart")
async def test_health_turns_down_and_up(harness: Harness) -> None:
    """Health is up while the broker answers, down while it is stopped, and up again by itself afterwards."""
    async with harness.manager() as manager:

        async def is_healthy(expected: bool) -> bool:
            health = await manager.monitor.health()
            return bool(health.healthy is expected and (health.status == "up") is expected)

        await eventually(lambda: is_healthy(True), within=harness.timing.within(), what="health up at first")
        async with harness.restart():
            await eventually(lambda: is_healthy(False), within=harness.timing.healed(), what="health down")
        await eventually(lambda: is_healthy(True), within=harness.timing.healed(), what="health up again")


@case
@needs("restart")
async def test_reconnect_producer(harness: Harness) -> None:
    """Sends go on by themselves after a restart; those that failed meanwhile raised a retryable error."""
    topic = harness.topic()
    async with harness.manager(send_timeout=2.0) as manager, Traffic(harness, manager, topic) as traffic:
        await traffic.more(5, harness.timing.within(5))
        async with harness.restart():
            pass
        await traffic.more(5, harness.timing.healed())
    assert all(error.retryable for error in traffic.failed), f"not retryable: {traffic.failed}"
    assert len(set(traffic.confirmed)) == len(traffic.confirmed)


@case
@requires(Capability.DURABLE)
@needs("restart")
async def test_reconnect_consumer(harness: Harness) -> None:
    """An open consumer goes on by itself after a restart and receives everything that was confirmed."""
    topic = harness.topic()
    received: set[str | None] = set()

    async def consume() -> None:
        async with consuming.consume(topic) as deliveries:
            opened.set_result(None)
            async for delivery in deliveries:
                received.add(delivery.message.message_id)
                await delivery.ack()

    async with harness.manager() as consuming, harness.manager(send_timeout=2.0) as sending:
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.get_running_loop().create_task(consume())
        try:
            await opened
            async with Traffic(harness, sending, topic) as traffic:
                await traffic.more(5, harness.timing.within(5))
                async with harness.restart():
                    pass
                await traffic.more(5, harness.timing.healed())
            confirmed = set(traffic.confirmed)
            await eventually(
                lambda: confirmed <= received or task.done(),
                within=harness.timing.healed(),
                what=f"all {len(confirmed)} confirmed messages at the consumer",
            )
            assert confirmed <= received, f"the consumer ended: {task}"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@case
@requires(Capability.DURABLE)
@needs("restart")
async def test_survives_broker_restart(harness: Harness) -> None:
    """Messages whose sends returned are all there after the broker was stopped and started."""
    topic = harness.topic()
    async with harness.manager() as manager:
        outcomes = await manager.send_many(topic, [b"%d" % number for number in range(50)])
        assert [outcome.error for outcome in outcomes] == [None] * 50
        confirmed = [outcome.message_id for outcome in outcomes]
    async with harness.restart():
        pass
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        within = harness.timing.healed() + harness.timing.within(50)
        await receive_exactly(deliveries, confirmed, within=within, duplicates=True)


@case
@needs("failover_url")
async def test_failover_url_list(harness: Harness) -> None:
    """With a dead first address in the URL the second one is used, for sending and for receiving."""
    topic = harness.topic()
    async with harness.manager(harness.failover_url) as manager:
        sent = await manager.send(topic, b"x")
        async with manager.consume(topic) as deliveries:
            await receive_exactly(deliveries, [sent], within=harness.timing.healed())
