"""FastStream as its users have it: an application module that its own command runs."""

from __future__ import annotations

import asyncio

from faststream import FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from benchmarks.rabbitmq.sides import BODY, PREFETCH, Figure, by_tasks, peer_tally, peer_url

# Without its logger: it writes two lines for each message otherwise.
broker = RabbitBroker(peer_url(), logger=None)
app = FastStream(broker, logger=None)
queue = RabbitQueue("bench.faststream", queue_type=QueueType.QUORUM, durable=True)
tally = peer_tally()


@broker.subscriber(queue, channel=Channel(prefetch_count=PREFETCH))
async def handle(body: bytes) -> None:
    tally.note()


def publish(count: int) -> Figure:
    """Publish persistent messages."""

    async def main() -> Figure:
        sender = RabbitBroker(peer_url(), logger=None)
        await sender.connect()
        try:
            await sender.declare_queue(queue)
            return await by_tasks(lambda: sender.publish(BODY, queue, persist=True), count)
        finally:
            await sender.stop()

    return asyncio.run(main())
