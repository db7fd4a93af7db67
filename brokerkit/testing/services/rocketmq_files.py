"""The configuration files of a private RocketMQ broker."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from brokerkit.testing.services.rocketmq_accounts import account_4
from brokerkit.testing.services.rocketmq_options import RocketMQAccount, RocketMQOptions
from brokerkit.testing.services.rocketmq_wire import Login

__all__ = ["BrokerPlace", "accounts_file", "broker_file", "keys_file", "proxy_file"]

#: Files and threads of a server that has little to do: the defaults are 1 GB a file and dozens of threads.
_SMALL = {
    "mappedFileSizeCommitLog": 64 << 20,
    "mappedFileSizeConsumeQueue": 600_000,
    "maxHashSlotNum": 100_000,
    "maxIndexNum": 400_000,
    "pullMessageThreadPoolNums": 4,
    "queryMessageThreadPoolNums": 2,
    "adminBrokerThreadPoolNums": 2,
    "clientManageThreadPoolNums": 2,
    "consumerManageThreadPoolNums": 2,
    "endTransactionThreadPoolNums": 2,
}
_SMALL_5 = {
    "mappedFileSizeTimerLog": 10 << 20,
    "enableCompaction": "false",
    "litePullMessageThreadPoolNums": 2,
    # Milliseconds.  TransactionMetricsFlushService keeps a processor busy until this time after the start is over.
    "transactionMetricFlushInterval": 500,
    # Milliseconds.  TimerFlushService compares the whole wheel, 38 MB, with its file each time.
    "timerFlushIntervalMs": 10_000,
}

_AUTHENTICATION = "org.apache.rocketmq.auth.authentication.provider"
_AUTHORIZATION = "org.apache.rocketmq.auth.authorization.provider"


@dataclass(frozen=True, slots=True)
class BrokerPlace:
    """Where one broker is and who it belongs to."""

    cluster: str
    name: str
    id: int
    host: str
    port: int
    replication_port: int
    #: "host:port" each.
    name_servers: tuple[str, ...]
    directory: str
    #: First number of the version.
    major: int


def broker_file(place: BrokerPlace, options: RocketMQOptions, admin: Login | None) -> str:
    """Return broker.conf."""
    role = "SLAVE" if place.id else "SYNC_MASTER" if options.sync_replication else "ASYNC_MASTER"
    lines: dict[str, object] = {
        "brokerClusterName": place.cluster,
        "brokerName": place.name,
        "brokerId": place.id,
        "brokerRole": role,
        "flushDiskType": "SYNC_FLUSH" if options.sync_flush else "ASYNC_FLUSH",
        "namesrvAddr": ";".join(place.name_servers),
        # What the NameServers tell to clients, and to slaves.
        "brokerIP1": place.host,
        "brokerIP2": place.host,
        "listenPort": place.port,
        "haListenPort": place.replication_port,
        "storePathRootDir": f"{place.directory}/store",
        "storePathCommitLog": f"{place.directory}/store/commitlog",
        "autoCreateTopicEnable": str(options.auto_create_topics).lower(),
        "autoCreateSubscriptionGroup": str(options.auto_create_groups).lower(),
        "defaultTopicQueueNums": 4,
        "enablePropertyFilter": "true",
        "fileReservedTime": 1,
        "diskMaxUsedSpaceRatio": 95,
        # Milliseconds, the least that a broker accepts: how soon a NameServer that came back knows everything.
        "registerNameServerPeriod": 10_000,
        **_SMALL,
    }
    if place.major >= 5:
        # 4.9.x knows no address to bind to and listens on all of them.
        lines |= {"bindAddress": place.host, "recallMessageEnable": "true", **_SMALL_5}
    if options.delay_levels:
        lines["messageDelayLevel"] = " ".join(options.delay_levels)
    if admin is not None:
        lines |= {"aclEnable": "true"} if place.major < 5 else _authentication(admin)
    lines |= options.settings
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def _authentication(admin: Login) -> dict[str, object]:
    return {
        "authenticationEnabled": "true",
        "authenticationProvider": f"{_AUTHENTICATION}.DefaultAuthenticationProvider",
        "authenticationMetadataProvider": f"{_AUTHENTICATION}.LocalAuthenticationMetadataProvider",
        "initAuthenticationUser": json.dumps({"username": admin.access_key, "password": admin.secret_key}),
        "innerClientAuthenticationCredentials": json.dumps(
            {"accessKey": admin.access_key, "secretKey": admin.secret_key}
        ),
        "authorizationEnabled": "true",
        "authorizationProvider": f"{_AUTHORIZATION}.DefaultAuthorizationProvider",
        "authorizationMetadataProvider": f"{_AUTHORIZATION}.LocalAuthorizationMetadataProvider",
    }


def proxy_file(place: BrokerPlace, grpc_port: int, remoting_port: int) -> str:
    """Return the configuration of the gRPC proxy inside a broker."""
    return json.dumps(
        {
            "rocketMQClusterName": place.cluster,
            "namesrvAddr": ";".join(place.name_servers),
            "grpcServerPort": grpc_port,
            "remotingListenPort": remoting_port,
            "localServeAddr": place.host,
            "remotingAccessAddr": place.host,
        }
    )


def accounts_file(admin: Login, accounts: Iterable[RocketMQAccount]) -> str:
    """Return plain_acl.yml of 4.9.x, in JSON, which is YAML too."""
    entries: list[Mapping[str, Any]] = [
        {"accessKey": admin.access_key, "secretKey": admin.secret_key, "admin": True},
        *(account_4(account) for account in accounts),
    ]
    # Changes at run time fail without a revision, or when its time is small enough for an Integer of Java.
    return json.dumps({"accounts": entries, "dataVersion": [{"counter": 1, "timestamp": 1 << 40}]}, indent=1)


def keys_file(admin: Login) -> str:
    """Return tools.yml of 4.9.x: what a slave signs its requests to its master with."""
    return json.dumps({"accessKey": admin.access_key, "secretKey": admin.secret_key})
