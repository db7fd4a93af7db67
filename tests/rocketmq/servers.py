"""Where the RocketMQ tests get their servers from: one of each version for the whole run, and private ones."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from brokerkit.testing.services import is_required
from brokerkit.testing.services.rocketmq import (
    RocketMQAccount,
    RocketMQAddress,
    RocketMQControl,
    RocketMQInstallation,
    RocketMQOptions,
    RocketMQServer,
    find_rocketmq,
)
from brokerkit.testing.services.sharing import SharedService, share

__all__ = ["NEW", "OLD", "SENDER", "WORKER", "installation_or_skip", "shared_guarded_pair", "shared_rocketmq"]

#: The versions that most tests run on.
OLD, NEW = "4.9.4", "5.5.0"

#: Accounts that may do what an application needs, and only send.
WORKER = RocketMQAccount(
    access_key="worker-one", secret_key="worker-secret", default_topic="PUB|SUB", default_group="SUB"
)
SENDER = RocketMQAccount(access_key="sender-one", secret_key="sender-secret", default_topic="PUB", default_group="")


def shared_rocketmq(config: pytest.Config, factory: pytest.TempPathFactory, version: str) -> RocketMQControl:
    """Return the server of a version that all processes of this run share; tests use names of their own.

    Skips, or fails where BROKERKIT_REQUIRE says so, when there is none.  A description of a running one (what
    `RocketMQAddress.describe` returns) in BROKERKIT_TEST_ROCKETMQ_4_9_4 or …_5_5_0 saves its start.
    """
    running = os.environ.get(f"BROKERKIT_TEST_ROCKETMQ_{version.replace('.', '_')}")
    if running:
        return RocketMQControl(RocketMQAddress.read(running))
    return _shared(config, factory, f"rocketmq-{version}", version, RocketMQOptions())


def shared_guarded_pair(config: pytest.Config, factory: pytest.TempPathFactory) -> RocketMQControl:
    """Return a 4.9.4 of two masters with the ACL on, where `WORKER` and `SENDER` have their accounts."""
    options = RocketMQOptions(masters=2, acl=True, accounts=(WORKER, SENDER))
    return _shared(config, factory, "rocketmq-guarded-pair", OLD, options)


def _shared(
    config: pytest.Config, factory: pytest.TempPathFactory, name: str, version: str, options: RocketMQOptions
) -> RocketMQControl:
    base = factory.getbasetemp()
    # The directory of the run: that of one of xdist's processes is inside it.
    directory: Path = base.parent if hasattr(config, "workerinput") else base
    installation = installation_or_skip(version)
    stack = ExitStack()

    def start() -> SharedService:
        server = RocketMQServer(options, installation=installation).__enter__()
        return SharedService(server.address.describe(), server.close)

    description = stack.enter_context(share(directory, name, start))
    # Not in the end of a fixture: there the wait for the other processes would count as time of this one's last test.
    config.add_cleanup(stack.close)
    return RocketMQControl(RocketMQAddress.read(description))


def installation_or_skip(version: str = OLD) -> RocketMQInstallation:
    """Return what private servers run, or skip or fail."""
    found = find_rocketmq(version)
    if isinstance(found, RocketMQInstallation):
        return found
    if is_required("rocketmq"):
        pytest.fail(str(found), pytrace=False)
    pytest.skip(str(found))
