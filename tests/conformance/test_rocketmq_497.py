"""The smoke subset on RocketMQ 4.9.7, on a server of its own, with the ACL on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokerkit.testing.rocketmq import RocketMQHarness
from brokerkit.testing.services.rocketmq import RocketMQOptions, RocketMQServer
from brokerkit_rocketmq.backend import RocketMQBackend
from tests.conformance.rocketmq_smoke import *
from tests.rocketmq.servers import installation_or_skip


@pytest.fixture(scope="module")
def harness() -> Iterator[RocketMQHarness]:
    with RocketMQServer(RocketMQOptions(acl=True), installation=installation_or_skip("4.9.7")) as server:
        yield RocketMQHarness(RocketMQBackend(), server)
