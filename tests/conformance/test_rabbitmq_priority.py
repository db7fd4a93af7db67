"""The case of priorities, on queues that have them; everything else the other two configurations prove."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokerkit.testing.rabbitmq import RabbitMQHarness
from brokerkit.testing.services.rabbitmq import RabbitMQNode
from brokerkit.testing.suite import test_priority_order
from brokerkit_rabbitmq.backend import RabbitMQBackend
from tests.rabbitmq.nodes import installation_or_skip

__all__ = ["test_priority_order"]


@pytest.fixture(scope="module")
def harness() -> Iterator[RabbitMQHarness]:
    with RabbitMQNode(installation=installation_or_skip()) as node:
        yield RabbitMQHarness(RabbitMQBackend(), node, max_priority=9)
