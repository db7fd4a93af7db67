"""The suite on RocketMQ 5.5.0, on a server of its own that the cases stop, kill and freeze, with the ACL on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokerkit.testing.rocketmq import RocketMQHarness
from brokerkit.testing.services.rocketmq import RocketMQOptions, RocketMQServer
from brokerkit.testing.suite import *
from brokerkit_rocketmq.backend import RocketMQBackend
from tests.rocketmq.servers import NEW, installation_or_skip


@pytest.fixture(scope="module")
def harness() -> Iterator[RocketMQHarness]:
    options = RocketMQOptions(acl=True, sync_flush=True)
    with RocketMQServer(options, installation=installation_or_skip(NEW)) as server:
        yield RocketMQHarness(RocketMQBackend(), server)
