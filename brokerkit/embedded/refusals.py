"""What the stores of the embedded broker refuse, in the same words, whatever they keep their topics in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from brokerkit.errors import BrokerError, MessageTooLarge, TopicNotFound, TopologyConflict
from brokerkit.spi import GroupSpec, Outbound, ToDead, ToGroup, TopicSpec, ToTopic

__all__ = ["check_shape", "fault_of", "format_tags", "no_group", "no_topic", "parse_tags", "verify_shape"]


class GroupShape(Protocol):
    """What must be known of a group."""

    @property
    def ordered(self) -> bool: ...

    @property
    def tags(self) -> frozenset[str] | None: ...


class TopicShape(Protocol):
    """What must be known of a topic."""

    @property
    def ordered(self) -> bool: ...

    @property
    def groups(self) -> Mapping[str, GroupShape]: ...


def parse_tags(expression: str) -> frozenset[str] | None:
    """Return the tags of a filter in normal form; None matches everything."""
    return None if expression == "*" else frozenset(expression.split("||"))


def format_tags(tags: frozenset[str] | None) -> str:
    """Return the normal form of a filter."""
    return "*" if tags is None else "||".join(sorted(tags))


def no_topic(topic: str) -> TopicNotFound:
    """Return the error for a topic that does not exist."""
    return TopicNotFound(f"topic {topic!r} does not exist: declare it first", topic=topic, backend="embedded")


def no_group(topic: str, group: str) -> TopicNotFound:
    """Return the error for a group that does not exist."""
    return TopicNotFound(f"topic {topic!r} has no group {group!r}: declare it first", topic=topic, backend="embedded")


def check_shape(topics: Mapping[str, TopicShape], topic: TopicSpec, group: GroupSpec | None) -> None:
    """Raise `TopologyConflict` where what exists contradicts what is asked for."""
    found = topics.get(topic.name)
    if found is None:
        return
    if found.ordered != topic.ordered:
        raise _conflict(topic.name, f"topic {topic.name!r}", found.ordered, topic.ordered)
    existing = None if group is None else found.groups.get(group.name)
    if group is not None and existing is not None and existing.ordered != group.ordered:
        what = f"group {group.name!r} of topic {topic.name!r}"
        raise _conflict(topic.name, what, existing.ordered, group.ordered)


def verify_shape(topics: Mapping[str, TopicShape], topic: TopicSpec, group: GroupSpec | None) -> None:
    """Raise `TopicNotFound` or `TopologyConflict` unless it exists as given."""
    found = topics.get(topic.name)
    if found is None:
        raise no_topic(topic.name)
    check_shape(topics, topic, group)
    if group is None:
        return
    existing = found.groups.get(group.name)
    if existing is None:
        raise no_group(topic.name, group.name)
    tags = parse_tags(group.tag)
    if existing.tags is not None and (tags is None or not tags <= existing.tags):
        raise TopologyConflict(
            f"group {group.name!r} of topic {topic.name!r} has the tag filter {format_tags(existing.tags)!r}, "
            f"which does not cover {group.tag!r}: declare the group again",
            topic=topic.name,
            backend="embedded",
        )


def fault_of(message: Outbound, topics: Mapping[str, TopicShape], max_size: int) -> BrokerError | None:
    """Return why the message cannot be stored; a body may have ``max_size`` bytes."""
    destination = message.destination
    if len(message.body) > max_size:
        return MessageTooLarge(
            f"the body has {len(message.body)} bytes; max_message_size allows {max_size}",
            topic=getattr(destination, "topic", None),
            backend="embedded",
        )
    if type(destination) is ToTopic:
        if destination.topic not in topics:
            return no_topic(destination.topic)
    elif isinstance(destination, ToGroup | ToDead):
        topic = topics.get(destination.topic)
        if topic is None:
            return no_topic(destination.topic)
        if destination.group not in topic.groups:
            return no_group(destination.topic, destination.group)
    return None


def _conflict(topic: str, what: str, is_ordered: bool, asked: bool) -> TopologyConflict:
    return TopologyConflict(
        f"{what} exists with ordered={is_ordered}, not ordered={asked}", topic=topic, backend="embedded"
    )
