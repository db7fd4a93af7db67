"""What the processes of a private RocketMQ have in common: Java, a folder, an address."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
from pathlib import Path
from typing import ClassVar

from brokerkit.errors import BrokerUnavailable
from brokerkit.testing.services.node import PrivateNode
from brokerkit.testing.services.rabbitmq_certificates import Certificate
from brokerkit.testing.services.rocketmq_installation import RocketMQInstallation
from brokerkit.testing.services.rocketmq_options import RocketMQOptions

__all__ = ["FIRST_COMPILER", "PROBE_TIMEOUT", "JavaNode"]

#: RocketMQ was written for Java 8; without these Java 17 refuses what it does.
_OPENED = (
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-exports=java.base/sun.nio.ch=ALL-UNNAMED",
)

#: For programs that live minutes: no second compiler, which takes as much CPU as all else of a start.
FIRST_COMPILER = "-XX:TieredStopAtLevel=1"

#: Seconds that a probe waits for an answer; a busy machine may need them.
PROBE_TIMEOUT = 5.0

#: Seconds until a certificate is shown.
_RELOAD_TIMEOUT = 30.0
_PAUSE = 0.05

#: Ends a certificate in a PEM file.
_NEXT = "-----END CERTIFICATE-----"

#: To the standard output, which is the node's log.  RocketMQ 5.x insists on double quotes.
_LOGGING = """<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %p %t %c - %m%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="out"/></root>
</configuration>
"""

#: 4.9.x looks for its kind of program, 5.x takes the first, which it is told.
_LOGGING_FILES = ("logback", "logback_namesrv", "logback_broker", "logback_proxy")


class JavaNode(PrivateNode):
    """A program of RocketMQ, which finds its configuration below its `directory`.

    ``options`` may be replaced by others between two starts.
    """

    #: Seconds; a machine that is busy with other servers takes many times those of an idle one.
    start_timeout: ClassVar[float] = 180.0
    stop_timeout: ClassVar[float] = 60.0

    def __init__(
        self, options: RocketMQOptions, installation: RocketMQInstallation, *, port: int | None = None
    ) -> None:
        super().__init__(port=port)
        self.options = options
        self.installation = installation

    @property
    def address(self) -> str:
        """The "host:port" that it listens on."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.name}://{self.address}"

    def run(self, main: str, arguments: list[str], options: list[str]) -> list[str]:
        """Return the command line that runs a class with further ``options`` of Java."""
        home = self.directory
        return [
            # A clean slate: what a shell says of another RocketMQ, or of all Java programs, would change the server.
            *("/usr/bin/env", "-i", f"PATH={os.environ.get('PATH', os.defpath)}", "LANG=C.UTF-8"),
            self.installation.java,
            "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",
            *_OPENED,
            f"-Drocketmq.home.dir={home}",
            f"-Drmq.logback.configurationFile={home}/conf/logback.xml",
            # Some parts log below the home directory whatever they are told.
            f"-Duser.home={home}",
            *self._tls_options(),
            *options,
            "-cp",
            self.installation.classpath,
            main,
            *arguments,
        ]

    def write(self, name: str, text: str) -> Path:
        """Write a file below the directory of the node."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def prepare(self) -> None:
        for name in _LOGGING_FILES:
            self.write(f"conf/{name}.xml", _LOGGING)
        tls = self.options.tls
        if tls is not None:
            self.present_certificate(tls.server)
            shutil.copyfile(tls.authority, self.directory / "authority.pem")

    def present_certificate(self, certificate: Certificate) -> None:
        """Show another certificate to TLS clients that connect from now on, until the next start.

        Returns when it does: the server looks at its files twice a second.
        """
        # The server takes both when both have changed.
        (self.directory / "server.key.pem").write_bytes(_pkcs8(certificate.key))
        shutil.copyfile(certificate.certificate, self.directory / "server.pem")
        if not self.alive:
            return
        wanted = ssl.PEM_cert_to_DER_cert(certificate.certificate.read_text().partition(_NEXT)[0] + _NEXT)
        deadline = self._clock.monotonic() + _RELOAD_TIMEOUT
        never = threading.Event()
        while self._shown_certificate() != wanted:
            if self._clock.monotonic() > deadline:
                raise BrokerUnavailable(f"{self.address} does not show its certificate after {_RELOAD_TIMEOUT:g} s")
            never.wait(_PAUSE)

    def _shown_certificate(self) -> bytes | None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with (
                socket.create_connection((self.host, self.port), timeout=PROBE_TIMEOUT) as plain,
                context.wrap_socket(plain) as sock,
            ):
                return sock.getpeercert(binary_form=True)
        except OSError:
            return None

    def _tls_options(self) -> list[str]:
        if self.options.tls is None:
            return []
        options = {
            "test.mode.enable": "false",
            "server.certPath": self.directory / "server.pem",
            "server.keyPath": self.directory / "server.key.pem",
        }
        if self.options.verify_peer:
            options |= {
                "server.need.client.auth": "require",
                "server.authClient": "true",
                "server.trustCertPath": self.directory / "authority.pem",
            }
        return [f"-Dtls.{name}={value}" for name, value in options.items()]


def _pkcs8(key: Path) -> bytes:
    """Return a private key in the only form that RocketMQ's TLS reads."""
    # trustme, which makes the certificates, brings it.
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    loaded = load_pem_private_key(key.read_bytes(), None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
