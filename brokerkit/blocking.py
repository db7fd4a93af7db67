"""`Manager`: the one object that a blocking application holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from brokerkit.blocking_admin import BlockingAdmin, BlockingMonitor
from brokerkit.blocking_deliveries import BlockingDeliveries
from brokerkit.clock import Clock
from brokerkit.envelope import SendOptions
from brokerkit.errors import Closed
from brokerkit.events import ErrorHook, ErrorHooks
from brokerkit.gate import Gate
from brokerkit.manager import AsyncManager, OpenSession
from brokerkit.message import Message
from brokerkit.producer import SendOutcome
from brokerkit.router import HandlerSpec, Router
from brokerkit.session import Session
from brokerkit.spi import Backend, Capability
from brokerkit.stopping import StopRequest, stop_signals
from brokerkit.topic import Topic
from brokerkit.topology import Topology

if TYPE_CHECKING:
    from brokerkit.idempotency import IdempotencyStore
    from brokerkit.settings import Settings, TopicSettings

__all__ = ["Manager"]

T = TypeVar("T")
R = TypeVar("R")

#: Payloads of one `send_many` that are taken from the caller's iterable at once.
_PART = 5_000
#: Seconds after which `run` hears a signal that did not wake it.
_LOOK = 0.5

_INSIDE = (
    "a blocking call of a Manager on its own event loop would wait for itself; "
    "async handlers use the async twin: await manager.aio.send(...), and so on"
)


class Manager(Router):
    """Sends, receives and handles messages of one broker; may be used by any number of threads.

    The blocking twin of `AsyncManager`, which is behind it as ``aio`` and works on an event loop in a background
    thread.  Making one does no I/O and starts no thread; the first use connects.  ``with`` connects and closes.
    Neither starts the handlers: `start` and `run` do.  After a fork the child makes its own loop and connection.

    The parameters are those of `AsyncManager`.
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
        #: The `AsyncManager` behind this one, for async handlers; it lives on this manager's event loop.
        self.aio = AsyncManager(
            url,
            backend=backend,
            settings=settings,
            name=name,
            clock=clock,
            idempotency=idempotency,
            **overrides,
        )
        self.name = self.aio.name
        self.clock = self.aio.clock
        self.specs = self.aio.specs
        self._gate = Gate(f"brokerkit-{name}", inside=_INSIDE, farewell=self.aio._leave)
        #: Declares, deletes, purges, and works with dead letters.
        self.admin = BlockingAdmin(self.aio.admin, self._gate)
        #: Figures and health.
        self.monitor = BlockingMonitor(self.aio.monitor, self._gate)

    # --- configuration, read on first use ---

    @property
    def settings(self) -> Settings:
        """The settings of all sources together; raises `ConfigurationError`."""
        return self.aio.settings

    @property
    def backend(self) -> Backend:
        """The backend that the configuration chooses; raises `ConfigurationError`."""
        return self.aio.backend

    @property
    def backend_name(self) -> str:
        """The name of the backend."""
        return self.aio.backend_name

    @property
    def topology(self) -> Topology:
        """The topics and groups that the application declared so far."""
        return self.aio.topology

    def configure_topic(self, name: str, settings: TopicSettings) -> None:
        """Do in code what a section below ``topics:`` does in the configuration."""
        self.aio.configure_topic(name, settings)

    def on_error(self, hook: ErrorHook) -> ErrorHook:
        """Call ``hook`` with an `ErrorEvent` for each failure, on the event loop; usable as a decorator."""
        return self.aio.on_error(hook)

    @contextmanager
    def _rehearse(
        self, backend: Backend, url: str, clock: Clock, *, open_session: OpenSession = Session
    ) -> Iterator[ErrorHooks]:
        """Do what `AsyncManager._rehearse` does; the manager is open in the block, and closed at its end."""
        closed = self._gate.closed
        own_clock = self.clock
        with self.aio._rehearse(backend, url, clock, open_session=open_session) as hooks:
            self.clock = clock
            self._gate.open()
            try:
                yield hooks
            finally:
                self.close()
                self.clock = own_clock
                if not closed:
                    self._gate.open()

    # --- lifecycle ---

    def connect(self) -> None:
        """Connect now rather than on first use.  Raise what is wrong: `BrokerUnavailable`, `AccessRefused` …"""
        self._gate.open()
        self._gate.call(self.aio.connect)

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the handlers, close everything and end the background thread.  Idempotent.

        Calls of other threads that still wait then raise `Closed`.  A closed manager connects again by `connect`,
        `start` or ``with``.
        """
        self._gate.refuse_inside()
        try:
            if self._gate.running:
                self._gate.call(self.aio.aclose)
            else:
                self.aio._detach()
        except Closed:
            return  # another thread closes it too, and was faster
        finally:
            self._gate.close()

    @property
    def is_connected(self) -> bool:
        """Whether the connection was made and not closed."""
        return self.aio.is_connected

    def capabilities(self, topic: Topic[Any] | str) -> frozenset[Capability]:
        """Return what the connection offers for ``topic``; empty before it was made."""
        return self.aio.capabilities(topic)

    # --- sending ---

    @overload
    def send(self, topic: Topic[T], payload: T | Message, **options: Unpack[SendOptions]) -> str: ...
    @overload
    def send(self, topic: str, payload: Any, **options: Unpack[SendOptions]) -> str: ...

    def send(self, topic: Topic[Any] | str, payload: Any, **options: Unpack[SendOptions]) -> str:
        """Send one message and return its id when the broker has taken responsibility for it.

        payload: bytes, str, anything pydantic encodes, or a `Message`; options: see `SendOptions`.

        Raise what `AsyncManager.send` raises, and `Closed` when another thread closes the manager meanwhile.
        """
        return self._gate.call(lambda: self.aio.send(topic, payload, **options))

    @overload
    def send_many(
        self, topic: Topic[T], payloads: Iterable[T | Message], **options: Unpack[SendOptions]
    ) -> list[SendOutcome]: ...
    @overload
    def send_many(self, topic: str, payloads: Iterable[Any], **options: Unpack[SendOptions]) -> list[SendOutcome]: ...

    def send_many(
        self, topic: Topic[Any] | str, payloads: Iterable[Any], **options: Unpack[SendOptions]
    ) -> list[SendOutcome]:
        """Send many messages, pipelined; return one outcome each, in their order.  A bad one fails alone."""
        # The caller's iterator runs in the caller's thread: it may block, and it may use this manager.
        rest = iter(payloads)
        outcomes: list[SendOutcome] = []
        while True:
            part = list(islice(rest, _PART))
            if part or not outcomes:
                outcomes += self._gate.call(partial(self.aio.send_many, topic, part, **options))
            if len(part) < _PART:
                return outcomes

    def request(
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
        return self._gate.call(lambda: self.aio.request(topic, payload, reply=reply, timeout=timeout, **options))

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
    ) -> BlockingDeliveries:
        """Return the deliveries of a group: ``with manager.consume(…) as ds: for d in ds: …``."""
        deliveries = self.aio.consume(
            topic, group=group, prefetch=prefetch, tag=tag, broadcast=broadcast, ordered=ordered
        )
        return BlockingDeliveries(deliveries, self._gate)

    # --- handling ---

    def start(self) -> None:
        """Run the handlers in the background.  Everything that can be checked is checked before it returns."""
        self._gate.open()
        self._gate.call(self.aio.start)

    def stop(self, timeout: float | None = None) -> bool:
        """Drain: running handlers may finish within ``timeout`` seconds (``stop_timeout`` by default).

        What was not started goes back at once, what did not finish goes back at the end.  Return whether all
        running handlers finished.
        """
        if not self._gate.running:
            return True
        return self._gate.call(partial(self.aio.stop, timeout))

    def run(self) -> None:
        """Start, wait for SIGTERM, SIGINT or `stop`, then stop and close.  A second signal stops without waiting.

        Signals are handled only in the main thread, and as they were before afterwards.
        """
        self._gate.open()
        request = StopRequest()
        with stop_signals(lambda: self._gate.call_soon(request)):
            try:
                self._gate.call(lambda: self.aio._run_until(request), look=_LOOK)
            except Closed:
                # Another thread closed the manager, which ends `run` as `stop` does.
                if not self._gate.closed:
                    raise
            finally:
                self.close()

    def pause(self, topic: Topic[Any] | str, group: str | None = None) -> None:
        """Stop handing messages of a topic, or of one of its groups, to the handlers here; running ones finish."""
        self._gate.call(partial(self.aio.pause, topic, group))

    def resume(self, topic: Topic[Any] | str, group: str | None = None) -> None:
        """Undo `pause`."""
        self._gate.call(partial(self.aio.resume, topic, group))

    def _add(self, spec: HandlerSpec) -> None:
        self.aio._add(spec)

    def __repr__(self) -> str:
        return repr(self.aio).replace(type(self.aio).__name__, type(self).__name__, 1)
