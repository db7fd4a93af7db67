"""Which messages were handled already, and how often a handler was started on each.

The worker claims a key before it starts a handler, completes it with what the handler returned, sends the
follow-ups, marks them sent, and only then acknowledges.  A message that comes again finds its key done, or busy
with somebody else.  A claim belongs to an owner and ends with its lease, so that the key of a process that died
comes free.

Times are wall-clock seconds since the epoch, because several processes share a store.  Every store behaves like
`MemoryIdempotencyStore`, which is the readable one; one set of tests holds them to one model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from brokerkit.clock import Clock
from brokerkit.errors import Closed

__all__ = [
    "RETENTION",
    "Busy",
    "Claim",
    "Claimed",
    "Done",
    "IdempotencyStore",
    "MemoryIdempotencyStore",
    "idempotency_key",
]

#: Seconds that a key is kept after it was touched last: 7 days.
RETENTION = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """The key is the owner's until the lease ends: run the handler, then `complete` or `abandon`."""

    #: The starts recorded for the key, this one included; greater with every claim until the key is forgotten, but
    #: for starts that were not to be counted.
    token: int


@dataclass(frozen=True, slots=True)
class Done:
    """The key was completed: do not run the handler."""

    #: What `IdempotencyStore.complete` was given.
    result: bytes | None
    follow_ups: bytes | None
    #: Whether result and follow-ups went out: there were none, or `IdempotencyStore.mark_sent` was called.
    sent: bool


@dataclass(frozen=True, slots=True)
class Busy:
    """The key is claimed, maybe by the same owner for another delivery of the message: come again later."""

    #: When the lease ends unless it is renewed; wall clock.
    until: float


Claim = Claimed | Done | Busy


def idempotency_key(topic: str, group: str, message_id: str) -> str:
    """Return the key of a message in a group."""
    return f"{topic}\x1f{group}\x1f{message_id}"


class IdempotencyStore(Protocol):
    """Keys, each free, claimed or done, with a count of starts.  Concurrent calls are safe.

    All calls but `open` and `aclose` raise `Closed` unless the store is open, and `BrokerUnavailable` when the
    store cannot be reached; then it is unknown whether the call had an effect.
    """

    async def open(self) -> None:
        """Make the store usable.  Raise `ConfigurationError` when it cannot be.  No-op when it is open."""
        ...

    async def aclose(self) -> None:
        """Finish the calls that are under way, then free everything; claims stay for their leases.  Idempotent."""
        ...

    async def claim(self, key: str, owner: str, lease: float, attempt: int | None) -> Claim:
        """Give the key to ``owner`` for ``lease`` seconds, unless it is done or somebody's.

        A claim whose lease ended is taken over.  A claim that is given counts a start.  ``attempt`` is the number
        that the message carries for this start: where the store knows of fewer starts, it counts up to that.
        If cancelled, either nothing happened or the claim is undone.
        """
        ...

    async def renew(self, keys: Collection[str], owner: str, lease: float) -> frozenset[str]:
        """Let the owner's claims end ``lease`` seconds from now; return the keys that are not its claims any more.

        A claim whose lease ended and that nobody took over is renewed too.
        """
        ...

    async def complete(self, key: str, owner: str, result: bytes | None, follow_ups: bytes | None) -> bool:
        """Turn the owner's claim into done, durably; return False, and change nothing, when it is not its claim.

        That its lease ended does not matter as long as nobody took it over.
        """
        ...

    async def mark_sent(self, key: str, owner: str) -> None:
        """Note that the follow-ups of a done key were sent, by whichever owner.  No-op for any other key."""
        ...

    async def abandon(self, key: str, owner: str, *, uncount: bool = False) -> None:
        """Free the owner's claim after a failed attempt.  No-op when it is not its claim.

        Its start stays counted, but for ``uncount``: the process itself ended the run before the handler had, as
        when a worker stops.
        """
        ...

    async def starts(self, key: str) -> int:
        """Return how often a claim of the key was given; 0 for an unknown key."""
        ...

    async def forget(self, key: str) -> None:
        """Make the key unknown, starts included: its message became a dead letter and may be redriven."""
        ...


class _Entry:
    __slots__ = ("done", "expires", "lease_end", "owner", "starts")

    def __init__(self) -> None:
        self.starts = 0
        self.owner: str | None = None
        self.lease_end = 0.0
        self.done: Done | None = None
        self.expires = 0.0


class MemoryIdempotencyStore:
    """An `IdempotencyStore` for one process and one event loop; forgets everything with the process."""

    #: Entries looked at on each claim to drop those that expired.
    _CHUNK = 4

    def __init__(self, clock: Clock, retention: float = RETENTION) -> None:
        self._clock = clock
        self._retention = retention
        #: In the order in which they were touched, as far as `_purge` needs it.
        self._entries: dict[str, _Entry] = {}
        self._opened = False

    def __len__(self) -> int:
        return len(self._entries)

    async def open(self) -> None:
        self._opened = True

    async def aclose(self) -> None:
        self._opened = False

    async def claim(self, key: str, owner: str, lease: float, attempt: int | None) -> Claim:
        self._check()
        now = self._clock.time()
        self._purge(now)
        entry = self._entries.get(key)
        if entry is None or entry.expires <= now:
            self._entries.pop(key, None)
            entry = self._entries[key] = _Entry()
        elif entry.done is not None:
            return entry.done
        elif entry.owner is not None and entry.lease_end > now:
            return Busy(entry.lease_end)
        entry.starts = max(entry.starts, (attempt or 1) - 1) + 1
        entry.owner = owner
        entry.lease_end = now + lease
        entry.expires = entry.lease_end + self._retention
        return Claimed(entry.starts)

    async def renew(self, keys: Collection[str], owner: str, lease: float) -> frozenset[str]:
        self._check()
        until = self._clock.time() + lease
        lost = []
        for key in keys:
            entry = self._claimed(key, owner)
            if entry is None:
                lost.append(key)
            else:
                entry.lease_end = until
                entry.expires = until + self._retention
        return frozenset(lost)

    async def complete(self, key: str, owner: str, result: bytes | None, follow_ups: bytes | None) -> bool:
        self._check()
        entry = self._claimed(key, owner)
        if entry is None:
            return False
        entry.owner = None
        entry.done = Done(result, follow_ups, result is None and follow_ups is None)
        self._touch(key, entry)
        return True

    async def mark_sent(self, key: str, owner: str) -> None:
        self._check()
        entry = self._known(key)
        if entry is not None and entry.done is not None:
            entry.done = Done(entry.done.result, entry.done.follow_ups, True)

    async def abandon(self, key: str, owner: str, *, uncount: bool = False) -> None:
        self._check()
        entry = self._claimed(key, owner)
        if entry is not None:
            entry.starts -= uncount
            entry.owner = None
            self._touch(key, entry)

    async def starts(self, key: str) -> int:
        self._check()
        entry = self._known(key)
        return 0 if entry is None else entry.starts

    async def forget(self, key: str) -> None:
        self._check()
        self._entries.pop(key, None)

    def _check(self) -> None:
        if not self._opened:
            raise Closed("the idempotency store is not open")

    def _known(self, key: str) -> _Entry | None:
        entry = self._entries.get(key)
        return None if entry is None or entry.expires <= self._clock.time() else entry

    def _claimed(self, key: str, owner: str) -> _Entry | None:
        entry = self._known(key)
        return entry if entry is not None and entry.owner == owner else None

    def _touch(self, key: str, entry: _Entry) -> None:
        entry.expires = self._clock.time() + self._retention
        self._entries[key] = self._entries.pop(key)

    def _purge(self, now: float) -> None:
        # Done and free entries lie in the order in which they expire.  Claimed ones between them go to the end.
        for _ in range(self._CHUNK):
            key = next(iter(self._entries), None)
            if key is None:
                return
            entry = self._entries[key]
            if entry.expires <= now:
                del self._entries[key]
            elif entry.owner is not None:
                self._entries[key] = self._entries.pop(key)
            else:
                return
