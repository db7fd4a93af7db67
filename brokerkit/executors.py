"""Threads for blocking handlers, cheap enough to use for every message.

``loop.run_in_executor`` costs 47 µs a call, most of it for waking the loop once per result.  Here results pile up
in a deque and the loop is woken once per burst.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from brokerkit.clock import SystemClock
from brokerkit.errors import Closed, ConfigurationError

__all__ = ["Outbox", "ThreadExecutor"]

T = TypeVar("T")

#: (future, outbox, context, function, arguments); None ends one thread.
_Call = tuple["asyncio.Future[Any]", "Outbox", contextvars.Context, Callable[..., Any], tuple[Any, ...]]
#: (future, result, exception); `_DROPPED` in place of a result cancels the future.
_Result = tuple["asyncio.Future[Any]", Any, BaseException | None]
_DROPPED = object()


class ThreadExecutor:
    """Runs functions in up to ``threads`` own threads and gives the results to the event loop.

    The threads are daemons, start when they are needed and live until `close`.  A function sees the context
    variables of the caller.
    """

    def __init__(self, threads: int, name: str) -> None:
        """Prepare; no thread is started yet.  Threads are called ``name-1``, ``name-2`` …"""
        if threads < 1:
            raise ConfigurationError(f"executor {name!r}: threads is {threads}; it must be at least 1")
        self._limit = threads
        self._name = name
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads: list[_Thread] = []
        self._outboxes: dict[asyncio.AbstractEventLoop, Outbox] = {}
        self._growing = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Call ``fn(*args)`` in a thread; return the future of its result, on the running loop.

        Whatever ``fn`` raises becomes the exception of the future: SystemExit and KeyboardInterrupt too, so the
        caller must expect a BaseException; StopIteration and CancelledError, which would mean something else to
        who awaits the future, are wrapped in a RuntimeError.  Cancelling the future does not end a call that
        runs: its result is dropped.  A call that has not started by then is not made.  Raise `Closed`.
        """
        if self._closed:
            raise Closed(f"executor {self._name!r} is closed")
        loop = asyncio.get_running_loop()
        outbox = self._outboxes.get(loop)
        if outbox is None:
            outbox = self._open_outbox(loop)
        future: asyncio.Future[T] = loop.create_future()
        outbox.outstanding += 1
        if len(self._threads) < self._limit:
            self._grow()
        self._queue.put((future, outbox, contextvars.copy_context(), fn, args))
        return future

    @property
    def outstanding(self) -> int:
        """How many calls of the running event loop have not handed their result to it."""
        outbox = self._outboxes.get(asyncio.get_running_loop())
        return 0 if outbox is None else outbox.outstanding

    def running(self) -> int:
        """Return how many calls are running in threads right now."""
        return sum(thread.busy for thread in self._threads)

    def close(self, wait: bool, timeout: float | None = None) -> bool:
        """End the threads; `submit` raises `Closed` from now on.  Return whether all have ended.  Idempotent.

        With ``wait`` this call blocks until the calls made so far are over, at most ``timeout`` seconds: not for
        an event loop that one of them waits for.  Without, calls that have not started are cancelled, and a
        thread ends when the call that it runs returns.
        """
        with self._growing:
            first, self._closed = not self._closed, True
            threads = list(self._threads)
        if not wait:
            self._cancel_waiting()
        if first or not wait:
            for _ in threads:
                self._queue.put(None)
        if wait:
            now = SystemClock().monotonic  # threads end in real time, whatever the time of the application
            deadline = None if timeout is None else now() + timeout
            for thread in threads:
                thread.join(None if deadline is None else max(0.0, deadline - now()))
        return not any(thread.is_alive() for thread in threads)

    def _open_outbox(self, loop: asyncio.AbstractEventLoop) -> Outbox:
        for other in [one for one in self._outboxes if one.is_closed()]:
            del self._outboxes[other]
        outbox = self._outboxes[loop] = Outbox(loop)
        return outbox

    def _grow(self) -> None:
        with self._growing:
            needed = sum(outbox.outstanding for outbox in self._outboxes.values())
            if needed > len(self._threads) < self._limit and not self._closed:
                thread = _Thread(self._queue, f"{self._name}-{len(self._threads) + 1}")
                thread.start()
                self._threads.append(thread)

    def _cancel_waiting(self) -> None:
        while True:
            try:
                call = self._queue.get_nowait()
            except Empty:
                return
            if call is not None:
                call[1].deliver((call[0], _DROPPED, None))


class Outbox:
    """Results on their way from any thread to the futures of one event loop, which is woken once per burst."""

    __slots__ = ("_loop", "_results", "_woken", "outstanding")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._results: deque[_Result] = deque()
        self._woken = False
        #: Calls that were submitted and not delivered; touched by the loop's thread only.
        self.outstanding = 0

    def deliver(self, result: _Result) -> None:
        """Take one result from any thread."""
        self._results.append(result)
        # The append comes before the look at the flag, and the drain resets the flag before it looks at the
        # results: a result is never left behind.  Two threads may both wake the loop, which does no harm.
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop is closed: nobody waits for the result any more
                self._results.clear()

    def _drain(self) -> None:
        self._woken = False
        results = self._results
        while results:
            future, value, exc = results.popleft()
            self.outstanding -= 1
            if future.done():
                continue
            if exc is not None:
                future.set_exception(exc)
            elif value is _DROPPED:
                future.cancel()
            else:
                future.set_result(value)


class _Thread(threading.Thread):
    def __init__(self, queue: SimpleQueue[_Call | None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._queue = queue
        self.busy = False

    def run(self) -> None:
        get = self._queue.get
        while (call := get()) is not None:
            future, outbox, context, fn, args = call
            if future.cancelled():
                outbox.deliver((future, _DROPPED, None))
            else:
                self.busy = True
                try:
                    value = context.run(fn, *args)
                except BaseException as exc:
                    self.busy = False
                    outbox.deliver((future, None, _deliverable(exc)))
                else:
                    self.busy = False
                    outbox.deliver((future, value, None))
                    del value
            # An idle thread must not keep a message and its result alive.
            del call, future, outbox, context, fn, args


def _deliverable(exc: BaseException) -> BaseException:
    if exc.__traceback__ is not None:
        exc.__traceback__ = exc.__traceback__.tb_next  # the frame of the thread says nothing, and holds the thread
    if isinstance(exc, StopIteration | asyncio.CancelledError):
        wrapped = RuntimeError(f"the function raised {type(exc).__name__}: {exc}")
        wrapped.__cause__ = exc
        return wrapped
    return exc
