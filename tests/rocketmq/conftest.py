"""Servers for the RocketMQ tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokerkit.testing.services.rocketmq import RocketMQControl, RocketMQOptions, RocketMQServer
from tests.rocketmq.servers import NEW, OLD, installation_or_skip, shared_guarded_pair, shared_rocketmq


@pytest.fixture(scope="session")
def rocketmq_old(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> RocketMQControl:
    """The 4.9.4 that all processes of this run share: use names of your own, break nothing."""
    return shared_rocketmq(pytestconfig, tmp_path_factory, OLD)


@pytest.fixture(scope="session")
def rocketmq_new(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> RocketMQControl:
    """The 5.5.0 that all processes of this run share: use names of your own, break nothing."""
    return shared_rocketmq(pytestconfig, tmp_path_factory, NEW)


@pytest.fixture(scope="session")
def guarded_pair(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> RocketMQControl:
    """The two 4.9.4 masters with the ACL on that all processes of this run share; accounts are in `servers`."""
    return shared_guarded_pair(pytestconfig, tmp_path_factory)


@pytest.fixture(params=[OLD, NEW])
def rocketmq(request: pytest.FixtureRequest) -> RocketMQControl:
    """Each of the two in turn."""
    server: RocketMQControl = request.getfixturevalue("rocketmq_old" if request.param == OLD else "rocketmq_new")
    return server


@pytest.fixture(scope="module")
def breakable_pair() -> Iterator[RocketMQServer]:
    options = RocketMQOptions(masters=2, name_servers=2, sync_flush=True)
    with RocketMQServer(options, installation=installation_or_skip()) as server:
        yield server


@pytest.fixture
def own_pair(breakable_pair: RocketMQServer) -> Iterator[RocketMQServer]:
    """Two 4.9.4 masters with SYNC_FLUSH and two NameServers that nobody else uses now: break them.

    They are repaired for the next test.
    """
    yield breakable_pair
    breakable_pair.resume()
    breakable_pair.start()
    breakable_pair.register()
