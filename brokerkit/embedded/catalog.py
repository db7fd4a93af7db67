"""The topics and groups of a file as one process caches them, and how they are changed.

``meta.catalog`` is a version number: every transaction reads it first, so a cache is never used when it is old.
The functions that change something are called inside of a transaction and count the version up.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from brokerkit.embedded.refusals import no_group, no_topic, parse_tags

__all__ = ["INBOXES", "Catalog", "Group", "Topic"]

#: The topic whose groups are the inboxes.  No application can name it: names that begin with "bk." are refused.
INBOXES = "bk.inboxes"
#: Its topic_id; tables begin to count at 1.
INBOXES_ID = 0


@dataclass(slots=True, eq=False)
class Group:
    """One row of ``grp``."""

    id: int
    topic: Topic
    name: str
    #: None: every message.
    tags: frozenset[str] | None
    ordered: bool
    owner: str | None
    store: int | None
    #: Messages of the log that the group still has to take over: from ``backfill_next`` to ``backfill_end``.
    backfill_next: int
    backfill_end: int

    def wants(self, tag: str | None) -> bool:
        """Return whether a message with ``tag`` belongs to the group."""
        return self.tags is None or tag in self.tags


@dataclass(slots=True, eq=False)
class Topic:
    """One row of ``topic``."""

    id: int
    name: str
    ordered: bool
    groups: dict[str, Group] = field(default_factory=dict)
    #: Whether every group takes every message.
    plain: bool = True


class Catalog:
    """What the file says about topics and groups at one version.  Not changed once it is loaded."""

    def __init__(self, connection: sqlite3.Connection, version: int) -> None:
        self.version = version
        inboxes = Topic(INBOXES_ID, INBOXES, False)
        self.topics: dict[str, Topic] = {INBOXES: inboxes}
        self.groups: dict[int, Group] = {}
        by_id = {INBOXES_ID: inboxes}
        for number, name, ordered in connection.execute("SELECT id, name, ordered FROM topic"):
            by_id[number] = self.topics[name] = Topic(number, name, bool(ordered))
        rows = connection.execute(
            "SELECT id, topic_id, name, tag, ordered, owner, store, backfill_next, backfill_end FROM grp"
        )
        for number, topic_id, name, tag, ordered, owner, store, begin, end in rows:
            topic = by_id[topic_id]
            tags = parse_tags(tag)
            group = Group(number, topic, name, tags, bool(ordered), owner, store, begin, end)
            topic.groups[name] = self.groups[number] = group
            topic.plain = topic.plain and tags is None

    def topic(self, name: str) -> Topic:
        """Return the topic; raise `TopicNotFound`."""
        found = self.topics.get(name)
        if found is None:
            raise no_topic(name)
        return found

    def group(self, topic: str, name: str) -> Group:
        """Return the group; raise `TopicNotFound`."""
        found = self.topic(topic).groups.get(name)
        if found is None:
            raise no_group(topic, name)
        return found

    def find(self, topic: str, name: str) -> Group | None:
        """Return the group if there is one."""
        found = self.topics.get(topic)
        return None if found is None else found.groups.get(name)
