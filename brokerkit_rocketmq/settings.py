"""The ``rocketmq:`` section of the configuration, and what its URL adds to it.

The keys from ``enabled`` to ``namespace`` are those of the document export service that brokerkit replaces, in its
units: milliseconds and minutes where they say so.  All others are seconds and bytes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from brokerkit.errors import ConfigurationError
from brokerkit.spi import BrokerUrl, ConnectOptions, checked_section
from brokerkit_rocketmq.addresses import NAME_SERVER_PORT, Address, parse_address
from brokerkit_rocketmq.delays import parse_levels
from brokerkit_rocketmq.errors import NAME

__all__ = ["EXPORT_TOPIC", "RocketMQSettings", "parse_settings"]

#: Topic and group of the document export service where its section does not name them.
EXPORT_TOPIC = "export_tasks"

_NAMESPACE = re.compile(r"[|a-zA-Z0-9_-]+", re.ASCII)
_CLIENT = re.compile(r"[A-Za-z0-9_.:\-]+", re.ASCII)


def _address(text: str) -> Address:
    """Return the address; raise ValueError that does not show the text: it may be a URL with a password."""
    try:
        return parse_address(text, NAME_SERVER_PORT)
    except ConfigurationError:
        raise ValueError("write an address as host:port, an IPv6 one as [::1]:port") from None


def _addresses(value: object) -> object:
    """The map from advertised to real addresses may be written as one text, ``a=b,c=d``."""
    if not isinstance(value, str):
        return value
    pairs = [item.partition("=") for item in re.split("[,;]", value) if item.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError("write it as advertised=real,advertised=real")
    return {advertised.strip(): real.strip() for advertised, _, real in pairs}


def _checked_map(value: dict[str, str]) -> dict[str, str]:
    for advertised, real in value.items():
        # A host alone stands for all of its ports.
        _address(advertised)
        _address(real)
    return value


def _checked_levels(value: str | None) -> str | None:
    if value is not None:
        parse_levels(value)
    return value


def _checked_namespace(value: str | None) -> str | None:
    if value is not None and _NAMESPACE.fullmatch(value) is None:
        raise ValueError("a namespace has letters, digits, '_', '-' and '|' only")
    return value or None


def _checked_client(value: str | None) -> str | None:
    if value is not None and _CLIENT.fullmatch(value) is None:
        raise ValueError("use letters, digits, '_', '-', '.' and ':'")
    return value


def _switch(value: object) -> object:
    """YAML reads off as False."""
    return {False: "off", True: "auto"}.get(value, value) if isinstance(value, bool) else value


class RocketMQSettings(BaseModel):
    """Options of RocketMQ.  Times are seconds and sizes bytes where no other unit is named."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    # --- the keys of the document export service ---

    enabled: bool = Field(True, description="False: no connection, and every call raises.")
    name_server: str = Field(
        "localhost:9876", min_length=1, description="Name servers, as host:port joined by `;` or `,`."
    )
    producer_group: str = Field(
        "brokerkit", min_length=1, max_length=120, description="Producer group that the broker shows."
    )
    consumer_group: str | None = Field(
        None,
        max_length=120,
        description="Default for the top-level `consumer_group`; on `topic` it is the native group as it stands.",
    )
    topic: str | None = Field(
        None, description="Default for the top-level `topic`; `export_tasks` when not set and there is a group."
    )
    tag: str | None = Field(None, description="Tag filter of the export tasks; `*` when not set.")
    max_message_size: int = Field(4194304, ge=1, description="Bytes of the largest body that is sent.")
    send_timeout: int | None = Field(None, ge=1, description="Milliseconds. Default for `attempt_timeout`.")
    retry_times: int | None = Field(
        None,
        ge=0,
        description="n means that the top-level `send_timeout` is n + 1 times that of one attempt. The next attempt "
        "goes to another broker where there are several.",
    )
    consumer_thread_min: int | None = Field(
        None, ge=1, description="Accepted, without effect: threads are made when needed."
    )
    consumer_thread_max: int | None = Field(None, ge=1, description="Concurrency of the export task handler; 5.")
    consume_message_batch_max_size: int | None = Field(
        None, ge=1, description="Accepted: a handler of export tasks gets them one by one."
    )
    pull_batch_size: int = Field(
        32, ge=1, le=1024, description="Messages to a pull request; the broker's own limit is 32 by default."
    )
    pull_interval: int = Field(0, ge=0, description="Milliseconds between the pull requests for a queue.")
    consume_timeout: float | None = Field(None, gt=0, description="Minutes. Default for `handler_timeout`.")
    max_reconsume_times: int | None = Field(
        None,
        ge=0,
        description="n means `retry.max_attempts` n + 1.",
    )
    suspend_current_queue_time: int = Field(
        1000,
        ge=0,
        description="Most milliseconds until an ordered queue that another process has locked is tried again.",
    )
    access_key: SecretStr | None = Field(None, description="ACL access key; the user of the URL.")
    secret_key: SecretStr | None = Field(None, description="ACL secret key; the password of the URL.")
    security_token: SecretStr | None = Field(None, description="ACL security token, beside temporary keys.")
    namespace: Annotated[str | None, AfterValidator(_checked_namespace)] = Field(
        None, max_length=60, description="Namespace of topics and groups."
    )

    # --- connections ---

    tls: bool = Field(False, description="Use TLS, to name servers and brokers; the ports are the same.")
    verify: bool = Field(True, description="With TLS: check the servers' certificates and their names.")
    ca_file: str | None = Field(None, description="With TLS: certificates to trust; the system's when not set.")
    cert_file: str | None = Field(None, description="With TLS: our certificate, where the servers want one.")
    key_file: str | None = Field(None, description="With TLS: the key of `cert_file`.")
    key_password: SecretStr | None = Field(None, description="With TLS: the password of `key_file`.")
    server_name: str | None = Field(None, description="With TLS: the name in the certificates; the host's.")
    address_map: Annotated[dict[str, str], BeforeValidator(_addresses), AfterValidator(_checked_map)] = Field(
        default_factory=dict,
        description="Brokers whose address (brokerIP1) cannot be reached from here: advertised address, with or "
        "without its port, to the real one; in a URL `advertised=real,…`.",
    )
    instance_name: Annotated[str | None, AfterValidator(_checked_client)] = Field(
        None, max_length=60, description="Middle part of the client ids that brokers show; the process id."
    )
    connection_timeout: float | None = Field(
        None, gt=0, description="Seconds for connecting to one server; `attempt_timeout` when not set."
    )
    heartbeat: float = Field(
        6.0, gt=0, le=60, description="Seconds of silence after which a link is probed; after twice that it is lost."
    )
    retry_delay: float = Field(0.2, gt=0, description="Seconds before a lost connection is made again the first time.")
    retry_max_delay: float = Field(5.0, gt=0, description="Most seconds between two tries to connect again.")
    route_refresh: float = Field(30.0, gt=0, description="Seconds between looks at which brokers hold a topic.")

    # --- sending ---

    window: int = Field(1000, ge=1, le=65535, description="Messages sent to one broker and not answered.")
    compress_over: int | None = Field(
        None, ge=0, description="Compress bodies of more bytes than this with zlib; never when not set (Java: 4096)."
    )
    timers: Annotated[Literal["auto", "off"], BeforeValidator(_switch)] = Field(
        "auto", description="Delays by the timers of 5.x; `off` where they are not: timerWheelEnable=false."
    )
    delay_levels: Annotated[str | None, AfterValidator(_checked_levels)] = Field(
        None,
        description="The broker's messageDelayLevel, where it is changed and the ACL does not let us read it.",
    )

    # --- receiving ---

    pull_threshold_messages: int = Field(
        1000, ge=1, description="Messages of one queue that wait in this process before no more are pulled."
    )
    pull_threshold_bytes: int = Field(16777216, ge=1, description="The same by their bytes.")
    shadow: Annotated[Literal["auto", "off"], BeforeValidator(_switch)] = Field(
        "auto",
        description="Recognise redelivered messages by an offset of a second group, `<group>||h`; `off` where the ACL "
        "does not allow it.",
    )

    # --- declaring ---

    queues: int = Field(8, ge=1, le=1024, description="Of a topic that brokerkit declares, on each broker.")
    retry_queues: int = Field(1, ge=1, le=256, description="Of the retry topic of a group that brokerkit declares.")
    cluster: str | None = Field(
        None, min_length=1, description="Cluster on whose brokers topics and groups are declared; all when not set."
    )


def parse_settings(options: ConnectOptions) -> tuple[RocketMQSettings, tuple[Address, ...]]:
    """Return the settings and the name servers in the order in which they are tried.

    What the URL names wins over the section; the names of its options are the keys of the section.  Raise
    `ConfigurationError` that names each bad key and never a secret.
    """
    values: dict[str, Any] = {key: value for key, value in options.section.items() if value is not None}
    from_url: dict[str, Any] = {}
    url = BrokerUrl.parse(options.url) if options.url is not None else None
    if url is not None:
        if url.scheme != NAME:
            raise ConfigurationError(f"RocketMQ takes rocketmq:// URLs, not {url.scheme}://", backend=NAME)
        if url.path:
            raise ConfigurationError(
                "a rocketmq:// URL has no path: a namespace is the option ?namespace=…", backend=NAME
            )
        from_url = dict(url.query)
        for key, value in (("access_key", url.user), ("secret_key", url.password)):
            if value:
                from_url[key] = value
    settings = checked_section(RocketMQSettings, NAME, ("the rocketmq section", values), ("the URL", from_url))
    if (settings.access_key is None) != (settings.secret_key is None):
        missing = "secret_key" if settings.secret_key is None else "access_key"
        raise ConfigurationError(f"{missing!r} is missing: an ACL wants access_key and secret_key", backend=NAME)
    if settings.security_token is not None and settings.access_key is None:
        raise ConfigurationError("'security_token' stands beside access_key and secret_key; both miss", backend=NAME)
    if url is not None and url.hosts:
        if "name_server" in from_url:
            raise ConfigurationError("the URL names name servers twice: as its hosts and by name_server", backend=NAME)
        return settings, tuple(Address(host, port or NAME_SERVER_PORT) for host, port in url.hosts)
    return settings, _name_servers(settings.name_server)


def _name_servers(text: str) -> tuple[Address, ...]:
    try:
        found = tuple(_address(item) for item in re.split("[,;]", text) if item.strip())
    except ValueError as exc:
        raise ConfigurationError(f"'name_server': {exc}; a whole URL is the key url", backend=NAME) from None
    if not found:
        raise ConfigurationError("'name_server' names no server; write host:port", backend=NAME)
    return found
