"""A private RocketMQ with all its parts: NameServers, masters, slaves."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from brokerkit.errors import ConfigurationError
from brokerkit.testing.services.rocketmq_address import RocketMQAddress
from brokerkit.testing.services.rocketmq_broker import CLUSTER, RocketMQBroker
from brokerkit.testing.services.rocketmq_control import RocketMQControl
from brokerkit.testing.services.rocketmq_installation import RocketMQInstallation, find_rocketmq
from brokerkit.testing.services.rocketmq_java import JavaNode
from brokerkit.testing.services.rocketmq_name_server import RocketMQNameServer
from brokerkit.testing.services.rocketmq_options import RocketMQOptions
from brokerkit.testing.services.rocketmq_wire import Login
from brokerkit.testing.services.service import Missing

__all__ = ["RocketMQServer"]


class RocketMQServer(RocketMQControl):
    """Everything behind one URL; `RocketMQControl` is what its operator can do while it runs.

    Each of `name_servers` and `brokers` can be broken on its own; the methods here act on all of them and block.
    Addresses and data stay the same over restarts; `close` deletes the data.  ``installation`` is that of the oldest
    version of the tests unless given.
    """

    def __init__(
        self, options: RocketMQOptions | None = None, *, installation: RocketMQInstallation | None = None
    ) -> None:
        if installation is None:
            found = find_rocketmq()
            if isinstance(found, Missing):
                raise ConfigurationError(str(found))
            installation = found
        self.installation = installation
        self.options = options = RocketMQOptions() if options is None else options
        if options.proxy and installation.major < 5:
            raise ConfigurationError(f"RocketMQ {installation.version} has no gRPC proxy: take 5.x or proxy=False")
        admin = Login("rocketmqadmin", secrets.token_hex(8)) if options.acl else None
        self.name_servers = tuple(RocketMQNameServer(options, installation) for _ in range(options.name_servers))
        #: broker-a, its slaves with the ids 1, 2, …, broker-b …
        self.brokers = tuple(
            RocketMQBroker(
                options,
                installation,
                self.name_servers,
                broker_name=f"broker-{chr(ord('a') + number)}",
                broker_id=id,
                admin=admin,
            )
            for number in range(options.masters)
            for id in range(1 + options.slaves)
        )
        super().__init__(
            RocketMQAddress(
                version=installation.version,
                name_servers=tuple(server.address for server in self.name_servers),
                brokers=tuple(broker.describe() for broker in self.brokers),
                cluster=CLUSTER,
                admin=admin,
            )
        )
        self._has_accounts = False

    def broker(self, name: str = "broker-a", id: int = 0) -> RocketMQBroker:
        """Return one broker; `LookupError` where there is none of the name and the id, which is 0 for a master."""
        for broker, address in zip(self.brokers, self.address.brokers, strict=True):
            if (address.name, address.id) == (name, id):
                return broker
        raise LookupError(f"this server has no broker {name!r} with the id {id}")

    @property
    def alive(self) -> bool:
        """Whether every part runs."""
        return all(node.alive for node in self._nodes)

    # --- control ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start what does not run, and return when all of it serves; five to eight seconds on an idle machine.

        `BrokerUnavailable` with the end of its log when a part cannot be started.
        """
        _at_once(node.start for node in self.name_servers if not node.alive)
        # A slave that registers after its master learns at once where that is.
        masters, slaves = self._by_role()
        _at_once(node.start for node in masters if not node.alive)
        _at_once(node.start for node in slaves if not node.alive)
        # 4.9.x reads them from a file.
        if self.options.acl and self.installation.major >= 5 and not self._has_accounts:
            for account in self.options.accounts:
                self.set_account(account)
        self._has_accounts = True
        if slaves and self.options.sync_replication:
            self.wait_until_replicating()

    def stop(self) -> None:
        """End the brokers in good order, in 5 s on 4.9.x and 8 s on 5.x; the NameServers have nothing to end."""
        _at_once(node.stop for node in self.brokers)
        for server in self.name_servers:
            server.kill()

    def kill(self) -> None:
        """Kill all processes."""
        for node in self._nodes:
            node.kill()

    def restart(self) -> None:
        """Stop what runs and start all of it again."""
        self.stop()
        self.start()

    def suspend(self) -> None:
        """Freeze all processes."""
        for node in self._nodes:
            node.suspend()

    def resume(self) -> None:
        """Let suspended processes go on."""
        for node in self._nodes:
            node.resume()

    def close(self) -> None:
        """Kill all processes and delete their data.  No-op when closed before."""
        for node in self._nodes:
            node.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _by_role(self) -> tuple[list[RocketMQBroker], list[RocketMQBroker]]:
        masters: list[RocketMQBroker] = []
        slaves: list[RocketMQBroker] = []
        for broker in self.brokers:
            (masters if broker.describe().id == 0 else slaves).append(broker)
        return masters, slaves

    @property
    def _nodes(self) -> tuple[JavaNode, ...]:
        return (*self.brokers, *self.name_servers)


def _at_once(actions: Iterable[Callable[[], None]]) -> None:
    actions = list(actions)
    if not actions:
        return
    with ThreadPoolExecutor(len(actions)) as pool:
        for future in [pool.submit(action) for action in actions]:
            future.result()
