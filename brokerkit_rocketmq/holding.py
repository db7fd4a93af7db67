"""`Holding`: one queue of a consumer, from the moment that it is to be read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brokerkit_rocketmq.reader import Reader

__all__ = ["Holding"]


class Holding:
    """One queue that is ours."""

    __slots__ = ("begun", "inherited", "reader", "since", "task")

    def __init__(self, inherited: bool) -> None:
        #: Whether it was read until then by a member that is alive.
        self.inherited = inherited
        #: Monotonic: when reading began.
        self.since = 0.0
        self.task: asyncio.Task[None] | None = None
        self.reader: Reader | None = None
        #: Done when the first attempt to begin it is over.
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def is_begun(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)

    def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.is_begun()
