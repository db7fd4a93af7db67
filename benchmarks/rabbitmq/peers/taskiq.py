"""Taskiq as its users have it: a broker module that its own command runs."""

from __future__ import annotations

import asyncio

from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

from benchmarks.rabbitmq.sides import BODY, PREFETCH, Figure, by_tasks, peer_tally, peer_url

tally = peer_tally()


def _broker() -> AioPikaBroker:
    return AioPikaBroker(peer_url(), qos=PREFETCH).with_queue(Queue(name="bench.taskiq", type=QueueType.QUORUM))


broker = _broker()


@broker.task(task_name="bench")
async def handle(body: str) -> None:
    tally.note()


def publish(count: int) -> Figure:
    """Kick tasks."""
    text = BODY.decode()

    async def main() -> Figure:
        sender = _broker()
        task = sender.register_task(handle.original_func, task_name="bench")
        await sender.startup()
        try:
            return await by_tasks(lambda: task.kiq(text), count)
        finally:
            await sender.shutdown()

    return asyncio.run(main())
