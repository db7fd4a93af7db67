"""`AsyncManager`: the one object that an async application holds."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from brokerkit.admin import Admin
from brokerkit.clock import Clock, SystemClock
from brokerkit.consumer import Consumer
from brokerkit.deliveries import Deliveries
from brokerkit.envelope import SendOptions
from brokerkit.errors import Closed, ConfigurationError
from brokerkit.events import ErrorHook, ErrorHooks
from brokerkit.follow_ups import FollowUps
from brokerkit.handler import CallPlan
from brokerkit.link import Link
from brokerkit.message import Message, MessageIds
from brokerkit.metrics import Metrics
from brokerkit.monitor import Monitor
from brokerkit.names import check_topic
from brokerkit.producer import Producer, SendOutcome
from brokerkit.requests import Requests
from brokerkit.retry import RetryPolicy, resolve_policy
from brokerkit.router import HandlerSpec, Router
from brokerkit.spi import Backend, Capability, Connection, ConnectOptions, ConsumerOptions
from brokerkit.stopping import StopRequest, stop_signals
from brokerkit.topic import Topic
from brokerkit.topology import Topology
from brokerkit.worker import Worker

if TYPE_CHECKING:
    from brokerkit.idempotency import IdempotencyStore
    from brokerkit.settings import Settings, TopicSettings

__all__ = ["AsyncManager"]

log = logging.getLogger("brokerkit")

T = TypeVar("T")
R = TypeVar("R")

#: What a broadcast consumer without a name of its own is called.
_BROADCAST = "broadcast"


@dataclass(slots=True)
class _Session:
    """Everything that belongs to one event loop in one process."""

    loop: asyncio.AbstractEventLoop
    pid: int
    link: Link
    producer: Producer
    requests: Requests
    follow_ups: FollowUps
    consuming: set[Deliveries]
    worker: Worker | None = None


class AsyncManager(Router):
    """Sends, receives and handles messages of one broker.

    Making one does no I/O, starts nothing and binds no event loop; the first use connects.  ``async with``
    connects and closes.  Neither starts the handlers: `start` and `run` do.

    url:         URL of the broker; it chooses the backend
    backend:     name of an installed backend, or a backend object
    settings:    a `Settings` object or a mapping, in place of the configuration file and the environment
    name:        which of the configured managers this is
    clock:       where time comes from
    idempotency: the store for idempotent handlers, in place of the configured one
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
        self._given = {"url": url, "settings": settings, **overrides}
        self._backend_given = backend
        self._store = idempotency
        self._ids = MessageIds()
        self._hooks = ErrorHooks()
        self._metrics = Metrics(self.clock)
        self._settings: Settings | None = None
        self._backend: Backend | None = None
        self._topology: Topology | None = None
        self._session: _Session | None = None
        self._closed = False
        self._starting = False
        self._ended: asyncio.Event | None = None
        #: Declares, deletes, purges, and works with dead letters.
        self.admin = Admin(lambda: self._use().link, lambda: self._use().producer)
        #: Figures and health.
        self.monitor = Monitor(self._link_even_closed, self._metrics, lambda: self._worker)

    # --- configuration, read on first use ---

    @property
    def settings(self) -> Settings:
        """The settings of all sources together; raises `ConfigurationError`."""
        if self._settings is None:
            # Imported on use: reading the configuration costs more than all the rest of the import.
            from brokerkit.settings import load_settings

            backend = self._backend_given
            given = {key: value for key, value in self._given.items() if value is not None}
            if isinstance(backend, str):
                given["backend"] = backend
            self._settings = load_settings(name=self.name, **given)
        return self._settings

    @property
    def backend(self) -> Backend:
        """The backend that the configuration chooses; raises `ConfigurationError`."""
        if self._backend is None:
            if self._backend_given is not None and not isinstance(self._backend_given, str):
                self._backend = self._backend_given
            else:
                from brokerkit.registry import Registry

                self._backend = Registry().find(self.settings.backend_name)
        return self._backend

    @property
    def backend_name(self) -> str:
        """The name of the backend."""
        return self.backend.name

    @property
    def topology(self) -> Topology:
        """The topics and groups that the application declared so far."""
        if self._topology is None:
            self._topology = Topology(self.backend.name, self.settings.topics)
            for spec in self.specs:
                self._declare_spec(spec)
        return self._topology

    def configure_topic(self, name: str, settings: TopicSettings) -> None:
        """Do in code what a section below ``topics:`` does in the configuration."""
        self.topology.configure(name, settings)

    def on_error(self, hook: ErrorHook) -> ErrorHook:
        """Call ``hook`` with an `ErrorEvent` for each failure; usable as a decorator."""
        self._hooks.add(hook)
        return hook

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
        session = self._detach()
        if session is None:
            return
        await self.stop()
        for deliveries in list(session.consuming):
            await deliveries.aclose()
        await session.requests.aclose()
        await session.link.aclose()
        self._session = None

    def _detach(self) -> _Session | None:
        """Refuse new calls from now on; return what must be closed, None when nothing is open here."""
        self._closed = True
        session = self._session
        if session is None or session.pid != os.getpid() or session.loop.is_closed():
            self._forsake(session)
            self._session = None
            return None
        return session

    @staticmethod
    def _forsake(session: _Session | None) -> None:
        """Let go of a session that cannot be closed: its process or its event loop is gone."""
        if session is None:
            return
        if session.pid != os.getpid():
            # The tasks of the parent's loop end with the session; they have nothing to say in the child.
            session.loop.set_exception_handler(lambda loop, context: None)
        elif session.worker is not None:
            session.worker.abandon()

    async def _leave(self) -> None:
        """Close in a hurry: what is unsettled goes back at once."""
        await self.stop(timeout=0)
        await self.aclose()

    def _use(self) -> _Session:
        """Return the session of this loop and process, making it on the first use."""
        session = self._session
        loop = asyncio.get_running_loop()
        if session is not None and session.loop is loop and session.pid == os.getpid():
            return session
        if self._closed:
            raise Closed("the manager is closed; connect() or `async with` opens it again", backend=self.backend.name)
        if session is not None and session.pid != os.getpid():
            # A fork: the parent's connection is not ours to use or to close.
            self._ids.renew()
        elif session is not None and not session.loop.is_closed():
            raise RuntimeError(
                "this manager is in use on another event loop; close it there first, or make a manager per loop"
            )
        self._forsake(session)
        self._session = session = self._begin(loop)
        return session

    def _begin(self, loop: asyncio.AbstractEventLoop) -> _Session:
        settings, topology = self.settings, self.topology
        if not settings.enabled:
            raise ConfigurationError(
                f"the backend {self.backend.name} is switched off: its section says enabled: false",
                backend=self.backend.name,
            )
        if settings.nothing_configured and self._backend_given is None:
            log.warning("no broker is configured: messages go to the file %s", settings.embedded_path())
        options = ConnectOptions(
            url=settings.backend_url(),
            section=settings.backend_section(),
            topics=topology,
            client_id=settings.client_id,
            attempt_timeout=settings.attempt_timeout,
            clock=self.clock,
        )
        link = Link(self.backend, options, topology)
        producer = Producer(
            link,
            self._ids,
            self._metrics,
            send_timeout=settings.send_timeout,
            max_message_size=settings.max_message_size,
        )
        return _Session(loop, os.getpid(), link, producer, Requests(link, producer), FollowUps(producer), set())

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
        name = self._enter(topic)
        resolved = self._resolve_group(name, group, broadcast)
        if not isinstance(prefetch, int) or prefetch < 1:
            raise ConfigurationError(f"prefetch is an int of at least 1, not {prefetch!r}", topic=name)
        if not broadcast:
            self.topology.add_group(name, resolved, tag=tag, ordered=ordered)
        session_of = self._use

        async def open_consumer() -> Consumer:
            session = session_of()
            spec = self.topology[name].groups.get(resolved)
            options = ConsumerOptions(
                topic=name,
                group=resolved,
                prefetch=prefetch,
                tag=spec.tag if spec is not None else tag or "*",
                ordered=spec is not None and spec.ordered,
                broadcast=broadcast,
            )
            session.consuming.add(deliveries)
            return await Consumer.open(
                session.link,
                session.producer,
                self._metrics,
                options,
                self._ids,
                expired=self._expired(name),
            )

        deliveries = Deliveries(
            open_consumer,
            self.clock,
            self._metrics,
            self._hooks,
            follow_ups=lambda: session_of().follow_ups,
            policy=resolve_policy(self.settings.retry_for(name)),
        )
        return deliveries

    # --- handling ---

    async def start(self) -> None:
        """Run the handlers in the background.  Everything that can be checked is checked before it returns."""
        self._closed = False
        session = self._use()
        if session.worker is not None or self._starting:
            return
        self._starting = True
        try:
            specs = [self._resolved(spec) for spec in self.specs]
            worker = Worker(
                session.link,
                session.producer,
                self._metrics,
                self._hooks,
                policy_of=self._policy,
                new_id=self._ids,
                store=self._idempotency_store() if any(spec.idempotent for spec in specs) else None,
                claim_lease=self.settings.idempotency.lease,
            )
            await worker.start(specs)
            session.worker = worker
            self._ended = asyncio.Event()
        finally:
            self._starting = False

    async def stop(self, timeout: float | None = None) -> bool:
        """Drain: running handlers may finish within ``timeout`` seconds (``stop_timeout`` by default).

        What was not started goes back at once, what did not finish goes back at the end.  Return whether all
        running handlers finished.
        """
        session = self._session
        if session is None or session.worker is None:
            return True
        worker, session.worker = session.worker, None
        try:
            return await worker.stop(self.settings.stop_timeout if timeout is None else timeout)
        finally:
            if self._ended is not None:
                self._ended.set()

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
            if self._worker is None or self._ended is None:
                return
            request.hurry = self._worker.hurry
            waits.append(loop.create_task(self._ended.wait()))
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
            if self._topology is not None:
                self._declare_spec(spec)
            session = self._session
            if session is None or session.worker is None:
                return
            CallPlan(spec.function, spec.name)
            resolved = self._resolved(spec)
        except BaseException:
            self.specs.remove(spec)
            raise
        worker = session.worker
        session.loop.call_soon_threadsafe(lambda: worker.spawn_add(resolved))

    def _declare_spec(self, spec: HandlerSpec) -> None:
        topology = self.topology
        if spec.topic_object is not None:
            topology.add_topic(spec.topic_object)
        else:
            topology.ensure(spec.topic)
        if spec.group is not None and not spec.broadcast:
            topology.add_group(spec.topic, spec.group, tag=spec.tag, ordered=spec.ordered)

    def _resolved(self, spec: HandlerSpec) -> HandlerSpec:
        self._declare_spec(spec)
        resolved = spec.in_group(self._resolve_group(spec.topic, spec.group, spec.broadcast))
        if not spec.broadcast:
            self.topology.add_group(spec.topic, resolved.group or "", tag=spec.tag, ordered=spec.ordered)
        if resolved.timeout is None and self.settings.handler_timeout is not None:
            resolved = replace(resolved, timeout=self.settings.handler_timeout)
        return resolved

    def _resolve_group(self, topic: str, group: str | None, broadcast: bool) -> str:
        if group is not None:
            return group
        found = self.topology.only_group(topic) or self.settings.consumer_group
        if found is None and broadcast:
            return _BROADCAST
        if found is None:
            known = ", ".join(self.topology.ensure(topic).groups) or "none"
            raise ConfigurationError(
                f"topic {topic!r}: which group? Give group=, declare exactly one group with the topic, "
                f"or set consumer_group (declared groups: {known})",
                topic=topic,
            )
        return found

    def _enter(self, topic: Topic[Any] | str) -> str:
        if isinstance(topic, Topic):
            self.topology.add_topic(topic)
            return topic.name
        self.topology.ensure(topic)
        return topic

    def _policy(self, spec: HandlerSpec) -> RetryPolicy:
        return resolve_policy(spec.retry, self.settings.retry_for(spec.topic))

    def _expired(self, topic: str) -> Any:
        settings = self.topology.settings(topic)
        return settings.expired if settings is not None else "drop"

    def _idempotency_store(self) -> IdempotencyStore | None:
        if self._store is None:
            chosen = self.settings.idempotency
            if chosen.store == "memory":
                from brokerkit.idempotency import MemoryIdempotencyStore

                self._store = MemoryIdempotencyStore(self.clock, chosen.retention)
            elif chosen.store == "sqlite":
                from brokerkit.idempotency_sqlite import SqliteIdempotencyStore

                self._store = SqliteIdempotencyStore(self.settings.idempotency_path(), self.clock, chosen.retention)
        return self._store

    def __repr__(self) -> str:
        backend = self._backend.name if self._backend is not None else "not configured yet"
        return f"<{type(self).__name__} {self.name!r} on {backend}>"
