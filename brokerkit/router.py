"""Registering handlers: `Router`, and the specification that each registration makes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from brokerkit.errors import ConfigurationError
from brokerkit.names import TagFilter, check_group, check_topic
from brokerkit.retry import RetryPolicy
from brokerkit.topic import Topic

__all__ = ["HandlerSpec", "Router"]

F = TypeVar("F", bound=Callable[..., Any])

Executor = Literal["thread", "process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSpec:
    """One registered handler, checked as far as is possible before `start`."""

    topic: str
    function: Callable[..., Any]
    topic_object: Topic[Any] | None = None
    group: str | None = None
    type: str | None = None
    tag: str | None = None
    concurrency: int = 10
    prefetch: int | None = None
    retry: RetryPolicy | None = None
    timeout: float | None = None
    executor: Executor = "thread"
    idempotent: bool = False
    ordered: bool | None = None
    broadcast: bool = False
    dedup_key: Callable[[Any], str | None] | None = None
    native: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_topic(self.topic)
        if not callable(self.function):
            raise self._wrong(f"a handler is a function, not {self.function!r}")
        if self.group is not None:
            check_group(self.topic, self.group)
        for name in ("concurrency", "prefetch"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise self._wrong(f"{name} is an int of at least 1, not {value!r}")
        timeout = self.timeout
        if timeout is not None and (
            not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout > 0
        ):
            raise self._wrong(f"timeout is a positive number of seconds or None, not {timeout!r}")
        if self.type is not None and not isinstance(self.type, str):
            raise self._wrong(f"type is the name of a message type, a str, not {self.type!r}")
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise self._wrong(f"retry is a RetryPolicy, not {self.retry!r}")
        if self.dedup_key is not None and not callable(self.dedup_key):
            raise self._wrong(f"dedup_key is a function of the message, not {self.dedup_key!r}")
        if self.executor not in ("thread", "process"):
            raise self._wrong(f"executor is 'thread' or 'process', not {self.executor!r}")
        if self.tag is not None:
            TagFilter(self.tag)

    @property
    def name(self) -> str:
        """How logs and errors call the handler.  Never its repr: that of a partial shows the bound arguments."""
        function: Any = self.function
        while isinstance(function, functools.partial):
            function = function.func
        if not hasattr(function, "__qualname__"):
            function = type(function)
        return f"{function.__module__}.{function.__qualname__}"

    @property
    def effective_prefetch(self) -> int:
        """Deliveries that may wait for this handler, running ones included."""
        return self.prefetch if self.prefetch is not None else max(2 * self.concurrency, 20)

    def in_group(self, group: str) -> HandlerSpec:
        """Return the same with its group resolved."""
        return replace(self, group=check_group(self.topic, group))

    def _wrong(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"{what} (handler of topic {self.topic!r})", topic=self.topic)


class Router:
    """Collects handlers for a manager that is made elsewhere: ``manager.include(router)``."""

    def __init__(self) -> None:
        self.specs: list[HandlerSpec] = []

    def handler(
        self,
        topic: Topic[Any] | str,
        *,
        group: str | None = None,
        type: str | None = None,
        tag: str | None = None,
        concurrency: int = 10,
        prefetch: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        executor: Executor = "thread",
        idempotent: bool = False,
        ordered: bool | None = None,
        broadcast: bool = False,
        dedup_key: Callable[[Any], str | None] | None = None,
        native: Mapping[str, Any] | None = None,
    ) -> Callable[[F], F]:
        """Register the decorated function as a handler of ``topic``; it is returned unchanged.

        group:       None takes the topic's only group, else the configured ``consumer_group``
        type:        only messages of this type; several handlers of one group may each take another type
        tag:         subscription of the group, ``*`` or ``a||b``; ordered: keep the order of each key
        concurrency: how many run at once; prefetch: deliveries that may wait here (default max(2 x concurrency, 20))
        retry:       what happens on failure; timeout: seconds for one run
        executor:    where a sync function runs: ``thread``, or ``process`` (spawned; can be killed)
        idempotent:  handle each message id, or ``dedup_key(message)``, effectively once
        broadcast:   every connected process gets every message
        """

        def register(function: F) -> F:
            self.add_handler(
                topic,
                function,
                group=group,
                type=type,
                tag=tag,
                concurrency=concurrency,
                prefetch=prefetch,
                retry=retry,
                timeout=timeout,
                executor=executor,
                idempotent=idempotent,
                ordered=ordered,
                broadcast=broadcast,
                dedup_key=dedup_key,
                native=native,
            )
            return function

        return register

    def add_handler(
        self,
        topic: Topic[Any] | str,
        function: Callable[..., Any],
        *,
        group: str | None = None,
        type: str | None = None,
        tag: str | None = None,
        concurrency: int = 10,
        prefetch: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        executor: Executor = "thread",
        idempotent: bool = False,
        ordered: bool | None = None,
        broadcast: bool = False,
        dedup_key: Callable[[Any], str | None] | None = None,
        native: Mapping[str, Any] | None = None,
    ) -> None:
        """Register ``function`` as `handler` does."""
        self._add(
            HandlerSpec(
                topic=topic.name if isinstance(topic, Topic) else topic,
                topic_object=topic if isinstance(topic, Topic) else None,
                function=function,
                group=group,
                type=type,
                tag=tag,
                concurrency=concurrency,
                prefetch=prefetch,
                retry=retry,
                timeout=timeout,
                executor=executor,
                idempotent=idempotent,
                ordered=ordered,
                broadcast=broadcast,
                dedup_key=dedup_key,
                native=native or {},
            )
        )

    def include(self, router: Router) -> None:
        """Register all handlers of another router."""
        for spec in tuple(router.specs):
            self._add(spec)

    def _add(self, spec: HandlerSpec) -> None:
        """Take one checked registration; the manager overrides this to start it when it runs already."""
        for other in self.specs:
            if _place(other) == _place(spec):
                raise ConfigurationError(
                    f"two handlers for topic {spec.topic!r}, group {spec.group!r}, type {spec.type!r}: "
                    f"{other.name} and {spec.name}; give them different types or groups",
                    topic=spec.topic,
                )
        self.specs.append(spec)


def _place(spec: HandlerSpec) -> tuple[object, ...]:
    """Return what only one handler can have.  A broadcast reaches every process beside the group of that name."""
    return spec.topic, spec.group, spec.broadcast, spec.type
