"""Where one RabbitMQ node is: what its clients and its operator need to reach it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote

__all__ = ["RabbitMQAddress"]


@dataclass(frozen=True, slots=True)
class RabbitMQAddress:
    """The ports and names of one node; plain data, so that another process can be told."""

    #: "name@host", Erlang's name of it.
    node: str
    host: str
    #: AMQP without TLS, AMQP with TLS (None where there is none), management API, Prometheus, Erlang's distribution.
    port: int
    tls_port: int | None
    management_port: int
    prometheus_port: int
    distribution_port: int
    #: Port of the Erlang port mapper that knows the node.
    mapper_port: int
    #: Holds the node's files, and the cookie in `home`.
    directory: str
    user: str = "guest"
    password: str = field(default="guest", repr=False)

    @property
    def home(self) -> str:
        """Home directory of the node and of everything that talks to it by Erlang: the cookie is in it."""
        return f"{self.directory}/home"

    def url(self, vhost: str = "/", *, user: str | None = None, password: str | None = None, tls: bool = False) -> str:
        """Return the URL of a virtual host; without ``user`` that of the administrator."""
        scheme, port = ("amqps", self.tls_port) if tls else ("amqp", self.port)
        if port is None:
            raise ValueError("this node has no TLS listener: make it with RabbitMQOptions(tls=…)")
        return f"{scheme}://{self._login(user, password)}@{self.host}:{port}/{quote(vhost, safe='')}"

    def management_url(self, *, user: str | None = None, password: str | None = None) -> str:
        """Return the URL of the management API, login included."""
        return f"http://{self._login(user, password)}@{self.host}:{self.management_port}"

    @property
    def prometheus_url(self) -> str:
        """Where Prometheus reads; it asks for no login."""
        return f"http://{self.host}:{self.prometheus_port}/metrics"

    def _login(self, user: str | None, password: str | None) -> str:
        if user is None:
            user, password = self.user, self.password
        return f"{quote(user, safe='')}:{quote(password or '', safe='')}"
