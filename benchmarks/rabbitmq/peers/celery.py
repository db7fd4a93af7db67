"""Celery as its users have it, with confirms switched on."""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from benchmarks.measure import Stopwatch
from benchmarks.rabbitmq.sides import BODY, Figure, peer_url

app = Celery("bench", broker=peer_url())
app.conf.update(
    task_queues=[Queue("bench.celery", queue_arguments={"x-queue-type": "quorum"})],
    task_default_queue="bench.celery",
    task_ignore_result=True,
    broker_transport_options={"confirm_publish": True},
)


@app.task(name="bench")
def handle(body: str) -> None:
    return None


def publish(count: int) -> Figure:
    """Send one task after the other, which is all it can do in one thread."""
    text = BODY.decode()
    handle.delay(text)
    watch = Stopwatch()
    with watch.running():
        for _ in range(count):
            handle.delay(text)
    return Figure(count, watch.wall, watch.cpu)
