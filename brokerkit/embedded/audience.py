"""Waking the consumers of a group, on whichever event loop they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Audience", "Subscriber"]


class Subscriber:
    """One callback and the loop that it belongs to."""

    __slots__ = ("_loop", "_pending", "_wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        """Belong to the running loop."""
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        # One call across threads is under way: it sees everything that happens before it runs.
        self._pending = False

    def call(self, running: asyncio.AbstractEventLoop | None) -> None:
        """Call back on the subscriber's loop: now when that is ``running``, else as soon as it turns."""
        if self._loop is running:
            self._wake()
        elif not self._pending:
            self._pending = True
            try:
                self._loop.call_soon_threadsafe(self._arrive)
            except RuntimeError:
                # The loop was closed without closing its connection: nobody waits there any more.
                self._pending = False

    def _arrive(self) -> None:
        self._pending = False
        self._wake()


class Audience:
    """Who wants to be woken for one group.  It outlives the group, because a group may be declared again."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        #: Replaced and never changed, so that it can be read without a lock.
        self.members: tuple[Subscriber, ...] = ()

    def call(self) -> None:
        """Wake everybody.  Not to be called with a lock held."""
        members = self.members
        if members:
            running = asyncio.get_running_loop()
            for member in members:
                member.call(running)
