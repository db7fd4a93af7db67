"""What the store in memory keeps of a message, and the order in which a group delivers what is ready.

No operation costs more
because many messages wait: fresh messages are appended and taken at the ends of a deque, and heaps hold only what
has a priority, was given back or waits for its due time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush

from brokerkit.spi import Inbound, Outbound

__all__ = ["Entry", "Fifo", "Lanes", "Record", "inbound"]

_NO_HEADERS: Mapping[str, str] = {}


class Record:
    """One message as it is stored, shared by all groups that hold it.

    ``pending`` counts the groups that have not settled it; a ``logged`` record was sent to the whole topic and
    stays readable for new groups when it reaches 0.
    """

    __slots__ = (
        "body",
        "content_type",
        "correlation_id",
        "due",
        "headers",
        "key",
        "logged",
        "message_id",
        "pending",
        "priority",
        "reply_to",
        "seq",
        "stored",
        "tag",
        "timestamp",
        "type",
    )

    def __init__(self, message: Outbound, logged: bool) -> None:
        # A copy, because an Outbound is mutable and its owner may use it again.
        self.body = message.body
        self.headers = dict(message.headers) if message.headers else _NO_HEADERS
        self.message_id = message.message_id
        self.due = message.due
        self.key = message.key
        self.tag = message.tag
        self.type = message.type
        self.content_type = message.content_type
        self.priority = message.priority
        self.timestamp = message.timestamp
        self.correlation_id = message.correlation_id
        self.reply_to = message.reply_to
        self.logged = logged
        self.pending = 0
        self.seq = 0
        self.stored = 0.0


class Entry:
    """A record in one group from its first claim on."""

    __slots__ = ("marked", "owner", "record", "redelivered", "started", "starts", "until")

    def __init__(self, record: Record, owner: str | None, until: float) -> None:
        self.record = record
        self.owner = owner
        self.until = until
        self.redelivered = False
        #: Whether a handler was started under the lease that holds now, under the one before, and how often in all.
        self.marked = False
        self.started = False
        self.starts = 0


def inbound(entry: Entry, topic: str, group: str, token: int | None) -> Inbound:
    """Return the delivery of ``entry``."""
    # Filled in by hand: the constructor takes five times as long, more than all the rest of a claim.
    record = entry.record
    message = object.__new__(Inbound)
    message.topic = topic
    message.group = group
    message.body = record.body
    message.message_id = record.message_id
    message.headers = dict(record.headers) if record.headers else {}
    message.due = record.due
    message.key = record.key
    message.tag = record.tag
    message.type = record.type
    message.content_type = record.content_type
    message.priority = record.priority
    message.timestamp = record.timestamp
    message.correlation_id = record.correlation_id
    message.reply_to = record.reply_to
    message.redelivered = entry.redelivered
    message.started = entry.started
    message.crashes = entry.starts
    message.native_attempt = 1
    message.problem = None
    message.token = token
    message.native = None
    return message


class Fifo:
    """What is ready in a group that is not ordered."""

    __slots__ = ("_fresh", "_placed")

    def __init__(self) -> None:
        self._fresh: deque[Record] = deque()
        # What has a priority or an old place to return to: (-priority, sequence number, entry).
        self._placed: list[tuple[int, int, Entry]] = []

    def __len__(self) -> int:
        return len(self._fresh) + len(self._placed)

    def put(self, record: Record) -> None:
        """Add a record with a higher sequence number than all before."""
        if record.priority:
            self.put_back(Entry(record, None, 0.0))
        else:
            self._fresh.append(record)

    def put_back(self, entry: Entry) -> None:
        """Give an entry its old place again."""
        heappush(self._placed, (-entry.record.priority, entry.record.seq, entry))

    def take(self, limit: int, owner: str, until: float) -> list[Entry]:
        """Remove and return the best entries, at most ``limit``."""
        fresh, placed = self._fresh, self._placed
        taken: list[Entry] = []
        while placed and len(taken) < limit:
            # They go first: what has no priority was taken before and is older than all that is fresh.
            entry = heappop(placed)[2]
            entry.owner = owner
            entry.until = until
            taken.append(entry)
        count = min(limit - len(taken), len(fresh))
        if count > 0:
            taken += [Entry(fresh.popleft(), owner, until) for _ in range(count)]
        return taken

    def settle(self, entry: Entry) -> bool:
        """Note that a taken entry is gone; return whether something became claimable by that."""
        return False

    def records(self) -> Iterator[Record]:
        """Yield all records, in no particular order."""
        yield from self._fresh
        for _, _, entry in self._placed:
            yield entry.record

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, in no particular order."""
        for record in self._fresh:
            yield Entry(record, None, 0.0)
        for _, _, entry in self._placed:
            yield entry

    def clear(self) -> None:
        """Remove everything that is ready."""
        self._fresh.clear()
        self._placed.clear()

    def oldest(self) -> float | None:
        """Return when the oldest ready record became ready."""
        times = [entry.record.stored for _, _, entry in self._placed]
        if self._fresh:
            times.append(self._fresh[0].stored)
        return min(times, default=None)


class _Lane:
    """The messages of one key: the ready ones, and who holds the leased ones."""

    __slots__ = ("entries", "holder", "leased")

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, Entry]] = []
        self.holder: str | None = None
        self.leased = 0


class Lanes:
    """What is ready in an ordered group: a key belongs to one owner as long as one of its messages is leased.

    ``_heads`` holds the place of each lane's first entry, so that a key that is leased costs one step however many
    of its messages wait.  A head whose lane moved on is out of date and skipped.
    """

    __slots__ = ("_count", "_heads", "_lanes")

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._heads: list[tuple[int, int, str]] = []
        self._count = 0

    @classmethod
    def of(cls, ready: Fifo, leased: Iterator[Entry]) -> Lanes:
        """Return the lanes of a group that was not ordered so far."""
        lanes = cls()
        for entry in ready.entries():
            lanes._insert(lanes._lane(entry.record), entry)
        for entry in leased:
            lane = lanes._lane(entry.record)
            lane.holder = entry.owner
            lane.leased += 1
        return lanes

    def __len__(self) -> int:
        return self._count

    def put(self, record: Record) -> None:
        """Add a record with a higher sequence number than all before."""
        self._insert(self._lane(record), Entry(record, None, 0.0))

    def put_back(self, entry: Entry) -> None:
        """Give a taken entry its old place again."""
        lane = self._lane(entry.record)
        self._insert(lane, entry)
        self._unlease(lane)

    def take(self, limit: int, owner: str, until: float) -> list[Entry]:
        """Remove and return the best entries whose keys nobody else holds, at most ``limit``."""
        heads = self._heads
        taken: list[Entry] = []
        passed = []
        while heads and len(taken) < limit:
            head = heappop(heads)
            lane = self._lanes.get(head[2])
            if lane is None or not lane.entries or lane.entries[0][1] != head[1]:
                continue
            if lane.holder is not None and lane.holder != owner:
                passed.append(head)
                continue
            entry = heappop(lane.entries)[2]
            entry.owner = lane.holder = owner
            entry.until = until
            lane.leased += 1
            if lane.entries:
                heappush(heads, (*lane.entries[0][:2], head[2]))
            taken.append(entry)
        self._count -= len(taken)
        for head in passed:
            heappush(heads, head)
        if len(heads) > 4 * len(self._lanes) + 64:
            # Entries that were taken and given back many times leave heads that are out of date.
            heads[:] = [(*lane.entries[0][:2], key) for key, lane in self._lanes.items() if lane.entries]
            heapify(heads)
        return taken

    def settle(self, entry: Entry) -> bool:
        """Note that a taken entry is gone; return whether something became claimable by that."""
        key = entry.record.key or ""
        lane = self._lanes.get(key)
        if lane is None:
            return False
        self._unlease(lane)
        if lane.leased:
            return False
        if not lane.entries:
            del self._lanes[key]
            return False
        return True

    def records(self) -> Iterator[Record]:
        """Yield all records, in no particular order."""
        for entry in self.entries():
            yield entry.record

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, in no particular order."""
        for lane in self._lanes.values():
            for _, _, entry in lane.entries:
                yield entry

    def clear(self) -> None:
        """Remove everything that is ready; keys stay with their owners."""
        self._heads.clear()
        self._count = 0
        for key, lane in list(self._lanes.items()):
            lane.entries.clear()
            if not lane.leased:
                del self._lanes[key]

    def oldest(self) -> float | None:
        """Return when the oldest ready record became ready."""
        return min((record.stored for record in self.records()), default=None)

    def _lane(self, record: Record) -> _Lane:
        key = record.key or ""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        return lane

    def _insert(self, lane: _Lane, entry: Entry) -> None:
        record = entry.record
        item = (-record.priority, record.seq, entry)
        heappush(lane.entries, item)
        self._count += 1
        if lane.entries[0] is item:
            heappush(self._heads, (item[0], item[1], record.key or ""))

    def _unlease(self, lane: _Lane) -> None:
        lane.leased -= 1
        if lane.leased <= 0:
            lane.leased = 0
            lane.holder = None
