"""`Slots`: the tasks in which one handler runs, and the queue that they take deliveries from."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from brokerkit.clock import Clock, wait
from brokerkit.spi import Inbound

__all__ = ["Slots"]

log = logging.getLogger("brokerkit.worker")

#: Messages that a slot handles before it lets the loop turn: a handler that never suspends would starve the rest.
_STREAK = 20

#: Seconds that cancelled handlers have to end before a closing worker leaves them behind.
_CANCEL_PATIENCE = 5.0


class Slots:
    """A pool of up to ``concurrency`` tasks that take deliveries from one queue.

    A task per message would cost three times as much as the whole core.

    work:   handles a delivery
    failed: told of a delivery whose ``work`` raised, which it never should
    after:  called when a delivery left its slot
    """

    def __init__(
        self,
        name: str,
        concurrency: int,
        clock: Clock,
        *,
        work: Callable[[Inbound], Awaitable[None]],
        failed: Callable[[Inbound, BaseException], Awaitable[None]],
        after: Callable[[Inbound], None],
    ) -> None:
        self.queue: deque[Inbound] = deque()
        self.running: set[Inbound] = set()
        #: Whether `cancel` was called: a cancellation now is ours, and no handler's.
        self.closing = False
        self._name = name
        self._concurrency = concurrency
        self._clock = clock
        self._work = work
        self._failed = failed
        self._after = after
        self._idle: deque[asyncio.Future[None]] = deque()
        #: Whether more slots are woken in the next turn of the loop, if anything is queued then.
        self._rousing = False
        self._tasks: set[asyncio.Task[None]] = set()
        #: Slots that were cancelled by somebody else than `cancel`: they end when nothing is queued.
        self._leaving: set[asyncio.Task[None] | None] = set()

    def submit(self, inbound: Inbound) -> None:
        """Queue a delivery."""
        self.queue.append(inbound)
        if not self._rousing:
            self._rouse(1)

    def _rouse(self, count: int) -> None:
        """Have ``count`` more slots look at the queue now, and twice as many in the next turn of the loop, and so on.

        One slot does the work of many where handlers never suspend, and waking one for every delivery would cost a
        third of the whole core.
        """
        self._rousing = False
        if self.closing:
            return
        for _ in range(min(count, len(self.queue))):
            if not self._wake():
                # All have work, and look at the queue when it is done.
                return
        if self.queue:
            self._rousing = True
            asyncio.get_running_loop().call_soon(self._rouse, 2 * count)

    def _wake(self) -> bool:
        """Have one more slot look at the queue; return False when none is idle."""
        while self._idle:
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)
                return True
        if len(self._tasks) >= self._concurrency:
            return False
        task = asyncio.get_running_loop().create_task(self._slot(), name=f"brokerkit-handler-{self._name}")
        self._tasks.add(task)
        return True

    def take_back(self) -> list[Inbound]:
        """Return what is queued and not started, and forget it."""
        waiting = list(self.queue)
        self.queue.clear()
        return waiting

    def outlive_cancellation(self) -> None:
        """Go on in a task that was cancelled, by its handler or by who ends the event loop, until nothing is queued.

        The two look the same.  If the slot stayed for good, ``asyncio.run`` would wait for it for ever; if it ended
        at once, what is queued would wait for the next message.
        """
        if _uncancel():
            self._leaving.add(asyncio.current_task())

    async def cancel(self) -> None:
        """End the slots; what runs is cancelled and stays unsettled."""
        self.closing = True
        tasks = list(self._tasks)
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        ended = asyncio.gather(*tasks, return_exceptions=True)
        if not await wait(self._clock, ended, _CANCEL_PATIENCE):
            log.error("handler %s ignored its cancellation for %g s and is left behind", self._name, _CANCEL_PATIENCE)

    async def _slot(self) -> None:
        # Now: when the program ends, what is left is closed without a running loop.
        task = asyncio.current_task()
        try:
            while not self.closing:
                try:
                    await self._serve()
                    return
                except asyncio.CancelledError:
                    if self.closing:
                        raise
                    self.outlive_cancellation()
        finally:
            # Not in a callback, which comes a turn later: until then `submit` would count on this slot.
            if task is not None:
                self._tasks.discard(task)
                self._leaving.discard(task)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        queue, running, work = self.queue, self.running, self._work
        streak = 0
        while True:
            while queue:
                inbound = queue.popleft()
                running.add(inbound)
                try:
                    await work(inbound)
                except Exception as error:
                    await self._failed(inbound, error)
                except asyncio.CancelledError as error:
                    if not self.closing:
                        await self._failed(inbound, error)
                    raise
                finally:
                    running.discard(inbound)
                    self._after(inbound)
                if self.closing:
                    # The handler swallowed its cancellation and came to its end.
                    return
                streak += 1
                if streak >= _STREAK:
                    streak = 0
                    await asyncio.sleep(0)
            if asyncio.current_task() in self._leaving:
                return
            idle = loop.create_future()
            self._idle.append(idle)
            await idle


def _uncancel() -> bool:
    """Undo all requests to cancel the current task; return whether there were any."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return False
    while task.uncancel():
        pass
    return True
