"""`Link`: one manager's connection, made on first use and shared by everything above it."""

from __future__ import annotations

import asyncio

from brokerkit.errors import BrokerError, CapabilityNotSupported, Closed
from brokerkit.spi import (
    Backend,
    Capability,
    Connection,
    ConnectOptions,
    GroupSpec,
    Manage,
    ProducerDriver,
    TopicSpec,
)
from brokerkit.topology import Topology

__all__ = ["Link"]

_NO_CAPABILITIES: frozenset[Capability] = frozenset()


class Link:
    """The connection of one manager on one event loop: connects lazily, declares topics before they are used.

    It adds the topic and the backend to every error and refuses what the connection does not offer.
    """

    def __init__(self, backend: Backend, options: ConnectOptions, topology: Topology) -> None:
        self.backend = backend
        self.topology = topology
        self.clock = options.clock
        #: Seconds in which the driver answers one send by itself.
        self.attempt_timeout = options.attempt_timeout
        self._options = options
        self._connection: Connection | None = None
        self._producer: ProducerDriver | None = None
        self._lock = asyncio.Lock()
        #: Topic name -> the spec it was declared with.
        self._declared: dict[str, TopicSpec] = {}
        #: Topic name -> held while it is declared.
        self._declaring: dict[str, asyncio.Lock] = {}
        self.closed = False

    # --- connecting ---

    async def connection(self) -> Connection:
        """Return the connection, making it on the first call; raise `Closed` after `aclose`."""
        if self._connection is not None and not self.closed:
            return self._connection
        async with self._lock:
            if self.closed:
                raise Closed("the manager is closed", backend=self.backend.name)
            if self._connection is None:
                try:
                    self._connection = await self.backend.connect(self._options)
                except Exception as exc:
                    raise self.wrap(exc) from exc
            return self._connection

    async def producer(self) -> ProducerDriver:
        """Return the one producer that all sends of this manager share."""
        if self._producer is not None and not self.closed:
            return self._producer
        connection = await self.connection()
        async with self._lock:
            if self.closed:
                raise Closed("the manager is closed", backend=self.backend.name)
            if self._producer is None:
                try:
                    self._producer = await connection.open_producer()
                except Exception as exc:
                    raise self.wrap(exc) from exc
            return self._producer

    async def replace_producer(self) -> tuple[ProducerDriver, ProducerDriver | None]:
        """Open a new producer for all further sends; return it and the old one, which the caller closes."""
        connection = await self.connection()
        async with self._lock:
            if self.closed:
                raise Closed("the manager is closed", backend=self.backend.name)
            try:
                fresh = await connection.open_producer()
            except Exception as exc:
                raise self.wrap(exc) from exc
            old, self._producer = self._producer, fresh
            return fresh, old

    @property
    def is_connected(self) -> bool:
        """Whether the connection was made and not closed."""
        return self._connection is not None and not self.closed

    async def aclose(self) -> None:
        """Close the producer and the connection.  Idempotent."""
        self.closed = True
        async with self._lock:
            producer, self._producer = self._producer, None
            connection, self._connection = self._connection, None
            try:
                if producer is not None:
                    await producer.aclose()
            finally:
                if connection is not None:
                    await connection.aclose()

    # --- what the connection offers ---

    def capabilities(self, topic: str) -> frozenset[Capability]:
        """Return what holds for ``topic``; nothing before the connection was made."""
        return self._connection.capabilities(topic) if self._connection is not None else _NO_CAPABILITIES

    def require(self, capability: Capability, topic: str, what: str) -> None:
        """Raise `CapabilityNotSupported` unless the connection offers ``capability`` for ``topic``."""
        if capability not in self.capabilities(topic):
            raise CapabilityNotSupported(
                f"{what} needs the capability {capability.value}, which this connection does not offer",
                topic=topic,
                backend=self.backend.name,
            )

    def require_order(self, topic: str, what: str) -> None:
        """Raise `CapabilityNotSupported` unless ``topic`` keeps an order, be it only that of each key."""
        if Capability.ORDERED_BY_KEY not in self.capabilities(topic):
            self.require(Capability.ORDERED, topic, what)

    # --- declaring ---

    def is_declared(self, topic: str) -> bool:
        """Whether ``topic`` was declared as it stands now.  No I/O."""
        spec = self._declared.get(topic)
        return spec is not None and spec is self.topology[topic]

    async def declare(self, topic: str) -> None:
        """Declare or verify the topic and every group the application knows, as its ``declare`` setting says.

        Calls at the same time wait for the first one: what is half made already looks as if it were there.
        """
        async with self._declaring.setdefault(topic, asyncio.Lock()):
            await self._declare(topic)

    async def _declare(self, topic: str) -> None:
        connection = await self.connection()
        spec = self.topology.ensure(topic)
        if self._declared.get(topic) is spec:
            return
        settings = self.topology.settings(topic)
        mode = (settings.declare if settings is not None else None) or "auto"
        self.check(spec)
        if mode != "never" and isinstance(connection, Manage) and Capability.MANAGE in connection.capabilities(topic):
            act = connection.declare if mode == "auto" else connection.verify
            groups: list[GroupSpec | None] = list(spec.groups.values())
            try:
                for group in groups or [None]:
                    await act(spec, group)
            except Exception as exc:
                raise self.wrap(exc, topic) from exc
        self._declared[topic] = spec

    def forget(self, topic: str) -> None:
        """Declare ``topic`` again before its next use: somebody may have deleted it."""
        self._declared.pop(topic, None)

    def check(self, spec: TopicSpec) -> None:
        """Refuse what a declaration asks for and the connection lacks."""
        if spec.ordered:
            self.require_order(spec.name, "an ordered topic")
        for group in spec.groups.values():
            if group.ordered:
                self.require_order(spec.name, f"the ordered group {group.name!r}")
            if group.tag != "*":
                self.require(Capability.TAGS, spec.name, f"the tag filter {group.tag!r} of group {group.name!r}")
            if group.start == "earliest":
                self.require(Capability.FROM_START, spec.name, f"start='earliest' of group {group.name!r}")
        if len(spec.groups) > 1:
            self.require(Capability.CONSUMER_GROUPS, spec.name, "more than one group on a topic")

    # --- errors ---

    def wrap(self, exc: BaseException, topic: str | None = None) -> BrokerError:
        """Return ``exc`` as an error of brokerkit with its context; raise it as it is when it is none of ours."""
        if not isinstance(exc, BrokerError):
            mapped = self.backend.map_error(exc)
            if mapped is None:
                raise exc
            exc = mapped
        return exc.with_context(topic=topic, backend=self.backend.name)
