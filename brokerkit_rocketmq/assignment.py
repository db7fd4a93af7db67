"""Which member of a group reads which queues: Java's ``AllocateMessageQueueAveragely``.

Every member computes it for itself from the same two lists, so all of them, Java's included, must use one rule; one
that differs would leave queues to two members or to none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

__all__ = ["averagely", "owners"]

Q = TypeVar("Q")


def averagely(member: str, members: Iterable[str], queues: Sequence[Q]) -> list[Q]:
    """Return the share of ``member``: nothing when it is not among ``members``.

    ``queues`` are sorted by topic, broker and queue id.  A client that has two connections is listed twice by the
    broker (rocketmq 4.9.4 and 5.5.0); it counts once.
    """
    everyone = sorted(set(members))
    if member not in everyone:
        return []
    start, stop = _span(everyone.index(member), len(everyone), len(queues))
    return list(queues[start:stop])


def owners(members: Iterable[str], queues: Sequence[Q]) -> dict[Q, str]:
    """Return who reads each queue; empty without members."""
    everyone = sorted(set(members))
    found: dict[Q, str] = {}
    for index, member in enumerate(everyone):
        start, stop = _span(index, len(everyone), len(queues))
        for queue in queues[start:stop]:
            found[queue] = member
    return found


def _span(index: int, members: int, queues: int) -> tuple[int, int]:
    """Return the first of the queues of a member, by its place among all, and the one after its last."""
    least, more = divmod(queues, members)
    # The first ``more`` members have one queue more than the others.
    start = index * least + min(index, more)
    return start, start + least + (1 if index < more else 0)
