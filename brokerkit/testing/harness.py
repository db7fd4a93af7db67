"""`Harness`: how the conformance suite gets at one broker, and what it may do to it.

A backend subclasses `Harness`, sets `url`, and overrides the hooks that its broker makes possible.  Every hook is
optional: a case that needs a missing one is skipped and says so.  `deviations` is the only way to excuse a case
that fails: it becomes a strict xfail with the reason.

    class AcmeHarness(Harness):
        url = "acme://localhost"
        timing = Timing(redelivery=5.0)
        deviations = {"test_delays_are_independent": "ACME-123: one timer per topic"}

        async def drop_connection(self) -> None:
            ...
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from brokerkit.clock import Clock, SystemClock
from brokerkit.errors import BrokerError
from brokerkit.spi import (
    Backend,
    Capability,
    Connection,
    ConnectOptions,
    ConsumerDriver,
    ConsumerOptions,
    Destination,
    GroupSpec,
    Manage,
    TopicSpec,
)

if TYPE_CHECKING:
    from brokerkit.manager import AsyncManager
    from brokerkit.retry import RetryPolicy
    from brokerkit.topic import Topic

__all__ = ["HOOKS", "VALUE_HOOKS", "Harness", "Offer", "Timing"]

#: Hooks that are values; None means "has none".
VALUE_HOOKS = frozenset({"bad_url", "unreachable_url", "failover_url", "max_bytes"})
#: Every optional hook: what a case may name in ``@needs``.
HOOKS = VALUE_HOOKS | {
    "drop_connection",
    "restart",
    "kill",
    "freeze",
    "thaw",
    "cut",
    "inject_foreign",
    "refuse_sends",
    "stall",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long things take on this broker, in seconds.  Every deadline of the suite is computed from it."""

    #: Until a message that was given back, or whose consumer is gone, is delivered again.
    redelivery: float = 1.0
    #: Until messages flow to the right consumers after one joined or left.
    rebalance: float = 0.0
    #: Steps in which delays are rounded up.
    delay_grain: float = 0.1
    #: How much later than due plus grain a delayed message may come.
    delay_tolerance: float = 1.0
    #: How long "nothing came" is watched.
    quiet: float = 0.5
    #: Until a settlement that was handed over is effective at the broker.
    settle: float = 0.2
    #: Until the links work again after the broker came back.
    reconnect: float = 10.0
    #: The patience of one step that normally takes milliseconds: generous, as it is only used up by a failure.
    deadline: float = 20.0
    #: What one message of many may take.
    per_message: float = 0.02
    #: All deadlines are multiplied by this; for slow machines.
    factor: float = 1.0

    def within(self, messages: int = 1, *, delay: float = 0.0) -> float:
        """Return the deadline for ``messages`` to arrive, redeliveries and ``delay`` seconds of waiting included."""
        steps = self.deadline + self.redelivery + self.rebalance + messages * self.per_message
        late = delay + self.delay_grain + self.delay_tolerance if delay else 0.0
        return (steps + late) * self.factor

    def healed(self) -> float:
        """Return the deadline for links to work again after a fault."""
        return (self.deadline + self.reconnect + self.redelivery + self.rebalance) * self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the broker behind a harness turned out to be."""

    backend: str
    capabilities: frozenset[Capability]
    #: Client library, broker …: name to version.
    versions: Mapping[str, str]


class Harness:
    """One configuration of one broker.  Made once per session; its cases run one after the other.

    Cases use the attributes and the methods up to `consumer`; the hooks below them are for subclasses.
    """

    #: What a manager connects to.
    url: str | None = None
    #: Case name (or name with parameters, ``test_x[y]``) to the reason why it fails here: a strict xfail.
    deviations: Mapping[str, str] = {}
    timing: Timing = Timing()
    #: Settings of the portable API that every manager of the suite gets.
    settings: Mapping[str, Any] = {}

    #: A URL with credentials that the broker refuses.
    bad_url: str | None = None
    #: A URL where nothing answers.
    unreachable_url: str | None = None
    #: A URL with two addresses of which the first is dead.
    failover_url: str | None = None
    #: The largest body that the broker takes, in bytes; small enough to be exceeded by a test.
    max_bytes: int | None = None

    #: Modules without which the backend must still be importable; empty: it needs no client library.
    client_modules: tuple[str, ...] = ()
    #: One instance of each public exception class of the client library.
    client_errors: tuple[BaseException, ...] = ()
    #: What ``Delivery.native`` is an instance of; None: anything.
    native_type: type[Any] | None = None

    def __init__(self, backend: Backend, *, url: str | None = None) -> None:
        self.backend = backend
        if url is not None:
            self.url = url
        self.clock: Clock = SystemClock()
        #: The declarations of the running case; every connection of the case sees them.
        self.topics: dict[str, TopicSpec] = {}
        self._offer: Offer | None = None
        self._unavailable: BrokerError | None = None
        self._case = "probe"
        self._run = os.urandom(3).hex()
        self._numbers = count(1)
        self._names: list[str] = []

    @property
    def label(self) -> str:
        """What reports call this configuration."""
        return type(self).__name__.removesuffix("Harness").lower() or self.backend.name

    # --- for cases --------------------------------------------------------------------------------------------

    @property
    def offer(self) -> Offer | None:
        """What `probe` found; None before the first case, or when the broker is not there."""
        return self._offer

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the broker declared when the session began."""
        return self._offer.capabilities if self._offer else frozenset()

    def offers(self, hook: str) -> bool:
        """Return whether this harness has ``hook``."""
        if hook in VALUE_HOOKS:
            return getattr(self, hook) is not None
        return getattr(type(self), hook) is not getattr(Harness, hook)

    def name(self, what: str = "") -> str:
        """Return a new topic name that was never used before and says which case it belongs to."""
        parts = (self._case.removeprefix("test_"), what, f"{self._run}{next(self._numbers):x}")
        name = "-".join(part for part in parts if part)
        self._names.append(name)
        return name

    def adopt(self, name: str) -> str:
        """Return ``name``, a topic name that the case made itself (from one of ours); it is deleted after the case."""
        self._names.append(name)
        return name

    def topic(
        self, what: str = "", type: Any = Any, *, groups: Iterable[Any] = ("g",), ordered: bool = False
    ) -> Topic[Any]:
        """Return a fresh `Topic` of the portable API with these groups (`str` or `Group`).

        To use it at SPI level as well, `declare` ``topic.name`` and its groups there.
        """
        from brokerkit.topic import Topic
        from brokerkit.topology import Topology

        topic: Topic[Any] = Topic(self.name(what), type, groups=list(groups), ordered=ordered)
        self.topics[topic.name] = Topology(self.backend.name).add_topic(topic)
        return topic

    def manager(self, url: str | None = None, **overrides: Any) -> AsyncManager:
        """Return an unconnected manager on this broker; use it with ``async with``.

        ``overrides`` are arguments of `AsyncManager`.  Configuration files and the environment are not looked at.
        """
        from brokerkit.manager import AsyncManager
        from brokerkit.settings import Settings

        given = {"backend": self.backend, "settings": Settings(**self.settings), **overrides}
        return AsyncManager(url or self.url, **given)

    def retry(self, **fields: Any) -> RetryPolicy:
        """Return a retry policy that handlers may have here: without DEAD_LETTER it must requeue for ever.

        Retries come at once unless ``fields`` say otherwise.
        """
        from brokerkit.retry import RetryPolicy

        exhausted = "dead" if Capability.DEAD_LETTER in self.capabilities else "requeue"
        return RetryPolicy(**{"base_delay": 0.0, "exhausted": exhausted, **fields})

    @asynccontextmanager
    async def connection(self, **options: Any) -> AsyncIterator[Connection]:
        """Connect at SPI level; ``options`` are fields of `ConnectOptions`."""
        connection = await self.backend.connect(self.connect_options(**options))
        try:
            yield connection
        finally:
            await connection.aclose()

    def connect_options(self, **options: Any) -> ConnectOptions:
        """Return the options that `connection` connects with."""
        return ConnectOptions(**{"url": self.url, "topics": self.topics, "clock": self.clock, **options})

    async def declare(
        self,
        connection: Connection,
        topic: str,
        group: str | None = "g",
        *,
        tag: str = "*",
        ordered: bool = False,
        start: str = "latest",
        unroutable: str = "raise",
    ) -> None:
        """Declare ``topic``, and ``group`` in it, for all connections of the case.  Call once per group.

        What `topic` made is declared as it was made there; the options then mean nothing.
        """
        spec = self.topics.get(topic) or TopicSpec(name=topic, ordered=ordered, unroutable=unroutable)
        declared = None
        if group is not None:
            declared = spec.groups.get(group) or GroupSpec(name=group, tag=tag, ordered=ordered, start=start)
            spec = replace(spec, groups={**spec.groups, group: declared})
        self.topics[topic] = spec
        await self.create(connection, spec, declared)

    async def consumer(
        self, connection: Connection, topic: str, group: str = "g", *, prefetch: int = 20, **options: Any
    ) -> ConsumerDriver:
        """Open an SPI consumer of a group that `declare` declared."""
        spec = self.topics[topic].groups[group]
        chosen = {"tag": spec.tag, "ordered": spec.ordered, **options}
        return await connection.open_consumer(
            ConsumerOptions(topic=topic, group=group, prefetch=prefetch, **cast(Any, chosen))
        )

    # --- for the runner of the cases --------------------------------------------------------------------------

    async def probe(self) -> Offer:
        """Connect once and return what is there; the answer is kept.  Raise `BrokerUnavailable`, kept as well."""
        if self._unavailable is not None:
            raise self._unavailable
        if self._offer is None:
            plain, ordered = self.name("plain"), self.name("ordered")
            topics = {plain: TopicSpec(name=plain), ordered: TopicSpec(name=ordered, ordered=True)}
            self._names.clear()
            try:
                async with self.connection(topics=topics) as connection:
                    await connection.ping(self.timing.deadline)
                    # What holds only on ordered topics is offered too: the cases about order declare theirs so.
                    capabilities = connection.capabilities(plain) | connection.capabilities(ordered)
                    versions = await self.versions(connection)
            except BrokerError as exc:
                if exc.retryable:
                    self._unavailable = exc
                raise
            self._offer = Offer(backend=self.backend.name, capabilities=capabilities, versions=versions)
        return self._offer

    async def begin(self, case: str, needs: frozenset[str]) -> None:
        """Prepare for one case.  A subclass may put layers between the case and the broker that ``needs`` call for."""
        self._case = case
        self._names.clear()
        self.topics = {}

    async def end(self) -> None:
        """Remove what the case left behind."""
        names, self._names = self._names, []
        if names:
            await self.drop(names)

    # --- hooks ------------------------------------------------------------------------------------------------

    async def versions(self, connection: Connection) -> Mapping[str, str]:
        """Return the versions of client library and broker by name, for the head of the report."""
        return {}

    async def create(self, connection: Connection, topic: TopicSpec, group: GroupSpec | None) -> None:
        """Make the topic and the group exist.  By default with MANAGE; without it the broker makes them on use."""
        if Capability.MANAGE in connection.capabilities(topic.name):
            await cast(Manage, connection).declare(topic, group)

    async def drop(self, topics: Iterable[str]) -> None:
        """Delete topics that may or may not exist."""
        if Capability.MANAGE in self.capabilities:
            async with self.connection() as connection:
                for topic in topics:
                    await cast(Manage, connection).delete(topic, None)

    async def drop_connection(self) -> None:
        """Break every open link to the broker, as a lost network does; clients notice and reconnect."""
        raise NotImplementedError

    def restart(self) -> AbstractAsyncContextManager[None]:
        """Stop the broker on entry and start it on exit; what is durable survives."""
        raise NotImplementedError

    async def kill(self) -> None:
        """Kill the broker with SIGKILL, start it again, and return when it takes connections."""
        raise NotImplementedError

    async def freeze(self) -> None:
        """Stop passing bytes on every link without closing it, until `thaw`."""
        raise NotImplementedError

    async def thaw(self) -> None:
        """Undo `freeze`."""
        raise NotImplementedError

    async def cut(self, after: int) -> None:
        """Reset every link when ``after`` more bytes went to the broker on it; 0: now.  New links are whole."""
        raise NotImplementedError

    async def inject_foreign(
        self, topic: str, body: bytes, native_headers: Mapping[str, Any] | None = None, *, message_id: str | None = None
    ) -> None:
        """Send like a client that knows nothing of brokerkit: no ``bk-*`` headers, and no id unless one is given."""
        raise NotImplementedError

    def refuse_sends(self, destination: Destination) -> AbstractAsyncContextManager[None]:
        """Let the broker answer "no" to every send to ``destination`` while the context is open."""
        raise NotImplementedError

    def stall(self) -> AbstractAsyncContextManager[None]:
        """Let sends get no answer while the context is open."""
        raise NotImplementedError
