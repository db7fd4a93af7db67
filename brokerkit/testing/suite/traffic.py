"""Load for the cases in which something breaks meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

from brokerkit.errors import BrokerError
from brokerkit.manager import AsyncManager
from brokerkit.testing.harness import Harness
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.suite._cases import eventually, new_id
from brokerkit.topic import Topic

__all__ = ["Traffic"]

#: Seconds between two sends.
_PAUSE = 0.01


class Traffic:
    """Sends one message after the other until it is stopped, and keeps the books on them."""

    def __init__(
        self, harness: Harness, manager: AsyncManager, topic: Topic[Any], ledger: Ledger | None = None, *, keys: int = 0
    ) -> None:
        """``keys``: how many keys the messages have in turn; 0: none."""
        self.ledger = ledger or Ledger()
        #: The ids of confirmed messages, in the order of their sends.
        self.confirmed: list[str] = []
        self.failed: list[BrokerError] = []
        #: The confirmed ids of each key.
        self.by_key: dict[str, list[str]] = {}
        self._clock = harness.clock
        self._manager = manager
        self._topic = topic
        self._keys = keys
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        number = 0
        while not self._stopping:
            number += 1
            message_id = new_id()
            key = f"key-{number % self._keys}" if self._keys else None
            self.ledger.sent(message_id)
            try:
                await self._manager.send(self._topic, b"%d" % number, key=key, message_id=message_id)
            except BrokerError as error:
                self.failed.append(error)
            else:
                self.ledger.confirmed(message_id)
                self.confirmed.append(message_id)
                if key is not None:
                    self.by_key.setdefault(key, []).append(message_id)
            await self._clock.sleep(_PAUSE)

    async def __aenter__(self) -> Traffic:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="traffic")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def stop(self) -> None:
        """Send nothing more; return when the last send has its answer."""
        self._stopping = True
        if self._task is not None:
            await self._task

    async def more(self, count: int, within: float) -> None:
        """Return once ``count`` more messages were confirmed."""
        goal = len(self.confirmed) + count
        try:
            await eventually(lambda: len(self.confirmed) >= goal, within=within, what=f"{count} more confirmed sends")
        except AssertionError as error:
            raise AssertionError(f"{error}; the last errors: {self.failed[-3:]}") from None
