"""The groups and topics of the store in memory.

Nothing here locks or looks at a clock: `brokerkit.embedded.memory.MemoryStore` does.  ``woken`` collects whom it
wakes when it has let go of the lock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf

from brokerkit.embedded.audience import Audience
from brokerkit.embedded.ready import Entry, Fifo, Lanes, Record
from brokerkit.embedded.settings import EmbeddedSettings

__all__ = ["Group", "Topic"]


class Group:
    """One group of a topic, or one inbox."""

    __slots__ = (
        "audience",
        "dead",
        "delayed",
        "lease_end",
        "leases",
        "name",
        "ordered",
        "owner",
        "ready",
        "tags",
        "taken",
    )

    def __init__(self, name: str, audience: Audience, *, ordered: bool, tags: frozenset[str] | None) -> None:
        self.name = name
        self.audience = audience
        self.ordered = ordered
        #: None: every message.
        self.tags = tags
        self.ready: Fifo | Lanes = Lanes() if ordered else Fifo()
        self.leases: dict[int, Entry] = {}
        #: No lease ends before this instant.
        self.lease_end = inf
        #: By sequence number.  An OrderedDict, because a dict whose first items are gone is slow to begin.
        self.dead: OrderedDict[int, Entry] = OrderedDict()
        #: The dead letters that are leased: their sequence numbers by token.
        self.taken: dict[int, int] = {}
        #: How many scheduled messages are for this group alone.
        self.delayed = 0
        #: The consumer that it ends with, where it is a private one.
        self.owner: str | None = None

    def wants(self, tag: str | None) -> bool:
        """Return whether a message with ``tag`` belongs to the group."""
        return self.tags is None or tag in self.tags

    def enter(self, record: Record, number: int, now: float, woken: set[Audience]) -> None:
        """Make a message to this group alone ready."""
        record.seq = number
        record.stored = now
        record.pending = 1
        self.ready.put(record)
        woken.add(self.audience)

    def keep_dead(self, record: Record, number: int, now: float) -> None:
        """Add a dead letter."""
        record.seq = number
        record.stored = now
        self.dead[number] = Entry(record, None, 0.0)

    def keep_order(self) -> None:
        """Deliver in lanes from now on."""
        if not isinstance(self.ready, Lanes):
            self.ready = Lanes.of(self.ready, iter(self.leases.values()))

    # --- leases ---

    def lease(self, limit: int, owner: str, until: float, tokens: Iterator[int]) -> list[tuple[int, Entry]]:
        """Lease up to ``limit`` ready messages to ``owner``; return them by token."""
        leased = [(next(tokens), entry) for entry in self.ready.take(limit, owner, until)]
        if leased:
            self.leases.update(leased)
            self.lease_end = min(self.lease_end, until)
        return leased

    def lease_dead(
        self, limit: int, ids: frozenset[str] | None, owner: str, until: float, tokens: Iterator[int]
    ) -> list[tuple[int, Entry]]:
        """Lease up to ``limit`` dead letters that nobody has, oldest first; return them by token."""
        leased: list[tuple[int, Entry]] = []
        for number, entry in self.dead.items():
            if len(leased) == limit:
                break
            if entry.owner is None and (ids is None or entry.record.message_id in ids):
                token = next(tokens)
                self.taken[token] = number
                entry.owner, entry.until = owner, until
                self.lease_end = min(self.lease_end, until)
                leased.append((token, entry))
        return leased

    def extend(self, token: int, until: float) -> bool:
        """Let one lease end at ``until``; return False when there is none under ``token``."""
        entry = self.leases.get(token)
        if entry is None and token in self.taken:
            entry = self.dead[self.taken[token]]
        if entry is None:
            return False
        entry.until = until
        self.lease_end = min(self.lease_end, until)
        return True

    def bury(self, token: int) -> int:
        """Remove a dead letter that is leased under ``token``; return 1 when there is none."""
        number = self.taken.pop(token, None)
        if number is None:
            return 1
        del self.dead[number]
        return 0

    def give_back(self, token: int, *, started: bool) -> bool:
        """End one lease; return False when there is none under ``token``."""
        entry = self.leases.pop(token, None)
        if entry is not None:
            entry.redelivered = True
            entry.started = entry.marked and started
            entry.starts += entry.started
            entry.marked = False
            entry.owner = None
            self.ready.put_back(entry)
            return True
        number = self.taken.pop(token, None)
        if number is None:
            return False
        self.dead[number].owner = None
        return True

    def expire(self, now: float, woken: set[Audience]) -> None:
        """Give back what is leased no longer and find out when the next lease ends."""
        nearest = inf
        for token, entry in self.leased():
            if entry.until <= now:
                self.give_back(token, started=True)
                woken.add(self.audience)
            elif entry.until < nearest:
                nearest = entry.until
        self.lease_end = nearest

    def leased(self) -> list[tuple[int, Entry]]:
        """Return everything that is leased, dead letters included, by token."""
        return [*self.leases.items(), *((token, self.dead[number]) for token, number in self.taken.items())]


class Topic:
    """A topic with its groups, what is scheduled and what is kept for groups to come."""

    __slots__ = ("delayed", "groups", "later", "name", "numbers", "ordered", "settings", "settled", "settled_bytes")

    def __init__(self, name: str, *, ordered: bool, settings: EmbeddedSettings, numbers: Iterator[int]) -> None:
        """Take sequence numbers from ``numbers``, which all topics of the store share."""
        self.name = name
        self.settings = settings
        self.numbers = numbers
        self.ordered = ordered
        self.groups: dict[str, Group] = {}
        #: (due, number, record, group or None for all) as a heap.
        self.later: list[tuple[float, int, Record, Group | None]] = []
        #: How many scheduled messages are for all groups.
        self.delayed = 0
        #: Records that every group settled, in the order they were settled.
        self.settled: deque[Record] = deque()
        self.settled_bytes = 0

    def log(self) -> list[Record]:
        """Return what was sent to the topic and is still here, in the order of sending."""
        records = {record.seq: record for record in self.settled}
        for group in self.groups.values():
            for record in group.ready.records():
                records[record.seq] = record
            for entry in group.leases.values():
                records[entry.record.seq] = entry.record
        return sorted((record for record in records.values() if record.logged), key=lambda record: record.seq)

    def _unschedule(self, group: Group) -> None:
        """Remove what is scheduled for a deleted group."""
        if group.delayed:
            self.later = [item for item in self.later if item[3] is not group]
            heapify(self.later)

    def put(self, record: Record, group: Group | None, now: float, woken: set[Audience]) -> None:
        """Take in a message to ``group``, or to all groups, to be ready when it is due."""
        if self.later and self.later[0][0] <= now:
            self.ripen(now, woken)
        due = record.due
        if due is not None and due > now:
            self.schedule(record, group, due, woken)
        elif group is None:
            self.fan_out(record, now, woken)
        else:
            group.enter(record, next(self.numbers), now, woken)

    def schedule(self, record: Record, group: Group | None, due: float, woken: set[Audience]) -> None:
        """Let a message to ``group``, or to all groups of that moment, wait until ``due``."""
        heappush(self.later, (due, next(self.numbers), record, group))
        if group is None:
            self.delayed += 1
        else:
            group.delayed += 1
        if self.later[0][2] is record:
            # Whoever sleeps until the next event must learn that it is nearer now.
            woken.update(other.audience for other in self.groups.values())

    def fan_out(self, record: Record, now: float, woken: set[Audience]) -> None:
        """Make a message ready in all groups that want it."""
        record.seq = next(self.numbers)
        record.stored = now
        tag = record.tag
        pending = 0
        for group in self.groups.values():
            if group.tags is None or tag in group.tags:
                group.ready.put(record)
                pending += 1
                if group.audience.members:
                    woken.add(group.audience)
        record.pending = pending
        if not pending:
            self.retain(record)

    def ripen(self, now: float, woken: set[Audience]) -> None:
        """Make ready what is due, in the order of due times."""
        later = self.later
        while later and later[0][0] <= now:
            _, _, record, group = heappop(later)
            if group is None:
                self.delayed -= 1
                self.fan_out(record, now, woken)
            else:
                group.delayed -= 1
                group.enter(record, next(self.numbers), now, woken)

    def retain(self, record: Record) -> None:
        """Keep a record that all groups settled for groups to come, as long as the limits allow."""
        settled = self.settled
        settled.append(record)
        self.settled_bytes += len(record.body)
        settings = self.settings
        while settled and (len(settled) > settings.retention_messages or self.settled_bytes > settings.retention_bytes):
            self.settled_bytes -= len(settled.popleft().body)

    def settle(self, record: Record) -> None:
        """Note that one group no longer holds ``record``."""
        record.pending -= 1
        if record.logged and record.pending <= 0:
            self.retain(record)

    def fill(self, group: Group, since: float) -> None:
        """Put the retained messages of the topic into a new group."""
        for record in self.log():
            if group.wants(record.tag) and record.stored >= since:
                group.ready.put(record)
                record.pending += 1
        # They return to the settled ones when this group has settled them as well.
        kept = [record for record in self.settled if not record.pending]
        self.settled.clear()
        self.settled.extend(kept)
        self.settled_bytes = sum(len(record.body) for record in kept)

    def remove(self, group: Group) -> None:
        """Delete the group with all that it holds and all that is scheduled for it."""
        del self.groups[group.name]
        self._unschedule(group)
        for record in group.ready.records():
            self.settle(record)
        for entry in group.leases.values():
            self.settle(entry.record)
