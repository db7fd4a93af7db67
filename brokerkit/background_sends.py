"""Sends that their caller does not wait for, each with a future of its id."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any

from brokerkit.errors import Closed

__all__ = ["BackgroundSends"]


class BackgroundSends:
    """The sends that are under way on one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[str]] = set()

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def begin(self, send: Coroutine[Any, Any, str], future: Future[str]) -> None:
        """Run ``send`` on the running loop; ``future`` gets what it returns or raises, `Closed` when it is cut off."""
        task = asyncio.get_running_loop().create_task(send)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, future))

    async def ended(self) -> None:
        """Return when those that are under way now have ended: each does after ``send_timeout`` at the latest."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _ended(self, future: Future[str], task: asyncio.Task[str]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            future.set_exception(Closed("the manager was closed before the message was stored"))
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())
