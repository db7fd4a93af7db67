"""Several RabbitMQ nodes of this machine as one cluster."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar, Self

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerUnavailable, ConfigurationError
from brokerkit.testing.services.rabbitmq_installation import Installation, find_installation
from brokerkit.testing.services.rabbitmq_node import PortMapper, RabbitMQNode
from brokerkit.testing.services.rabbitmq_options import RabbitMQOptions
from brokerkit.testing.services.service import Missing

__all__ = ["RabbitMQCluster"]

#: Seconds within which nodes that run must see each other.
_JOIN_TIMEOUT = 120.0
_PAUSE = 0.1


class RabbitMQCluster:
    """``size`` nodes that share users, exchanges and queues; each of `nodes` can be broken on its own.

    A cluster of which a node came back is whole again when `wait_until_whole` returns.  All methods block.
    """

    name: ClassVar[str] = "rabbitmq"
    origin: ClassVar[str] = "local"

    def __init__(
        self, size: int = 3, options: RabbitMQOptions | None = None, *, installation: Installation | None = None
    ) -> None:
        if installation is None:
            found = find_installation()
            if isinstance(found, Missing):
                raise ConfigurationError(str(found))
            installation = found
        self._mapper = PortMapper(installation)
        cookie = secrets.token_hex(16)
        names = [f"brokerkit-{self._mapper.port}-{number}@localhost" for number in range(size)]
        # All join the first one.  It knows nobody, or it would look for the others for five seconds.
        self.nodes = tuple(
            RabbitMQNode(
                replace(options or RabbitMQOptions(), cluster=tuple(dict.fromkeys((names[0], name)))),
                installation=installation,
                mapper=self._mapper,
                cookie=cookie,
                name=name,
            )
            for name in names
        )

    @property
    def url(self) -> str:
        """The URL of the virtual host "/", with the addresses of all nodes."""
        address = self.nodes[0].address
        hosts = ",".join(f"{node.host}:{node.port}" for node in self.nodes)
        return f"amqp://{address.user}:{address.password}@{hosts}/%2F"

    def start(self) -> None:
        """Start all nodes that do not run, and return when they are one cluster."""
        if not self._mapper.alive:
            self._mapper.start()
        # The first one makes the cluster on its first start; after a stop of all, none is ready before the others.
        fresh = not (self.nodes[0].directory / "data").exists()
        if fresh:
            self.nodes[0].start()
        _at_once(node.start for node in self.nodes if not node.alive)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Return when every node that runs sees all others that run."""
        clock = SystemClock()
        deadline = clock.monotonic() + _JOIN_TIMEOUT
        never = threading.Event()
        running = [node for node in self.nodes if node.alive]
        expected = {node.address.node for node in running}
        while any(self._seen_by(node) != expected for node in running):
            if clock.monotonic() > deadline:
                raise BrokerUnavailable(f"the nodes are no cluster after {_JOIN_TIMEOUT:g} s{running[0].log_tail()}")
            never.wait(_PAUSE)

    def leader_of(self, queue: str, vhost: str = "/") -> RabbitMQNode:
        """Return the node that leads a queue; `LookupError` where there is no such queue or no leader that runs."""
        for node in self.nodes:
            if not node.alive:
                continue
            found = node.queue_leader(queue, vhost)
            for leader in self.nodes:
                if leader.address.node == found:
                    return leader
        raise LookupError(f"no node of the cluster leads the queue {queue!r}")

    def stop(self) -> None:
        """Stop all nodes in good order."""
        _at_once(node.stop for node in self.nodes)

    def kill(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.kill()

    def restart(self) -> None:
        """Stop all nodes and start them again."""
        self.stop()
        self.start()

    def suspend(self) -> None:
        """Freeze all nodes."""
        for node in self.nodes:
            node.suspend()

    def resume(self) -> None:
        """Let suspended nodes go on."""
        for node in self.nodes:
            node.resume()

    def close(self) -> None:
        """Kill all nodes and delete their data.  No-op when closed before."""
        for node in self.nodes:
            node.close()
        self._mapper.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _seen_by(self, node: RabbitMQNode) -> set[str]:
        return set(node.evaluate("rabbit_nodes:all_running()" if node.installation.major < 4 else _RUNNING_4))


#: The call of 3.x is gone in 4.x.
_RUNNING_4 = "rabbit_nodes:list_running()"


def _at_once(actions: Iterable[Callable[[], None]]) -> None:
    actions = list(actions)
    if not actions:
        return
    with ThreadPoolExecutor(len(actions)) as pool:
        for future in [pool.submit(action) for action in actions]:
            future.result()
