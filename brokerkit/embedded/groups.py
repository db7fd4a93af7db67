"""Changes to whole groups and topics: declare, delete, private groups, what dead stores left, and figures."""

from __future__ import annotations

import sqlite3

from brokerkit.embedded import leases
from brokerkit.embedded.catalog import Group
from brokerkit.embedded.refusals import check_shape, format_tags, no_topic, parse_tags
from brokerkit.embedded.store import Claimant
from brokerkit.embedded.transaction import Transaction
from brokerkit.spi import GroupSpec, GroupStats, TopicSpec

__all__ = [
    "STEP",
    "attach",
    "backfill",
    "bury",
    "declare",
    "delete",
    "detach",
    "promote",
    "purge",
    "refresh",
    "stats",
]

#: Messages that one transaction moves or removes at most.
STEP = 1000
#: Steps of a log that a claim takes over when the process that declared the group died over it.
_BACKFILL_STEPS = 5


def declare(tx: Transaction, topic: TopicSpec, group: GroupSpec | None) -> None:
    """Create what is missing; widen the tags of an existing group, never narrow them."""
    check_shape(tx.catalog.topics, topic, group)
    tx.flush()
    execute = tx.connection.execute
    found = tx.catalog.topics.get(topic.name)
    if found is None:
        execute("INSERT INTO topic (name, ordered) VALUES (?, ?)", (topic.name, topic.ordered))
        tx.reload()
        found = tx.catalog.topics[topic.name]
    else:
        tx.promote(found)
    if group is None:
        return
    existing = found.groups.get(group.name)
    if existing is None:
        end = tx.seq if group.start == "earliest" else 0
        number = execute(
            "INSERT INTO grp (topic_id, name, tag, ordered, backfill_end) VALUES (?, ?, ?, ?, ?)",
            (found.id, group.name, group.tag, group.ordered, end),
        ).lastrowid
        tx.reload()
        tx.woken.add(number or 0)
        return
    tags = parse_tags(group.tag)
    wider = None if tags is None or existing.tags is None else existing.tags | tags
    if wider != existing.tags:
        execute("UPDATE grp SET tag = ? WHERE id = ?", (format_tags(wider), existing.id))
        tx.reload()


def promote(tx: Transaction, topic: str) -> bool:
    """Make a step of what is due in the topic ready; return whether there is more."""
    found = tx.catalog.topics.get(topic)
    return found is not None and tx.promote(found)


def backfill(tx: Transaction, topic: str, group: str, age: float) -> bool:
    """Give a group a step of the log; return whether there is more."""
    found = tx.catalog.find(topic, group)
    tx.flush()
    return found is not None and tx.backfill(found, tx.now - age, STEP)


def refresh(tx: Transaction, claimant: Claimant, age: float, marks: leases.Marks) -> Group | None:
    """Bring the group up to date: what is due, what leases ended; return it.

    None: it still takes over its log, which has to come first.  Raise `TopicNotFound`.
    """
    group = tx.catalog.group(claimant.topic, claimant.group)
    for _ in range(_BACKFILL_STEPS):
        if group.backfill_next >= group.backfill_end:
            break
        tx.backfill(group, tx.now - age, STEP)
        group = tx.catalog.group(claimant.topic, claimant.group)
    else:
        return None
    tx.promote(group.topic)
    tx.promote_group(group)
    leases.expire(tx, group, marks)
    return group


def delete(tx: Transaction, topic: str, group: str | None) -> None:
    """Delete the group, or the topic with all of its groups."""
    found = tx.catalog.topics.get(topic)
    if found is None:
        return
    tx.flush()
    for existing in list(found.groups.values()):
        if group is None or existing.name == group:
            _remove(tx, existing)
    if group is None:
        tx.connection.execute("INSERT OR IGNORE INTO garbage VALUES ('topic', ?)", (found.id,))
        tx.connection.execute("DELETE FROM topic WHERE id = ?", (found.id,))
    tx.reload()


def _remove(tx: Transaction, group: Group) -> None:
    """Delete the group; its messages are left to the janitor, because there may be a million."""
    execute = tx.connection.execute
    leased = "SELECT l.seq FROM claim c CROSS JOIN leased l ON l.claim = c.id WHERE c.group_id = ? AND c.dead = 0"
    execute(f"DELETE FROM message WHERE topic_id IS NULL AND seq IN ({leased})", (group.id,))
    execute("DELETE FROM leased WHERE claim IN (SELECT id FROM claim WHERE group_id = ?)", (group.id,))
    execute("DELETE FROM claim WHERE group_id = ?", (group.id,))
    execute("DELETE FROM consumer WHERE group_id = ?", (group.id,))
    execute("INSERT OR IGNORE INTO garbage VALUES ('group', ?)", (group.id,))
    execute("DELETE FROM grp WHERE id = ?", (group.id,))
    tx.woken.add(group.id)


def attach(tx: Transaction, topic: str, name: str, owner: str, store: int) -> None:
    """Make a private group."""
    found = tx.catalog.topics.get(topic)
    if found is None:
        raise no_topic(topic)
    tx.flush()
    tx.connection.execute(
        "INSERT OR IGNORE INTO grp (topic_id, name, tag, ordered, owner, store) VALUES (?, ?, '*', 0, ?, ?)",
        (found.id, name, owner, store),
    )
    tx.reload()


def detach(tx: Transaction, owner: str) -> list[int]:
    """End an owner: release what it has, delete its private groups; return its claims."""
    claims = leases.give_back(tx, "owner", owner, None)
    tx.connection.execute("DELETE FROM consumer WHERE owner = ?", (owner,))
    private = [group for group in tx.catalog.groups.values() if group.owner == owner]
    for group in private:
        _remove(tx, group)
    if private:
        tx.reload()
    return claims


def bury(tx: Transaction, store: int, marks: leases.Marks) -> None:
    """Return everything that a store had; ``marks`` tells what it had started."""
    tx.flush()
    leases.give_back(tx, "store", store, marks)
    tx.connection.execute("DELETE FROM consumer WHERE store = ?", (store,))
    private = [group for group in tx.catalog.groups.values() if group.store == store]
    for group in private:
        _remove(tx, group)
    if private:
        tx.reload()


def purge(tx: Transaction, group: Group, end: int) -> int:
    """Remove a step of what is ready up to the sequence number ``end``; return how many."""
    execute = tx.connection.execute
    step = f"SELECT rank, seq FROM ready WHERE group_id = ?1 AND seq <= ?2 ORDER BY rank, seq LIMIT {STEP}"
    execute(f"DELETE FROM message WHERE topic_id IS NULL AND seq IN (SELECT seq FROM ({step}))", (group.id, end))
    return execute(f"DELETE FROM ready WHERE group_id = ?1 AND (rank, seq) IN ({step})", (group.id, end)).rowcount


def stats(
    connection: sqlite3.Connection, topic: str, group: str, number: int, now: float, store: int, here: int
) -> GroupStats:
    """Return the figures of the group ``number``; ``here`` consumers of this store are not in the tables."""

    def count(query: str) -> int:
        return int(connection.execute(query, (number,)).fetchone()[0])

    (elsewhere,) = connection.execute(
        "SELECT count(*) FROM consumer WHERE group_id = ? AND store <> ?", (number, store)
    ).fetchone()
    oldest = _oldest(connection, number)
    return GroupStats(
        topic=topic,
        group=group,
        ready=count("SELECT count(*) FROM ready WHERE group_id = ?"),
        unsettled=count(
            "SELECT count(*) FROM claim c CROSS JOIN leased l ON l.claim = c.id WHERE c.group_id = ? AND c.dead = 0"
        ),
        delayed=count("SELECT count(*) FROM later WHERE group_id = ?")
        + count("SELECT count(*) FROM scheduled WHERE topic_id = (SELECT topic_id FROM grp WHERE id = ?)"),
        dead=count("SELECT count(*) FROM dead WHERE group_id = ?"),
        consumers=elsewhere + here,
        oldest_age=None if oldest is None else max(0.0, now - oldest),
        source="sqlite",
        as_of=now,
    )


def _oldest(connection: sqlite3.Connection, number: int) -> float | None:
    """Return when the oldest ready message became deliverable, by one look per priority."""
    times: list[float] = []
    rank: float = float("-inf")
    while True:
        row = connection.execute(
            "SELECT r.rank, m.stored, m.due FROM ready r CROSS JOIN message m ON m.seq = r.seq"
            " WHERE r.group_id = ? AND r.rank > ? ORDER BY r.rank, r.seq LIMIT 1",
            (number, rank),
        ).fetchone()
        if row is None:
            return min(times, default=None)
        rank = row[0]
        times.append(max(row[1], row[2] or 0.0))
