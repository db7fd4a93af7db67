"""What a private RabbitMQ node is told before it starts, and the files that tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from brokerkit.testing.services.rabbitmq_address import RabbitMQAddress
from brokerkit.testing.services.rabbitmq_certificates import Certificates

__all__ = ["RabbitMQOptions", "write_files"]

#: Switched on unless told otherwise.
_PLUGINS = ("rabbitmq_management", "rabbitmq_prometheus")

#: Milliseconds.  How old the figures of queues and connections may be, and how often a channel looks for deliveries
#: that were kept too long; 5, 5 and 60 seconds in a node that nobody waits for.
_STATISTICS = 500
_QUORUM_TICK = 1000
_CHANNEL_TICK = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitMQOptions:
    """How a private node differs from the default.  None leaves RabbitMQ's default."""

    plugins: tuple[str, ...] = _PLUGINS
    #: Seconds that a delivery may stay unsettled.
    consumer_timeout: float | None = None
    #: Bytes.
    max_message_size: int | None = None
    channel_max: int | None = None
    #: Seconds, what the server proposes.
    heartbeat: int | None = None
    #: Entries of rabbitmq.conf, for what has no field above; reading that file costs a second and a half of CPU time.
    config: Mapping[str, str] = field(default_factory=dict)
    #: A second listener with the certificate `Certificates.server`.
    tls: Certificates | None = None
    #: Clients must show a certificate of `Certificates.authority`.
    verify_peer: bool = False
    #: Erlang's names of the nodes whose cluster it joins on its first start, its own included; empty for none.
    cluster: tuple[str, ...] = ()


def write_files(options: RabbitMQOptions, address: RabbitMQAddress) -> None:
    """Write the node's configuration and its list of plugins."""
    directory = Path(address.directory)
    (directory / "enabled_plugins").write_text(f"[{','.join(options.plugins)}].\n")
    # Erlang's own syntax: rabbitmq.conf is translated by a program that takes as long as the rest of the start.
    (directory / "advanced.config").write_text(_terms(options, address))
    lines = [f"{name} = {value}\n" for name, value in options.config.items()]
    main = directory / "rabbitmq.conf"
    if lines:
        main.write_text("".join(lines))
    else:
        main.unlink(missing_ok=True)


def _terms(options: RabbitMQOptions, address: RabbitMQAddress) -> str:
    host = _string(address.host)
    rabbit = [
        f"{{tcp_listeners,[{{{host},{address.port}}}]}}",
        f"{{collect_statistics_interval,{_STATISTICS}}}",
        f"{{quorum_tick_interval,{_QUORUM_TICK}}}",
        f"{{channel_tick_interval,{_CHANNEL_TICK}}}",
        "{log,[{file,[{file,false}]},{console,[{enabled,true},{level,info}]}]}",
    ]
    if options.consumer_timeout is not None:
        rabbit.append(f"{{consumer_timeout,{round(options.consumer_timeout * 1000)}}}")
    for name in ("max_message_size", "channel_max", "heartbeat"):
        value = getattr(options, name)
        if value is not None:
            rabbit.append(f"{{{name},{value}}}")
    if options.cluster:
        names = ",".join(f"'{name}'" for name in options.cluster)
        rabbit.append(f"{{cluster_nodes,{{[{names}],disc}}}}")
    if options.tls is not None and address.tls_port is not None:
        rabbit.append(f"{{ssl_listeners,[{{{host},{address.tls_port}}}]}}")
        verify = "verify_peer" if options.verify_peer else "verify_none"
        rabbit.append(
            f"{{ssl_options,[{{cacertfile,{_string(f'{address.directory}/authority.pem')}}},"
            f"{{certfile,{_string(f'{address.directory}/server.pem')}}},"
            f"{{keyfile,{_string(f'{address.directory}/server.key.pem')}}},"
            f"{{verify,{verify}}},{{fail_if_no_peer_cert,{str(options.verify_peer).lower()}}}]}}"
        )
    applications = [f"{{rabbit,[{','.join(rabbit)}]}}"]
    for plugin, port in (
        ("rabbitmq_management", address.management_port),
        ("rabbitmq_prometheus", address.prometheus_port),
    ):
        if plugin in options.plugins:
            applications.append(f"{{{plugin},[{{tcp_config,[{{ip,{host}}},{{port,{port}}}]}}]}}")
    return f"[{','.join(applications)}].\n"


def _string(text: object) -> str:
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
