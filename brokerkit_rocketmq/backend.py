"""The RocketMQ backend: what the entry point names."""

from __future__ import annotations

from typing import ClassVar

from brokerkit.errors import BrokerError
from brokerkit.spi import Capability, ConnectOptions
from brokerkit_rocketmq.connection import RocketMQConnection
from brokerkit_rocketmq.errors import NAME, unreachable
from brokerkit_rocketmq.remoting.errors import RemotingError
from brokerkit_rocketmq.settings import RocketMQSettings, parse_settings

__all__ = ["RocketMQBackend"]


class RocketMQBackend:
    """RocketMQ 4.9 and 5.x, by the remoting protocol: NameServer addresses are all that it needs."""

    name = NAME
    schemes: tuple[str, ...] = ("rocketmq",)
    capabilities: frozenset[Capability] = frozenset(Capability) - {
        Capability.SELECTIVE_ACK,
        Capability.LEASE,
        Capability.STRICT_PRIORITY,
        Capability.ATOMIC_SETTLE,
        Capability.START_MARKS,
    }
    settings_model: ClassVar[type[RocketMQSettings]] = RocketMQSettings

    async def connect(self, options: ConnectOptions) -> RocketMQConnection:
        """Ask the first NameServer that answers for the brokers; the connection heals itself from then on.

        Raise `BrokerUnavailable`, `AccessRefused` or `ConfigurationError`.
        """
        settings, name_servers = parse_settings(options)
        connection = RocketMQConnection(settings, name_servers, options)
        await connection.open()
        return connection

    def map_error(self, exc: BaseException) -> BrokerError | None:
        """Translate an error of the protocol layer, which can be used on its own."""
        return unreachable(exc) if isinstance(exc, RemotingError) else None
