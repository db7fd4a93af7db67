"""`Blueprint`: what an application configured and registered, apart from any connection."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from brokerkit.errors import ConfigurationError
from brokerkit.retry import RetryPolicy, resolve_policy
from brokerkit.router import HandlerSpec
from brokerkit.spi import Backend, ConnectOptions, ConsumerOptions
from brokerkit.topic import Topic
from brokerkit.topology import Topology

if TYPE_CHECKING:
    from brokerkit.clock import Clock
    from brokerkit.idempotency import IdempotencyStore
    from brokerkit.settings import Settings, TopicSettings

__all__ = ["Blueprint"]

#: What a broadcast consumer without a name of its own is called.
_BROADCAST = "broadcast"


class Blueprint:
    """Settings, backend and topology of one manager, read on the first use; safe to use from any thread."""

    def __init__(
        self,
        given: Mapping[str, Any],
        backend: str | Backend | None,
        name: str,
        specs: list[HandlerSpec],
    ) -> None:
        """``given``: arguments of `load_settings`; ``specs``: the registered handlers, a live list."""
        self._given = {key: value for key, value in given.items() if value is not None}
        self._backend_given = backend
        self._name = name
        self._specs = specs
        self._settings: Settings | None = None
        self._backend: Backend | None = None
        self._topology: Topology | None = None
        self._jitter = True
        # Threads of a blocking manager register and consume while its loop connects.
        self._lock = threading.RLock()

    @property
    def settings(self) -> Settings:
        """The settings of all sources together; raises `ConfigurationError`."""
        with self._lock:
            if self._settings is None:
                # Imported on use: reading the configuration costs more than all the rest of the import.
                from brokerkit.registry import Registry
                from brokerkit.settings import load_settings

                given = dict(self._given)
                registry = Registry()
                backend = self._backend_given
                if isinstance(backend, str):
                    given["backend"] = backend
                elif backend is not None:
                    # An object needs no entry point: it serves its own name and its own schemes.
                    registry.add(backend.name, backend)
                    given["backend"] = backend.name
                self._settings = load_settings(name=self._name, registry=registry, **given)
            return self._settings

    @property
    def backend(self) -> Backend:
        """The backend that the configuration chooses; raises `ConfigurationError`."""
        with self._lock:
            if self._backend is None:
                if self._backend_given is not None and not isinstance(self._backend_given, str):
                    self._backend = self._backend_given
                else:
                    from brokerkit.registry import Registry

                    self._backend = Registry().find(self.settings.backend_name)
            return self._backend

    @property
    def backend_name(self) -> str:
        """The name of the backend, which need not be installed; raises `ConfigurationError`."""
        given = self._backend_given
        return given.name if given is not None and not isinstance(given, str) else self.settings.backend_name

    @property
    def topology(self) -> Topology:
        """The topics and groups that the application declared so far."""
        with self._lock:
            if self._topology is None:
                self._topology = Topology(self.backend_name, self.settings.topics)
                for spec in self._specs:
                    self.declare(spec)
            return self._topology

    def on(self, backend: Backend, url: str) -> Blueprint:
        """Return the blueprint of the same application on another backend.  Its handlers are the same live list."""
        with self._lock:
            # Read by a copy: this one still reads its configuration on its first use.
            own = self._settings or Blueprint(self._given, self._backend_given, self._name, []).settings
            other = Blueprint({}, backend, self._name, self._specs)
            # Who decides when the time passes must be able to know what is due when.
            other._jitter = False
            other._settings = own.model_copy(update={"backend": backend.name, "url": url})
            known = self._topology
            for name in known or ():
                settings = known.settings(name) if known is not None else None
                if settings is not None:
                    other.configure_topic(name, settings)
            return other

    @property
    def is_read(self) -> bool:
        """Whether the configuration was read: what is registered from now on is checked at once."""
        return self._topology is not None

    @property
    def names_nothing(self) -> bool:
        """Whether nobody chose a broker, so that the default file is used."""
        return self._backend_given is None and self.settings.nothing_configured

    def describe(self) -> str:
        """Return "on" and the backend's name without reading anything; "not used yet" where that is not known."""
        return f"on {self._backend.name}" if self._backend is not None else "not used yet"

    def connect_options(self, clock: Clock) -> ConnectOptions:
        """Return what the backend connects with; raise `ConfigurationError` when it is switched off."""
        settings, name = self.settings, self.backend_name
        if not settings.enabled:
            raise ConfigurationError(
                f"the backend {name} is switched off: its section says enabled: false", backend=name
            )
        return ConnectOptions(
            url=settings.backend_url(),
            section=settings.backend_section(),
            topics=self.topology,
            client_id=settings.client_id,
            # One attempt may not take longer than all of them together.
            attempt_timeout=min(settings.attempt_timeout, settings.send_timeout),
            clock=clock,
        )

    # --- topics and groups ---

    def configure_topic(self, name: str, settings: TopicSettings) -> None:
        """Enter what a section below ``topics:`` would say."""
        with self._lock:
            self.topology.configure(name, settings)

    def enter(self, topic: Topic[Any] | str) -> str:
        """Enter a topic; return its name."""
        with self._lock:
            if isinstance(topic, Topic):
                self.topology.add_topic(topic)
                return topic.name
            self.topology.ensure(topic)
            return topic

    def declare(self, spec: HandlerSpec) -> None:
        """Enter what a handler says about its topic and group; raise `ConfigurationError` for contradictions."""
        with self._lock:
            name = self.enter(spec.topic_object if spec.topic_object is not None else spec.topic)
            if spec.group is not None and not spec.broadcast:
                self.topology.add_group(name, spec.group, tag=spec.tag, ordered=spec.ordered)

    def resolve(self, spec: HandlerSpec) -> HandlerSpec:
        """Return the handler with its group and its timeout filled in."""
        with self._lock:
            self.declare(spec)
            resolved = spec.in_group(self.group_of(spec.topic, spec.group, spec.broadcast))
            self.declare(resolved)
        if resolved.timeout is None and self.settings.handler_timeout is not None:
            resolved = replace(resolved, timeout=self.settings.handler_timeout)
        return resolved

    def group_of(self, topic: str, group: str | None, broadcast: bool) -> str:
        """Return the group of a consumer; raise `ConfigurationError` when it is not clear which."""
        if group is not None:
            return group
        if broadcast:
            return _BROADCAST
        with self._lock:
            found = self.topology.only_group(topic) or self.settings.consumer_group
            known = ", ".join(self.topology.ensure(topic).groups) or "none"
        if found is None:
            raise ConfigurationError(
                f"topic {topic!r}: which group? Give group=, declare exactly one group with the topic, "
                f"or set consumer_group (declared groups: {known})",
                topic=topic,
            )
        return found

    def consumer_options(
        self,
        topic: Topic[Any] | str,
        group: str | None,
        *,
        prefetch: int,
        tag: str | None,
        broadcast: bool,
        ordered: bool | None,
    ) -> ConsumerOptions:
        """Return the checked options of one consumer."""
        with self._lock:
            name = self.enter(topic)
            if not isinstance(prefetch, int) or isinstance(prefetch, bool) or prefetch < 1:
                raise ConfigurationError(f"prefetch is an int of at least 1, not {prefetch!r}", topic=name)
            resolved = self.group_of(name, group, broadcast)
            if broadcast:
                return ConsumerOptions(
                    topic=name, group=resolved, prefetch=prefetch, tag=tag if tag is not None else "*", broadcast=True
                )
            spec = self.topology.add_group(name, resolved, tag=tag, ordered=ordered)
        return ConsumerOptions(topic=name, group=resolved, prefetch=prefetch, tag=spec.tag, ordered=spec.ordered)

    # --- policies ---

    def retry_policy(self, topic: str, own: RetryPolicy | None = None) -> RetryPolicy:
        """Return the policy of a handler: its own, else topic, ``retry:``, compatibility keys, defaults."""
        settings = self.topology.settings(topic)
        policy = resolve_policy(own, settings.retry if settings is not None else None, self.settings.retry)
        return policy if self._jitter else replace(policy, jitter="none")

    def expired(self, topic: str) -> Literal["drop", "dead"]:
        """Return what becomes of messages of ``topic`` that outlived their ttl."""
        settings = self.topology.settings(topic)
        return settings.expired if settings is not None else "drop"

    def memory_store(self, clock: Clock) -> IdempotencyStore:
        """Return a new store in memory."""
        from brokerkit.idempotency import MemoryIdempotencyStore

        return MemoryIdempotencyStore(clock, self.settings.idempotency.retention)

    def idempotency_store(self, clock: Clock) -> IdempotencyStore | None:
        """Return a new store as configured, or None."""
        chosen = self.settings.idempotency
        if chosen.store == "memory":
            return self.memory_store(clock)
        if chosen.store == "sqlite":
            from brokerkit.idempotency_sqlite import SqliteIdempotencyStore

            return SqliteIdempotencyStore(self.settings.idempotency_path(), clock, chosen.retention)
        return None
