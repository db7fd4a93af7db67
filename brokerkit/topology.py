"""What the application declared about topics and groups, from every source, checked for contradictions.

Sources are `Topic` objects, handlers, the ``topics:`` section of the configuration and `configure_topic`.  They
may repeat each other and never contradict each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from brokerkit.errors import ConfigurationError
from brokerkit.names import check_group, check_topic
from brokerkit.spi import GroupSpec, TopicSpec
from brokerkit.topic import Group, Topic

if TYPE_CHECKING:
    from brokerkit.settings import TopicSettings

__all__ = ["Topology"]


@dataclass(slots=True)
class _Entry:
    spec: TopicSpec
    settings: TopicSettings | None = None
    #: What was said explicitly about a group, so that silence is no contradiction.
    said: dict[str, dict[str, Any]] = field(default_factory=dict)


class Topology(Mapping[str, TopicSpec]):
    """All topics the application knows; a live mapping from name to `TopicSpec`.

    ``version`` counts the changes: who has declared a topic on the broker declares it again when it moved.
    """

    def __init__(self, backend: str, topics: Mapping[str, TopicSettings] | None = None) -> None:
        self._backend = backend
        self._entries: dict[str, _Entry] = {}
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
        return entry.spec if entry else self._enter(name).spec

    def configure(self, name: str, settings: TopicSettings) -> None:
        """Enter what the configuration says about a topic."""
        entry = self._entries.get(name) or self._enter(name)
        entry.settings = settings
        entry.spec = replace(
            entry.spec,
            ordered=entry.spec.ordered or bool(settings.ordered),
            unroutable=settings.unroutable or entry.spec.unroutable,
            native=settings.native(self._backend),
        )
        self.version += 1
        for group_name, group in settings.groups.items():
            self.add_group(
                name,
                group_name,
                tag=group.tag,
                ordered=group.ordered,
                start=group.start,
                native=group.native(self._backend),
            )

    def add_topic(self, topic: Topic[Any]) -> TopicSpec:
        """Enter a `Topic` with its groups."""
        entry = self._entries.get(topic.name) or self._enter(topic.name)
        if topic.ordered and not entry.spec.ordered:
            entry.spec = replace(entry.spec, ordered=True)
            self.version += 1
        for group in topic.groups:
            self.add_group(topic.name, group.name, tag=group.tag, ordered=group.ordered or None, start=group.start)
        return entry.spec

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
        check_group(topic, name)
        entry = self._entries.get(topic) or self._enter(topic)
        said = entry.said.setdefault(name, {})
        for key, value in (("tag", tag), ("ordered", ordered), ("start", start)):
            if value is None:
                continue
            if said.setdefault(key, value) != value:
                raise ConfigurationError(
                    f"group {name!r} of topic {topic!r} is declared with {key}={said[key]!r} and with {key}={value!r}; "
                    f"all declarations of one group must agree",
                    topic=topic,
                )
        old = entry.spec.groups.get(name)
        # The parts are checked by Group: a filter is brought to its normal form, a wrong start is refused.
        part = Group(name, said.get("tag", "*"), said.get("ordered", entry.spec.ordered), said.get("start", "latest"))
        spec = GroupSpec(
            name=name,
            tag=part.tag,
            ordered=part.ordered or entry.spec.ordered,
            start=part.start,
            native=native if native is not None else (old.native if old else {}),
        )
        if spec != old:
            entry.spec = replace(entry.spec, groups={**entry.spec.groups, name: spec})
            self.version += 1
        return spec

    def only_group(self, topic: str) -> str | None:
        """Return the group of a topic that has exactly one, else None."""
        groups = self._entries[topic].spec.groups if topic in self._entries else {}
        return next(iter(groups)) if len(groups) == 1 else None

    def _enter(self, name: str) -> _Entry:
        entry = self._entries[check_topic(name)] = _Entry(TopicSpec(name=name))
        self.version += 1
        return entry

    def topics_of(self, names: Iterable[str]) -> list[TopicSpec]:
        """Return the specs of ``names``."""
        return [self._entries[name].spec for name in names]
