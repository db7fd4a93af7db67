"""The other side in tests with foreign clients: a plain pika peer, and managers that are configured by YAML."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pika
import pika.exceptions
import yaml

from brokerkit import Manager
from brokerkit.settings import Settings
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from brokerkit_rabbitmq.backend import RabbitMQBackend

__all__ = ["LONG", "Taken", "connected", "peer", "publish", "queues", "take"]

#: Seconds; a loaded machine takes many of them for a quorum queue.
LONG = 60.0


@dataclass(frozen=True)
class Taken:
    """What pika read from a queue."""

    deliver: Any
    properties: Any
    body: bytes

    @property
    def headers(self) -> dict[str, Any]:
        return dict(self.properties.headers or {})


@contextlib.contextmanager
def peer(url: str) -> Iterator[Any]:
    """A pika channel with confirms on a connection of its own."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        with contextlib.suppress(pika.exceptions.AMQPError):
            connection.close()


def take(channel: Any, queue: str) -> Taken:
    """Wait for the next message of a queue and acknowledge it."""

    def next_one() -> Taken | None:
        deliver, properties, body = channel.basic_get(queue, auto_ack=True)
        return Taken(deliver, properties, body) if deliver is not None else None

    return eventually_sync(next_one, within=LONG, what=f"a message in {queue}")


@contextlib.contextmanager
def connected(url: str, configuration: str = "") -> Iterator[Manager]:
    """A manager with this configuration file, and no other source of settings."""
    settings = Settings.model_validate(yaml.safe_load(configuration) or {})
    manager = Manager(url, backend=RabbitMQBackend(), settings=settings)
    try:
        yield manager
    finally:
        manager.close()


def queues(node: RabbitMQControl, vhost: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Type and arguments of the queues, by name; without those of delays that were used."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for queue in node.list_queues(vhost):
        if queue.name.startswith(("bk.delay.", "bk.due.")):
            continue
        arguments = dict(queue.arguments)
        if node.installation.major >= 4 and queue.type == "classic":
            # From 4.0 on the broker writes its default type into a queue that is declared without one.
            arguments.pop("x-queue-type", None)
        found[queue.name] = (queue.type, arguments)
    return found


def publish(channel: Any, exchange: str, key: str, body: bytes, **properties: Any) -> None:
    channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties), mandatory=True)
