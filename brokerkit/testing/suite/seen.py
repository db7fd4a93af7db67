"""What handlers were started with, and what the cases about handlers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brokerkit.clock import SystemClock
from brokerkit.message import Message
from brokerkit.retry import RetryPolicy
from brokerkit.spi import Capability
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import eventually

if TYPE_CHECKING:
    from brokerkit.blocking import Manager
    from brokerkit.manager import AsyncManager
    from brokerkit.topic import Topic

__all__ = ["Seen", "Start", "all_settled", "blocking", "late", "nothing_is_left", "policy", "quiet", "started"]

_clock = SystemClock()


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a handler."""

    message: Message
    #: Monotonic seconds.
    at: float


class Seen:
    """The starts of one or several handlers, in their order.  A handler calls it first of all."""

    def __init__(self) -> None:
        self.starts: list[Start] = []

    def __call__(self, message: Message) -> int:
        """Note a start; return how often this message was started, this time included."""
        self.starts.append(Start(message, _clock.monotonic()))
        return len(self.attempts(message.message_id))

    @property
    def ids(self) -> list[str | None]:
        """The id of each start."""
        return [start.message.message_id for start in self.starts]

    def attempts(self, message_id: str | None) -> list[int]:
        """Return the attempt numbers that the starts of one message saw."""
        return [start.message.attempt for start in self.starts if start.message.message_id == message_id]

    async def reach(self, count: int, *, within: float) -> None:
        """Return once there were ``count`` starts."""
        await self._until(lambda: len(self.starts) >= count, f"{count} starts", within)

    async def cover(self, ids: set[str], *, within: float) -> None:
        """Return once every one of ``ids`` was started."""
        await self._until(lambda: ids <= set(self.ids), f"starts of all {len(ids)} messages", within)

    async def stay(self, count: int, for_: float) -> None:
        """Fail unless there are ``count`` starts and no more come in ``for_`` seconds."""
        deadline = _clock.monotonic() + for_
        while True:
            assert len(self.starts) == count, f"{count} starts expected: {self._show()}"
            if _clock.monotonic() >= deadline:
                return
            await _clock.sleep(0.01)

    async def _until(self, condition: Any, what: str, within: float) -> None:
        try:
            await eventually(condition, within=within, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}; seen: {self._show()}") from None

    def _show(self) -> str:
        counted = Counter((start.message.message_id, start.message.attempt) for start in self.starts)
        some = [f"{name} attempt {attempt}, {times}x" for (name, attempt), times in list(counted.items())[:12]]
        return f"{len(self.starts)} starts of {len(set(self.ids))} messages: " + "; ".join(some)


def policy(harness: Harness, **fields: Any) -> RetryPolicy:
    """Return a retry policy that this broker can serve: without dead letters the last attempt is not the last."""
    if Capability.DEAD_LETTER not in harness.capabilities:
        fields.setdefault("exhausted", "requeue")
    return RetryPolicy(**{"base_delay": 0.1, "max_delay": 5.0, "jitter": "none", **fields})


def quiet(harness: Harness) -> float:
    """Return how long to watch that a message does not come (again)."""
    timing = harness.timing
    return (timing.quiet + timing.redelivery + timing.settle) * timing.factor


def late(harness: Harness) -> float:
    """Return how much later than its due time a message may come."""
    timing = harness.timing
    return (timing.delay_grain + timing.delay_tolerance) * timing.factor


@asynccontextmanager
async def started(manager: AsyncManager) -> AsyncIterator[AsyncManager]:
    """Run the manager's handlers inside the block, and drain and close it at the end."""
    async with manager:
        await manager.start()
        try:
            yield manager
        finally:
            await manager.stop()


def blocking(harness: Harness) -> Manager:
    """Return an unconnected blocking manager on the broker of the case; to be used off the case's loop."""
    from brokerkit.blocking import Manager

    return Manager(harness.url, backend=harness.backend, **dict(harness.settings))


async def all_settled(harness: Harness, manager: AsyncManager, topic: Topic[Any], group: str = "g") -> None:
    """Return when the broker counts no message of the group any more; at once without STATS.

    Where one offset stands for all that is settled below it (no SELECTIVE_ACK), handled messages may come again until
    then.
    """
    if Capability.STATS not in harness.capabilities:
        return
    stats = await manager.monitor.stats(topic, group)

    async def empty() -> bool:
        nonlocal stats
        stats = await manager.monitor.stats(topic, group)
        return not (stats.ready or stats.unsettled or stats.delayed)

    try:
        await eventually(empty, within=harness.timing.within(), what=f"nothing left in group {group}")
    except AssertionError as error:
        raise AssertionError(f"{error}: {stats}") from None


async def nothing_is_left(harness: Harness, topic: Topic[Any], group: str = "g") -> None:
    """Fail when the group still has a message, ready, waiting or unsettled, once everybody else has closed."""
    async with harness.manager() as manager:
        watch = quiet(harness)
        if Capability.STATS in harness.capabilities:
            watch = harness.timing.quiet
            await all_settled(harness, manager, topic, group)
        async with manager.consume(topic, group=group) as deliveries:
            found = await deliveries.receive(watch)
            assert found is None, f"{found.message.message_id if found else None} is still there"
