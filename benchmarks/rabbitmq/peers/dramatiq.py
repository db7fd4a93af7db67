"""Dramatiq as its users have it: a module of actors that its own command runs."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from pika import BasicProperties

from benchmarks.measure import Stopwatch
from benchmarks.rabbitmq.sides import BODY, Figure, peer_tally, peer_url


class QuorumBroker(RabbitmqBroker):
    """It has no option for the kind of its queues."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        return {**super()._build_queue_arguments(queue_name), "x-queue-type": "quorum"}


broker = QuorumBroker(url=peer_url(), confirm_delivery=True)
dramatiq.set_broker(broker)
tally = peer_tally()


@dramatiq.actor(queue_name="bench.dramatiq")
def handle(body: str) -> None:
    tally.note()


def publish(count: int, more: int) -> Figure:
    """Send one message after the other, which is all it can do in one thread; then ``more`` that are not measured."""
    text = BODY.decode()
    handle.send(text)
    watch = Stopwatch()
    with watch.running():
        for _ in range(count):
            handle.send(text)
    _fill(more)
    return Figure(count, watch.wall, watch.cpu)


def _fill(count: int) -> None:
    """Send messages for the worker faster than Dramatiq does."""
    channel = broker.connection.channel()
    message = handle.message(BODY.decode()).encode()
    for _ in range(count):
        channel.basic_publish("", handle.queue_name, message, BasicProperties(delivery_mode=2))
    channel.close()
