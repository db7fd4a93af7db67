"""`in_memory`: an application's manager on a private broker in memory, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, overload

from brokerkit.admin import DeadLetter
from brokerkit.blocking import Manager
from brokerkit.clock import SystemClock
from brokerkit.errors import ConfigurationError
from brokerkit.events import ErrorEvent
from brokerkit.manager import AsyncManager
from brokerkit.message import Message
from brokerkit.registry import find_backend
from brokerkit.spi import Backend
from brokerkit.testing.clock import VirtualClock
from brokerkit.testing.recording import Handled, RecordingBackend
from brokerkit.testing.rehearsal import RehearsedSession

__all__ = ["AsyncInMemoryBroker", "AsyncRehearsal", "Handled", "InMemoryBroker", "Rehearsal", "in_memory"]

T = TypeVar("T")


class _Records:
    """What happened in the block so far.  Each attribute is a new list; all can be read after the block."""

    def __init__(self, manager: AsyncManager, start: float | None, like: Backend | None) -> None:
        self._manager = manager
        #: The time of the block.
        self.clock = VirtualClock(SystemClock().time() if start is None else start)
        self._backend = RecordingBackend(self.clock, self._handler_of, None if like is None else like.capabilities)

    @property
    def sent(self) -> list[Message]:
        """The messages that were sent to topics, in their order: follow-ups too, retries and replies not."""
        return list(self._backend.sent)

    @property
    def handled(self) -> list[Handled]:
        """The messages that were handled, once for each group, in the order in which they were acknowledged."""
        return list(self._backend.handled)

    @property
    def failures(self) -> list[ErrorEvent]:
        """What went wrong, in its order: each failed attempt with its error, each dead letter."""
        return list(self._backend.failures)

    @property
    def dead(self) -> list[DeadLetter]:
        """The dead letters that are there now, of all groups, oldest first."""
        return self._backend.dead

    def _handler_of(self, topic: str, group: str, type_: str | None) -> str | None:
        blueprint = self._manager._blueprint
        found: dict[str | None, str] = {}
        for spec in self._manager.specs:
            if spec.topic == topic:
                try:
                    if blueprint.group_of(topic, spec.group, spec.broadcast) == group:
                        found[spec.type] = spec.name
                except ConfigurationError:
                    continue  # it never started
        return found.get(type_) or found.get(None)

    def _session(self) -> RehearsedSession | None:
        """Return what is open now."""
        session = self._manager._session
        return session if isinstance(session, RehearsedSession) and not session.is_gone else None

    async def _advance(self, seconds: float) -> None:
        session = self._session()
        if session is None:
            # The application closed its manager: nothing runs, the time passes all the same.
            await self.clock.advance(seconds)
            return
        if not session.begun:
            await self._manager.start()
        await session.advance(seconds)


class InMemoryBroker(_Records):
    """The broker of a block, for tests that are plain functions."""

    def __init__(self, manager: Manager | AsyncManager, start: float | None, like: Backend | None) -> None:
        super().__init__(manager.aio if isinstance(manager, Manager) else manager, start, like)
        self._gate = manager._gate if isinstance(manager, Manager) else None

    def advance(self, seconds: float = 0.0) -> None:
        """Let ``seconds`` pass; return when nothing is runnable any more.

        Everything that falls due on the way runs at its exact instant; 0 runs what is runnable now.  Handlers in
        threads are waited for.  What an async handler awaits besides brokerkit's clock (a socket, a thread,
        `asyncio.sleep`) passes in real time, for which this does not wait.  Raise `AssertionError` when something
        is runnable for more than 30 real seconds, and what `start` raises where the handlers do not run yet.
        """
        if self._gate is not None and self._gate.running:
            self._gate.call(partial(self._advance, seconds))
            return
        session = self._session()
        _run_on(session.loop if session is not None else None, self._advance(seconds))


class AsyncInMemoryBroker(_Records):
    """The broker of a block, for tests that are coroutines."""

    async def advance(self, seconds: float = 0.0) -> None:
        """Let ``seconds`` pass; return when nothing is runnable any more: as `InMemoryBroker.advance`."""
        await self._advance(seconds)


class Rehearsal:
    """A context manager: the manager is on its own broker before and after, and on the yielded one in between."""

    def __init__(
        self, manager: Manager | AsyncManager, start: float | None = None, like: str | Backend | None = None
    ) -> None:
        self._manager = manager
        self._aio = manager.aio if isinstance(manager, Manager) else manager
        self._start = start
        self._like = find_backend(like) if isinstance(like, str) else like
        self._stack = ExitStack()
        self._entered = False

    def __enter__(self) -> InMemoryBroker:
        self._enter_once()
        manager = self._manager
        if isinstance(manager, AsyncManager) and _loop_runs():
            raise RuntimeError("inside of a coroutine an AsyncManager needs `async with in_memory(…)`")
        broker = InMemoryBroker(manager, self._start, self._like)
        with ExitStack() as stack:
            _put_on(broker, manager, stack)
            stack.callback(self._close, broker)
            if isinstance(manager, Manager):
                manager.start()
            self._stack = stack.pop_all()
        return broker

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _enter_once(self) -> None:
        if self._entered:
            raise RuntimeError("a block of in_memory cannot be entered twice: call in_memory again")
        self._entered = True

    def _close(self, broker: InMemoryBroker) -> None:
        if isinstance(self._manager, Manager):
            # In a hurry, and before `close`, which some managers use to send what they still hold.
            self._manager.stop(timeout=0)
            self._manager.close()
        elif (session := broker._session()) is not None:
            _run_on(session.loop, self._aio._leave())


class AsyncRehearsal(Rehearsal):
    """A `Rehearsal` that is an async context manager too."""

    async def __aenter__(self) -> AsyncInMemoryBroker:
        self._enter_once()
        broker = AsyncInMemoryBroker(self._aio, self._start, self._like)
        async with AsyncExitStack() as stack:
            _put_on(broker, self._aio, stack)
            stack.push_async_callback(self._aio._leave)
            await self._aio.start()
            self._async_stack = stack.pop_all()
        return broker

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._async_stack.aclose()

    def end(self, broker: AsyncInMemoryBroker) -> None:
        """Leave the block of ``async with`` when its event loop does not run any more; for fixtures."""
        session = broker._session()
        _run_on(session.loop if session is not None else None, self._async_stack.aclose())


@overload
def in_memory(manager: Manager, *, start: float | None = None, like: str | Backend | None = None) -> Rehearsal: ...
@overload
def in_memory(
    manager: AsyncManager, *, start: float | None = None, like: str | Backend | None = None
) -> AsyncRehearsal: ...


def in_memory(
    manager: Manager | AsyncManager, *, start: float | None = None, like: str | Backend | None = None
) -> Rehearsal:
    """Return a context manager that puts ``manager`` on a private broker in memory and on a clock of its own.

    ``with`` yields an `InMemoryBroker`, ``async with`` (an AsyncManager only) an `AsyncInMemoryBroker`.  All
    handlers of the manager run in the block.  Its time begins at ``start``, in seconds since the epoch, or now, and
    stands still until `advance`; a `request` that waits for its reply, `receive` with a timeout, `stop` and `close`
    let it pass as far as they need it.

    Configuration, handlers and error hooks hold, but a retry waits all of its delay, without jitter.  What the block
    adds to them is gone after it, and idempotent handlers remember in memory.  At the end what still runs is
    cancelled, and the manager is as it was: closed or never used.  Raise RuntimeError when the manager is open at the
    beginning, and what `start` raises.

    ``like`` names the backend of production, or is one: what it never offers is refused in the block as it is there.
    It must be installed (`ConfigurationError`); its broker need not run.

    ``with`` and an AsyncManager are for applications that run on a loop in another thread, such as FastAPI's
    ``TestClient``: their handlers start with the first `advance`, unless the application starts them.
    """
    if isinstance(manager, Manager):
        return Rehearsal(manager, start, like)
    if isinstance(manager, AsyncManager):
        return AsyncRehearsal(manager, start, like)
    raise TypeError(f"in_memory takes a Manager or an AsyncManager, not {type(manager).__name__}")


def _put_on(broker: _Records, manager: Manager | AsyncManager, stack: ExitStack | AsyncExitStack) -> None:
    session = partial(RehearsedSession, broker.clock, broker._backend.returned)
    hooks = stack.enter_context(manager._rehearse(broker._backend, "memory://", broker.clock, open_session=session))
    hooks.add(broker._backend.failed)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_on(loop: asyncio.AbstractEventLoop | None, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop of the manager, wherever that runs."""
    if loop is None:
        # No loop runs, or none that is ours: this thread may be in one.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, work).result()
    if not loop.is_running():
        return loop.run_until_complete(work)
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if here:
        work.close()
        raise RuntimeError("this would block the event loop that it waits for: use `async with in_memory(…)`")
    return asyncio.run_coroutine_threadsafe(work, loop).result()
