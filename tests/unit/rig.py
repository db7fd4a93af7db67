"""A manager on the embedded broker in memory, with virtual time, and a broker that can be told to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self

from brokerkit.admin import DeadLetter
from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.embedded.connection import EmbeddedConnection
from brokerkit.embedded.consumer import EmbeddedConsumer
from brokerkit.embedded.store import Store
from brokerkit.errors import BrokerError
from brokerkit.events import ErrorEvent
from brokerkit.manager import AsyncManager
from brokerkit.message import Message
from brokerkit.retry import RetryPolicy
from brokerkit.spi import Capability, ConsumerOptions, Inbound
from brokerkit.testing.clock import VirtualClock
from brokerkit.testing.interposed import InterposedBackend

__all__ = ["EXACT", "PLAIN", "Rig", "RiggedBackend", "others"]

#: Delays of 1, 2, 4 … seconds without jitter.
EXACT = RetryPolicy(jitter="none")

#: What a broker without the embedded one's luxuries lacks.
PLAIN = frozenset({Capability.ATOMIC_SETTLE, Capability.START_MARKS, Capability.LEASE})


class RiggedConsumer(EmbeddedConsumer):
    """Fails as the backend says."""

    backend: RiggedBackend

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: With trials: what a process may have died of.
        self._suspected: set[str] = set()

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        if self.backend.receive_fault is not None:
            fault, self.backend.receive_fault = self.backend.receive_fault, None
            raise fault
        received = await super().receive(max_messages, timeout)
        self.backend.most_unsettled = max(self.backend.most_unsettled, len(self._held))
        for inbound in received:
            if Capability.START_MARKS in self.backend.lacking:
                inbound.started, inbound.crashes = None, 0
            if inbound.message_id in self.backend.suspects:
                self.backend.suspects.remove(inbound.message_id or "")
                inbound.redelivered = True
                if self.backend.trials is not None:
                    self._suspected.add(inbound.message_id or "")
            if inbound.message_id in self._suspected:
                inbound.started, inbound.crashes = True, 1
            inbound.native_attempt = self.backend.deliveries
            if "early" in inbound.headers:
                inbound.due = float(inbound.headers["early"])
            inbound.problem = inbound.headers.get("problem")
        return received

    async def ack(self, messages: Sequence[Inbound]) -> None:
        if self.backend.ack_fault is not None:
            fault, self.backend.ack_fault = self.backend.ack_fault, None
            raise fault
        self.backend.acked += [message.message_id for message in messages]
        await super().ack(messages)

    async def release(self, messages: Sequence[Inbound]) -> None:
        self.backend.released += [message.message_id for message in messages]
        await super().release(messages)

    def live(self, message: Inbound) -> bool:
        return message.message_id not in self.backend.stale and super().live(message)


class TryingConsumer(RiggedConsumer):
    """Counts the starts of suspects."""

    async def begin_trial(self, message: Inbound) -> None:
        assert self.backend.trials is not None
        self.backend.trials.append(message.message_id)
        if self.backend.trial_fault is not None:
            raise self.backend.trial_fault


class RiggedConnection(EmbeddedConnection):
    """Opens rigged consumers."""

    backend: RiggedBackend

    @property
    def consumer_class(self) -> type[RiggedConsumer]:  # type: ignore[override]
        return RiggedConsumer if self.backend.trials is None else TryingConsumer

    async def open_consumer(self, options: ConsumerOptions) -> EmbeddedConsumer:
        consumer = await super().open_consumer(options)
        if isinstance(consumer, RiggedConsumer):
            consumer.backend = self.backend
        return consumer


class RiggedBackend(EmbeddedBackend):
    """The embedded broker without some of its capabilities, and with the faults that a test asks for."""

    connection_class = RiggedConnection

    def __init__(self, lacking: frozenset[Capability] = frozenset()) -> None:
        self.lacking = lacking
        #: Ids whose deliveries are stale.
        self.stale: set[str | None] = set()
        #: Ids that were under way when a process crashed.
        self.suspects: list[str] = []
        #: What the next call raises.
        self.receive_fault: BaseException | None = None
        self.ack_fault: BaseException | None = None
        #: What was tried alone; None: this driver has no trials.
        self.trials: list[str | None] | None = None
        #: How often the broker says that it delivered each message.
        self.deliveries = 1
        self.trial_fault: BrokerError | None = None
        self.acked: list[str | None] = []
        self.released: list[str | None] = []
        self.most_unsettled = 0

    def offers(self, store: Store, topic: str) -> frozenset[Capability]:
        return super().offers(store, topic) - self.lacking

    async def connect(self, options: Any) -> EmbeddedConnection:
        connection = await super().connect(options)
        if isinstance(connection, RiggedConnection):
            connection.backend = self
        return connection


class Rig:
    """One manager and its broker."""

    def __init__(self, *lacking: Capability, **settings: Any) -> None:
        self.clock = VirtualClock()
        self.backend = RiggedBackend(frozenset(lacking))
        self.layer = InterposedBackend(self.backend)
        self.starts: list[Message] = []
        self.events: list[ErrorEvent] = []
        store = settings.pop("idempotency", None)
        backend = self.layer if settings.pop("layered", True) else self.backend
        self.manager = AsyncManager(
            settings={"url": "memory://", **settings}, backend=backend, clock=self.clock, idempotency=store
        )
        self.manager.on_error(self.events.append)

    async def __aenter__(self) -> Self:
        self.before = asyncio.all_tasks()
        await self.manager.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close at once; fail when a task is left."""
        stopping = asyncio.create_task(self.manager.stop(timeout=0))
        await self.clock.advance(0)
        await stopping
        await self.manager.aclose()
        await self.clock.advance(0)
        assert not others(self.before), f"tasks are left: {others(self.before)}"

    def start_of(self, message: Message) -> int:
        """Note the start of a handler; return how often this message was started."""
        self.starts.append(message)
        return [start.message_id for start in self.starts].count(message.message_id)

    @property
    def attempts(self) -> list[int]:
        """The attempt number of each start."""
        return [start.attempt for start in self.starts]

    @property
    def bodies(self) -> list[bytes]:
        """The body of each start."""
        return [start.body for start in self.starts]

    async def dead(self, topic: str = "t", group: str = "g") -> list[DeadLetter]:
        """Return the dead letters."""
        return await self.manager.admin.dead_letters(topic, group)

    async def counts(self, topic: str = "t", group: str = "g") -> tuple[int | None, int | None, int | None]:
        """Return how many messages of the group are ready, unsettled and delayed."""
        stats = await self.manager.monitor.stats(topic, group)
        return stats.ready, stats.unsettled, stats.delayed

    @property
    def totals(self) -> dict[str, int]:
        """The counters that are not 0."""
        return {name: count for name, count in self.manager.monitor.metrics().totals.items() if count}


def others(before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """Return the tasks that were not there before and are no part of the test."""
    return [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task() and not task.done()]
