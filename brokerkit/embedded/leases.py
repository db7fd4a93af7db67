"""Claiming, settling and returning deliveries: what happens to ``ready``, ``claim`` and ``leased``.

A token is ``(claim, index in the claim, rank, seq, kind)``.  Neighbours of one claim are settled by one statement
for all of them, because each statement, and each row that Python sees, costs more than the row itself.

``flags`` of a message in a group: bit 0 delivered before, bit 1 a handler was started by an owner that lost it,
bit 2 unknown whether one was, and from bit 3 on how often that happened.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from brokerkit.embedded.catalog import Group
from brokerkit.embedded.store import Claimant
from brokerkit.embedded.transaction import Transaction
from brokerkit.spi import Inbound

__all__ = [
    "Marks",
    "Token",
    "ack",
    "browse",
    "claim",
    "claim_dead",
    "expire",
    "extend",
    "give_back",
    "is_live",
    "release",
]

Token = tuple[int, int, int, int, int]
#: Return the (claim, seq) that a store had started, None when that is unknown.
Marks = Callable[[int], set[tuple[int, int]] | None]

_LOGGED, _PRIVATE, _DEAD = 0, 1, 2
_REDELIVERED, _STARTED, _UNKNOWN, _ONE_START = 1, 2, 4, 8
_COUNT_SHIFT = 3

_FIELDS = (
    "m.topic_id, m.body, m.message_id, m.headers, m.due, m.key, m.tag, m.type, m.content_type, m.timestamp,"
    " m.correlation_id, m.reply_to"
)
_BEST = (
    f"SELECT r.rank, r.seq, r.flags, {_FIELDS} FROM ready r CROSS JOIN message m ON m.seq = r.seq"
    " WHERE r.group_id = ? ORDER BY r.rank, r.seq LIMIT ?"
)
_BEST_UNLOCKED = (
    f"SELECT r.rank, r.seq, r.flags, {_FIELDS} FROM ready r CROSS JOIN message m ON m.seq = r.seq"
    " WHERE r.group_id = ? AND coalesce(r.key, m.key, '') NOT IN (SELECT value FROM json_each(?))"
    " ORDER BY r.rank, r.seq LIMIT ?"
)
#: Messages of an ordered group that a claim looks at in their order, and keys that it looks at when all of those are
#: leased to others: a key with a long backlog must not make every claim of the others slow.
_LOOK = 2000
_KEYS = 1000
_NEAREST_UNLOCKED = (
    f"SELECT r.rank, r.seq, r.flags, {_FIELDS} FROM"
    " (SELECT rank, seq, flags, key FROM ready WHERE group_id = ? ORDER BY rank, seq LIMIT ?) r"
    " CROSS JOIN message m ON m.seq = r.seq WHERE r.key NOT IN (SELECT value FROM json_each(?))"
    " ORDER BY r.rank, r.seq LIMIT ?"
)
# One step of the index for each key, however many messages it has.
_FREE_KEYS = (
    "WITH RECURSIVE k (key) AS (SELECT (SELECT min(key) FROM ready WHERE group_id = ?1 AND key >= '') UNION ALL"
    " SELECT (SELECT min(key) FROM ready WHERE group_id = ?1 AND key > k.key) FROM k WHERE k.key IS NOT NULL)"
    " SELECT key FROM k WHERE key NOT IN (SELECT value FROM json_each(?2)) LIMIT ?3"
)
_OF_KEY = "SELECT rank, seq FROM ready WHERE group_id = ? AND key = ? ORDER BY rank, seq LIMIT ?"
_ONE = (
    f"SELECT r.rank, r.seq, r.flags, {_FIELDS} FROM ready r CROSS JOIN message m ON m.seq = r.seq"
    " WHERE r.group_id = ? AND r.rank = ? AND r.seq = ?"
)
_LOCKED_KEYS = (
    "SELECT DISTINCT coalesce(l.key, m.key, '') FROM claim c CROSS JOIN leased l ON l.claim = c.id"
    " CROSS JOIN message m ON m.seq = l.seq WHERE c.group_id = ? AND c.owner <> ? AND c.dead = 0"
)

_MOVE = "INSERT INTO leased SELECT ?, rank, seq, flags, ?, key FROM ready WHERE"


def claim(tx: Transaction, group: Group, claimant: Claimant, store: int, limit: int) -> list[Inbound]:
    """Lease the best messages of the group, which has been brought up to date."""
    execute = tx.connection.execute
    locked: list[str] = []
    if claimant.ordered:
        locked = [key for (key,) in execute(_LOCKED_KEYS, (group.id, claimant.owner))]
    rows = _unlocked(tx, group, json.dumps(locked), limit) if locked else execute(_BEST, (group.id, limit)).fetchall()
    if not rows:
        return []
    number = tx.next_claim()
    until = tx.now + claimant.lease
    execute("INSERT INTO claim VALUES (?, ?, ?, ?, ?, 0)", (number, group.id, claimant.owner, store, until))
    if locked:
        places = [(group.id, row[0], row[1]) for row in rows]
        tx.connection.executemany(
            f"{_MOVE} group_id = ? AND rank = ? AND seq = ?",
            [(number, until, *place) for place in places],
        )
        tx.connection.executemany("DELETE FROM ready WHERE group_id = ? AND rank = ? AND seq = ?", places)
    else:
        # The best ones are a prefix of the index, so two statements move them all.
        last = rows[-1][:2]
        execute(
            f"{_MOVE} group_id = ? AND (rank, seq) <= (?, ?)",
            (number, until, group.id, *last),
        )
        execute("DELETE FROM ready WHERE group_id = ? AND (rank, seq) <= (?, ?)", (group.id, *last))
    return list(_inbounds(rows, claimant.topic, claimant.group, number))


def _unlocked(tx: Transaction, group: Group, locked: str, limit: int) -> list[tuple[Any, ...]]:
    """Return the best messages whose keys are not in ``locked``, a JSON list."""
    execute = tx.connection.execute
    if not group.ordered:
        # An ordered consumer of a group that was not declared so: no index knows the keys.
        return execute(_BEST_UNLOCKED, (group.id, locked, limit)).fetchall()
    rows = execute(_NEAREST_UNLOCKED, (group.id, max(_LOOK, limit), locked, limit)).fetchall()
    if rows:
        return rows
    places: list[tuple[int, int]] = []
    for (key,) in execute(_FREE_KEYS, (group.id, locked, _KEYS)).fetchall():
        places += execute(_OF_KEY, (group.id, key, limit)).fetchall()
    return [execute(_ONE, (group.id, *place)).fetchone() for place in sorted(places)[:limit]]


def claim_dead(
    tx: Transaction, group: Group, claimant: Claimant, store: int, limit: int, ids: frozenset[str] | None
) -> list[Inbound]:
    """Lease dead letters of the group, oldest first."""
    execute = tx.connection.execute
    wanted = "" if ids is None else " AND m.message_id IN (SELECT value FROM json_each(?))"
    values = () if ids is None else (json.dumps(sorted(ids)),)
    rows = execute(
        f"SELECT -m.priority, d.seq, d.flags, {_FIELDS} FROM dead d CROSS JOIN message m ON m.seq = d.seq"
        f" WHERE d.group_id = ? AND d.claim IS NULL{wanted} ORDER BY d.seq LIMIT ?",
        (group.id, *values, limit),
    ).fetchall()
    if not rows:
        return []
    number = tx.next_claim()
    until = tx.now + claimant.lease
    execute("INSERT INTO claim VALUES (?, ?, ?, ?, ?, 1)", (number, group.id, claimant.owner, store, until))
    tx.connection.executemany(
        "INSERT INTO leased VALUES (?, ?, ?, ?, ?, NULL)", [(number, *row[:3], until) for row in rows]
    )
    tx.connection.executemany(
        "UPDATE dead SET claim = ? WHERE group_id = ? AND seq = ?", [(number, group.id, row[1]) for row in rows]
    )
    return list(_inbounds(rows, claimant.topic, claimant.group, number, dead=True))


def browse(connection: sqlite3.Connection, group: Group, limit: int) -> list[Inbound]:
    """Return the oldest dead letters of the group without a token."""
    rows = connection.execute(
        f"SELECT -m.priority, d.seq, d.flags, {_FIELDS} FROM dead d CROSS JOIN message m ON m.seq = d.seq"
        " WHERE d.group_id = ? ORDER BY d.seq LIMIT ?",
        (group.id, limit),
    ).fetchall()
    return list(_inbounds(rows, group.topic.name, group.name, None))


def _inbounds(
    rows: Iterable[tuple[Any, ...]], topic: str, group: str, number: int | None, *, dead: bool = False
) -> Iterator[Inbound]:
    loads = json.loads
    for index, row in enumerate(rows):
        # Filled in by hand: the constructor takes five times as long.
        message: Inbound = object.__new__(Inbound)
        (
            rank,
            seq,
            flags,
            topic_id,
            message.body,
            message.message_id,
            headers,
            message.due,
            message.key,
            message.tag,
            message.type,
            message.content_type,
            message.timestamp,
            message.correlation_id,
            message.reply_to,
        ) = row
        message.topic = topic
        message.group = group
        message.priority = -rank
        message.native_attempt = 1
        message.headers = loads(headers) if headers else {}
        message.problem = None
        message.native = None
        if flags:
            message.redelivered = bool(flags & _REDELIVERED)
            message.started = None if flags & _UNKNOWN else bool(flags & _STARTED)
            message.crashes = flags >> _COUNT_SHIFT
        else:
            message.redelivered = message.started = False
            message.crashes = 0
        if number is None:
            message.token = None
        else:
            kind = _DEAD if dead else _PRIVATE if topic_id is None else _LOGGED
            message.token = (number, index, rank, seq, kind)
        yield message


# --- settling -------------------------------------------------------------------------------------------------


def ack(tx: Transaction, tokens: Sequence[Token]) -> int:
    """Remove the deliveries; return how many tokens were stale."""
    execute = tx.connection.execute
    gone = 0
    single: list[tuple[int, int, int, int]] = []
    for span, kind in _spans(tokens):
        if kind == _LOGGED and span[2] == span[3]:
            single.append(span)
            continue
        if kind != _LOGGED:
            execute(
                "DELETE FROM message WHERE topic_id IS NULL AND seq IN"
                " (SELECT seq FROM leased WHERE claim = ? AND rank = ? AND seq BETWEEN ? AND ?)",
                span,
            )
        if kind == _DEAD:
            execute(
                "DELETE FROM dead WHERE group_id = (SELECT group_id FROM claim WHERE id = ?1) AND claim = ?1"
                " AND seq BETWEEN ?2 AND ?3",
                (span[0], span[2], span[3]),
            )
        gone += execute("DELETE FROM leased WHERE claim = ? AND rank = ? AND seq BETWEEN ? AND ?", span).rowcount
    if single:
        gone += tx.connection.executemany(
            "DELETE FROM leased WHERE claim = ? AND rank = ? AND seq BETWEEN ? AND ?", single
        ).rowcount
    _drop_empty(tx, tokens)
    return len(tokens) - gone


def release(tx: Transaction, group: Group | None, tokens: Sequence[Token]) -> int:
    """Put the deliveries back in their old place, not started; return how many tokens were stale."""
    if group is None:
        return len(tokens)
    execute = tx.connection.execute
    gone = 0
    for span, kind in _spans(tokens):
        where = "claim = ? AND rank = ? AND seq BETWEEN ? AND ?"
        if kind == _DEAD:
            execute(
                "UPDATE dead SET claim = NULL, flags = flags | 1 WHERE group_id = ? AND claim = ?"
                " AND seq BETWEEN ? AND ?",
                (group.id, span[0], span[2], span[3]),
            )
        else:
            execute(
                f"INSERT INTO ready SELECT ?, rank, seq, (flags & ~7) | 1, key FROM leased WHERE {where}",
                (group.id, *span),
            )
        gone += execute(f"DELETE FROM leased WHERE {where}", span).rowcount
    _drop_empty(tx, tokens)
    if gone:
        tx.woken.add(group.id)
    return len(tokens) - gone


def extend(tx: Transaction, tokens: Sequence[Token], until: float) -> int:
    """Let the leases end at ``until``; return how many tokens were stale."""
    live = tx.connection.executemany(
        "UPDATE leased SET until = ? WHERE claim = ? AND rank = ? AND seq = ?",
        [(until, token[0], token[2], token[3]) for token in tokens],
    ).rowcount
    tx.connection.executemany(
        "UPDATE claim SET until = coalesce((SELECT min(until) FROM leased WHERE claim = id), until) WHERE id = ?",
        [(number,) for number in {token[0] for token in tokens}],
    )
    return len(tokens) - live


def is_live(tx: Transaction, token: Token) -> bool:
    """Return whether the token still holds its delivery."""
    place = (token[0], token[2], token[3])
    query = "SELECT 1 FROM leased WHERE claim = ? AND rank = ? AND seq = ?"
    return tx.connection.execute(query, place).fetchone() is not None


def _spans(tokens: Sequence[Token]) -> Iterator[tuple[tuple[int, int, int, int], int]]:
    """Yield (claim, rank, first seq, last seq) of neighbours, and their kind."""
    last: Token | None = None
    first = 0
    for token in sorted(tokens) if len(tokens) > 1 else tokens:
        if last is not None:
            if token[0] == last[0] and token[1] == last[1] + 1 and token[2] == last[2] and token[4] == last[4]:
                last = token
                continue
            yield (last[0], last[2], first, last[3]), last[4]
        last, first = token, token[3]
    if last is not None:
        yield (last[0], last[2], first, last[3]), last[4]


def _drop_empty(tx: Transaction, tokens: Sequence[Token]) -> None:
    for number in {token[0] for token in tokens}:
        tx.connection.execute(
            "DELETE FROM claim WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM leased WHERE claim = ?1)", (number,)
        )


# --- leases that end ------------------------------------------------------------------------------------------


def expire(tx: Transaction, group: Group, marks: Marks) -> None:
    """Return the leases of the group that ended by time."""
    ended = tx.connection.execute(
        "SELECT id, store, dead FROM claim WHERE group_id = ? AND until <= ?", (group.id, tx.now)
    ).fetchall()
    for number, store, dead in ended:
        _return(tx, group.id, number, marks(store), dead=bool(dead), until=tx.now)


def give_back(tx: Transaction, column: str, value: str | int, marks: Marks | None) -> list[int]:
    """Return all leases of the claims where ``column`` (owner or store) is ``value``; return the claims.

    ``marks`` None: they are released, so nothing counts as started.
    """
    claims = tx.connection.execute(
        f"SELECT id, group_id, store, dead FROM claim WHERE {column} = ?", (value,)
    ).fetchall()
    for number, group_id, store, dead in claims:
        started: set[tuple[int, int]] | None = set() if marks is None else marks(store)
        _return(tx, group_id, number, started, dead=bool(dead), until=float("inf"))
    return [row[0] for row in claims]


def _return(
    tx: Transaction, group_id: int, number: int, started: set[tuple[int, int]] | None, *, dead: bool, until: float
) -> None:
    execute = tx.connection.execute
    if dead:
        execute(
            "UPDATE dead SET claim = NULL, flags = flags | 1 WHERE group_id = ? AND claim = ? AND seq IN"
            " (SELECT seq FROM leased WHERE claim = ? AND until <= ?)",
            (group_id, number, number, until),
        )
    else:
        flags = _REDELIVERED | (_UNKNOWN if started is None else 0)
        execute("UPDATE leased SET flags = (flags & ~7) | ? WHERE claim = ? AND until <= ?", (flags, number, until))
        mine = [seq for claimed, seq in started or () if claimed == number]
        if mine:
            execute(
                "UPDATE leased SET flags = (flags + ?) | ? WHERE claim = ? AND until <= ? AND seq IN"
                " (SELECT value FROM json_each(?))",
                (_ONE_START, _STARTED, number, until, json.dumps(mine)),
            )
        execute(
            "INSERT INTO ready SELECT ?, rank, seq, flags, key FROM leased WHERE claim = ? AND until <= ?",
            (group_id, number, until),
        )
    execute("DELETE FROM leased WHERE claim = ? AND until <= ?", (number, until))
    (nearest,) = execute("SELECT min(until) FROM leased WHERE claim = ?", (number,)).fetchone()
    if nearest is None:
        execute("DELETE FROM claim WHERE id = ?", (number,))
    else:
        execute("UPDATE claim SET until = ? WHERE id = ?", (nearest, number))
    tx.woken.add(group_id)
