"""`Session`: everything of a manager that belongs to one event loop in one process."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from brokerkit.blueprint import Blueprint
from brokerkit.clock import Clock
from brokerkit.consumer import Consumer
from brokerkit.deliveries import Deliveries
from brokerkit.events import ErrorHooks
from brokerkit.follow_ups import FollowUps
from brokerkit.link import Link
from brokerkit.message import MessageIds
from brokerkit.metrics import Metrics
from brokerkit.producer import Producer
from brokerkit.requests import Requests
from brokerkit.router import HandlerSpec
from brokerkit.spi import ConsumerOptions
from brokerkit.worker import Worker

if TYPE_CHECKING:
    from brokerkit.idempotency import IdempotencyStore

__all__ = ["Session"]

log = logging.getLogger("brokerkit")


class Session:
    """Link, producer, requests, open deliveries and the worker.  Made on the running loop, without I/O."""

    def __init__(
        self,
        blueprint: Blueprint,
        clock: Clock,
        ids: MessageIds,
        metrics: Metrics,
        hooks: ErrorHooks,
        store: IdempotencyStore | None,
    ) -> None:
        settings = blueprint.settings
        if blueprint.names_nothing:
            log.warning("no broker is configured: messages go to the file %s", settings.embedded_path())
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self._blueprint = blueprint
        self._clock = clock
        self._ids = ids
        self._metrics = metrics
        self._hooks = hooks
        #: Given by the application, which also closes it.
        self._given_store = store
        # First: a backend that is switched off need not be installed.
        options = blueprint.connect_options(clock)
        self.link = Link(blueprint.backend, options, blueprint.topology)
        self.producer = Producer(
            self.link, ids, metrics, send_timeout=settings.send_timeout, max_message_size=settings.max_message_size
        )
        self.requests = Requests(self.link, self.producer)
        self.follow_ups = FollowUps(self.producer)
        self.worker: Worker | None = None
        self._consuming: set[Deliveries] = set()
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[bool] | None = None
        self._ended = asyncio.Event()

    @property
    def is_gone(self) -> bool:
        """Whether its process or its loop is gone, so that nothing of it can be closed."""
        return self.pid != os.getpid() or self.loop.is_closed()

    def forsake(self) -> None:
        """Let go of a session that `is_gone`."""
        if self.pid != os.getpid():
            # The tasks of the parent's loop end with the session; they have nothing to say in the child.
            self.loop.set_exception_handler(lambda loop, context: None)
        elif self.worker is not None:
            self.worker.abandon()

    # --- deliveries ---

    async def open_consumer(self, options: ConsumerOptions, deliveries: Deliveries) -> Consumer:
        """Open the consumer of some deliveries, which then close with the session."""
        self._consuming.add(deliveries)
        return await Consumer.open(
            self.link,
            self.producer,
            self._metrics,
            options,
            self._ids,
            expired=self._blueprint.expired(options.topic),
        )

    def closed(self, deliveries: Deliveries) -> None:
        """Forget deliveries that were closed."""
        self._consuming.discard(deliveries)

    # --- the worker ---

    async def start(self, specs: list[HandlerSpec]) -> None:
        """Run the handlers; calls at the same time share one start.  No-op when they run."""
        if self._stopping is not None:
            await asyncio.shield(self._stopping)
        if self.worker is not None:
            return
        if self._starting is None:
            self._starting = self.loop.create_task(self._start(specs), name="brokerkit-start")
            self._starting.add_done_callback(self._started)
        await asyncio.shield(self._starting)

    async def _start(self, specs: list[HandlerSpec]) -> None:
        worker = self._new_worker()
        await worker.start(specs)
        self.worker = worker
        self._ended.clear()

    def _new_worker(self) -> Worker:
        given = self._given_store
        return Worker(
            self.link,
            self.producer,
            self._metrics,
            self._hooks,
            policy_of=lambda spec: self._blueprint.retry_policy(spec.topic, spec.retry),
            new_id=self._ids,
            store=given if given is not None else self._blueprint.idempotency_store(self._clock),
            owns_store=given is None,
            claim_lease=self._blueprint.settings.idempotency.lease,
        )

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        if not task.cancelled():
            # Whoever started it got the error; when all of them were cancelled nobody looks at it.
            task.exception()

    async def stop(self, timeout: float) -> bool:
        """Drain; calls at the same time share one drain.  Return whether all running handlers finished."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._stopping is None:
            if self.worker is None:
                return True
            self._stopping = self.loop.create_task(self._stop(self.worker, timeout), name="brokerkit-stop")
        elif timeout <= 0 and self.worker is not None:
            self.worker.hurry()
        return await asyncio.shield(self._stopping)

    async def _stop(self, worker: Worker, timeout: float) -> bool:
        try:
            return await worker.stop(timeout)
        finally:
            self.worker = None
            self._stopping = None
            self._ended.set()

    async def ended(self) -> None:
        """Return when the handlers that run now were stopped."""
        await self._ended.wait()

    # --- the end ---

    async def aclose(self, stop_timeout: float) -> None:
        """Stop the handlers and close everything."""
        await self.stop(stop_timeout)
        for deliveries in list(self._consuming):
            await deliveries.aclose()
        await self.requests.aclose()
        await self.link.aclose()
