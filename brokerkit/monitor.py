"""`Monitor`: what the broker and this process know about themselves.  Unknown is None, never a made-up 0."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from brokerkit.clock import wait
from brokerkit.error_text import clean_text, named_text
from brokerkit.errors import BrokerError
from brokerkit.link import Link
from brokerkit.metrics import Metrics, MetricsSnapshot
from brokerkit.names import check_group, check_topic
from brokerkit.spi import Capability, GroupStats, Stats
from brokerkit.topic import Topic
from brokerkit.worker import Worker

__all__ = ["Health", "Lag", "Monitor", "QueueStatus"]

#: Seconds that a health check waits for the broker's answer.
_PING_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How far one group is behind.  ``oldest_age`` in seconds; ``as_of`` seconds since the epoch."""

    topic: str
    group: str
    ready: int | None
    unsettled: int | None
    delayed: int | None
    oldest_age: float | None
    source: str
    as_of: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether this manager can work.

    status: ``up``; ``degraded`` (the broker answers, but a handler is stuck or a group cannot be received
    from); ``down`` (no answer); ``closed``.
    """

    healthy: bool
    status: Literal["up", "degraded", "down", "closed"]
    backend: str
    connected: bool
    #: Seconds the broker took to answer; None when it did not.
    latency: float | None
    #: What is wrong; empty when nothing is.
    problems: tuple[str, ...]
    #: Handlers that outlived their timeout: name -> seconds since.
    stuck: dict[str, float]
    as_of: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """The figures of one group together with the health of this process."""

    topic: str
    group: str
    stats: GroupStats
    health: Health
    metrics: MetricsSnapshot

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


class Monitor:
    """Figures of one manager."""

    def __init__(
        self, link: Callable[[], Link], metrics: Callable[[], Metrics], worker: Callable[[], Worker | None]
    ) -> None:
        self._link = link
        self._metrics = metrics
        self._worker = worker

    async def stats(self, topic: Topic[Any] | str, group: str) -> GroupStats:
        """Return the figures of one group; all None where the connection offers no statistics.

        Raise `TopicNotFound` for a missing group.  Reading creates nothing.
        """
        link = self._link()
        name = check_topic(topic.name if isinstance(topic, Topic) else topic)
        check_group(name, group)
        connection = await link.connection()
        if Capability.STATS not in link.capabilities(name) or not isinstance(connection, Stats):
            return GroupStats(
                topic=name,
                group=group,
                ready=None,
                unsettled=None,
                delayed=None,
                dead=None,
                consumers=None,
                oldest_age=None,
                source="unknown",
                as_of=link.clock.time(),
            )
        try:
            return await connection.stats(name, group)
        except Exception as exc:
            raise link.wrap(exc, name) from exc

    async def lag(self, topic: Topic[Any] | str, group: str) -> Lag:
        """Return how far the group is behind."""
        stats = await self.stats(topic, group)
        return Lag(
            topic=stats.topic,
            group=stats.group,
            ready=stats.ready,
            unsettled=stats.unsettled,
            delayed=stats.delayed,
            oldest_age=stats.oldest_age,
            source=stats.source,
            as_of=stats.as_of,
        )

    async def queue_status(self, topic: Topic[Any] | str, group: str) -> QueueStatus:
        """Return figures, health and metrics together."""
        stats = await self.stats(topic, group)
        return QueueStatus(
            topic=stats.topic, group=stats.group, stats=stats, health=await self.health(), metrics=self.metrics()
        )

    async def health(self, timeout: float = _PING_TIMEOUT) -> Health:
        """Connect if need be, ask the broker, and look at the handlers.  Never raises; takes up to ``timeout`` s."""
        try:
            link = self._link()
        except Exception as exc:
            return self._unusable(exc)
        if link.closed:
            return self._health(link, None, ["the manager is closed"])
        problems: list[str] = []
        latency: float | None = None
        began = link.clock.monotonic()
        asking = asyncio.get_running_loop().create_task(_ask(link, timeout), name="brokerkit-health")
        try:
            if await wait(link.clock, asking, timeout):
                asking.result()
                latency = link.clock.monotonic() - began
            else:
                problems.append(f"the broker did not answer within {timeout:g} s")
        except Exception as exc:
            problems.append(_problem(link, exc))
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        return self._health(link, latency, problems)

    def _closed_health(self) -> Health:
        """Return the health of a closed manager, which needs no event loop."""
        try:
            link = self._link()
        except Exception as exc:
            return self._unusable(exc)
        return self._health(link, None, ["the manager is closed"])

    def _unusable(self, error: Exception) -> Health:
        """Return the health of a manager that cannot even try to connect."""
        return Health(
            healthy=False,
            status="down",
            backend=getattr(error, "backend", None) or "unknown",
            connected=False,
            latency=None,
            problems=(clean_text(error) if isinstance(error, BrokerError) else named_text(error),),
            stuck={},
            as_of=self._metrics().snapshot().window_end,
        )

    def _health(self, link: Link, latency: float | None, problems: list[str]) -> Health:
        worker = self._worker()
        stuck = worker.stuck() if worker is not None else {}
        problems += [f"handler {name} is stuck since {seconds:.0f} s" for name, seconds in stuck.items()]
        problems += worker.troubles() if worker is not None else []
        status: Literal["up", "degraded", "down", "closed"]
        if link.closed:
            status = "closed"
        elif latency is None:
            status = "down"
        else:
            status = "degraded" if problems else "up"
        return Health(
            healthy=status == "up",
            status=status,
            backend=link.backend.name,
            connected=link.is_connected,
            latency=latency,
            problems=tuple(problems),
            stuck=stuck,
            as_of=link.clock.time(),
        )

    def metrics(self) -> MetricsSnapshot:
        """Return the rates and latencies of the last five minutes of this manager."""
        return self._metrics().snapshot()


async def _ask(link: Link, timeout: float) -> None:
    connection = await link.connection()
    await connection.ping(timeout)


def _problem(link: Link, error: Exception) -> str:
    try:
        return clean_text(link.wrap(error))
    except Exception:
        # Not an error that the backend knows: its text alone may say nothing.
        return named_text(error)
