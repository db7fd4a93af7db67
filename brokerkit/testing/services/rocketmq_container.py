"""RocketMQ in a container of testcontainers."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError, BrokerUnavailable
from brokerkit.testing.services.ports import free_ports
from brokerkit.testing.services.rocketmq_name_server import registered_brokers
from brokerkit.testing.services.service import Missing

__all__ = ["RocketMQContainer", "start_container"]

_IMAGE = "apache/rocketmq:4.9.4"

#: Seconds that the broker in it may take to register.
_START_TIMEOUT = 180.0
_PAUSE = 0.2

#: NameServer and broker in one container; $1 and $2 are their ports.  The broker tells clients an address of this
#: machine, where its port must therefore be the same as inside.
_SCRIPT = (
    'printf "listenPort=%s\\n" "$1" > /tmp/namesrv.conf; '
    'printf "brokerIP1=127.0.0.1\\nlistenPort=%s\\nnamesrvAddr=127.0.0.1:%s\\nautoCreateTopicEnable=true\\n" "$2" "$1" '
    "> /tmp/broker.conf; "
    "sh mqnamesrv -c /tmp/namesrv.conf & exec sh mqbroker -c /tmp/broker.conf"
)


class RocketMQContainer:
    """A RocketMQ server in a container, until `close`."""

    name = "rocketmq"
    origin = "docker"

    def __init__(self, container: Any, name_server: str) -> None:
        self._container = container
        self.url = f"rocketmq://{name_server}"

    def close(self) -> None:
        """Stop and remove the container.  No-op when closed before."""
        container, self._container = self._container, None
        if container is not None:
            container.stop()


def start_container(image: str = _IMAGE) -> RocketMQContainer | Missing:
    """Start a container of this machine's Docker engine; `BrokerUnavailable` when it does not come up."""
    try:
        from testcontainers.core.container import DockerContainer
    except ImportError as error:
        return Missing("rocketmq", f"testcontainers does not load: {error}")
    ports = free_ports(2)
    container = (
        DockerContainer(image)
        .with_env("JAVA_OPT_EXT", "-Xms64m -Xmx512m -Xmn128m")
        .with_command(["sh", "-c", _SCRIPT, "sh", *map(str, ports)])
    )
    for port in ports:
        container = container.with_bind_ports(port, port)
    try:
        container.start()
        _await_registration(f"127.0.0.1:{ports[0]}")
    except Exception as error:
        with contextlib.suppress(Exception):
            container.stop()
        raise BrokerUnavailable(f"the container of {image} did not start: {error}") from error
    return RocketMQContainer(container, f"127.0.0.1:{ports[0]}")


def _await_registration(name_server: str) -> None:
    clock = SystemClock()
    deadline = clock.monotonic() + _START_TIMEOUT
    never = threading.Event()
    while True:
        with contextlib.suppress(BrokerError):
            if registered_brokers(name_server):
                return
        if clock.monotonic() > deadline:
            raise BrokerUnavailable(f"no broker registered within {_START_TIMEOUT:g} s")
        never.wait(_PAUSE)
