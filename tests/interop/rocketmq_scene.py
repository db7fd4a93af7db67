"""What the RocketMQ interop tests share: managers with names of their own, and clients of others beside them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rocketmq.peers.java import java_peer
from benchmarks.rocketmq.peers.process import Peer
from brokerkit import Manager
from brokerkit.blocking_delivery import BlockingDelivery
from brokerkit.settings import Settings
from brokerkit.testing.services import is_required
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit.testing.services.rocketmq_java import FIRST_COMPILER
from brokerkit.testing.services.service import Missing
from brokerkit_rocketmq.backend import RocketMQBackend
from tests.rocketmq.servers import installation_or_skip

__all__ = ["LONG", "SENT", "Scene", "peer_or_skip", "receive", "started_java"]

#: For a program that lives a few seconds: no second compiler, no threads that collect garbage.
_BRIEF = (FIRST_COMPILER, "-XX:+UseSerialGC")

#: Seconds; a loaded machine takes many of them for a JVM, a route or a rebalance.
LONG = 120.0

SENT: dict[str, Any] = {
    "type": "created",
    "headers": {"source": "web", "café": "münchen"},
    "tag": "new-eu",
    "key": "customer-7",
    "priority": 7,
    "correlation_id": "c-1",
    "parent": "id-0",
}


class Scene:
    """A topic and two native groups that no other test has, on one server."""

    def __init__(self, server: RocketMQControl, folder: Path) -> None:
        self.server = server
        self.folder = folder
        suffix = secrets.token_hex(4)
        self.topic = f"orders-{suffix}"
        #: Native: of our group `billing`, which others may join, and of another system.
        self.group, self.other = f"billing-{suffix}", f"their-{suffix}"

    @contextlib.contextmanager
    def manager(
        self, *, queues: int | None = None, ordered: bool = False, section: Mapping[str, Any] | None = None
    ) -> Iterator[Manager]:
        """A manager whose topic and group are declared."""
        group = {"start": "earliest", "rocketmq": {"group": self.group}}
        topic = {
            "ordered": ordered,
            "rocketmq": {"queues": queues or (1 if ordered else 4)},
            "groups": {"billing": group},
        }
        values = {"topics": {self.topic: topic}, "rocketmq": dict(section or {})}
        manager = Manager(self.server.url, backend=RocketMQBackend(), settings=Settings.model_validate(values))
        try:
            manager.admin.declare(self.topic, "billing")
            yield manager
        finally:
            manager.close()


def receive(manager: Manager, topic: str, count: int = 1) -> list[BlockingDelivery]:
    """Take messages out of the group `billing`."""
    found: list[BlockingDelivery] = []
    with manager.consume(topic, group="billing") as deliveries:
        for delivery in deliveries:
            delivery.ack()
            found.append(delivery)
            if len(found) == count:
                break
    return found


def peer_or_skip(found: Peer | Missing) -> Peer:
    """Return the program, or skip or fail."""
    if isinstance(found, Peer):
        return found
    if is_required("rocketmq"):
        pytest.fail(str(found), pytrace=False)
    pytest.skip(str(found))


def started_java(scene: Scene, **options: str) -> Peer:
    """Start the Java client of the server's version."""
    installation = installation_or_skip(scene.server.address.version)
    found = java_peer(installation, scene.server.address, scene.folder, java_options=_BRIEF, **options)
    return peer_or_skip(found)
