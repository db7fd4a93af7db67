"""How tests find a RocketMQ: an address, a private server of jars from Maven, a container.

By hand: ``python -m brokerkit.testing.services.rocketmq --version 4.9.4``.
"""

from __future__ import annotations

import os
import sys

from brokerkit.errors import BrokerError
from brokerkit.testing.services.rocketmq_address import RocketMQAddress, RocketMQBrokerAddress
from brokerkit.testing.services.rocketmq_broker import RocketMQBroker
from brokerkit.testing.services.rocketmq_container import RocketMQContainer, start_container
from brokerkit.testing.services.rocketmq_control import RocketMQControl
from brokerkit.testing.services.rocketmq_foreground import main
from brokerkit.testing.services.rocketmq_installation import ROCKETMQ_VERSIONS, RocketMQInstallation, find_rocketmq
from brokerkit.testing.services.rocketmq_name_server import RocketMQNameServer, registered_brokers
from brokerkit.testing.services.rocketmq_options import RocketMQAccount, RocketMQOptions
from brokerkit.testing.services.rocketmq_server import RocketMQServer
from brokerkit.testing.services.rocketmq_wire import Answer, Login, ask, request
from brokerkit.testing.services.service import ExternalService, Missing, Service

__all__ = [
    # finding
    "RocketMQProvider",
    # running
    "RocketMQServer",
    "RocketMQNameServer",
    "RocketMQBroker",
    "RocketMQContainer",
    "RocketMQOptions",
    "RocketMQAccount",
    # reaching
    "RocketMQControl",
    "RocketMQAddress",
    "RocketMQBrokerAddress",
    "Login",
    "Answer",
    "ask",
    "request",
    "registered_brokers",
    # programs
    "ROCKETMQ_VERSIONS",
    "RocketMQInstallation",
    "find_rocketmq",
]

#: Which version `RocketMQProvider.local` starts.
_VERSION = "BROKERKIT_TEST_ROCKETMQ_VERSION"

_DEFAULT_PORT = 9876


class RocketMQProvider:
    """The provider behind the name "rocketmq" (BROKERKIT_TEST_ROCKETMQ_URL, BROKERKIT_REQUIRE=rocketmq)."""

    name = "rocketmq"

    def from_environment(self, url: str) -> Service | Missing:
        """Use the servers behind ``url`` when one of its NameServers answers."""
        reasons = []
        for address in _addresses(url):
            try:
                registered_brokers(address)
                return ExternalService(self.name, url)
            except BrokerError as error:
                reasons.append(str(error))
        return Missing(self.name, "; ".join(reasons) or "the URL holds no address")

    def local(self) -> Service | Missing:
        """Start a private server, of 4.9.4 unless BROKERKIT_TEST_ROCKETMQ_VERSION says another version."""
        installation = find_rocketmq(os.environ.get(_VERSION) or ROCKETMQ_VERSIONS[0])
        if isinstance(installation, Missing):
            return installation
        return RocketMQServer(installation=installation).__enter__()

    def docker(self) -> Service | Missing:
        """Start a container."""
        return start_container()


def _addresses(url: str) -> list[str]:
    rest = url.partition("://")[2]
    # A password may hold a raw "@".
    hosts = rest.rpartition("@")[2].partition("?")[0].partition("/")[0].replace(";", ",")
    found = []
    for entry in filter(None, hosts.split(",")):
        host, colon, port = entry.rpartition(":")
        if not colon or port.endswith("]"):
            host, port = entry, ""
        found.append(f"{host.strip('[]')}:{port if port.isdigit() else _DEFAULT_PORT}")
    return found


if __name__ == "__main__":
    sys.exit(main())
