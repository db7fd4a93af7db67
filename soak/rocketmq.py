"""RocketMQ for the soak run: two NameServers, two brokers that flush each message to the disk, what happens to them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from brokerkit import AsyncManager
from brokerkit.clock import SystemClock
from brokerkit.testing.rocketmq_proxies import RocketMQProxies
from brokerkit.testing.services.rocketmq import (
    ROCKETMQ_VERSIONS,
    RocketMQBroker,
    RocketMQInstallation,
    RocketMQOptions,
    RocketMQServer,
    find_rocketmq,
)
from brokerkit.testing.services.service import Missing
from soak.crew import GROUP, ONCE, PLAIN
from soak.stage import End, Line

__all__ = ["RocketMQStage"]

T = TypeVar("T")

#: Which version runs, as for the tests.
_VERSION = "BROKERKIT_TEST_ROCKETMQ_VERSION"

#: Seconds by which a broker takes no messages yet when it refuses them.
_HOUR = 3600.0


class RocketMQStage:
    """A `soak.stage.Stage`."""

    weights: Mapping[str, int] = {
        "sends refused": 2,
        "broker suspended": 2,
        "broker kill": 2,
        "broker stop": 2,
        "name server kill": 2,
    }
    restarts = frozenset({"broker kill", "broker stop"})
    settings: Mapping[str, Any] = {"rocketmq": {"queues": 4}}

    def __init__(self, installation: RocketMQInstallation) -> None:
        options = RocketMQOptions(masters=2, name_servers=2, sync_flush=True, full_speed=True)
        self._server = RocketMQServer(options, installation=installation)
        self._clock = SystemClock()

    @classmethod
    def make(cls) -> RocketMQStage | Missing:
        """Return a stage with 4.9.4, or the version of BROKERKIT_TEST_ROCKETMQ_VERSION."""
        installation = find_rocketmq(os.environ.get(_VERSION) or ROCKETMQ_VERSIONS[0])
        return installation if isinstance(installation, Missing) else cls(installation)

    @property
    def label(self) -> str:
        return f"RocketMQ {self._server.installation.version}"

    @property
    def url(self) -> str:
        return self._server.url

    def start(self) -> None:
        self._server.start()

    def close(self) -> None:
        self._server.close()

    @contextmanager
    def line(self) -> Iterator[Line]:
        with RocketMQProxies(self._server.address) as proxies:
            yield Line(proxies.url, proxies.all)

    def declared(self) -> None:
        """Topics and groups are written at once; offsets that are lost in a kill make nothing come less often."""

    async def waiting(self, manager: AsyncManager) -> Sequence[str]:
        found = []
        for topic in (PLAIN, ONCE):
            stats = await manager.monitor.stats(topic, GROUP)
            # What waits for a level or a timer is counted nowhere; nothing here is delayed for so long.
            if stats.ready or stats.unsettled or stats.delayed:
                found.append(f"{topic.name}: {stats.ready} ready, {stats.unsettled} unsettled, {stats.delayed} delayed")
        return found

    def strike(self, kind: str, detail: float) -> End | None:
        server = self._server
        if kind == "name server kill":
            nodes = _some(server.name_servers, detail)
            _each(nodes, lambda node: node.kill())
            return lambda hurry: None if hurry else _each(nodes, lambda node: node.start())
        brokers = _some(server.brokers, detail)
        if kind == "sends refused":
            self._accept(brokers, self._clock.time() + _HOUR)
            return lambda hurry: None if hurry else self._accept(brokers, 0.0)
        if kind == "broker suspended":
            _each(brokers, lambda broker: broker.suspend())
            return lambda _: _each(brokers, lambda broker: broker.resume())
        _each(brokers, lambda broker: broker.kill() if kind == "broker kill" else broker.stop())
        return lambda hurry: None if hurry else server.start()

    def _accept(self, brokers: Sequence[RocketMQBroker], instant: float) -> None:
        """Let brokers take messages from an instant on: the one refusal that 4.9.4 can be told at run time."""
        for broker in brokers:
            changes = {"startAcceptSendRequestTimeStamp": int(instant * 1000)}
            self._server.configure(changes, broker=broker.address)

    def keep_logs(self, folder: Path) -> None:
        for number, server in enumerate(self._server.name_servers):
            shutil.copyfile(server.log, folder / f"name-server-{number}.log")
        for broker in self._server.brokers:
            shutil.copyfile(broker.log, folder / f"{broker.describe().name}.log")


def _some(nodes: Sequence[T], detail: float) -> Sequence[T]:
    """Return all nodes every second time, else one of them."""
    return nodes if detail < 0.5 else [nodes[int((detail - 0.5) * 2 * len(nodes)) % len(nodes)]]


def _each(nodes: Sequence[T], act: Callable[[T], object]) -> None:
    for node in nodes:
        act(node)
