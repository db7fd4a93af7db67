"""The one source of time: wall clock, monotonic clock, sleeping and timers.

Everything in brokerkit that looks at or waits for time does it through a `Clock`, so that a test can put the
virtual clock of ``brokerkit.testing`` in its place and let an hour pass in a millisecond.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

__all__ = ["Clock", "SystemClock", "TimeIsUp", "Timer", "wait", "within"]

T = TypeVar("T")


class Timer(Protocol):
    """A pending callback of `Clock.call_later`."""

    def cancel(self) -> None:
        """Do not call.  No-op when it was called or cancelled before."""


class Clock(Protocol):
    """Wall time, monotonic time, sleeping and timers.  All values are seconds as float."""

    def time(self) -> float:
        """Return the wall-clock time as seconds since the epoch."""

    def monotonic(self) -> float:
        """Return a time that never goes back.  Only differences mean anything."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``; at the next turn of the loop where that is 0 or less."""

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` on the running event loop after ``seconds``."""


class SystemClock:
    """The clock of the machine."""

    # As it is: it is asked several times for every message.
    monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)


async def wait(clock: Clock, future: asyncio.Future[Any], timeout: float | None) -> bool:
    """Wait until ``future`` is done or ``timeout`` seconds passed; return whether it is done.

    The future is neither cancelled nor consumed, and a cancellation of the caller always propagates:
    ``asyncio.wait_for`` of Python 3.11 swallows it when the future is done already.
    """
    if future.done():
        return True
    if timeout is None:
        await asyncio.wait((future,))
        return True
    if timeout <= 0:
        return False
    alarm = asyncio.get_running_loop().create_future()

    def ring(_: object = None) -> None:
        if not alarm.done():
            alarm.set_result(None)

    timer = clock.call_later(timeout, ring)
    future.add_done_callback(ring)
    try:
        await alarm
    finally:
        timer.cancel()
        future.remove_done_callback(ring)
    return future.done()


class TimeIsUp(Exception):
    """What `within` was given took too long; it was cancelled."""


async def within(clock: Clock, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Return what ``work`` returns; cancel it and raise `TimeIsUp` when it is not done in ``seconds``."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        await wait(clock, task, seconds)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
    if task.cancelled():
        raise TimeIsUp
    return task.result()
