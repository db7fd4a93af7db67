"""Fault proxies before all parts of a RocketMQ."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.services.rocketmq_address import RocketMQAddress

__all__ = ["RocketMQProxies"]


class RocketMQProxies:
    """A `FaultProxy` before each NameServer and each broker of ``address``, between ``with`` and its end.

    `url` leads through them and nowhere else, for the administrator where the ACL is on: clients learn the addresses
    of brokers from the NameServers, and ``address_map`` replaces them.
    """

    def __init__(self, address: RocketMQAddress) -> None:
        self._address = address
        self._stack = ExitStack()
        self.name_servers = tuple(map(_before, address.name_servers))
        #: In the order of the address.
        self.brokers = tuple(_before(broker.address) for broker in address.brokers)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for proxy in self.all:
                stack.enter_context(proxy)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def all(self) -> tuple[FaultProxy, ...]:
        """The proxies of the NameServers, then those of the brokers."""
        return (*self.name_servers, *self.brokers)

    @property
    def url(self) -> str:
        """The URL of the proxies."""
        hosts = ",".join(f"{proxy.host}:{proxy.port}" for proxy in self.name_servers)
        mapped = ",".join(
            f"{broker.address}={proxy.host}:{proxy.port}"
            for broker, proxy in zip(self._address.brokers, self.brokers, strict=True)
        )
        user = self._address.url().removesuffix(",".join(self._address.name_servers))
        return f"{user}{hosts}?address_map={mapped}"

    # --- faults of all of them --------------------------------------------------------------------------------

    def reset(self) -> None:
        """Do what `FaultProxy.reset` does, with each."""
        for proxy in self.all:
            proxy.reset()

    def freeze(self, *, existing_only: bool = False) -> None:
        """Do what `FaultProxy.freeze` does, with each."""
        for proxy in self.all:
            proxy.freeze(existing_only=existing_only)

    def thaw(self) -> None:
        """Do what `FaultProxy.thaw` does, with each."""
        for proxy in self.all:
            proxy.thaw()


def _before(address: str) -> FaultProxy:
    host, _, port = address.rpartition(":")
    return FaultProxy(host, int(port))
