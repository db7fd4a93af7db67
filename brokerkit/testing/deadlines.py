"""Waiting with a deadline, for tests: nothing sleeps and hopes, nothing hangs for ever.

A missed deadline is an `AssertionError` that names what was waited for.  All durations are seconds.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast, overload

from brokerkit.clock import Clock, SystemClock, wait

__all__ = ["eventually", "eventually_sync", "within"]

T = TypeVar("T")

#: Polling starts with the first of these pauses and grows to the second.
_FIRST_PAUSE = 0.001
_LAST_PAUSE = 0.1

#: How long cancelled work may take to end.
_GRACE = 5.0


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T | None]],
    within: float = 10.0,
    what: str = "the condition",
    *,
    clock: Clock | None = None,
) -> T: ...
@overload
async def eventually(
    predicate: Callable[[], T | None],
    within: float = 10.0,
    what: str = "the condition",
    *,
    clock: Clock | None = None,
) -> T: ...
async def eventually(
    predicate: Callable[[], Any],
    within: float = 10.0,
    what: str = "the condition",
    *,
    clock: Clock | None = None,
) -> Any:
    """Call ``predicate`` again and again until it returns something true; return that.

    It may return an awaitable, which must end within the same deadline.  An `AssertionError` out of it means "not
    yet", any other error propagates.  When ``within`` seconds passed, `AssertionError` with ``what`` and the last
    value.
    """
    clock = clock or SystemClock()
    deadline = clock.monotonic() + within
    pause = _FIRST_PAUSE
    while True:
        value: Any = None
        error: AssertionError | None = None
        try:
            value = predicate()
            if inspect.isawaitable(value):
                value = await _bounded(deadline - clock.monotonic(), value, what, clock)
        except _Missed as missed:
            raise AssertionError(f"not within {within:g} s: {what}; the predicate itself did not return") from missed
        except AssertionError as failed:
            error = failed
        if error is None and value:
            return value
        remaining = deadline - clock.monotonic()
        if remaining <= 0:
            raise AssertionError(_text(within, what, value, error)) from error
        await clock.sleep(min(pause, remaining))
        pause = min(pause * 1.5, _LAST_PAUSE)


def eventually_sync(predicate: Callable[[], T | None], within: float = 10.0, what: str = "the condition") -> T:
    """Do what `eventually` does, blocking the calling thread."""
    clock = SystemClock()
    deadline = clock.monotonic() + within
    pause = _FIRST_PAUSE
    never = threading.Event()
    while True:
        value: Any = None
        error: AssertionError | None = None
        try:
            value = predicate()
        except AssertionError as failed:
            error = failed
        if error is None and value:
            return cast("T", value)
        remaining = deadline - clock.monotonic()
        if remaining <= 0:
            raise AssertionError(_text(within, what, value, error)) from error
        never.wait(min(pause, remaining))
        pause = min(pause * 1.5, _LAST_PAUSE)


async def within(
    seconds: float, awaitable: Awaitable[T], what: str = "the awaited call", *, clock: Clock | None = None
) -> T:
    """Return the result of ``awaitable``, or cancel it and raise `AssertionError` after ``seconds``.

    The cause of the error shows where the work hung.  Errors of the awaitable propagate.  A cancellation of the
    caller cancels the awaitable, waits until it ended and propagates always.
    """
    return await _bounded(seconds, awaitable, what, clock or SystemClock())


class _Missed(AssertionError):
    """The deadline itself passed, as opposed to an assertion that failed inside the awaited work."""


async def _bounded(seconds: float, awaitable: Awaitable[T], what: str, clock: Clock) -> T:
    task = asyncio.ensure_future(awaitable)
    try:
        done = await wait(clock, task, seconds)
        if done:
            return task.result()
    finally:
        stopped = task.done() or await _stop(task)
    cause: BaseException | None = None
    if stopped:
        try:
            task.result()
        except asyncio.CancelledError as cancelled:
            cause = cancelled  # its traceback shows where the work hung
        except Exception as error:
            cause = error
    else:
        what += f" (and it ignored its cancellation for {_GRACE:g} s)"
    raise _Missed(f"not within {max(seconds, 0):g} s: {what}") from cause


async def _stop(task: asyncio.Future[Any]) -> bool:
    """Cancel ``task`` and return whether it ended; an error that it ends with is not reported as never retrieved."""
    task.cancel()
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    # Real time: a virtual clock does not move while its test waits here.
    return await wait(SystemClock(), task, _GRACE)


def _text(within: float, what: str, value: object, error: AssertionError | None) -> str:
    last = f"the last check failed with {error}" if error is not None else f"the last value was {value!r}"
    return f"not within {within:g} s: {what}; {last}"
