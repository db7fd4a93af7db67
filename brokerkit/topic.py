"""`Topic` and `Group`: where messages are sent, and who gets a copy of each."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from typing import Any, Generic, TypeVar, overload

from brokerkit.errors import ConfigurationError
from brokerkit.names import TagFilter, check_group, check_topic

__all__ = ["Group", "Topic"]

T = TypeVar("T")

_STARTS = ("latest", "earliest")


class Group:
    """Consumers that share one copy of each message of a topic.

    ``tag`` is the subscription (``*`` or ``a||b``), ``ordered`` keeps messages of one key in order, ``start``
    is where a new group begins: ``latest`` or ``earliest``.  None says nothing: another declaration, or the
    configuration, may; else it is ``*``, unordered and ``latest``.
    """

    __slots__ = ("name", "ordered", "start", "tag")

    def __init__(
        self, name: str, tag: str | None = None, ordered: bool | None = None, start: str | None = None
    ) -> None:
        if start not in (None, *_STARTS):
            raise ConfigurationError(f"group {name!r}: start is 'latest' or 'earliest', not {start!r}")
        self.name = name
        self.tag = TagFilter(tag).expression if tag is not None else None
        self.ordered = ordered
        self.start = start

    def __repr__(self) -> str:
        return f"Group({self.name!r}, tag={self.tag!r}, ordered={self.ordered}, start={self.start!r})"


class Topic(Generic[T]):
    """A topic with the type of its messages; immutable by convention and free of any I/O.

    ``type`` is bytes, str or anything pydantic decodes; `send` checks it statically, handlers decode into their
    own annotation.  ``ordered`` declares the topic and all its groups ordered.
    """

    __slots__ = ("groups", "name", "ordered", "type")

    @overload
    def __init__(
        self, name: str, type: builtins.type[T], *, groups: Iterable[str | Group] = (), ordered: bool = False
    ) -> None: ...
    # An annotation that is no class, such as ``Order | None``, checks nothing statically.
    @overload
    def __init__(
        self: Topic[Any], name: str, type: Any = Any, *, groups: Iterable[str | Group] = (), ordered: bool = False
    ) -> None: ...

    def __init__(
        self, name: str, type: Any = Any, *, groups: Iterable[str | Group] = (), ordered: bool = False
    ) -> None:
        self.name = check_topic(name)
        self.type = type
        self.ordered = ordered
        if isinstance(groups, str | Group):
            raise ConfigurationError(f"topic {name!r}: groups is a list, as in groups=[{groups!r}]", topic=name)
        self.groups = tuple(group if isinstance(group, Group) else Group(group) for group in groups)
        for group in self.groups:
            check_group(self.name, group.name)
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"topic {name!r} lists a group twice: {', '.join(sorted(names))}", topic=name)

    def __repr__(self) -> str:
        return f"Topic({self.name!r}, groups={[group.name for group in self.groups]}, ordered={self.ordered})"
