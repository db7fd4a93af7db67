"""Mistakes in the list of NameServers, each of which is asked by itself: they know nothing of each other."""

from __future__ import annotations

from collections.abc import Mapping

from brokerkit.errors import BrokerError
from brokerkit.spi import Finding
from brokerkit_rocketmq.name_servers import NameServers
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.remoting.frames import Frame
from brokerkit_rocketmq.routes import parse_brokers

__all__ = ["name_server_findings"]

_UNREACHABLE = "start it, or take it off the list: a client that happens to ask it first waits for it"
_INCOMPLETE = (
    "name all NameServers to each broker (namesrvAddr in broker.conf), and only those of one cluster to clients; one "
    "that was started less than half a minute ago is told by itself"
)


async def name_server_findings(name_servers: NameServers, timeout: float) -> list[Finding]:
    """Return what is good and wrong with each; ``timeout`` is seconds for one.  Raises no `BrokerError`."""
    outcomes = await name_servers.outcomes(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=timeout)
    known = {address: _brokers(outcome) for address, outcome in outcomes.items()}
    everywhere: dict[str, None] = {}
    for found in known.values():
        if not isinstance(found, BrokerError):
            everywhere.update(dict.fromkeys(found))
    return [_finding(f"NameServer {address}", found, everywhere) for address, found in sorted(known.items())]


def _brokers(outcome: Frame | BrokerError) -> list[str] | BrokerError:
    """Return the brokers as texts, each with its address."""
    if isinstance(outcome, BrokerError):
        return outcome
    try:
        brokers = parse_brokers(outcome)
    except BrokerError as error:
        return error
    return sorted(
        f"{name}{f' (copy {number})' if number else ''} at {address}"
        for name, addresses in brokers.items()
        for number, address in addresses.items()
    )


def _finding(about: str, found: list[str] | BrokerError, everywhere: Mapping[str, None]) -> Finding:
    if isinstance(found, BrokerError):
        return Finding(level="wrong", about=about, text=f"it does not answer: {found.message}", cure=_UNREACHABLE)
    missing = [broker for broker in everywhere if broker not in found]
    if missing:
        text = f"it does not know {', '.join(sorted(missing))}, of which another NameServer of the list tells"
        return Finding(level="wrong", about=about, text=text, cure=_INCOMPLETE)
    return Finding(level="ok", about=about, text=f"it knows {', '.join(found) or 'no broker'}")
