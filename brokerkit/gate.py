"""`Gate`: coroutines of one event loop in a background thread, for callers in any other threads.

``asyncio.run_coroutine_threadsafe`` wakes the loop and makes a task and two futures for each call.  Here calls
pile up in a deque, the loop is woken once per burst, and a few tasks that stay run one call after the other.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from brokerkit.clock import SystemClock, wait
from brokerkit.errors import Closed

__all__ = ["Gate"]

log = logging.getLogger("brokerkit")

T = TypeVar("T")

#: Calls that may run one after the other before the rest of the loop gets its turn.
_YIELD_EVERY = 100
#: Tasks without a call that are kept for the next ones.
_SPARE = 16
#: Seconds that cancelled tasks get to end when the gate closes.
_GRACE = 5.0
#: Seconds that an unclosed gate may hold up the end of the interpreter: for the farewell, and for its thread.
_FAREWELL = 2.0
_LAST_JOIN = 1.0


class _Call(Generic[T]):
    """One call on its way through the gate; the lock is free when it is over."""

    __slots__ = ("_error", "_over", "_value", "abandoned", "context", "start", "task")

    def __init__(self, start: Callable[[], Coroutine[Any, Any, T]], context: contextvars.Context) -> None:
        self.start = start
        self.context = context
        #: The task that runs the call right now; touched by the loop's thread only.
        self.task: asyncio.Task[None] | None = None
        #: Nobody waits for the result any more.
        self.abandoned = False
        self._error: BaseException | None = None
        self._value: T | None = None
        self._over = threading.Lock()
        self._over.acquire()

    def succeed(self, value: T) -> None:
        self._value = value
        self._over.release()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._over.release()

    def wait(self, timeout: float = -1) -> bool:
        """Wait up to ``timeout`` seconds, or for ever; return whether the call is over."""
        return self._over.acquire(timeout=timeout)

    def result(self) -> T:
        """Return the value of a call that is over, or raise its error."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                # The error's traceback holds this frame, which holds the call.
                self._error = None
        return self._value  # type: ignore[return-value]


class Gate:
    """Runs coroutines for blocking callers.

    The loop and its daemon thread start with the first call and end with `close`.  After a fork the child gets a
    loop of its own.  When the interpreter ends with an open gate, ``farewell`` gets a short time.

    name:     what the thread is called
    inside:   what the RuntimeError says that refuses a call from the loop's own thread
    farewell: makes the coroutine that gives back in a hurry what is held
    """

    def __init__(
        self, name: str, *, inside: str, farewell: Callable[[], Coroutine[Any, Any, object]] | None = None
    ) -> None:
        self._name = name
        self._inside = inside
        self._farewell = farewell
        self._engine: _Engine | None = None
        self._closed = False
        # By process id: a lock that another thread held during a fork stays locked in the child for ever.
        self._locks: dict[int, threading.Lock] = {}

    @property
    def closed(self) -> bool:
        """Whether `close` was called last, and not `open`."""
        return self._closed

    @property
    def running(self) -> bool:
        """Whether this process has a loop behind the gate now."""
        return self._engine is not None and self._engine.pid == os.getpid()

    def open(self) -> None:
        """Allow calls again after `close`.  Starts nothing."""
        self._closed = False

    def call(self, start: Callable[[], Coroutine[Any, Any, T]], *, look: float = -1) -> T:
        """Run the coroutine that ``start()`` makes on the loop; return its result or raise its error.

        ``look``: seconds after which a signal is heard at the latest, in the main thread; -1: as the system wakes it.

        ``start`` runs on the loop too, and both see the caller's context variables.  An interrupted caller
        (KeyboardInterrupt) cancels the coroutine and does not wait for it.  Raise `Closed` when the gate is closed
        before or during the call, and RuntimeError on the loop's own thread, which would wait for itself.
        """
        engine = self._engine
        if engine is None or self._closed or engine.pid != os.getpid():
            engine = self._ready()
        if threading.get_ident() == engine.thread.ident:
            raise RuntimeError(self._inside)
        call = _Call(start, contextvars.copy_context())
        try:
            engine.submit(call)
            # A signal that comes while Python is about to wait, or that the system gives to another thread, is noted,
            # and nobody wakes the main thread to run its handler.
            while not call.wait(look):
                pass
        except BaseException:  # KeyboardInterrupt, or what another signal handler raises
            engine.abandon(call)
            raise
        return call.result()

    def read(self, figures: Callable[[], T]) -> T:
        """Return ``figures()``, taken by the loop's thread, so that nothing changes meanwhile.

        Taken here where this is that thread, or where no loop runs.
        """
        engine = self._engine
        if engine is None or self._closed or not self.running or threading.get_ident() == engine.thread.ident:
            return figures()

        async def take() -> T:
            return figures()

        try:
            return self.call(take)
        except Closed:
            # Another thread closed it just now: nothing changes any more.
            return figures()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` on the loop, if one runs; does not wait.  Safe in a signal handler."""
        engine = self._engine
        if engine is not None and engine.pid == os.getpid():
            engine.poke(callback)

    def refuse_inside(self) -> None:
        """Raise RuntimeError on the loop's own thread, as `call` does."""
        if self.running and self._engine is not None and threading.get_ident() == self._engine.thread.ident:
            raise RuntimeError(self._inside)

    def close(self) -> None:
        """End the loop and its thread; calls that wait raise `Closed`.  Returns when they ended.  Idempotent."""
        self.refuse_inside()
        with self._lock():
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None and engine.pid == os.getpid():
            engine.end()

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _ready(self) -> _Engine:
        with self._lock():
            if self._closed:
                raise Closed("the manager is closed; connect(), start() or `with` opens it again")
            engine = self._engine
            if engine is not None and engine.pid != os.getpid():
                engine.forsake()
                engine = None
            if engine is None:
                engine = self._engine = _Engine(self._name, self._farewell)
            return engine


class _Engine:
    """One loop in one thread of one process."""

    def __init__(self, name: str, farewell: Callable[[], Coroutine[Any, Any, object]] | None) -> None:
        self.pid = os.getpid()
        self._farewell = farewell
        self._loop = asyncio.new_event_loop()
        self._calls: deque[_Call[Any]] = deque()
        self._woken = False
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False
        self._ended = False
        #: The last call, made when the interpreter ends.
        self._leaving: _Call[object] | None = None
        self.thread = threading.Thread(target=self._live, name=name, daemon=True)
        self.thread.start()
        atexit.register(self._at_exit)

    # --- any thread ---

    def submit(self, call: _Call[Any]) -> None:
        self._calls.append(call)
        # The append comes before the looks at the flags, and the other side sets the flags before it looks at
        # the calls: no call is left behind.  Two threads may both wake the loop, which does no harm.
        if not self._woken:
            self._woken = True
            self.poke(self._serve)
        if self._ended:
            self._refuse_waiting()

    def poke(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed; whoever waits has been told
            return

    def abandon(self, call: _Call[Any]) -> None:
        """Cancel a call that nobody waits for any more."""

        def cancel() -> None:
            call.abandoned = True
            if call.task is not None:
                call.task.cancel()

        self.poke(cancel)

    def end(self, timeout: float | None = None) -> None:
        self._ending = True
        self.poke(self._loop.stop)
        self.thread.join(timeout)
        atexit.unregister(self._at_exit)

    def forsake(self) -> None:
        """In the child of a fork: let the parent's loop go without a word about the tasks that end with it."""
        self._loop.set_exception_handler(lambda loop, context: None)

    def _at_exit(self) -> None:
        if self.pid != os.getpid() or not self.thread.is_alive():
            return
        self._leaving = _Call(self._farewell or _nothing, contextvars.Context())
        self.submit(self._leaving)
        self._leaving.wait(_FAREWELL)
        self.end(_LAST_JOIN)

    # --- the loop's thread ---

    def _live(self) -> None:
        loop = self._loop
        try:
            while not self._ending:
                try:
                    loop.run_forever()
                except (KeyboardInterrupt, SystemExit) as exc:
                    # asyncio lets these two out of a task.  One handler must not end the loop of all callers.
                    log.error("a task on the manager's event loop raised %r; the loop goes on", exc)
            self._wind_up(loop)
        finally:
            self._ended = True
            self._refuse_waiting()
            loop.close()

    def _wind_up(self, loop: asyncio.AbstractEventLoop) -> None:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()

        async def ended() -> None:
            if tasks:
                # Real time: it is real threads that wait for this one.
                await wait(SystemClock(), asyncio.gather(*tasks, return_exceptions=True), _GRACE)
            await loop.shutdown_asyncgens()

        loop.run_until_complete(ended())

    def _refuse_waiting(self) -> None:
        while self._calls:
            try:
                call = self._calls.popleft()
            except IndexError:  # the other thread that refuses took it
                return
            self._fail(call, self._closed_error())

    def _fail(self, call: _Call[Any], error: BaseException) -> None:
        # Who waits while the interpreter ends is a daemon thread: it ends too, and has no one to tell of its error.
        if self._leaving is None or call is self._leaving:
            call.fail(error)

    @staticmethod
    def _closed_error() -> Closed:
        return Closed("the manager was closed while this call waited")

    def _serve(self) -> None:
        """Give the calls to a task, and to one more whenever that one is held up in a call."""
        self._woken = False
        if not self._calls or self._ending:
            return
        if self._idle:
            self._idle.pop().set_result(None)
        else:
            # This callback runs in the context of the caller who woke the loop, which is nothing to a task that stays.
            self._spawn(self._pump(), contextvars.Context())
        # Runs after the task's turn, which ended because no call is left or because one suspended.
        self._loop.call_soon(self._serve)

    def _spawn(self, work: Coroutine[Any, Any, None], context: contextvars.Context) -> None:
        task = self._loop.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump(self) -> None:
        calls, idle = self._calls, self._idle
        task = asyncio.current_task()
        while True:
            turn = 0
            while calls and not self._ending:
                call = calls.popleft()
                if len(call.context):
                    # Only a task of its own can run in a given context.
                    self._spawn(self._alone(call), call.context)
                else:
                    await self._run(call, task)
                turn += 1
                if turn % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            if self._ending or len(idle) >= _SPARE:
                return
            parked = self._loop.create_future()
            idle.append(parked)
            await parked

    async def _alone(self, call: _Call[Any]) -> None:
        await self._run(call, asyncio.current_task())

    async def _run(self, call: _Call[Any], task: asyncio.Task[None] | None) -> None:
        if call.abandoned:
            return
        call.task = task
        try:
            value = await call.start()
        except asyncio.CancelledError as exc:
            call.task = None
            self._fail(call, self._closed_error() if self._ending else exc)
        except BaseException as exc:
            # All of them belong to the caller, SystemExit too: nobody else in this thread can act on it.
            call.task = None
            self._fail(call, exc)
        else:
            call.task = None
            call.succeed(value)
        if call.abandoned and task is not None:
            # The task lives on for the next call.
            task.uncancel()


async def _nothing() -> None:
    return None
