"""RabbitMQ for the soak run: one node, and what happens to it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from brokerkit import AsyncManager
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.services.rabbitmq import Installation, RabbitMQNode, chosen_installation
from brokerkit.testing.services.service import Missing
from soak.stage import End, Line, joined

__all__ = ["RabbitMQStage"]


class RabbitMQStage:
    """A `soak.stage.Stage`."""

    weights: Mapping[str, int] = {
        "memory alarm": 2,
        "broker suspended": 2,
        "connections closed": 2,
        "broker kill": 2,
        "broker stop": 2,
    }
    restarts = frozenset({"broker kill", "broker stop"})
    #: A worker that starts while the broker is down waits for it.
    settings: Mapping[str, Any] = {
        "rabbitmq": {"management_url": "", "connection_attempts": 20, "retry_max_delay": 2.0}
    }

    def __init__(self, installation: Installation) -> None:
        self._node = RabbitMQNode(installation=installation)

    @classmethod
    def make(cls) -> RabbitMQStage | Missing:
        """Return a stage with the RabbitMQ that the tests use too."""
        installation = chosen_installation()
        return installation if isinstance(installation, Missing) else cls(installation)

    @property
    def label(self) -> str:
        return f"RabbitMQ {self._node.installation.version}"

    @property
    def url(self) -> str:
        return self._node.url

    def start(self) -> None:
        self._node.start()

    def close(self) -> None:
        self._node.close()

    def line(self) -> AbstractContextManager[Line]:
        return joined(self.url, FaultProxy(self._node.host, self._node.port))

    def declared(self) -> None:
        self._node.sync_queues()

    async def waiting(self, manager: AsyncManager) -> Sequence[str]:
        queues = await asyncio.to_thread(self._node.list_queues)
        return [
            f"{queue.name}: {queue.ready} ready, {queue.unacked} unsettled"
            for queue in queues
            if not queue.name.endswith(":dead") and (queue.ready != 0 or queue.unacked != 0)
        ]

    def strike(self, kind: str, detail: float) -> End | None:
        node = self._node
        if kind == "connections closed":
            node.close_connections()
            return None
        if kind == "memory alarm":
            node.set_memory_alarm(True)
            return lambda _: node.set_memory_alarm(False)
        if kind == "broker suspended":
            node.suspend()
            return lambda _: node.resume()
        if kind == "broker kill":
            # A queue that was declared less than half a second before a kill dies, which is RabbitMQ's limit and not
            # what is examined here; queues for delays are declared when they are first needed.
            node.sync_queues()
            node.kill()
        else:
            node.stop()
        return lambda hurry: None if hurry else node.start()

    def keep_logs(self, folder: Path) -> None:
        shutil.copyfile(self._node.log, folder / "node.log")
