"""The suite on quorum queues, on a node of its own that the cases stop, kill and freeze."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokerkit.testing.rabbitmq import RabbitMQHarness
from brokerkit.testing.services.rabbitmq import RabbitMQNode
from brokerkit.testing.suite import *
from brokerkit_rabbitmq.backend import RabbitMQBackend
from tests.rabbitmq.nodes import installation_or_skip


@pytest.fixture(scope="module")
def harness() -> Iterator[RabbitMQHarness]:
    with RabbitMQNode(installation=installation_or_skip()) as node:
        yield RabbitMQHarness(RabbitMQBackend(), node)
