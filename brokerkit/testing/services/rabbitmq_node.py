"""A private RabbitMQ node, and the Erlang port mapper of its own that it needs."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from brokerkit.errors import BrokerError, BrokerUnavailable, ConfigurationError
from brokerkit.testing.services.node import PrivateNode
from brokerkit.testing.services.ports import free_ports
from brokerkit.testing.services.rabbitmq_address import RabbitMQAddress
from brokerkit.testing.services.rabbitmq_certificates import Certificate
from brokerkit.testing.services.rabbitmq_control import RabbitMQControl
from brokerkit.testing.services.rabbitmq_installation import Installation, find_installation
from brokerkit.testing.services.rabbitmq_options import RabbitMQOptions, write_files
from brokerkit.testing.services.service import Missing

__all__ = ["PortMapper", "RabbitMQNode"]

#: What a client of AMQP 0-9-1 says first; the server answers by a frame of type 1.
_GREETING = b"AMQP\x00\x00\x09\x01"


class PortMapper(PrivateNode):
    """An epmd of the tests' own: the machine's would be started in the background and stay there for good."""

    name: ClassVar[str] = "epmd"

    def __init__(self, installation: Installation) -> None:
        super().__init__()
        self._installation = installation

    def command(self) -> Sequence[str]:
        program = self._installation.erlang("epmd")
        if program is None:
            raise ConfigurationError("there is no epmd, which comes with Erlang: apt-get install rabbitmq-server")
        command = [program, "-port", str(self.port), "-address", self.host]
        return self._installation.run(command, {"HOME": str(self.directory)}, self.directory)

    @property
    def url(self) -> str:
        return f"epmd://{self.host}:{self.port}"


class RabbitMQNode(RabbitMQControl, PrivateNode):
    """A private RabbitMQ server; `RabbitMQControl` is what its operator can do while it runs.

    ``options`` may be replaced by others between two starts.  ``mapper`` is shared by the nodes of a cluster and
    stays theirs, as are the ``cookie`` and the form of the ``name``; without them the node has its own.
    ``installation`` is that of this machine unless given.
    """

    name: ClassVar[str] = "rabbitmq"
    origin: ClassVar[str] = "local"

    #: Seconds; a machine that is busy with other nodes takes many times the four seconds of an idle one.
    start_timeout: ClassVar[float] = 180.0
    stop_timeout: ClassVar[float] = 60.0

    def __init__(
        self,
        options: RabbitMQOptions | None = None,
        *,
        installation: Installation | None = None,
        mapper: PortMapper | None = None,
        cookie: str | None = None,
        name: str | None = None,
    ) -> None:
        if installation is None:
            found = find_installation()
            if isinstance(found, Missing):
                raise ConfigurationError(str(found))
            installation = found
        self.options = RabbitMQOptions() if options is None else options
        ports = free_ports(5)
        PrivateNode.__init__(self, port=ports[0])
        self._own_mapper: PortMapper | None = None
        if mapper is None:
            mapper = self._own_mapper = PortMapper(installation)
        address = RabbitMQAddress(
            node=name or f"brokerkit-{self.port}@localhost",
            host=self.host,
            port=self.port,
            tls_port=None if self.options.tls is None else ports[1],
            management_port=ports[2],
            prometheus_port=ports[3],
            distribution_port=ports[4],
            mapper_port=mapper.port,
            directory=str(self.directory),
        )
        RabbitMQControl.__init__(self, address, installation)
        home = Path(address.home)
        home.mkdir(mode=0o700)
        file = home / ".erlang.cookie"
        file.write_text(cookie or secrets.token_hex(16))
        file.chmod(0o400)

    # --- for PrivateNode --------------------------------------------------------------------------------------

    def command(self) -> Sequence[str]:
        directory = self.address.directory
        environment = {
            "HOME": self.address.home,
            "ERL_EPMD_PORT": str(self.address.mapper_port),
            # Makes the script become the server instead of a parent that runs rabbitmqctl to stop it.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": self.address.node,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.address.distribution_port),
            "RABBITMQ_MNESIA_BASE": f"{directory}/data",
            "RABBITMQ_LOG_BASE": f"{directory}/log",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{directory}/enabled_plugins",
            "RABBITMQ_CONFIG_FILE": f"{directory}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{directory}/advanced.config",
            "RABBITMQ_CONF_ENV_FILE": f"{directory}/none",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        return self.installation.run([self.installation.program("rabbitmq-server")], environment, self.directory)

    def prepare(self) -> None:
        for name in ("data", "log"):
            (self.directory / name).mkdir(exist_ok=True)
        options = self.options
        if options.tls is not None:
            self._copy(options.tls.server)
            shutil.copyfile(options.tls.authority, self.directory / "authority.pem")
        write_files(options, self.address)

    def probe(self) -> None:
        with socket.create_connection((self.host, self.port), timeout=5.0) as sock:
            sock.sendall(_GREETING)
            if sock.recv(1) != b"\x01":
                raise BrokerUnavailable("the server does not speak AMQP yet")
        if not self.is_ready():
            raise BrokerUnavailable("the server is still starting")

    # --- control ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Do what `PrivateNode.start` does; about four seconds on an idle machine."""
        if self._own_mapper is not None and not self._own_mapper.alive and not self._closed:
            self._own_mapper.start()
        super().start()

    def stop(self) -> None:
        """End the node in good order: clients are told (320 CONNECTION_FORCED), then the process ends."""
        if self.alive:
            self.resume()
            with contextlib.suppress(BrokerError):
                self.stop_app()
        super().stop()

    def close(self) -> None:
        """Kill the node and its port mapper, and delete its directory.  No-op when closed before."""
        super().close()
        if self._own_mapper is not None:
            self._own_mapper.close()

    def present_certificate(self, certificate: Certificate) -> None:
        """Show another certificate to TLS clients that connect from now on, until the next start."""
        self._copy(certificate)
        self.evaluate("ok = ssl:clear_pem_cache()")

    def _copy(self, certificate: Certificate) -> None:
        shutil.copyfile(certificate.certificate, self.directory / "server.pem")
        shutil.copyfile(certificate.key, self.directory / "server.key.pem")
