"""What the worker processes of the cases run.

A worker is described by a `Job`, plain data, and reports each step before it takes the next one
(`brokerkit.testing.processes.report`): what a killed process did not report did not happen.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from brokerkit.clock import SystemClock
from brokerkit.delivery import Delivery
from brokerkit.manager import AsyncManager
from brokerkit.message import Message
from brokerkit.retry import RetryPolicy
from brokerkit.spi import Backend, Capability
from brokerkit.testing.harness import Harness
from brokerkit.testing.interposed import InterposedBackend
from brokerkit.testing.process_pool import ProcessPool
from brokerkit.testing.processes import report
from brokerkit.testing.suite._cases import eventually
from brokerkit.testing.suite.unacknowledged import UnacknowledgedBackend
from brokerkit.topic import Topic

__all__ = ["POISON", "Crew", "Job", "hold", "job_for", "produce", "work"]

#: The body of a message that kills the process that handles it.
POISON = b"poison"


def tell(step: str, message: Message | None = None, **fields: Any) -> None:
    """Report a step of this process to the case, with the message it is about."""
    if message is not None:
        fields = {"id": message.message_id, "attempt": message.attempt, "topic": message.topic, **fields}
    report({"step": step, "at": SystemClock().time(), **fields})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process does, as plain data."""

    url: str | None
    #: ``module:Class`` of the backend, which is made without arguments.
    backend: str
    topic: str
    groups: Sequence[str] = ("g",)
    group: str = "g"
    ordered: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: How many messages `produce` sends and `hold` takes.
    count: int = 0
    #: Seconds that a handler takes.
    pause: float = 0.0
    concurrency: int = 10
    prefetch: int | None = None
    max_attempts: int = 4
    exhausted: str = "dead"
    #: Topic of the message that the handler returns for each one it handled.
    follow_up: str | None = None
    #: Let no acknowledgement reach the broker.
    unacknowledged: bool = False

    def manager(self) -> AsyncManager:
        """Return a manager on the broker of the case, not connected yet."""
        module, _, name = self.backend.partition(":")
        backend: Backend = getattr(import_module(module), name)()
        if self.unacknowledged:
            backend = UnacknowledgedBackend(backend)
        return AsyncManager(self.url, backend=backend, **self.settings)

    def declared(self) -> Topic[bytes]:
        """Return the topic with all its groups."""
        return Topic(self.topic, bytes, groups=self.groups, ordered=self.ordered)


def job_for(harness: Harness, topic: Topic[Any], **fields: Any) -> Job:
    """Return a job on ``topic`` and the broker of the case."""
    backend = harness.backend
    while isinstance(backend, InterposedBackend):
        backend = backend.inner
    kind = type(backend)
    common = {
        "url": harness.url,
        "backend": f"{kind.__module__}:{kind.__qualname__}",
        "topic": topic.name,
        "groups": tuple(group.name for group in topic.groups),
        "ordered": topic.ordered,
        "settings": dict(harness.settings),
        "exhausted": "dead" if Capability.DEAD_LETTER in harness.capabilities else "requeue",
    }
    return Job(**{**common, **fields})


class Crew(ProcessPool):
    """The worker processes of one case."""

    def entries(self, step: str) -> list[dict[str, Any]]:
        """Return what was reported of one step, in the order of its times."""
        found = [event for event in tuple(self.events) if event["step"] == step]
        return sorted(found, key=lambda event: float(event["at"]))

    def ids(self, step: str) -> list[str]:
        """Return the message ids of one step, repeats included."""
        return [event["id"] for event in self.entries(step)]

    async def told(self, step: str, count: int, within: float) -> None:
        """Return once a step was reported ``count`` times."""
        try:
            await eventually(lambda: len(self.entries(step)) >= count, within=within, what=f"{count} times {step!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}; {len(self.entries(step))} came; {self._outputs()}") from None

    async def covered(self, step: str, ids: Collection[str], within: float) -> None:
        """Return once a step was reported of every one of ``ids``."""
        wanted = set(ids)
        try:
            await eventually(lambda: wanted <= set(self.ids(step)), within=within, what=f"{step!r} of all messages")
        except AssertionError as error:
            missing = wanted - set(self.ids(step))
            raise AssertionError(f"{error}; {len(missing)} of {len(wanted)} missing; {self._outputs()}") from None

    def _outputs(self) -> str:
        return "; ".join(f"{process.name}: {process.output[-800:]!r}" for process in self.processes)


async def work(job: Job) -> None:
    """Handle the messages of the group until a SIGTERM comes: ``ready``, and ``start`` and ``done`` of each one."""
    clock = SystemClock()
    manager = job.manager()
    topic = job.declared()
    retry = RetryPolicy(
        max_attempts=job.max_attempts,
        base_delay=0.05,
        max_delay=0.5,
        jitter="none",
        exhausted="dead" if job.exhausted == "dead" else "requeue",
    )

    @manager.handler(
        topic,
        group=job.group,
        retry=retry,
        concurrency=job.concurrency,
        prefetch=job.prefetch,
        ordered=job.ordered or None,
    )
    async def handle(message: Message) -> Message | None:
        tell("start", message)
        if message.body == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.pause:
            await clock.sleep(job.pause)
        tell("done", message)
        if job.follow_up is None:
            return None
        return Message(topic=job.follow_up, body=message.body)

    async with manager:
        await manager.start()
        tell("ready")
        await manager.run()


async def produce(job: Job) -> None:
    """Send ``count`` messages to the topic and its groups, without any handler: ``sent``."""
    async with job.manager() as manager:
        for number in range(job.count):
            tell("sent", id=await manager.send(job.declared(), b"%d" % number))


async def hold(job: Job) -> None:
    """Take ``count`` messages (``got``), acknowledge all but the first one, and wait to be killed (``held``)."""
    manager = job.manager()
    async with manager, manager.consume(job.declared(), group=job.group, prefetch=job.count) as deliveries:
        taken: list[Delivery] = []
        while len(taken) < job.count:
            delivery = await deliveries.receive(1.0)
            if delivery is not None:
                taken.append(delivery)
                tell("got", delivery.message)
        for delivery in taken[1:]:
            await delivery.ack()
            tell("acked", delivery.message)
        # Whatever the deliveries' acknowledgements still wait for happens while this process waits, too.
        tell("held")
        await asyncio.get_running_loop().create_future()
