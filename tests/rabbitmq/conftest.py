"""Nodes and virtual hosts for the RabbitMQ tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from brokerkit.testing.services.rabbitmq import (
    Certificates,
    RabbitMQControl,
    RabbitMQNode,
    RabbitMQOptions,
    make_certificates,
)
from tests.rabbitmq.nodes import installation_or_skip, shared_rabbitmq


@pytest.fixture(scope="session")
def shared_node(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> RabbitMQControl:
    """The node that all processes of this run share: use `vhost`, break nothing."""
    return shared_rabbitmq(pytestconfig, tmp_path_factory)


@pytest.fixture
def vhost(shared_node: RabbitMQControl) -> Iterator[str]:
    """A virtual host of the test's own on `shared_node`."""
    name = f"test-{secrets.token_hex(4)}"
    shared_node.add_vhost(name)
    yield name
    shared_node.delete_vhost(name)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def breakable(certificates: Certificates) -> Iterator[RabbitMQNode]:
    with RabbitMQNode(RabbitMQOptions(tls=certificates), installation=installation_or_skip()) as node:
        yield node


@pytest.fixture
def own_node(breakable: RabbitMQNode, certificates: Certificates) -> Iterator[RabbitMQNode]:
    """A node with a TLS listener that nobody else uses now: break it, it is repaired for the next test."""
    options = breakable.options
    if not breakable.alive:
        breakable.start()
    yield breakable
    breakable.resume()
    if breakable.alive and (breakable.options != options or not breakable.is_ready()):
        breakable.kill()
    breakable.options = options
    if breakable.alive:
        breakable.set_memory_alarm(False)
        breakable.set_disk_alarm(False)
        breakable.present_certificate(certificates.server)


@pytest.fixture
def own_vhost(own_node: RabbitMQNode) -> Iterator[str]:
    """A virtual host of the test's own on `own_node`."""
    name = f"test-{secrets.token_hex(4)}"
    own_node.add_vhost(name)
    yield name
    if own_node.alive:
        own_node.resume()
        own_node.delete_vhost(name)
