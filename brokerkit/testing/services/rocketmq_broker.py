"""A private broker of RocketMQ."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import ClassVar

from brokerkit.errors import BrokerUnavailable
from brokerkit.testing.services.ports import free_ports
from brokerkit.testing.services.rocketmq_address import RocketMQBrokerAddress
from brokerkit.testing.services.rocketmq_files import (
    BrokerPlace,
    accounts_file,
    broker_file,
    keys_file,
    proxy_file,
)
from brokerkit.testing.services.rocketmq_installation import RocketMQInstallation
from brokerkit.testing.services.rocketmq_java import FIRST_COMPILER, PROBE_TIMEOUT, JavaNode
from brokerkit.testing.services.rocketmq_name_server import RocketMQNameServer, registered_brokers
from brokerkit.testing.services.rocketmq_options import RocketMQOptions
from brokerkit.testing.services.rocketmq_wire import Answer, Login, ask

__all__ = ["CLUSTER", "RocketMQBroker"]

CLUSTER = "DefaultCluster"

#: org.apache.rocketmq.remoting.protocol.RequestCode
_GET_BROKER_RUNTIME_INFO = 28


class RocketMQBroker(JavaNode):
    """A master, or a slave of the master with the same ``broker_name``; ready when the NameServers that run know it."""

    name: ClassVar[str] = "rocketmq-broker"

    def __init__(
        self,
        options: RocketMQOptions,
        installation: RocketMQInstallation,
        name_servers: Sequence[RocketMQNameServer],
        *,
        broker_name: str = "broker-a",
        broker_id: int = 0,
        admin: Login | None = None,
    ) -> None:
        # A broker listens two ports below its own, too.
        _fast, _unused, port, replication = free_ports(4, consecutive=True)
        super().__init__(options, installation, port=port)
        self._name_servers = tuple(name_servers)
        self._admin = admin
        self._place = BrokerPlace(
            cluster=CLUSTER,
            name=broker_name,
            id=broker_id,
            host=self.host,
            port=port,
            replication_port=replication,
            name_servers=tuple(server.address for server in name_servers),
            directory=str(self.directory),
            major=installation.major,
        )
        self._grpc_ports = free_ports(2) if options.proxy and broker_id == 0 else None

    def describe(self) -> RocketMQBrokerAddress:
        """Return what clients need to know of it."""
        grpc = None if self._grpc_ports is None else f"{self.host}:{self._grpc_ports[0]}"
        return RocketMQBrokerAddress(self._place.name, self._place.id, self.address, grpc)

    # --- for PrivateNode --------------------------------------------------------------------------------------

    def prepare(self) -> None:
        options = self.options
        super().prepare()
        self.write("broker.conf", broker_file(self._place, options, self._admin))
        if self._admin is not None:
            if not (self.directory / "conf/plain_acl.yml").exists():  # else it holds what was changed at run time
                self.write("conf/plain_acl.yml", accounts_file(self._admin, options.accounts))
            self.write("conf/tools.yml", keys_file(self._admin))
        if self._grpc_ports is not None:
            self.write("proxy.json", proxy_file(self._place, *self._grpc_ports))

    def command(self) -> Sequence[str]:
        home = self.directory
        options = [
            "-Xms64m",
            "-Xmx384m",
            "-XX:MaxDirectMemorySize=512m",
            # Above these sends are refused and old messages deleted; the disk is not the tests' alone.
            "-Drocketmq.broker.diskSpaceWarningLevelRatio=0.99",
            "-Drocketmq.broker.diskSpaceCleanForciblyRatio=0.98",
        ]
        if not self.options.full_speed:
            options.append(FIRST_COMPILER)
        if self._grpc_ports is None:
            main, arguments = "org.apache.rocketmq.broker.BrokerStartup", ["-c", f"{home}/broker.conf"]
        else:
            options += [f"-Dcom.rocketmq.proxy.configPath={home}/proxy.json", f"-DRMQ_PROXY_HOME={home}"]
            main = "org.apache.rocketmq.proxy.ProxyStartup"
            servers = ";".join(self._place.name_servers)
            arguments = ["-pm", "local", "-n", servers, "-bc", f"{home}/broker.conf", "-pc", f"{home}/proxy.json"]
        return self.run(main, arguments, [*options, *self.options.java_options])

    def probe(self) -> None:
        for server in self._name_servers:
            if server.alive and not self.is_registered_at(server):
                raise BrokerUnavailable(f"the NameServer {server.address} does not know the broker {self.address} yet")
        answer = self.ask(_GET_BROKER_RUNTIME_INFO, timeout=PROBE_TIMEOUT)
        if answer.code:
            # An exception of Java, in the first second of its life.
            raise BrokerUnavailable(f"the broker {self.address} is not ready: {answer.remark}")
        if self._grpc_ports is not None:
            with socket.create_connection((self.host, self._grpc_ports[0]), timeout=PROBE_TIMEOUT):
                pass

    # --- control ----------------------------------------------------------------------------------------------

    def is_registered_at(self, server: RocketMQNameServer) -> bool:
        """Return whether a NameServer tells clients of this broker."""
        return registered_brokers(server.address).get((self._place.name, self._place.id)) == self.address

    def ask(
        self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"", *, timeout: float = 10.0
    ) -> Answer:
        """Send it one request, as the administrator; `BrokerUnavailable` when it does not answer."""
        return ask(self.address, code, fields, body, login=self._admin, timeout=timeout)
