"""How tests find a RabbitMQ: an address, a private node of this machine's programs, a container."""

from __future__ import annotations

import os
import socket

from brokerkit.testing.services.rabbitmq_address import RabbitMQAddress
from brokerkit.testing.services.rabbitmq_certificates import Certificate, Certificates, make_certificates
from brokerkit.testing.services.rabbitmq_cluster import RabbitMQCluster
from brokerkit.testing.services.rabbitmq_container import RabbitMQContainer, start_container
from brokerkit.testing.services.rabbitmq_control import QueueState, RabbitMQControl
from brokerkit.testing.services.rabbitmq_erlang import binary
from brokerkit.testing.services.rabbitmq_installation import Installation, find_installation
from brokerkit.testing.services.rabbitmq_newer import newer_installation
from brokerkit.testing.services.rabbitmq_node import PortMapper, RabbitMQNode
from brokerkit.testing.services.rabbitmq_options import RabbitMQOptions
from brokerkit.testing.services.service import ExternalService, Missing, Service

__all__ = [
    # finding
    "RabbitMQProvider",
    "chosen_installation",
    # running
    "RabbitMQNode",
    "RabbitMQCluster",
    "RabbitMQContainer",
    "RabbitMQOptions",
    "PortMapper",
    # reaching
    "RabbitMQControl",
    "RabbitMQAddress",
    "QueueState",
    "binary",
    # programs and certificates
    "Installation",
    "find_installation",
    "newer_installation",
    "Certificate",
    "Certificates",
    "make_certificates",
]

#: Set to 1 it makes private nodes run RabbitMQ 4.x, see `newer_installation`.
_NEWER = "BROKERKIT_TEST_RABBITMQ4"

#: Seconds that a server may take to accept a connection.
_TIMEOUT = 10.0


class RabbitMQProvider:
    """The provider behind the name "rabbitmq" (BROKERKIT_TEST_RABBITMQ_URL, BROKERKIT_REQUIRE=rabbitmq)."""

    name = "rabbitmq"

    def from_environment(self, url: str) -> Service | Missing:
        """Use the broker at ``url`` when one of its addresses accepts connections."""
        reasons = []
        for host, port in _addresses(url):
            try:
                with socket.create_connection((host, port), timeout=_TIMEOUT):
                    return ExternalService(self.name, url)
            except OSError as error:
                reasons.append(f"{host}:{port} does not answer: {error}")
        return Missing(self.name, "; ".join(reasons) or "the URL holds no address")

    def local(self) -> Service | Missing:
        """Start a private node."""
        installation = chosen_installation()
        if isinstance(installation, Missing):
            return installation
        node = RabbitMQNode(installation=installation)
        try:
            node.start()
        except BaseException:
            node.close()
            raise
        return node

    def docker(self) -> Service | Missing:
        """Start a container."""
        return start_container()


def chosen_installation() -> Installation | Missing:
    """Return what private nodes run: RabbitMQ 4.x where BROKERKIT_TEST_RABBITMQ4 is 1, else this machine's own."""
    return newer_installation() if os.environ.get(_NEWER) == "1" else find_installation()


def _addresses(url: str) -> list[tuple[str, int]]:
    scheme, _, rest = url.partition("://")
    # A password may hold a raw "@".
    hosts = rest.rpartition("@")[2].partition("?")[0].partition("/")[0]
    default = 5671 if scheme == "amqps" else 5672
    found = []
    for entry in filter(None, hosts.split(",")):
        host, colon, port = entry.rpartition(":")
        if not colon or port.endswith("]"):
            host, port = entry, ""
        found.append((host.strip("[]"), int(port) if port.isdigit() else default))
    return found
