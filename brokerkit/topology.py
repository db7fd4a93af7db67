"""What the application declared about topics and groups, from every source, checked for contradictions.

Sources are `Topic` objects, handlers, the ``topics:`` section of the configuration and `configure_topic`.  They
may repeat each other and never contradict each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from brokerkit.errors import ConfigurationError
from brokerkit.names import TagFilter, check_group, check_topic
from brokerkit.spi import GroupSpec, TopicSpec
from brokerkit.topic import Group, Topic

if TYPE_CHECKING:
    from brokerkit.settings import TopicSettings

__all__ = ["Topology"]


@dataclass(slots=True)
class _Entry:
    spec: TopicSpec
    settings: TopicSettings | None = None
    #: What was said explicitly about the topic and about each group, so that silence is no contradiction.
    ordered: bool | None = None
    said: dict[str, dict[str, Any]] = field(default_factory=dict)


class Topology(Mapping[str, TopicSpec]):
    """All topics the application knows; a live mapping from name to `TopicSpec`.

    ``version`` counts the changes.  The spec of a topic is the same object until it changes: who has declared a
    topic on the broker declares it again when it is another one.  A declaration that is refused changes nothing.
    """

    def __init__(self, backend: str, topics: Mapping[str, TopicSettings] | None = None) -> None:
        self._backend = backend
        self._entries: dict[str, _Entry] = {}
        # Any thread may register; readers need no lock, as an entry is replaced whole.
        self._lock = threading.RLock()
        self.version = 0
        for name, settings in (topics or {}).items():
            self.configure(name, settings)

    def __getitem__(self, name: str) -> TopicSpec:
        return self._entries[name].spec

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def settings(self, name: str) -> TopicSettings | None:
        """Return the configured settings of a topic, or None."""
        entry = self._entries.get(name)
        return entry.settings if entry else None

    def ensure(self, name: str) -> TopicSpec:
        """Return the spec of ``name``, entering it when it is new; raise `ConfigurationError` for an illegal name."""
        entry = self._entries.get(name)
        if entry is not None:
            return entry.spec
        with self._change(name) as new:
            return new.spec

    def configure(self, name: str, settings: TopicSettings) -> None:
        """Enter what the configuration says about a topic.  It replaces earlier settings; groups are added to."""
        with self._change(name) as entry:
            entry.settings = settings
            entry.spec = replace(
                entry.spec, unroutable=settings.unroutable or "raise", native=settings.native(self._backend)
            )
            if settings.ordered is not None:
                _say_ordered(entry, settings.ordered)
            for group_name, group in settings.groups.items():
                said = {"tag": group.tag, "ordered": group.ordered, "start": group.start}
                _say_group(entry, group_name, said, group.native(self._backend))

    def add_topic(self, topic: Topic[Any]) -> TopicSpec:
        """Enter a `Topic` with its groups; ``ordered=False``, the default, says nothing."""
        with self._change(topic.name) as entry:
            if topic.ordered:
                _say_ordered(entry, True)
            for group in topic.groups:
                said = {"tag": group.tag, "ordered": group.ordered, "start": group.start}
                _say_group(entry, group.name, said)
        return self[topic.name]

    def add_group(
        self,
        topic: str,
        name: str,
        *,
        tag: str | None = None,
        ordered: bool | None = None,
        start: str | None = None,
        native: Mapping[str, Any] | None = None,
    ) -> GroupSpec:
        """Enter a group; None means "nothing said".  Raise `ConfigurationError` where sources contradict."""
        with self._change(topic) as entry:
            _say_group(entry, name, {"tag": tag, "ordered": ordered, "start": start}, native)
        return self[topic].groups[name]

    def only_group(self, topic: str) -> str | None:
        """Return the group of a topic that has exactly one, else None."""
        groups = self._entries[topic].spec.groups if topic in self._entries else {}
        return next(iter(groups)) if len(groups) == 1 else None

    @contextmanager
    def _change(self, name: str) -> Iterator[_Entry]:
        """Give a copy of the entry to work on, and take it over unless an error comes out."""
        with self._lock:
            old = self._entries.get(name)
            if old is None:
                entry = _Entry(TopicSpec(name=check_topic(name)))
            else:
                entry = replace(old, said={group: dict(said) for group, said in old.said.items()})
            yield entry
            if old is None or entry.spec != old.spec or entry.settings != old.settings:
                if old is not None and entry.spec is old.spec:
                    entry.spec = replace(entry.spec)
                self.version += 1
            else:
                entry.spec = old.spec
            self._entries[name] = entry


def _say_ordered(entry: _Entry, ordered: bool) -> None:
    """Note whether the topic is ordered; that makes all its groups ordered, those known before included."""
    topic = entry.spec.name
    if entry.ordered not in (None, ordered):
        raise ConfigurationError(
            f"topic {topic!r} is declared with ordered={entry.ordered} and with ordered={ordered}; "
            f"all declarations of one topic must agree",
            topic=topic,
        )
    entry.ordered = ordered
    entry.spec = replace(entry.spec, ordered=ordered)
    for name in entry.spec.groups:
        _say_group(entry, name, {})


def _say_group(entry: _Entry, name: str, given: Mapping[str, Any], native: Mapping[str, Any] | None = None) -> None:
    """Note what one source says about a group; None means that it says nothing."""
    topic = entry.spec.name
    check_group(topic, name)
    said = entry.said.setdefault(name, {})
    for key, value in given.items():
        if value is None:
            continue
        if key == "tag":
            # In its normal form: a||b and b||a are the same filter.
            value = TagFilter(value).expression
        if said.setdefault(key, value) != value:
            raise ConfigurationError(
                f"group {name!r} of topic {topic!r} is declared with {key}={said[key]!r} and with {key}={value!r}; "
                f"all declarations of one group must agree",
                topic=topic,
            )
    if entry.spec.ordered and said.get("ordered") is False:
        raise ConfigurationError(
            f"group {name!r} is declared with ordered=False, but its topic {topic!r} with ordered=True, which makes "
            f"all its groups ordered",
            topic=topic,
        )
    # Group checks the parts: a wrong start is refused.
    part = Group(name, said.get("tag"), said.get("ordered"), said.get("start"))
    old = entry.spec.groups.get(name)
    spec = GroupSpec(
        name=name,
        tag=part.tag or "*",
        ordered=bool(part.ordered) or entry.spec.ordered,
        start=part.start or "latest",
        native=native if native is not None else (old.native if old else {}),
    )
    if spec != old:
        entry.spec = replace(entry.spec, groups={**entry.spec.groups, name: spec})
