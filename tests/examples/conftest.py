"""A broker of another kind, for what must run on each with only its URL changed."""

from __future__ import annotations

import pytest

from tests.rocketmq.servers import OLD, shared_rocketmq


@pytest.fixture(scope="session")
def rocketmq_url(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of the RocketMQ 4.9.4 that all processes of this run share; nobody else uses the examples' topics."""
    return shared_rocketmq(pytestconfig, tmp_path_factory, OLD).url
