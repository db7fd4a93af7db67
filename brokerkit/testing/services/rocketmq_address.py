"""Where the parts of one RocketMQ are: what its clients and its operator need to reach it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from brokerkit.testing.services.rocketmq_wire import Login

__all__ = ["RocketMQAddress", "RocketMQBrokerAddress"]


@dataclass(frozen=True, slots=True)
class RocketMQBrokerAddress:
    """One broker."""

    #: Shared by a master and its slaves.
    name: str
    #: 0 is a master.
    id: int
    #: "host:port", as the NameServers tell it to clients.
    address: str
    #: "host:port" of the gRPC endpoint, None where there is none.
    grpc: str | None = None


@dataclass(frozen=True, slots=True)
class RocketMQAddress:
    """One server with all its parts; plain data, so that another process can be told."""

    version: str
    #: "host:port" each.
    name_servers: tuple[str, ...]
    brokers: tuple[RocketMQBrokerAddress, ...]
    cluster: str
    #: The administrator, None while the ACL is off.
    admin: Login | None = None

    def url(self, login: Login | None = None) -> str:
        """Return the URL for a user; without ``login`` for the administrator where there is one."""
        login = login or self.admin
        user = "" if login is None else f"{quote(login.access_key, safe='')}:{quote(login.secret_key, safe='')}@"
        return f"rocketmq://{user}{','.join(self.name_servers)}"

    @property
    def masters(self) -> tuple[RocketMQBrokerAddress, ...]:
        """The brokers that take messages."""
        return tuple(broker for broker in self.brokers if broker.id == 0)

    @property
    def major(self) -> int:
        """First number of the version."""
        return int(self.version.partition(".")[0])

    def describe(self) -> str:
        """Return all of it as JSON, secrets included; `read` is the way back."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, description: str) -> RocketMQAddress:
        """Return what `describe` described."""
        fields: Mapping[str, Any] = json.loads(description)
        admin = fields["admin"]
        return cls(
            version=fields["version"],
            name_servers=tuple(fields["name_servers"]),
            brokers=tuple(RocketMQBrokerAddress(**broker) for broker in fields["brokers"]),
            cluster=fields["cluster"],
            admin=None if admin is None else Login(**admin),
        )
