"""The RabbitMQ backend: what the entry point names.  Imports no client library before it connects."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.spi import Capability, ConnectOptions
from brokerkit_rabbitmq.errors import NAME
from brokerkit_rabbitmq.settings import RabbitMQSettings, parse_settings

if TYPE_CHECKING:
    from brokerkit_rabbitmq.connection import RabbitMQConnection

__all__ = ["RabbitMQBackend"]


class RabbitMQBackend:
    """RabbitMQ from 3.10 on."""

    name = NAME
    schemes: tuple[str, ...] = ("amqp", "amqps")
    capabilities: frozenset[Capability] = frozenset(Capability) - {
        Capability.FROM_START,
        Capability.LEASE,
        Capability.ATOMIC_SETTLE,
        Capability.START_MARKS,
    }
    settings_model: ClassVar[type[RabbitMQSettings]] = RabbitMQSettings

    async def connect(self, options: ConnectOptions) -> RabbitMQConnection:
        """Connect to the first host that answers; the connection heals itself from then on.

        Raise `BrokerUnavailable`, `AccessRefused`, or `ConfigurationError`, also when pika is not installed.
        """
        settings, addresses = parse_settings(options)
        try:
            from brokerkit_rabbitmq.connection import RabbitMQConnection
        except ModuleNotFoundError as exc:
            if exc.name is None or exc.name.partition(".")[0] != "pika":
                raise
            raise ConfigurationError(
                "RabbitMQ needs pika; install it with: pip install 'brokerkit[rabbitmq]'", backend=NAME
            ) from exc
        connection = RabbitMQConnection(settings, addresses, options)
        await connection.open()
        return connection

    def map_error(self, exc: BaseException) -> BrokerError | None:
        """Translate an error of pika, whose codec is used, or of the network."""
        from brokerkit_rabbitmq.client_errors import map_client_error

        return map_client_error(exc)
