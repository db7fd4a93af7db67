"""Which exchange, which queue, with which arguments: the topology of a topic, from its declaration.

Nothing here does I/O.  A topic is a durable topic exchange of its name, a group the queue ``<topic>:<group>`` with its
dead letters in ``<topic>:<group>:dead``; ':' is in no name of a topic or a group, so nothing collides.
What exists already is *adopted* by naming it: it gets no argument that the configuration does not name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from brokerkit.spi import GroupSpec, TopicSpec, checked_section
from brokerkit_rabbitmq.errors import NAME

__all__ = ["DELIVERY_LIMIT", "Exchange", "GroupKeys", "Names", "Queue", "TopicKeys"]

K = TypeVar("K", bound=BaseModel)

#: Quorum queues drop a message after so many deliveries, 20 by default from 4.0 on, and count prefetched ones and
#: those of a drain too; 0 and -1 drop at the first return on 3.10.  It cannot be changed later, so every queue has
#: it from its first day.
DELIVERY_LIMIT = 1_000_000


class TopicKeys(BaseModel):
    """``topics.T.rabbitmq``: the exchange of a topic."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    exchange: str | None = Field(
        None,
        max_length=255,
        description="An exchange of another name than the topic's; an empty text is the default exchange.",
    )
    exchange_type: str = Field("topic", description="topic, direct, fanout, headers or the type of a plugin.")
    routing_key: str | None = Field(None, max_length=255, description="Of messages without a tag.")
    durable: bool = Field(True, description="Whether the exchange survives a restart of the broker.")
    auto_delete: bool = Field(False, description="Whether the exchange goes with its last binding.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Arguments of the exchange.")


class GroupKeys(BaseModel):
    """``topics.T.groups.G.rabbitmq``: the queue of a group."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    queue: str | None = Field(None, max_length=255, description="A queue of another name than `<topic>:<group>`.")
    queue_type: str | None = Field(None, description="quorum, classic, or the type of a plugin.")
    arguments: dict[str, Any] | None = Field(
        None, description="Arguments of the queue: these and no others, so that it is declared as it was before."
    )
    bindings: list[str] | None = Field(None, description="Binding keys; those of the tag filter when not set.")
    dead_queue: str | None = Field(
        None, max_length=255, description="A queue of another name than `<topic>:<group>:dead` for the dead letters."
    )
    dead_arguments: dict[str, Any] | None = Field(
        None, description="Arguments of the dead letters' queue: these and no others; none where only it is named."
    )
    max_priority: int | None = Field(
        None, ge=1, le=255, description="Deliver by priority up to this one; makes the queue classic before 4.3."
    )
    durable: bool = Field(True, description="Whether the queue survives a restart of the broker.")
    auto_delete: bool = Field(False, description="Whether the queue goes with its last consumer.")
    exclusive: bool = Field(False, description="Whether the queue belongs to this connection and goes with it.")

    @property
    def adopted(self) -> bool:
        """Whether the configuration describes a queue that somebody else declares too."""
        return self.queue is not None or self.arguments is not None


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange as it is declared."""

    name: str
    type: str = "topic"
    durable: bool = True
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as it is declared."""

    name: str
    durable: bool = True
    auto_delete: bool = False
    exclusive: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Names:
    """Native names and arguments of the topics in ``topics``, a view that may grow."""

    def __init__(self, topics: Mapping[str, TopicSpec], queue_type: str, max_priority: int | None = None) -> None:
        self._topics = topics
        self._queue_type = queue_type
        self._max_priority = max_priority
        #: Of the broker; set once it is known.
        self.version: tuple[int, ...] = (0,)

    # --- topics ---

    def topic_keys(self, topic: str) -> TopicKeys:
        """Return the checked ``topics.T.rabbitmq``; raise `ConfigurationError`."""
        spec = self._topics.get(topic)
        return _PLAIN_TOPIC if spec is None or not spec.native else _checked(TopicKeys, spec.native, f"topics.{topic}")

    def exchange(self, topic: str) -> Exchange:
        """Return the exchange of a topic."""
        keys = self.topic_keys(topic)
        return Exchange(
            topic if keys.exchange is None else keys.exchange,
            keys.exchange_type,
            keys.durable,
            keys.auto_delete,
            dict(keys.arguments),
        )

    def due_exchange(self, topic: str) -> str | None:
        """Return the exchange for messages of the topic that are due; None where it is the topic's own, adopted one.

        It has an alternate exchange, so that what no group wants when it is due does not block what comes after it.
        """
        return None if self.topic_keys(topic).exchange is not None else f"{topic}:due"

    # --- groups ---

    def group_keys(self, topic: str, group: str) -> GroupKeys:
        """Return the checked ``topics.T.groups.G.rabbitmq``; raise `ConfigurationError`."""
        spec = self._topics.get(topic)
        named = spec.groups.get(group) if spec is not None else None
        return self.keys_of(topic, named) if named is not None else _PLAIN_GROUP

    def keys_of(self, topic: str, group: GroupSpec) -> GroupKeys:
        """Return the checked section of a group; raise `ConfigurationError`."""
        return (
            _PLAIN_GROUP
            if not group.native
            else _checked(GroupKeys, group.native, f"topics.{topic}.groups.{group.name}")
        )

    def queue_name(self, topic: str, group: str) -> str:
        """Return the name of the group's queue."""
        return self.group_keys(topic, group).queue or f"{topic}:{group}"

    def dead_queue_name(self, topic: str, group: str) -> str:
        """Return the name of the queue of the group's dead letters."""
        return self.group_keys(topic, group).dead_queue or f"{topic}:{group}:dead"

    def queue(self, topic: str, group: GroupSpec) -> Queue:
        """Return the queue of a group."""
        keys = self.keys_of(topic, group)
        highest = self._highest(keys, group)
        kind = self._type(keys, highest)
        if keys.adopted:
            arguments = dict(keys.arguments or {})
            # Without an argument a queue is classic; naming it would differ from what others declare.
            if kind != "classic":
                arguments.setdefault("x-queue-type", kind)
        else:
            arguments = own_arguments(kind)
            if group.ordered:
                arguments["x-single-active-consumer"] = True
        if highest is not None and kind == "classic":
            arguments.setdefault("x-max-priority", highest)
        return Queue(keys.queue or f"{topic}:{group.name}", keys.durable, keys.auto_delete, keys.exclusive, arguments)

    def dead_queue(self, topic: str, group: GroupSpec) -> Queue:
        """Return the queue of a group's dead letters: ours, also beside a queue that is adopted, unless it is named."""
        keys = self.keys_of(topic, group)
        if keys.dead_queue is None and keys.dead_arguments is None:
            return Queue(f"{topic}:{group.name}:dead", arguments=own_arguments(self._queue_type))
        return Queue(keys.dead_queue or f"{topic}:{group.name}:dead", arguments=dict(keys.dead_arguments or {}))

    def _highest(self, keys: GroupKeys, group: GroupSpec) -> int | None:
        """Return the highest priority that the configuration gives a group's queue."""
        if keys.max_priority is not None or keys.adopted or group.ordered:
            return keys.max_priority
        return self._max_priority

    def _type(self, keys: GroupKeys, highest: int | None) -> str:
        """Return the type of a group's queue."""
        if keys.queue_type is not None:
            return keys.queue_type
        if keys.arguments is not None and "x-queue-type" in keys.arguments:
            return str(keys.arguments["x-queue-type"])
        if keys.adopted or keys.exclusive or keys.auto_delete or not keys.durable:
            # A quorum queue is durable, shared and there to stay.
            return "classic"
        if highest is not None and self.version < (4, 3):
            # Quorum queues have priorities from 4.3 on.
            return "classic"
        return self._queue_type

    def has_priorities(self, topic: str) -> bool:
        """Return whether all groups of the topic deliver higher priorities first; if it has none: those to come."""
        if self.keeps_order(topic):
            return False
        spec = self._topics.get(topic)
        groups = tuple(spec.groups.values()) if spec is not None else ()
        return all(self._has_priorities(topic, group) for group in groups or (_ANY_GROUP,))

    def _has_priorities(self, topic: str, group: GroupSpec) -> bool:
        keys = self.keys_of(topic, group)
        highest = self._highest(keys, group)
        if self._type(keys, highest) == "quorum":
            return self.version >= (4, 3)
        return highest is not None or "x-max-priority" in (keys.arguments or {})

    def keeps_order(self, topic: str) -> bool:
        """Return whether a group of the topic is ordered: no priority may change that order."""
        spec = self._topics.get(topic)
        return spec is not None and (spec.ordered or any(group.ordered for group in spec.groups.values()))

    def can_order(self, topic: str) -> bool:
        """Return whether the queues of all ordered groups have a single active consumer."""
        spec = self._topics.get(topic)
        if spec is None:
            return True
        return all(
            not group.ordered or "x-single-active-consumer" in self.queue(topic, group).arguments
            for group in spec.groups.values()
        )

    def bindings(self, topic: str, group: GroupSpec) -> list[str]:
        """Return the keys that bind the group's queue to the exchange of its topic."""
        keys = self.keys_of(topic, group)
        if keys.bindings is not None:
            return list(keys.bindings)
        if group.tag != "*":
            return group.tag.split("||")
        kind = self.topic_keys(topic)
        if kind.exchange_type == "direct":
            # A direct exchange knows no "everything".
            return [kind.routing_key or ""]
        return ["#"]


def own_arguments(kind: str) -> dict[str, Any]:
    """Return the arguments of the queues that brokerkit declares for itself.

    No dead-letter exchange: the core sends dead letters itself, and an expired message would become one.
    """
    if kind != "quorum":
        return {"x-queue-type": kind}
    return {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT, "x-overflow": "reject-publish"}


def _checked(model: type[K], section: Mapping[str, Any], where: str) -> K:
    given = {key: value for key, value in section.items() if value is not None}
    return checked_section(model, NAME, (f"{where}.rabbitmq", given))


_PLAIN_TOPIC, _PLAIN_GROUP = TopicKeys(), GroupKeys()
_ANY_GROUP = GroupSpec(name="any")
