"""`BlockingAdmin` and `BlockingMonitor`: what `Admin` and `Monitor` do, for blocking code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from brokerkit.admin import Admin, DeadLetter
from brokerkit.gate import Gate
from brokerkit.metrics import MetricsSnapshot
from brokerkit.monitor import Health, Lag, Monitor, QueueStatus
from brokerkit.spi import Finding, GroupStats
from brokerkit.topic import Topic

__all__ = ["BlockingAdmin", "BlockingMonitor"]

T = TypeVar("T")


class BlockingAdmin:
    """Administrative calls of one manager; errors as those of `Admin`."""

    def __init__(self, admin: Admin, gate: Gate) -> None:
        self._admin = admin
        self._gate = gate

    def declare(
        self,
        topic: Topic[Any] | str,
        group: str | None = None,
        *,
        tag: str | None = None,
        ordered: bool | None = None,
        start: str | None = None,
    ) -> None:
        """Create the topic, and the group when one is given (else every group the application knows).

        Idempotent; raise `TopologyConflict` when it exists with other properties.  ``start`` is where a new group
        begins: ``latest`` (default) or ``earliest``.
        """
        self._gate.call(partial(self._admin.declare, topic, group, tag=tag, ordered=ordered, start=start))

    def verify(self, topic: Topic[Any] | str, group: str | None = None) -> None:
        """Raise `TopicNotFound` or `TopologyConflict` unless it exists as declared.  Creates nothing."""
        self._gate.call(partial(self._admin.verify, topic, group))

    def delete(self, topic: Topic[Any] | str, group: str | None = None) -> None:
        """Delete the group with its messages and dead letters, or the topic with all its groups."""
        self._gate.call(partial(self._admin.delete, topic, group))

    def purge(self, topic: Topic[Any] | str, group: str) -> int:
        """Remove what is ready in one group; return how many.  Delayed messages and waiting retries stay."""
        return self._gate.call(partial(self._admin.purge, topic, group))

    def dead_letters(self, topic: Topic[Any] | str, group: str, limit: int = 100) -> list[DeadLetter]:
        """Return up to ``limit`` dead letters, oldest first.  Reading disturbs nothing."""
        return self._gate.call(partial(self._admin.dead_letters, topic, group, limit))

    def redrive(
        self,
        topic: Topic[Any] | str,
        group: str,
        ids: Iterable[str | DeadLetter] | None = None,
        *,
        limit: int | None = None,
    ) -> int:
        """Send dead letters back to the group that failed, as attempt 1 with their ids; return how many.

        ``ids`` chooses: dead letters, or the ids of messages.  ``limit`` takes the oldest so many.  Without either:
        all that are there.
        """
        return self._gate.call(partial(self._admin.redrive, topic, group, ids, limit=limit))

    def discard(
        self,
        topic: Topic[Any] | str,
        group: str,
        ids: Iterable[str | DeadLetter] | None = None,
        *,
        limit: int | None = None,
    ) -> int:
        """Delete dead letters for good; return how many.  ``ids`` and ``limit`` as in `redrive`."""
        return self._gate.call(partial(self._admin.discard, topic, group, ids, limit=limit))

    def native(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """Run ``call`` with the administration of the one backend in use, and return its result.

        ``manager.admin.native(lambda rocketmq: rocketmq.lag("orders", "billing"))``: what it has is the backend's, and
        asynchronous; RocketMQ's is `brokerkit_rocketmq.admin.RocketMQAdmin`.  Raise `CapabilityNotSupported` for a
        backend without one.
        """
        return self._gate.call(partial(self._admin.native, call))

    def diagnose(self) -> list[Finding]:
        """Return what the backend finds good, doubtful and wrong with its broker; empty where it does not look.

        Creates and changes nothing; `brokerkit doctor` shows it.
        """
        return self._gate.call(self._admin.diagnose)


class BlockingMonitor:
    """Figures of one manager; errors as those of `Monitor`."""

    def __init__(self, monitor: Monitor, gate: Gate) -> None:
        self._monitor = monitor
        self._gate = gate

    def stats(self, topic: Topic[Any] | str, group: str) -> GroupStats:
        """Return the figures of one group; all None where the connection offers no statistics.

        Raise `TopicNotFound` for a missing group.  Reading creates nothing.
        """
        return self._gate.call(partial(self._monitor.stats, topic, group))

    def lag(self, topic: Topic[Any] | str, group: str) -> Lag:
        """Return how far the group is behind."""
        return self._gate.call(partial(self._monitor.lag, topic, group))

    def queue_status(self, topic: Topic[Any] | str, group: str) -> QueueStatus:
        """Return figures, health and metrics together."""
        return self._gate.call(partial(self._monitor.queue_status, topic, group))

    def health(self, timeout: float = 5.0) -> Health:
        """Ask the broker and look at the handlers.  Never raises for a broker that is down or a closed manager."""
        if self._gate.closed:
            return self._monitor._closed_health()
        return self._gate.call(partial(self._monitor.health, timeout))

    def metrics(self) -> MetricsSnapshot:
        """Return the rates and latencies of the last five minutes of this manager."""
        return self._gate.read(self._monitor.metrics)
