"""What a private RocketMQ is told before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from brokerkit.testing.services.rabbitmq_certificates import Certificates
from brokerkit.testing.services.rocketmq_wire import Login

__all__ = ["RocketMQAccount", "RocketMQOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RocketMQAccount:
    """A user and its permissions: each is a list of PUB, SUB and GET (which 5.x asks for statistics) with "|"."""

    #: 4.9.x takes none that is shorter than seven characters, of either.
    access_key: str
    secret_key: str = field(repr=False)
    admin: bool = False
    #: What holds for topics and groups that are not named below; "" for nothing.
    default_topic: str = ""
    default_group: str = ""
    topics: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def login(self) -> Login:
        """How requests of this user are signed."""
        return Login(self.access_key, self.secret_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class RocketMQOptions:
    """How a private server differs from the default; the same for all its brokers."""

    #: Brokers with different data; a topic has queues on each of them.
    masters: int = 1
    #: Copies of each master, of which clients read while it is down.
    slaves: int = 0
    name_servers: int = 1
    #: A send is answered when it is on the disk.
    sync_flush: bool = False
    #: A send is answered when a slave has it.
    sync_replication: bool = False
    #: The durations of the delay levels, such as ("1s", "2s"); empty for RocketMQ's own, 1s to 2h.
    delay_levels: tuple[str, ...] = ()
    #: A send to an unknown topic makes it, a heartbeat of an unknown group makes it.
    auto_create_topics: bool = True
    auto_create_groups: bool = True
    #: Requests must be signed.
    acl: bool = False
    #: Who there is besides the administrator when `acl` is on.
    accounts: tuple[RocketMQAccount, ...] = ()
    #: TLS at the same ports, with the certificate `Certificates.server`; clients without TLS are served too.
    tls: Certificates | None = None
    #: Clients with TLS must show a certificate of `Certificates.authority`.
    verify_peer: bool = False
    #: 5.x: a gRPC endpoint in each broker.
    proxy: bool = False
    #: Further lines of broker.conf.
    settings: Mapping[str, str] = field(default_factory=dict)
    #: Let Java compile its brokers thoroughly, for measurements and long runs.  Without it they start with less CPU.
    full_speed: bool = False
    #: Further options of the brokers' Java, behind and above those of our own.
    java_options: tuple[str, ...] = ()
