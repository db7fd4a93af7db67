"""Where the RabbitMQ tests get their nodes from: one for the whole run, and one to break for each process of it."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from brokerkit.testing.services import is_required, service_or_skip
from brokerkit.testing.services.rabbitmq import (
    Installation,
    RabbitMQAddress,
    RabbitMQControl,
    RabbitMQNode,
    RabbitMQProvider,
    chosen_installation,
)
from brokerkit.testing.services.sharing import SharedService, share

__all__ = ["installation_or_skip", "shared_rabbitmq"]


def shared_rabbitmq(config: pytest.Config, factory: pytest.TempPathFactory) -> RabbitMQControl:
    """Return the node that all processes of this run share; tests use virtual hosts of their own and never break it.

    Skips, or fails where BROKERKIT_REQUIRE says so, when there is none.
    """
    base = factory.getbasetemp()
    # The directory of the run: that of one of xdist's processes is inside it.
    directory: Path = base.parent if hasattr(config, "workerinput") else base
    stack = ExitStack()
    description = stack.enter_context(share(directory, "rabbitmq", _start))
    # Not in the end of a fixture: there the wait for the other processes would count as time of this one's last test.
    config.add_cleanup(stack.close)
    fields = json.loads(description)
    return RabbitMQControl(RabbitMQAddress(**fields["address"]), Installation(**fields["installation"]))


def installation_or_skip() -> Installation:
    """Return what private nodes run, or skip or fail as `service_or_skip` does."""
    found = chosen_installation()
    if isinstance(found, Installation):
        return found
    if is_required("rabbitmq"):
        pytest.fail(str(found), pytrace=False)
    pytest.skip(str(found))


def _start() -> SharedService:
    node = service_or_skip("rabbitmq", providers=[RabbitMQProvider()])
    if not isinstance(node, RabbitMQNode):
        node.close()
        pytest.skip(f"these tests need a private node, not one of {node.origin}")
    fields = {"address": dataclasses.asdict(node.address), "installation": dataclasses.asdict(node.installation)}
    return SharedService(json.dumps(fields), node.close)
