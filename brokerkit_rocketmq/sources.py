"""`Source`: what a consumer reads, under the broker's own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brokerkit.errors import ConfigurationError
from brokerkit_rocketmq.errors import NAME

if TYPE_CHECKING:
    from brokerkit.spi import ConsumerOptions
    from brokerkit_rocketmq.names import Names

__all__ = ["Source", "broadcast_source", "group_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One topic, read for one group.

    shared:  the members of the group share the queues, and the broker keeps how far they are; otherwise this consumer
             reads all queues by itself, from their ends at the time it is opened
    ordered: a queue is read under a lock of the broker, by one member at a time
    """

    #: The names that the application uses.
    topic: str
    group: str
    native_topic: str
    native_group: str
    #: Read as well: where messages for this group alone are stored.
    retry_topic: str | None = None
    #: The group whose offsets tell how far messages were handed out; None: that is not recorded.
    shadow_group: str | None = None
    #: What the broker filters by, e.g. ``a||b``, and in which language: ``TAG`` or ``SQL92``.
    expression: str = "*"
    expression_type: str = "TAG"
    #: The tags to be seen; None: all.  The broker compares hashes of tags only.
    tags: frozenset[str] | None = None
    shared: bool = True
    ordered: bool = False
    prefetch: int = 20

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics whose queues are read."""
        return (self.native_topic,) if self.retry_topic is None else (self.native_topic, self.retry_topic)


def group_source(names: Names, options: ConsumerOptions, *, shadow: bool = True) -> Source:
    """Return what a member of a group reads; ``shadow``: it records what it hands out.

    Raise `ConfigurationError` for native options that there are not.
    """
    topic, group = options.topic, options.group
    expression, kind, tags = _filter(options)
    return Source(
        topic=topic,
        group=group,
        native_topic=names.topic(topic),
        native_group=names.group(topic, group),
        retry_topic=names.retry(topic, group),
        shadow_group=names.shadow(topic, group) if shadow else None,
        expression=expression,
        expression_type=kind,
        tags=tags,
        ordered=options.ordered,
        prefetch=options.prefetch,
    )


def broadcast_source(names: Names, options: ConsumerOptions) -> Source:
    """Return what a consumer reads that gets every message from now on; raise as `group_source` does."""
    topic, group = options.topic, options.group
    expression, kind, tags = _filter(options)
    return Source(
        topic=topic,
        group=group,
        native_topic=names.topic(topic),
        native_group=names.broadcast(topic, group),
        expression=expression,
        expression_type=kind,
        tags=tags,
        shared=False,
        prefetch=options.prefetch,
    )


def _filter(options: ConsumerOptions) -> tuple[str, str, frozenset[str] | None]:
    """Return the expression, its language, and the tags to compare again here."""
    sql = _sql(options.native, options.topic)
    if sql is not None:
        return sql, "SQL92", None
    if options.tag == "*":
        return "*", "TAG", None
    return options.tag, "TAG", frozenset(tag.strip() for tag in options.tag.split("||"))


def _sql(native: Mapping[str, Any], topic: str) -> str | None:
    unknown = sorted(str(name) for name in native if name != "sql")
    if unknown:
        raise ConfigurationError(
            f"native options of a consumer: {unknown[0]!r} is unknown; known is sql", topic=topic, backend=NAME
        )
    sql = native.get("sql")
    if sql is not None and (not isinstance(sql, str) or not sql.strip()):
        raise ConfigurationError("native options of a consumer: sql is a condition, as text", topic=topic, backend=NAME)
    return sql
