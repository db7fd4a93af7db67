"""RabbitMQ in a container of testcontainers."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from brokerkit.errors import BrokerUnavailable
from brokerkit.testing.services.service import Missing

__all__ = ["RabbitMQContainer", "start_container"]

_IMAGE = "rabbitmq:4-management"

_AMQP, _MANAGEMENT = 5672, 15672


class RabbitMQContainer:
    """A RabbitMQ server in a container, until `close`."""

    name = "rabbitmq"
    origin = "docker"

    def __init__(self, container: Any) -> None:
        self._container = container
        self._host = container.get_container_host_ip()
        self._login = f"{quote(container.username, safe='')}:{quote(container.password, safe='')}"

    @property
    def url(self) -> str:
        """The URL of the virtual host "/", as the administrator."""
        return f"amqp://{self._login}@{self._host}:{self._container.get_exposed_port(_AMQP)}/%2F"

    @property
    def management_url(self) -> str:
        """The URL of the management API, with the administrator's login."""
        return f"http://{self._login}@{self._host}:{self._container.get_exposed_port(_MANAGEMENT)}"

    def close(self) -> None:
        """Stop and remove the container.  No-op when closed before."""
        container, self._container = self._container, None
        if container is not None:
            container.stop()


def start_container(image: str = _IMAGE) -> RabbitMQContainer | Missing:
    """Start a container; `BrokerUnavailable` when it does not come up."""
    try:
        # The modules moved in 4.15; the old place still works there, but warns.
        from testcontainers.community.rabbitmq import RabbitMqContainer
    except ImportError:
        try:
            from testcontainers.rabbitmq import RabbitMqContainer
        except ImportError as error:
            return Missing("rabbitmq", f"testcontainers' RabbitMQ does not load: {error}; it needs pika")
    container = RabbitMqContainer(image).with_exposed_ports(_AMQP, _MANAGEMENT)
    try:
        container.start()
    except Exception as error:
        raise BrokerUnavailable(f"the container of {image} did not start: {error}") from error
    return RabbitMQContainer(container)
