"""A private RocketMQ by hand: python -m brokerkit.testing.services.rocketmq --help."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence

from brokerkit.errors import BrokerError
from brokerkit.testing.services.rocketmq_installation import ROCKETMQ_VERSIONS, find_rocketmq
from brokerkit.testing.services.rocketmq_options import RocketMQOptions
from brokerkit.testing.services.rocketmq_server import RocketMQServer
from brokerkit.testing.services.service import Missing

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a server until Ctrl-C or SIGTERM, or only fetch what one needs."""
    parser = argparse.ArgumentParser(prog="python -m brokerkit.testing.services.rocketmq", description=main.__doc__)
    parser.add_argument("--version", default=ROCKETMQ_VERSIONS[0], help="default %(default)s")
    parser.add_argument(
        "--fetch", nargs="*", metavar="VERSION", help="only fetch the jars of these versions, or of all that are tested"
    )
    parser.add_argument("--masters", type=int, default=1)
    parser.add_argument("--slaves", type=int, default=0, help="of each master")
    parser.add_argument("--name-servers", type=int, default=1)
    parser.add_argument("--sync-flush", action="store_true")
    parser.add_argument("--acl", action="store_true", help="requests must be signed; the URL holds the login")
    parser.add_argument("--proxy", action="store_true", help="5.x: a gRPC endpoint, too")
    parser.add_argument("--delay-levels", default="", help='such as "1s 2s 3s"')
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a line of broker.conf")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.fetch is not None:
            return _fetch(chosen.fetch or ROCKETMQ_VERSIONS)
        return _serve(chosen)
    except BrokerError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _fetch(versions: Sequence[str]) -> int:
    for version in versions:
        found = find_rocketmq(version)
        if isinstance(found, Missing):
            sys.stderr.write(f"{found.reason}\n")
            return 1
    return 0


def _serve(chosen: argparse.Namespace) -> int:
    installation = find_rocketmq(chosen.version)
    if isinstance(installation, Missing):
        sys.stderr.write(f"{installation}\n")
        return 1
    options = RocketMQOptions(
        masters=chosen.masters,
        slaves=chosen.slaves,
        name_servers=chosen.name_servers,
        sync_flush=chosen.sync_flush,
        acl=chosen.acl,
        proxy=chosen.proxy,
        full_speed=True,
        delay_levels=tuple(chosen.delay_levels.split()),
        settings=dict(line.split("=", 1) for line in chosen.set),
    )
    # As Ctrl-C: the end of the block below is then the server's.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with RocketMQServer(options, installation=installation) as server:
            sys.stdout.write(_description(server))
            sys.stdout.flush()
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    return 0


def _description(server: RocketMQServer) -> str:
    lines = [server.url]
    lines += [f"  NameServer    {part.address}  log {part.log}" for part in server.name_servers]
    for broker in server.brokers:
        place = broker.describe()
        grpc = "" if place.grpc is None else f"  gRPC {place.grpc}"
        lines.append(f"  {place.name} id {place.id} {place.address}{grpc}  log {broker.log}")
    return "\n".join([*lines, "Ctrl-C ends it", ""])
