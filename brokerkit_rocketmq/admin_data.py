"""What `RocketMQAdmin` returns.  Times are seconds since the epoch, ages and durations seconds, sizes bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BrokerInfo", "GroupLag", "Member", "QueueInfo", "QueueLag", "Rate", "Throughput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLag:
    """How far a group is in one queue."""

    broker: str
    queue_id: int
    #: Where the next message will be, and where the group goes on.
    end: int
    committed: int
    #: Messages that were handed out and are not settled; 0 where nobody records that.
    unsettled: int

    @property
    def lag(self) -> int:
        """Messages that are not settled."""
        return self.end - self.committed


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLag:
    """How far a group is behind."""

    topic: str
    group: str
    #: By ``"<queue id>"``, or by ``"<broker>:<queue id>"`` where the topic has queues on several brokers: their numbers
    #: repeat on each.
    queues: Mapping[str, QueueLag]
    #: Messages of the group's retry topic that are not settled.
    retries: int
    #: How long the oldest ready message has waited; None when none is ready, or it may not be read.
    oldest_age: float | None
    as_of: float

    @property
    def by_queue(self) -> dict[str, int]:
        """The lag of each queue."""
        return {name: queue.lag for name, queue in self.queues.items()}

    @property
    def total(self) -> int:
        """All messages that are not settled, retries included."""
        return sum(queue.lag for queue in self.queues.values()) + self.retries


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """One queue of a topic."""

    broker: str
    queue_id: int
    #: Offsets of the oldest message there is, and of the next one.
    first: int
    end: int
    #: When the last message was stored; None while the queue is empty.
    updated: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What passed within some time."""

    count: int
    per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """One of the broker's statistics; the broker counts once a minute, so the newest minute may be missing."""

    minute: Rate
    hour: Rate
    day: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerInfo:
    """One broker, a master or a copy."""

    name: str
    #: 0 is the master.
    id: int
    cluster: str
    #: ``host:port``, as it tells it to its clients.
    address: str
    #: Such as ``V4_9_4``; None when it did not answer.
    version: str | None
    #: All that it says about itself (``GET_BROKER_RUNTIME_INFO``); empty when it did not answer.
    info: Mapping[str, str]
    #: Why it did not answer; None when it did.
    problem: str | None

    @property
    def disk_used(self) -> float | None:
        """How full the disk of its messages is, 0 to 1; it refuses messages from about 0.9 on."""
        return _number(self.info.get("commitLogDiskRatio"))

    @property
    def started(self) -> float | None:
        """When it was started, by its own clock."""
        boot = _number(self.info.get("bootTimestamp"))
        return None if boot is None else boot / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A consumer that is connected as a member of a group."""

    client_id: str
    #: ``host:port`` as the broker sees it.
    address: str
    #: Such as ``JAVA`` and ``PYTHON``.
    language: str
    #: Number of its version (``MQVersion``).
    version: int
    #: Filter by native topic; empty where it does not say.
    subscriptions: Mapping[str, str]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
