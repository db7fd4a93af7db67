"""The ``rabbitmq:`` section of the configuration, and what its URL adds to it.

The keys ``host`` to ``heartbeat`` are those of the service client and of the worker groups that brokerkit
replaces; so are ``blocked_connection_timeout``, ``connection_attempts`` and ``retry_delay``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from brokerkit.errors import ConfigurationError
from brokerkit.spi import BrokerUrl, ConnectOptions, checked_section
from brokerkit_rabbitmq.errors import NAME

__all__ = ["Address", "RabbitMQSettings", "parse_settings"]

_PORT, _TLS_PORT = 5672, 5671


def _texts(value: object) -> object:
    """A list of names may be written as one text with commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class RabbitMQSettings(BaseModel):
    """Options of RabbitMQ.  Times are seconds, sizes are bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True)

    host: str | None = Field(None, description="Host name or address; several joined by `,`, each with its `:port`.")
    port: int | None = Field(None, ge=1, le=65535, description="Port; 5672 when not set, 5671 with TLS.")
    user: str | None = Field(None, description="User; `name` is accepted for it. `guest` when not set.")
    password: SecretStr | None = Field(None, description="Password of the user. `guest` when not set.")
    vhost: str | None = Field(None, description="Virtual host; `/` when not set.")
    heartbeat: float = Field(6.0, ge=0, le=600, description="Seconds between heartbeats; 0 switches them off.")
    credentials: Callable[[], Any] | str | None = Field(
        None,
        description="A function that returns (user, password), called for every connection; also `module:function`. "
        "For passwords that change.",
    )

    tls: bool = Field(False, description="Use TLS. Implied by `amqps://`.")
    verify: bool = Field(True, description="With TLS: check the broker's certificate and its name.")
    ca_file: str | None = Field(None, description="With TLS: certificates to trust; the system's when not set.")
    cert_file: str | None = Field(None, description="With TLS: our certificate, where the broker wants one.")
    key_file: str | None = Field(None, description="With TLS: the key of `cert_file`.")
    key_password: SecretStr | None = Field(None, description="With TLS: the password of `key_file`.")
    server_name: str | None = Field(None, description="With TLS: the name in the broker's certificate; the host's.")
    mechanism: Literal["PLAIN", "EXTERNAL"] = Field(
        "PLAIN", description="How to log in; EXTERNAL takes the user from our certificate."
    )

    connection_timeout: float | None = Field(
        None, gt=0, description="Seconds for connecting to one host; `attempt_timeout` when not set."
    )
    connection_attempts: int = Field(1, ge=1, description="How often all hosts are tried before the first use fails.")
    retry_delay: float = Field(0.2, gt=0, description="Seconds before a lost connection is made again the first time.")
    retry_max_delay: float = Field(5.0, gt=0, description="Most seconds between two tries to connect again.")
    blocked_connection_timeout: float | None = Field(
        None,
        gt=0,
        description="Seconds that a send waits while the broker blocks publishers; `attempt_timeout` when not set.",
    )

    queue_type: Literal["quorum", "classic"] = Field("quorum", description="Of the queues that brokerkit declares.")
    max_priority: int | None = Field(
        None,
        ge=1,
        le=255,
        description="Of the queues that brokerkit declares for groups without an order: deliver by priority up to this "
        "one; makes them classic before 4.3.",
    )
    delay: bool = Field(True, description="False: declare no exchanges and queues for delays, and offer none.")
    delay_queue_type: Literal["quorum", "classic"] | None = Field(
        None, description="Of the queues where delayed messages wait; `queue_type` when not set."
    )
    window: int = Field(1000, ge=1, le=65535, description="Messages sent and not confirmed, for each exchange.")
    frame_max: int = Field(131072, ge=8192, le=1 << 31, description="Bytes of the largest frame.")
    max_message_size: int | None = Field(
        None, gt=0, description="Bytes of the largest body; the broker's own default (128 MiB, from 4.0 on 16 MiB)."
    )
    management_url: str | None = Field(
        None,
        repr=False,  # it may hold a password
        description="The management API, such as `http://host:15672`, also with a user of its own; tried on the hosts "
        "of the broker when not set; an empty text switches it off.",
    )
    prometheus_url: str | None = Field(
        None,
        repr=False,
        description="The Prometheus endpoint, such as `http://host:15692`; used where there is no management API.",
    )
    hosts: Annotated[tuple[str, ...], BeforeValidator(_texts)] = Field((), description="More hosts, after `host`.")


@dataclass(frozen=True, slots=True)
class Address:
    """One host of the broker."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_settings(options: ConnectOptions) -> tuple[RabbitMQSettings, tuple[Address, ...]]:
    """Return the settings and the hosts in the order in which they are tried.

    What the URL names wins over the section; the names of its options are the keys of the section.  Raise
    `ConfigurationError` that names each bad key and never a password.
    """
    values: dict[str, Any] = {key: value for key, value in options.section.items() if value is not None}
    values.pop("enabled", None)
    if "name" in values:
        values.setdefault("user", values.pop("name"))
    from_url: dict[str, Any] = {}
    url = BrokerUrl.parse(options.url) if options.url is not None else None
    if url is not None:
        if url.scheme not in ("amqp", "amqps"):
            raise ConfigurationError(f"RabbitMQ takes amqp:// and amqps:// URLs, not {url.scheme}://", backend=NAME)
        from_url = dict(url.query)
        if url.scheme == "amqps":
            from_url.setdefault("tls", True)
        for key, value in (("user", url.user), ("password", url.password), ("vhost", url.path or None)):
            if value is not None:
                from_url[key] = value
    settings = checked_section(RabbitMQSettings, NAME, ("the rabbitmq section", values), ("the URL", from_url))
    hosts: tuple[tuple[str, int | None], ...] = ()
    if url is not None and url.hosts:
        hosts = url.hosts
        more: tuple[str, ...] = settings.hosts if "hosts" in from_url else ()
    else:
        more = (settings.host or "", *settings.hosts)
    hosts += tuple(_host(part.strip()) for text in more for part in text.split(",") if part.strip())
    port = settings.port or (_TLS_PORT if settings.tls else _PORT)
    addresses = tuple(Address(host, own or port) for host, own in hosts)
    return settings, addresses or (Address("127.0.0.1", port),)


def _host(text: str) -> tuple[str, int | None]:
    """Return host and port of ``host``, ``host:port``, ``[::1]:port`` or ``::1``."""
    try:
        return str(ipaddress.IPv6Address(text)), None
    except ValueError:
        pass
    url = BrokerUrl.parse(f"amqp://{text}")
    if len(url.hosts) != 1 or url.path or url.query or url.user is not None:
        # The text is not shown: it may be a URL with a password.
        raise ConfigurationError("'host' and 'hosts' take host or host:port; a whole URL is the key url", backend=NAME)
    return url.hosts[0]
