"""One write transaction: the counters, the catalog, and the messages that are to be inserted in bulk."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from brokerkit.embedded.catalog import INBOXES, Catalog, Group, Topic
from brokerkit.embedded.refusals import fault_of
from brokerkit.errors import BrokerError
from brokerkit.spi import Outbound, ToDead, ToGroup, ToInbox, ToTopic

__all__ = ["PROMOTE", "Transaction"]

#: Most scheduled messages that one transaction makes ready; what is left waits for the next claim.
PROMOTE = 500

_LAST = "SELECT max(seq) FROM message"
_COUNTERS = f"SELECT seq, max(seq, coalesce(({_LAST}), 0)), claim, catalog FROM meta"
_INSERT = f"INSERT INTO message VALUES ({','.join('?' * 15)})"
# Whole runs of messages enter a group with one statement: each step of SQLite gives the interpreter lock away.
_RUN = "INSERT INTO ready SELECT ?, -priority, seq, 0, NULL FROM message WHERE seq BETWEEN ? AND ?"
_RUN_ORDERED = "INSERT INTO ready SELECT ?, -priority, seq, 0, coalesce(key, '') FROM message WHERE seq BETWEEN ? AND ?"
_encode_headers = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Transaction:
    """What the operations of one commit share.  Begins when it is made; the writer commits or rolls back."""

    def __init__(self, connection: sqlite3.Connection, catalog: Catalog | None, now: float, max_body: int) -> None:
        self.connection = connection
        self.now = now
        #: Called after the commit, in this order; nothing else may change the state of the process.
        self.after: list[Callable[[], object]] = []
        #: Ids of the groups whose consumers should look.
        self.woken: set[int] = set()
        self._max_body = max_body
        connection.execute("BEGIN IMMEDIATE")
        self.seq: int
        self.claim: int
        self._seq, self.seq, self.claim, version = connection.execute(_COUNTERS).fetchone()
        self._stored = (self.claim, version)
        self.catalog = catalog if catalog is not None and catalog.version == version else Catalog(connection, version)
        self._rows: list[tuple[Any, ...]] = []
        self._runs: list[tuple[Topic, int, int]] = []
        self._ready: list[tuple[int, int, int, str | None]] = []
        self._later: list[tuple[int, float, int]] = []
        self._scheduled: list[tuple[int, float, int]] = []
        self._dead: list[tuple[int, int]] = []
        self._headers: tuple[object, str | None] = (None, None)

    # --- catalog and counters -----------------------------------------------------------------------------------

    def next_claim(self) -> int:
        """Return a number that no claim ever had."""
        self.claim += 1
        return self.claim

    def reload(self) -> None:
        """Make a change of topic or grp visible here and to every other process."""
        self.catalog = Catalog(self.connection, self.catalog.version + 1)

    def finish(self) -> None:
        """Write everything that is still pending; the commit follows."""
        # What is inserted now is the end of the log; nothing can remove it before the commit.
        at_the_end = bool(self._rows)
        self.flush()
        # The log is the counter as long as its last message has the highest number: one page less to write.
        at_the_end = at_the_end or self.connection.execute(_LAST).fetchone() == (self.seq,)
        seq = self._seq if at_the_end else self.seq
        if (seq, self.claim, self.catalog.version) != (self._seq, *self._stored):
            meta = (self.seq, self.claim, self.catalog.version)
            self.connection.execute("UPDATE meta SET seq = ?, claim = ?, catalog = ?", meta)

    # --- sending ------------------------------------------------------------------------------------------------

    def fault(self, message: Outbound) -> BrokerError | None:
        """Return why the message cannot be stored."""
        return fault_of(message, self.catalog.topics, self._max_body)

    def send(self, messages: Sequence[Outbound]) -> list[BrokerError | None]:
        """Take the messages in; return one outcome each.  They are written by `flush`."""
        outcomes: list[BrokerError | None] = []
        for message in messages:
            fault = self.fault(message)
            outcomes.append(fault)
            if fault is None:
                self.put(message)
        return outcomes

    def put(self, message: Outbound) -> None:
        """Take in one message that has no `fault`."""
        destination = message.destination
        due = message.due
        delayed = due is not None and due > self.now
        topic_id = None
        seq = self.seq + 1
        if type(destination) is ToTopic:
            topic = self.catalog.topics[destination.topic]
            topic_id = topic.id
            if delayed:
                self._scheduled.append((topic_id, due or 0.0, seq))
            elif topic.plain:
                runs = self._runs
                if runs and runs[-1][0] is topic and runs[-1][2] == seq - 1:
                    runs[-1] = (topic, runs[-1][1], seq)
                else:
                    runs.append((topic, seq, seq))
            else:
                for group in topic.groups.values():
                    if group.wants(message.tag):
                        self._enter(group, message, seq)
        elif isinstance(destination, ToGroup):
            group = self.catalog.topics[destination.topic].groups[destination.group]
            if delayed:
                self._later.append((group.id, due or 0.0, seq))
            else:
                self._enter(group, message, seq)
        elif isinstance(destination, ToDead):
            self._dead.append((self.catalog.topics[destination.topic].groups[destination.group].id, seq))
        elif isinstance(destination, ToInbox):
            inbox = self.catalog.topics[INBOXES].groups.get(destination.address)
            if inbox is None:
                return  # whoever asked has gone
            self._enter(inbox, message, seq)
        self.seq = seq
        headers = message.headers
        if not headers:
            encoded = None
        elif headers is self._headers[0]:
            encoded = self._headers[1]
        else:
            encoded = _encode_headers(dict(headers))
            self._headers = (headers, encoded)
        self._rows.append(
            (
                seq,
                topic_id,
                self.now,
                message.message_id,
                message.type,
                message.tag,
                message.key,
                message.content_type,
                message.priority,
                message.timestamp,
                due,
                message.correlation_id,
                message.reply_to,
                encoded,
                message.body,
            )
        )

    def _enter(self, group: Group, message: Outbound, seq: int) -> None:
        self._ready.append((group.id, -message.priority, seq, (message.key or "") if group.ordered else None))
        self.woken.add(group.id)

    def flush(self) -> None:
        """Insert the messages that were taken in."""
        if not self._rows:
            return
        execute, executemany = self.connection.execute, self.connection.executemany
        if len(self._rows) == 1:
            execute(_INSERT, self._rows[0])
        else:
            executemany(_INSERT, self._rows)
        self._rows.clear()
        for topic, first, last in self._runs:
            for group in topic.groups.values():
                execute(_RUN_ORDERED if group.ordered else _RUN, (group.id, first, last))
                self.woken.add(group.id)
        self._runs.clear()
        if self._ready:
            executemany("INSERT INTO ready VALUES (?, ?, ?, 0, ?)", self._ready)
            self._ready.clear()
        if self._dead:
            executemany("INSERT INTO dead VALUES (?, ?, 0, NULL)", self._dead)
            self._dead.clear()
        if self._scheduled or self._later:
            self._flush_delayed()

    def _flush_delayed(self) -> None:
        """Insert what waits for its time, and wake who sleeps until a later event than the nearest new one."""
        execute, executemany = self.connection.execute, self.connection.executemany
        for topic_id, due in _earliest(self._scheduled):
            (nearest,) = execute("SELECT min(due) FROM scheduled WHERE topic_id = ?", (topic_id,)).fetchone()
            if nearest is None or due < nearest:
                self.woken.update(group.id for group in self.catalog.groups.values() if group.topic.id == topic_id)
        for group_id, due in _earliest(self._later):
            (nearest,) = execute("SELECT min(due) FROM later WHERE group_id = ?", (group_id,)).fetchone()
            if nearest is None or due < nearest:
                self.woken.add(group_id)
        executemany("INSERT INTO scheduled VALUES (?, ?, ?)", self._scheduled)
        executemany("INSERT INTO later VALUES (?, ?, ?)", self._later)
        self._scheduled.clear()
        self._later.clear()

    # --- promotion ----------------------------------------------------------------------------------------------

    def promote(self, topic: Topic) -> bool:
        """Give the groups of the topic what is due, at most `PROMOTE` messages; return whether more is due."""
        execute = self.connection.execute
        last = execute(
            "SELECT due, seq FROM (SELECT due, seq FROM scheduled WHERE topic_id = ? AND due <= ? ORDER BY due, seq"
            " LIMIT ?) ORDER BY due DESC, seq DESC LIMIT 1",
            (topic.id, self.now, PROMOTE),
        ).fetchone()
        if last is None:
            return False
        for group in topic.groups.values():
            key = "coalesce(m.key, '')" if group.ordered else "NULL"
            condition, values = _tag_condition(group)
            execute(
                f"INSERT OR IGNORE INTO ready SELECT ?, -m.priority, s.seq, 0, {key} FROM scheduled s"
                f" CROSS JOIN message m ON m.seq = s.seq WHERE s.topic_id = ? AND (s.due, s.seq) <= (?, ?){condition}",
                (group.id, topic.id, *last, *values),
            )
            self.woken.add(group.id)
        gone = execute("DELETE FROM scheduled WHERE topic_id = ? AND (due, seq) <= (?, ?)", (topic.id, *last)).rowcount
        return gone == PROMOTE

    def promote_group(self, group: Group) -> bool:
        """Give the group what was sent to it alone and is due; return whether more is due."""
        execute = self.connection.execute
        last = execute(
            "SELECT due, seq FROM (SELECT due, seq FROM later WHERE group_id = ? AND due <= ? ORDER BY due, seq"
            " LIMIT ?) ORDER BY due DESC, seq DESC LIMIT 1",
            (group.id, self.now, PROMOTE),
        ).fetchone()
        if last is None:
            return False
        key = "coalesce(m.key, '')" if group.ordered else "NULL"
        execute(
            f"INSERT INTO ready SELECT l.group_id, -m.priority, l.seq, 0, {key} FROM later l CROSS JOIN message m"
            " ON m.seq = l.seq WHERE l.group_id = ? AND (l.due, l.seq) <= (?, ?)",
            (group.id, *last),
        )
        self.woken.add(group.id)
        gone = execute("DELETE FROM later WHERE group_id = ? AND (due, seq) <= (?, ?)", (group.id, *last)).rowcount
        return gone == PROMOTE

    def backfill(self, group: Group, since: float, chunk: int) -> bool:
        """Give a group that begins at the earliest a part of the log; return whether there is more."""
        begin, end = group.backfill_next, group.backfill_end
        if begin >= end:
            return False
        execute = self.connection.execute
        (last,) = execute(
            "SELECT max(seq) FROM (SELECT seq FROM message WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?)",
            (begin, end, chunk),
        ).fetchone()
        if last is None:
            last = end
        key = "coalesce(m.key, '')" if group.ordered else "NULL"
        condition, values = _tag_condition(group)
        execute(
            f"INSERT OR IGNORE INTO ready SELECT ?, -m.priority, m.seq, 0, {key} FROM message m"
            f" WHERE m.seq > ? AND m.seq <= ? AND m.topic_id = ? AND m.stored >= ?{condition} AND NOT EXISTS"
            " (SELECT 1 FROM scheduled s WHERE s.topic_id = m.topic_id AND s.due = m.due AND s.seq = m.seq)",
            (group.id, begin, last, group.topic.id, since, *values),
        )
        execute("UPDATE grp SET backfill_next = ? WHERE id = ?", (last, group.id))
        self.reload()
        self.woken.add(group.id)
        return bool(last < end)


def _tag_condition(group: Group) -> tuple[str, tuple[str, ...]]:
    if group.tags is None:
        return "", ()
    return f" AND m.tag IN ({','.join('?' * len(group.tags))})", tuple(group.tags)


def _earliest(rows: Iterable[tuple[int, float, int]]) -> Iterable[tuple[int, float]]:
    nearest: dict[int, float] = {}
    for number, due, _ in rows:
        if due < nearest.get(number, float("inf")):
            nearest[number] = due
    return nearest.items()
