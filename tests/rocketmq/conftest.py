"""Servers for the RocketMQ tests."""

from __future__ import annotations

import pytest

from brokerkit.testing.services.rocketmq import RocketMQControl
from tests.rocketmq.servers import NEW, OLD, shared_rocketmq


@pytest.fixture(scope="session")
def rocketmq_old(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> RocketMQControl:
    """The 4.9.4 that all processes of this run share: use names of your own, break nothing."""
    return shared_rocketmq(pytestconfig, tmp_path_factory, OLD)


@pytest.fixture(scope="session")
def rocketmq_new(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> RocketMQControl:
    """The 5.5.0 that all processes of this run share: use names of your own, break nothing."""
    return shared_rocketmq(pytestconfig, tmp_path_factory, NEW)


@pytest.fixture(params=[OLD, NEW])
def rocketmq(request: pytest.FixtureRequest) -> RocketMQControl:
    """Each of the two in turn."""
    server: RocketMQControl = request.getfixturevalue("rocketmq_old" if request.param == OLD else "rocketmq_new")
    return server
