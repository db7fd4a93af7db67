"""`AsyncManager`: the one object that an async application holds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from brokerkit.admin import Admin
from brokerkit.blueprint import Blueprint
from brokerkit.clock import Clock, SystemClock
from brokerkit.consumer import Consumer
from brokerkit.deliveries import Deliveries
from brokerkit.envelope import SendOptions
from brokerkit.errors import Closed, ConfigurationError
from brokerkit.events import ErrorHook, ErrorHooks
from brokerkit.handler import CallPlan
from brokerkit.link import Link
from brokerkit.message import Message, MessageIds
from brokerkit.metrics import Metrics
from brokerkit.monitor import Monitor
from brokerkit.names import check_topic
from brokerkit.producer import SendOutcome
from brokerkit.router import HandlerSpec, Router
from brokerkit.session import Session
from brokerkit.spi import Backend, Capability, Connection, ConnectOptions
from brokerkit.stopping import StopRequest, stop_signals
from brokerkit.topic import Topic
from brokerkit.topology import Topology
from brokerkit.worker import Worker

if TYPE_CHECKING:
    from brokerkit.idempotency import IdempotencyStore
    from brokerkit.settings import Settings, TopicSettings

__all__ = ["AsyncManager"]

T = TypeVar("T")
R = TypeVar("R")

OpenSession = Callable[[Blueprint, Clock, MessageIds, Metrics, ErrorHooks, "IdempotencyStore | None"], Session]


class AsyncManager(Router):
    """Sends, receives and handles messages of one broker.

    Making one does no I/O, starts nothing and binds no event loop; the first use connects.  ``async with``
    connects and closes.  Neither starts the handlers: `start` and `run` do.

    url:         URL of the broker; it chooses the backend
    backend:     name of an installed backend, or a backend object
    settings:    a `Settings` object replaces the configuration file and the environment; a mapping counts as
                 arguments, which win over both
    name:        which of the configured managers this is
    clock:       where time comes from
    idempotency: the store for idempotent handlers, in place of the configured one; who made it closes it
    overrides:   further fields of `Settings`, e.g. ``send_timeout=5.0``
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        backend: str | Backend | None = None,
        settings: Settings | Mapping[str, Any] | None = None,
        name: str = "default",
        clock: Clock | None = None,
        idempotency: IdempotencyStore | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        self.name = name
        self.clock: Clock = clock or SystemClock()
        self._blueprint = Blueprint({"url": url, "settings": settings, **overrides}, backend, name, self.specs)
        self._store = idempotency
        self._ids = MessageIds()
        self._ids_pid = os.getpid()
        self._hooks = ErrorHooks()
        self._metrics = Metrics(self.clock)
        self._session: Session | None = None
        self._open_session: OpenSession = Session
        self._closed = False
        #: Declares, deletes, purges, and works with dead letters.
        self.admin = Admin(lambda: self._use().link, lambda: self._use().producer)
        #: Figures and health.
        self.monitor = Monitor(self._link_even_closed, lambda: self._metrics, lambda: self._worker)

    # --- configuration, read on first use ---

    @property
    def settings(self) -> Settings:
        """The settings of all sources together; raises `ConfigurationError`."""
        return self._blueprint.settings

    @property
    def backend(self) -> Backend:
        """The backend that the configuration chooses; raises `ConfigurationError`."""
        return self._blueprint.backend

    @property
    def backend_name(self) -> str:
        """The name of the backend, which need not be installed; raises `ConfigurationError`."""
        return self._blueprint.backend_name

    @property
    def topology(self) -> Topology:
        """The topics and groups that the application declared so far."""
        return self._blueprint.topology

    def configure_topic(self, name: str, settings: TopicSettings) -> None:
        """Do in code what a section below ``topics:`` does in the configuration."""
        self._blueprint.configure_topic(name, settings)

    def on_error(self, hook: ErrorHook) -> ErrorHook:
        """Call ``hook`` with an `ErrorEvent` for each failure; usable as a decorator."""
        self._hooks.add(hook)
        return hook

    @contextmanager
    def _rehearse(
        self, backend: Backend, url: str, clock: Clock, *, open_session: OpenSession = Session
    ) -> Iterator[ErrorHooks]:
        """Work on ``backend`` at ``url``, by ``clock``, inside the block; `brokerkit.testing.in_memory` is made of it.

        Configuration and handlers hold; an idempotency store is one in memory.  What the block registers, configures
        and counts is gone with it, error hooks included, which it yields.  ``open_session`` makes what belongs to
        one event loop.  Raise RuntimeError when the manager is open, at the beginning or at the end of the block.
        """
        if not self._is_shut():
            raise RuntimeError("this manager is open: close it before it is put on another backend")
        blueprint = self._blueprint.on(backend, url)
        remembers = self._store is not None or blueprint.settings.idempotency.store is not None
        before = self._blueprint, self.clock, self._store, self._hooks, self._metrics, self._open_session, self._closed
        specs = list(self.specs)
        self._blueprint, self.clock, self._open_session, self._closed = blueprint, clock, open_session, False
        self._store = blueprint.memory_store(clock) if remembers else None
        self._hooks, self._metrics = self._hooks.copy(), Metrics(clock)
        try:
            yield self._hooks
            if not self._is_shut():
                raise RuntimeError("this manager is still open: close it before it is put back on its own backend")
        finally:
            (
                self._blueprint, self.clock, self._store, self._hooks, self._metrics, self._open_session, self._closed
            ) = before  # fmt: skip
            self.specs[:] = specs
            session, self._session = self._session, None
            if session is not None:
                # Could not be closed.  It must not serve the manager any more.
                session.forsake()

    def _is_shut(self) -> bool:
        """Whether nothing is open; what cannot be closed any more is let go."""
        session = self._session
        if session is not None and session.is_gone:
            session.forsake()
            session = self._session = None
        return session is None

    # --- lifecycle ---

    async def connect(self) -> None:
        """Connect now rather than on first use.  Raise what is wrong: `BrokerUnavailable`, `AccessRefused` …"""
        self._closed = False
        await self._use().link.connection()

    async def connection(self) -> Connection:
        """Return the backend's connection, for what is not portable; see `brokerkit.spi`."""
        return await self._use().link.connection()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the handlers, close everything.  Idempotent.  A closed manager connects again by `connect`."""
        await self._close(None)

    async def _leave(self) -> None:
        """Close in a hurry: what is unsettled goes back at once."""
        await self._close(0.0)

    async def _close(self, stop_timeout: float | None) -> None:
        session = self._detach()
        if session is not None:
            await session.aclose(self.settings.stop_timeout if stop_timeout is None else stop_timeout)
            if self._session is session:
                self._session = None

    def _detach(self) -> Session | None:
        """Refuse new calls from now on; return what must be closed, None when nothing is open here."""
        self._closed = True
        session = self._session
        if session is not None and session.is_gone:
            session.forsake()
            session = self._session = None
        return session

    def _use(self) -> Session:
        """Return the session of this loop and process, making it on the first use."""
        session = self._session
        loop, pid = asyncio.get_running_loop(), os.getpid()
        if session is not None and session.loop is loop and session.pid == pid:
            return session
        if self._closed:
            raise Closed("the manager is closed; connect() or `async with` opens it again", backend=self.backend_name)
        if pid != self._ids_pid:
            # A fork, of whatever was made before it: each process needs ids of its own.
            self._ids.renew()
            self._ids_pid = pid
        if session is not None:
            if not session.is_gone:
                raise RuntimeError(
                    "this manager is in use on another event loop; close it there first, or make a manager per loop"
                )
            session.forsake()
        self._session = self._open_session(
            self._blueprint, self.clock, self._ids, self._metrics, self._hooks, self._store
        )
        return self._session

    def _link_even_closed(self) -> Link:
        if self._closed:
            link = Link(self.backend, ConnectOptions(clock=self.clock), self.topology)
            link.closed = True
            return link
        return self._use().link

    @property
    def _worker(self) -> Worker | None:
        return self._session.worker if self._session is not None else None

    @property
    def is_connected(self) -> bool:
        """Whether the connection was made and not closed."""
        session = self._session
        return session is not None and session.pid == os.getpid() and session.link.is_connected

    def capabilities(self, topic: Topic[Any] | str) -> frozenset[Capability]:
        """Return what the connection offers for ``topic``; empty before it was made."""
        name = topic.name if isinstance(topic, Topic) else check_topic(topic)
        return self._session.link.capabilities(name) if self._session is not None else frozenset()

    # --- sending ---

    @overload
    async def send(self, topic: Topic[T], payload: T | Message, **options: Unpack[SendOptions]) -> str: ...
    @overload
    async def send(self, topic: str, payload: Any, **options: Unpack[SendOptions]) -> str: ...

    async def send(self, topic: Topic[Any] | str, payload: Any, **options: Unpack[SendOptions]) -> str:
        """Send one message and return its id when the broker has taken responsibility for it.

        payload: bytes, str, anything pydantic encodes, or a `Message`; options: see `SendOptions`.

        Raise `PayloadError` or `ConfigurationError` before any I/O, `SendRefused`, `SendTimeout` (the outcome is
        unknown), `MessageTooLarge`, `Unroutable`, `TopicNotFound`, `BrokerUnavailable` or `CapabilityNotSupported`
        after it.  What may pass is tried again, with the same id, for ``send_timeout`` seconds.
        """
        return await self._use().producer.send(topic, payload, options)

    @overload
    async def send_many(
        self, topic: Topic[T], payloads: Iterable[T | Message], **options: Unpack[SendOptions]
    ) -> list[SendOutcome]: ...
    @overload
    async def send_many(
        self, topic: str, payloads: Iterable[Any], **options: Unpack[SendOptions]
    ) -> list[SendOutcome]: ...

    async def send_many(
        self, topic: Topic[Any] | str, payloads: Iterable[Any], **options: Unpack[SendOptions]
    ) -> list[SendOutcome]:
        """Send many messages, pipelined; return one outcome each, in their order.  A bad one fails alone."""
        return await self._use().producer.send_many(topic, payloads, options)

    async def request(
        self,
        topic: Topic[Any] | str,
        payload: Any,
        *,
        reply: type[R],
        timeout: float = 30.0,
        **options: Unpack[SendOptions],
    ) -> R:
        """Send a request and return its reply, decoded into ``reply``.

        Raise `ReplyTimeout` after ``timeout`` seconds, `RemoteError` when the handler failed for good, and what
        `send` raises.
        """
        return await self._use().requests.request(topic, payload, reply, timeout, options)

    # --- receiving ---

    def consume(
        self,
        topic: Topic[Any] | str,
        *,
        group: str | None = None,
        prefetch: int = 20,
        tag: str | None = None,
        broadcast: bool = False,
        ordered: bool | None = None,
    ) -> Deliveries:
        """Return the deliveries of a group: ``async with manager.consume(…) as ds: async for d in ds: …``."""
        options = self._blueprint.consumer_options(
            topic, group, prefetch=prefetch, tag=tag, broadcast=broadcast, ordered=ordered
        )
        session_of = self._use

        async def open_consumer() -> Consumer:
            return await session_of().open_consumer(options, deliveries)

        def on_close() -> None:
            if self._session is not None:
                self._session.closed(deliveries)

        deliveries = Deliveries(
            open_consumer,
            self.clock,
            self._metrics,
            self._hooks,
            follow_ups=lambda: session_of().follow_ups,
            policy=self._blueprint.retry_policy(options.topic),
            on_close=on_close,
        )
        return deliveries

    # --- handling ---

    async def start(self) -> None:
        """Run the handlers in the background.  Everything that can be checked is checked before it returns."""
        self._closed = False
        await self._use().start([self._blueprint.resolve(spec) for spec in self.specs])

    async def stop(self, timeout: float | None = None) -> bool:
        """Drain: running handlers may finish within ``timeout`` seconds (``stop_timeout`` by default).

        What was not started goes back at once, what did not finish goes back at the end.  Return whether all
        running handlers finished.  Calls at the same time share one drain; a timeout of 0 ends it now.
        """
        session = self._session
        if session is None or session.is_gone:
            return True
        return await session.stop(self.settings.stop_timeout if timeout is None else timeout)

    async def run(self) -> None:
        """Start, wait for SIGTERM, SIGINT or `stop`, then stop and close.  A second signal stops without waiting.

        Signals are handled only in the main thread, and as they were before afterwards.
        """
        request = StopRequest()
        loop = asyncio.get_running_loop()
        with stop_signals(lambda: loop.call_soon_threadsafe(request)):
            await self._run_until(request)

    async def _run_until(self, request: StopRequest) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.create_task(request.asked.wait())
        waits: list[asyncio.Task[Any]] = [asked]
        try:
            starting = loop.create_task(self.start())
            waits.append(starting)
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return
            starting.result()
            session = self._use()
            if session.worker is None:
                return
            request.hurry = session.worker.hurry
            waits.append(loop.create_task(session.ended()))
            await asyncio.wait((asked, waits[-1]), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            await self.aclose()

    async def pause(self, topic: Topic[Any] | str, group: str | None = None) -> None:
        """Stop handing messages of a topic, or of one of its groups, to the handlers here; running ones finish."""
        worker = self._worker
        if worker is None:
            raise ConfigurationError("pause works on running handlers: call start() first")
        await worker.pause(topic.name if isinstance(topic, Topic) else topic, group)

    async def resume(self, topic: Topic[Any] | str, group: str | None = None) -> None:
        """Undo `pause`."""
        worker = self._worker
        if worker is None:
            raise ConfigurationError("resume works on running handlers: call start() first")
        await worker.resume(topic.name if isinstance(topic, Topic) else topic, group)

    def _add(self, spec: HandlerSpec) -> None:
        super()._add(spec)
        try:
            if self._blueprint.is_read:
                self._blueprint.declare(spec)
            session = self._session
            if session is None or session.worker is None or session.is_gone:
                return
            CallPlan(spec.function, spec.name)
            resolved = self._blueprint.resolve(spec)
        except BaseException:
            self.specs.remove(spec)
            raise
        worker = session.worker
        session.loop.call_soon_threadsafe(lambda: worker.spawn_add(resolved))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self._blueprint.describe()}>"
