"""aio-pika, used directly."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime

import aio_pika

from benchmarks.rabbitmq.sides import BODY, Figure, by_tasks, peer_url


def publish(count: int) -> Figure:
    """Publish persistent, confirmed messages on one channel."""

    async def main() -> Figure:
        connection = await aio_pika.connect_robust(peer_url())
        async with connection:
            channel = await connection.channel(publisher_confirms=True)
            await channel.declare_queue("bench.aio-pika", durable=True, arguments={"x-queue-type": "quorum"})
            exchange = channel.default_exchange

            async def send() -> None:
                # What every message of brokerkit says about itself, which all peers but this one add by themselves.
                message = aio_pika.Message(
                    BODY,
                    content_type="application/octet-stream",
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    message_id=uuid.uuid4().hex,
                    timestamp=datetime.now(UTC),
                )
                await exchange.publish(message, "bench.aio-pika")

            return await by_tasks(send, count)

    return asyncio.run(main())
