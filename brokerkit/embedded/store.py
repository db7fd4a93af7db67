"""What the embedded drivers need of a store.

Two stores implement it: `brokerkit.embedded.memory.MemoryStore` in plain data structures, and
`brokerkit.embedded.sqlite.SqliteStore` on a file.  The drivers above (connection, producer, consumer) are the
same for both, and so is the conformance suite.

The model: a topic has a log of the messages sent to it (kept until retention, so that a group can begin at the
earliest) and groups.  A message in a group is in exactly one state:

    scheduled   due lies in the future; for a message to the whole topic the groups are resolved when it is due
    ready       deliverable, in the order (priority descending, sequence number)
    leased      delivered to one consumer under a token until the lease ends
    dead        a dead letter
    (gone)      acknowledged

A lease that ends puts the message back to ready *in its old place*, ``redelivered``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from brokerkit.errors import BrokerError
from brokerkit.spi import GroupSpec, GroupStats, Inbound, Outbound, TopicSpec

__all__ = ["Claimant", "Store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant:
    """One consumer as the store knows it."""

    topic: str
    group: str
    #: Unique per consumer for ever; leases belong to it.
    owner: str
    #: Keep keys to one owner at a time.  A message without a key belongs to the key "".
    ordered: bool = False
    #: Seconds until an unsettled delivery returns.
    lease: float = 30.0


class Store(Protocol):
    """Topics, groups, messages and leases.  All calls come from event loops; one store may serve several loops.

    Tokens (`Inbound.token`) are unique per claim: a delivery that returned to the group and was claimed again has
    another token, and settling with the old one changes nothing.
    """

    #: True on a file.
    persistent: bool

    async def open(self) -> None:
        """Make the store usable by one more connection.  Raise what is wrong with the file."""
        ...

    async def close(self) -> None:
        """Undo one `open`; the last one frees everything."""
        ...

    async def ping(self, timeout: float) -> None:
        """Return when the store could be written, writing nothing; raise `BrokerUnavailable` after ``timeout`` s."""
        ...

    async def send(self, messages: Sequence[Outbound]) -> list[BrokerError | None]:
        """Store the messages durably; one outcome each.  Messages of one call keep their order."""
        ...

    async def claim(self, claimant: Claimant, limit: int) -> list[Inbound]:
        """Lease up to ``limit`` deliverable messages, best first.  Raise `TopicNotFound` for an unknown group.

        Due messages and ended leases of the group become ready first.  For an ordered claimant, messages whose
        key is leased by another owner are passed over.  `Inbound.crashes` is the number of leases of this
        message in this group that ended (by time or with their process) after `mark_started`.
        """
        ...

    def next_event(self, topic: str, group: str) -> float | None:
        """Return when (wall clock) a scheduled message is due or a lease ends next, as far as known; cheap."""
        ...

    async def ack(self, claimant: Claimant, messages: Sequence[Inbound]) -> int:
        """Remove the deliveries; return how many tokens were stale."""
        ...

    async def release(self, claimant: Claimant, messages: Sequence[Inbound]) -> int:
        """Put the deliveries back to ready in their old place, not started; return how many were stale."""
        ...

    async def extend(self, claimant: Claimant, messages: Sequence[Inbound], until: float) -> int:
        """Let the leases end at the wall-clock time ``until``; return how many were stale."""
        ...

    async def settle_with(self, claimant: Claimant, message: Inbound, outbounds: Sequence[Outbound]) -> None:
        """Store ``outbounds`` and acknowledge ``message`` in one transaction; nothing when the token is stale."""
        ...

    def mark_started(self, claimant: Claimant, message: Inbound) -> None:
        """Record that a handler starts; survives a crash of the process at once, without I/O of its own."""
        ...

    def subscribe(self, topic: str, group: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake`` on the subscriber's loop when the group may have something to claim; return the undo."""
        ...

    async def attach(self, topic: str | None, owner: str) -> tuple[str, str]:
        """Make a private group that ends with its owner: of ``topic`` for broadcast, of no topic for an inbox.

        Return (topic, group) to claim from; for an inbox the group is its address.
        """
        ...

    async def detach(self, owner: str) -> None:
        """End the owner: release its leases, delete its private group.  Idempotent."""
        ...

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None: ...

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None: ...

    async def delete(self, topic: str, group: str | None) -> None: ...

    async def purge(self, topic: str, group: str) -> int: ...

    async def stats(self, topic: str, group: str) -> GroupStats: ...

    async def browse(self, topic: str, group: str, limit: int) -> list[Inbound]: ...

    async def claim_dead(self, claimant: Claimant, limit: int, ids: frozenset[str] | None) -> list[Inbound]:
        """Lease dead letters, oldest first; `release` and an ended lease put them back as dead letters."""
        ...
