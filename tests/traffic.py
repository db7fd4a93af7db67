"""Traffic with a ledger: what the fault tests of all brokers let run while something breaks."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from brokerkit import AsyncManager, Message, RetryPolicy, Topic
from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.ledger import Ledger

__all__ = ["CLOCK", "LONG", "TOPIC", "Traffic", "balanced", "working"]

CLOCK = SystemClock()
#: Seconds; a machine that runs other tests too is slow.
LONG = 60.0

TOPIC: Topic[bytes] = Topic("orders", bytes, groups=["work"])


@asynccontextmanager
async def working(
    manager: AsyncManager, ledger: Ledger, topic: Topic[bytes] = TOPIC, *, pause: float = 0.0, **options: Any
) -> AsyncIterator[AsyncManager]:
    """Run a handler that writes to the ledger inside the block; close the manager at its end."""
    options.setdefault("retry", RetryPolicy(base_delay=0.1, max_delay=0.5, jitter="none"))

    @manager.handler(topic, **options)
    async def handle(message: Message) -> None:
        if pause:
            await CLOCK.sleep(pause)
        ledger.handled(message.message_id or "", message.attempt)

    async with manager:
        await manager.start()
        yield manager


class Traffic:
    """Sends one message after the other inside ``async with``, and writes to the ledger what became of each."""

    def __init__(
        self,
        manager: AsyncManager,
        ledger: Ledger,
        topic: Topic[bytes] = TOPIC,
        *,
        pause: float = 0.01,
        at_once: int = 1,
    ):
        """``at_once``: so many do that side by side."""
        self.failed: list[BrokerError] = []
        self._manager, self._ledger, self._topic, self._pause = manager, ledger, topic, pause
        self._at_once = at_once
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._at_once)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Let the sends that run end, then send nothing more."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def more(self, count: int, within: float = LONG) -> None:
        """Return when ``count`` more sends were confirmed."""
        goal = len(self._ledger.confirmed_ids) + count
        await eventually(
            lambda: len(self._ledger.confirmed_ids) >= goal, within, f"{count} more confirms; failed: {self.failed}"
        )

    async def _run(self) -> None:
        while not self._stopping.is_set():
            message_id = secrets.token_hex(8)
            self._ledger.sent(message_id)
            try:
                await self._manager.send(self._topic, b"x" * 100, message_id=message_id)
            except BrokerError as error:
                self.failed.append(error)
            else:
                self._ledger.confirmed(message_id)
            await CLOCK.sleep(self._pause)


async def balanced(ledger: Ledger, *, doubled: int, within: float = LONG) -> int:
    """Return when every confirmed message was handled, and how many runs were too many.

    Fails when there are more of these than ``doubled``.
    """
    try:
        await eventually(lambda: ledger.settled, within, "every confirmed message handled")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{ledger}") from None
    ledger.assert_nothing_unknown()
    assert ledger.confirmed_ids, f"nothing was confirmed\n{ledger}"
    runs = sum(count - 1 for count in ledger.doubled.values())
    assert runs <= doubled, f"{runs} runs too many, at most {doubled} are explained\n{ledger}"
    return runs
