"""Which native topic, which native group: the names of a topic and its groups on the broker.

Nothing here does I/O.  '.' is in no native name and becomes '|', which is in no name of a topic or a group.  Groups are
global in RocketMQ, and members of one group with different topics take each other's messages, so the native group is
``<group>||<topic>``, unless configuration names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from brokerkit.errors import ConfigurationError
from brokerkit.spi import GroupSpec, TopicSpec, checked_section
from brokerkit_rocketmq.errors import NAME
from brokerkit_rocketmq.remoting import names as native
from brokerkit_rocketmq.settings import EXPORT_TOPIC, RocketMQSettings

__all__ = ["GroupKeys", "Names", "TopicKeys"]

K = TypeVar("K", bound=BaseModel)

#: What the names of the groups that we keep beside a group end in.
_SHADOW, _DEAD_READER, _BROADCAST = "||h", "||dead", "||b"
#: The topic of all inboxes; a tag is an address.
_INBOX = "bk|inbox"


class TopicKeys(BaseModel):
    """``topics.T.rocketmq``: the native topic."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    topic: str | None = Field(None, min_length=1, description="A native topic of another name; used as it stands.")
    queues: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Queues on each broker; the section's `queues` when not set, and 1, on one broker only, for an "
        "ordered topic. An ordered topic with more keeps the order of each key, not of all messages.",
    )


class GroupKeys(BaseModel):
    """``topics.T.groups.G.rocketmq``: the native group."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    group: str | None = Field(
        None, min_length=1, description="A native group of another name than `<group>||<topic>`; used as it stands."
    )
    retry_queues: int | None = Field(None, ge=1, le=256, description="Queues of the retry topic on each broker.")
    start_at: datetime | None = Field(
        None,
        description="Where the group begins when it is declared for the first time: at the messages stored from this "
        "time on, such as `2024-12-19T14:30:00Z`. Wins over `start`.",
    )


class Names:
    """Native names of the topics in ``topics``, a view that may grow; all are within the namespace.

    Every method raises `ConfigurationError` where the broker would not take the name.
    """

    def __init__(self, topics: Mapping[str, TopicSpec], settings: RocketMQSettings) -> None:
        self._topics = topics
        self._namespace = settings.namespace
        self._queues = settings.queues
        self._retry_queues = settings.retry_queues
        #: The one (topic, group) whose native group the section names.
        self._verbatim = (settings.topic or EXPORT_TOPIC, settings.consumer_group)
        # Names are asked for with every message; what they are made of does not change once it is there.
        self._known_topics: dict[str, tuple[object, str]] = {}
        self._known_groups: dict[tuple[str, str], tuple[object, str]] = {}
        #: The native topic of all inboxes.
        self.inbox = native.wrap(self._namespace, _INBOX)

    # --- topics ---

    def topic_keys(self, topic: str) -> TopicKeys:
        """Return the checked ``topics.T.rocketmq``."""
        spec = self._topics.get(topic)
        return _PLAIN_TOPIC if spec is None or not spec.native else _checked(TopicKeys, spec.native, f"topics.{topic}")

    def topic(self, topic: str) -> str:
        """Return the native topic."""
        spec = self._topics.get(topic)
        section = None if spec is None else spec.native
        known = self._known_topics.get(topic)
        if known is not None and known[0] is section:
            return known[1]
        name = self._legal(native.check_topic, self.topic_keys(topic).topic or _plain(topic), topic)
        self._known_topics[topic] = section, name
        return name

    def queues(self, topic: str) -> int:
        """Return how many queues the topic is declared with on each broker."""
        keys = self.topic_keys(topic)
        if keys.queues is not None:
            return keys.queues
        return 1 if self.is_ordered(topic) else self._queues

    def is_ordered(self, topic: str) -> bool:
        """Return whether the topic, or a group of it, is declared ordered."""
        spec = self._topics.get(topic)
        return spec is not None and (spec.ordered or any(group.ordered for group in spec.groups.values()))

    def keeps_total_order(self, topic: str) -> bool:
        """Return whether there is one queue for all messages of the topic; with more, order is by key."""
        return self.is_ordered(topic) and self.queues(topic) == 1

    # --- groups ---

    def group_keys(self, topic: str, group: str) -> GroupKeys:
        """Return the checked ``topics.T.groups.G.rocketmq``."""
        spec = self._spec(topic, group)
        if spec is None or not spec.native:
            return _PLAIN_GROUP
        return _checked(GroupKeys, spec.native, f"topics.{topic}.groups.{group}")

    def group(self, topic: str, group: str) -> str:
        """Return the native group."""
        spec = self._spec(topic, group)
        section = None if spec is None else spec.native
        known = self._known_groups.get((topic, group))
        if known is not None and known[0] is section:
            return known[1]
        name = self.group_keys(topic, group).group
        if name is None:
            name = group if (topic, group) == self._verbatim else f"{_plain(group)}||{_plain(topic)}"
        name = self._legal(native.check_group, name, topic)
        self._known_groups[topic, group] = section, name
        return name

    def retry_queues(self, topic: str, group: str) -> int:
        """Return how many queues the group's retry topic is declared with on each broker."""
        return self.group_keys(topic, group).retry_queues or self._retry_queues

    def start_instant(self, topic: str, group: str) -> float | None:
        """Return from when on a new group receives messages, seconds since the epoch; None: as its ``start`` says."""
        instant = self.group_keys(topic, group).start_at
        return None if instant is None else instant.timestamp()

    def beside(self, group: str) -> tuple[str, ...]:
        """Return a native group and those that we keep beside it."""
        return (group, *(group + ending for ending in (_SHADOW, _DEAD_READER, _BROADCAST)))

    def is_group_of(self, topic: str, group: str) -> bool:
        """Return whether a native group is one that brokerkit, in any process, made for this topic."""
        return group.startswith(native.wrap(self._namespace, "|")[:-1]) and group.endswith(f"||{_plain(topic)}")

    def retry(self, topic: str, group: str) -> str:
        """Return the native topic of the group's retries."""
        return native.retry_topic(self.group(topic, group))

    def dead(self, topic: str, group: str) -> str:
        """Return the native topic of the group's dead letters."""
        return native.dead_topic(self.group(topic, group))

    def shadow(self, topic: str, group: str) -> str:
        """Return the native group whose offsets say what was handed out."""
        return self._beside(topic, group, _SHADOW)

    def dead_reader(self, topic: str, group: str) -> str:
        """Return the native group that reads the dead letters."""
        return self._beside(topic, group, _DEAD_READER)

    def broadcast(self, topic: str, group: str) -> str:
        """Return the native group of consumers that receive every message.

        One of its own: a member with the other message model changes that of the whole group.
        """
        return self._beside(topic, group, _BROADCAST)

    def _beside(self, topic: str, group: str, ending: str) -> str:
        return self._legal(native.check_group, self.group(topic, group) + ending, topic)

    def _spec(self, topic: str, group: str) -> GroupSpec | None:
        spec = self._topics.get(topic)
        return None if spec is None else spec.groups.get(group)

    def _legal(self, check: Callable[[str], str], name: str, topic: str) -> str:
        try:
            return check(native.wrap(self._namespace, name))
        except ValueError as exc:
            raise ConfigurationError(str(exc), topic=topic, backend=NAME) from None


def _plain(name: str) -> str:
    return name.replace(".", "|")


def _checked(model: type[K], section: Mapping[str, Any], where: str) -> K:
    given = {key: value for key, value in section.items() if value is not None}
    return checked_section(model, NAME, (f"{where}.rocketmq", given))


_PLAIN_TOPIC, _PLAIN_GROUP = TopicKeys(), GroupKeys()
