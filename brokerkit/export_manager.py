"""`ExportManager`: the calls of the document export service, on every backend."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from brokerkit.background_sends import BackgroundSends
from brokerkit.blocking import Manager
from brokerkit.errors import BrokerError, Closed, ConfigurationError, TopicNotFound
from brokerkit.export import ExportTask, TaskAdapter, TaskHandler, handler_of_tasks, new_task
from brokerkit.export_reports import Look, address, performance
from brokerkit.message import Message
from brokerkit.monitor import Health
from brokerkit.retry import RetryPolicy
from brokerkit.router import Executor, HandlerSpec
from brokerkit.spi import GroupStats
from brokerkit.worker import Worker

__all__ = ["CONSUMER_GROUP", "TOPIC", "ExportManager"]

log = logging.getLogger("brokerkit")

H = TypeVar("H", bound=TaskHandler)

#: Where export tasks go when the configuration names nothing else.
TOPIC = "export_tasks"
CONSUMER_GROUP = "export_consumer_group"

#: Handlers that run at once when neither the call nor ``consumer_thread_max`` says how many.
_CONCURRENCY = 5


class ExportManager(Manager):
    """A `Manager` that also sends and handles export tasks, and reports about them as plain dicts.

    The topic, the group and the tag come from the settings: ``topic`` ("export_tasks"), ``consumer_group``
    ("export_consumer_group"), and ``rocketmq.tag`` where that is the backend.  In the dicts None means that a
    figure is not known, and only that.

    With ``enabled: false`` in the section of the backend sending, connecting and starting raise
    `ConfigurationError`, and the monitoring calls report ``disabled``.
    """

    def __init__(self, url: str | None = None, **options: Any) -> None:
        """Take what `Manager` takes; ``topic`` and ``consumer_group`` may be given as well."""
        super().__init__(url, **options)
        #: The sends of `send_async`; touched by the event loop only.
        self._sending = BackgroundSends()

    # --- configuration ---

    @property
    def topic(self) -> str:
        """The topic of the export tasks."""
        return self.settings.topic or TOPIC

    @property
    def consumer_group(self) -> str:
        """The group that handles them."""
        return self.settings.consumer_group or CONSUMER_GROUP

    @property
    def tag(self) -> str:
        """The subscription of the group: ``*``, a tag, or ``a||b``.  Tasks are sent with the first of its tags."""
        return str(self._key("tag") or "*")

    def _key(self, name: str) -> Any:
        """Return a key of the document export service; they have a meaning with its backend only."""
        settings = self.settings
        return settings.native("rocketmq").get(name) if settings.backend_name == "rocketmq" else None

    def _refuse_disabled(self) -> None:
        settings = self.settings
        if not settings.enabled:
            name = settings.backend_name
            raise ConfigurationError(
                f"export tasks are switched off: {name}.enabled is false in the configuration; set it to true",
                backend=name,
            )

    # --- sending ---

    def send_export_task(self, template_id: str, data: Mapping[str, Any], output_format: str, priority: int = 0) -> str:
        """Send one task and return its id, which is the message's id too, when the broker has stored it.

        output_format: e.g. ``docx`` or ``pdf``; priority: 0 (lowest) to 9, carried with the message and in the task.

        Raise `PayloadError` for arguments that cannot be, before any I/O, and what `send` raises.
        """
        task = new_task(template_id, data, output_format, priority)
        return self.send(self._declared(), self._message(task))

    def send_batch_export_tasks(
        self, template_id: str, data_list: Iterable[Mapping[str, Any]], output_format: str, priority: int = 0
    ) -> list[str]:
        """Send a task for each item of ``data_list``, pipelined; return their ids in the same order.

        One item that cannot be a task fails the call before anything is sent.  When the broker did not take some of
        the tasks the first error is raised, and a note on it lists the ids of those that were stored.
        """
        messages = []
        for index, data in enumerate(data_list):
            try:
                messages.append(self._message(new_task(template_id, data, output_format, priority)))
            except BrokerError as error:
                error.add_note(f"it is item {index} of data_list; nothing was sent")
                raise
        if not messages:
            return []
        outcomes = self.send_many(self._declared(), messages)
        failures = [outcome.error for outcome in outcomes if outcome.error is not None]
        if failures:
            stored = [outcome.message_id for outcome in outcomes if outcome.error is None]
            failures[0].add_note(
                f"{len(stored)} of {len(outcomes)} export tasks were stored: {', '.join(stored) or 'none'}"
            )
            raise failures[0]
        return [outcome.message_id for outcome in outcomes]

    def send_async(
        self, template_id: str, data: Mapping[str, Any], output_format: str, priority: int = 0
    ) -> Future[str]:
        """Send one task in the background; return the future of its id.

        The arguments and the errors are those of `send_export_task`; wrong arguments are raised at once, all that
        happens later is the future's.  It cannot be cancelled.  Its callbacks run on the manager's event loop, where
        they must not block.  `close` waits for the tasks that are under way.
        """
        task = new_task(template_id, data, output_format, priority)
        message, topic = self._message(task), self._declared()
        future: Future[str] = Future()
        future.set_running_or_notify_cancel()

        async def begin() -> None:
            self._sending.begin(self.aio.send(topic, message), future)

        self._gate.call(begin)
        return future

    def _message(self, task: ExportTask) -> Message:
        registered = self._registered
        # What is handled here must reach its handler, also where a test puts another backend below both.
        tag = (registered is not None and registered.tag) or self.tag
        tag = tag.partition("||")[0].strip()
        return Message.of(task, message_id=task.task_id, priority=task.priority, tag=None if tag == "*" else tag)

    def _declared(self) -> str:
        """Enter topic and group, so that the first send declares both; return the topic."""
        self._refuse_disabled()
        topic, group, topology = self.topic, self.consumer_group, self.topology
        if group not in topology.ensure(topic).groups:
            topology.add_group(topic, group, tag=self._subscription_tag())
        return topic

    def _subscription_tag(self) -> str | None:
        return None if self.tag == "*" else self.tag

    # --- handling ---

    def set_message_handler(
        self,
        handler: H,
        *,
        concurrency: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        executor: Executor = "thread",
        idempotent: bool = False,
    ) -> H:
        """Have ``handler`` make the documents; return it, so that this is a decorator too.

        It gets an `ExportTask` and returns `ConsumeResult` or None, or is a coroutine function that does.  An error,
        and ``success=False``, mean again as the retry policy says, then a dead letter; `Reject` means a dead letter
        now, and so does a body that is no task.  Registered before `start` it begins with it; on a started manager
        it begins at once, but where `stop_consuming` was called.

        concurrency: tasks at once (default ``rocketmq.consumer_thread_max``, else 5); the others: see `handler`.
        A second handler replaces the first; raise `ConfigurationError` when that one is running.
        """
        adapter = handler_of_tasks(handler)
        old = self._registered
        if old is not None:
            if isinstance(old.function, TaskAdapter) and old.function.function is handler:
                return handler
            if self._running is not None:
                raise ConfigurationError("another message handler is running; call stop() before it is replaced")
            self.specs.remove(old)
        if concurrency is None:
            concurrency = int(self._key("consumer_thread_max") or _CONCURRENCY)
        self.add_handler(
            self.topic,
            adapter,
            group=self.consumer_group,
            tag=self._subscription_tag(),
            concurrency=concurrency,
            retry=retry,
            timeout=timeout,
            executor=executor,
            idempotent=idempotent,
        )
        return handler

    # --- lifecycle ---

    def connect(self) -> None:
        """Connect now rather than on first use.  Raise what is wrong: `BrokerUnavailable`, `AccessRefused` …"""
        self._refuse_disabled()
        super().connect()

    def disconnect(self) -> None:
        """Do what `close` does; `connect` and `start` connect again."""
        self.close()

    @property
    def is_connected(self) -> Any:
        """Whether the connection was made and not closed: a truth value that, as in the service, may be called."""
        return _Answer(self.aio.is_connected)

    def start(self) -> None:
        """Connect and run the handlers in the background; the message handler may be set later."""
        self.connect()
        super().start()

    def close(self) -> None:
        """Wait for the sends of `send_async`, then do what `Manager.close` does.  Idempotent."""
        if self._gate.running and self._sending:
            try:
                self._gate.call(self._sending.ended)
            except Closed:
                # Another thread was faster; the futures say what became of the sends.
                log.debug("manager %s was closed by another thread", self.name)
        super().close()

    # --- the consumer and the producer by themselves ---

    def start_consuming(self) -> None:
        """Handle export tasks: start the manager if it was not, and undo `stop_consuming`.

        May come before `set_message_handler`: the handler then begins when it is set.
        """
        self.start()
        self._gate.call(self._resume)

    def stop_consuming(self) -> None:
        """Take no more export tasks; running ones finish, waiting ones go back.  Other handlers and sends go on."""
        if self._gate.running and not self._gate.closed:
            self._gate.call(self._pause)

    def restart_consumer(self) -> dict[str, Any]:
        """Drain the consumer of export tasks for at most ``stop_timeout`` seconds and open it anew.

        Return ``{"component": "consumer", "restarted": bool, "consumer_consuming": bool}``; False when no message
        handler is set, so that there is nothing to restart.  A manager that was not started is started, what
        `stop_consuming` stopped consumes again.  Other handlers are left alone.
        """
        self.start()
        restarted = self._gate.call(self._restart_consumer)
        return {"component": "consumer", "restarted": restarted, "consumer_consuming": self._is_consuming}

    def restart_producer(self) -> dict[str, Any]:
        """Send through a new producer from now on; what the old one was asked to send ends unharmed.

        Return ``{"component": "producer", "restarted": True, "producer_started": True}``.
        """
        self.connect()
        self._gate.call(self._restart_producer)
        return {"component": "producer", "restarted": True, "producer_started": True}

    @property
    def _registered(self) -> HandlerSpec | None:
        """What `set_message_handler` registered."""
        return next((spec for spec in self.specs if isinstance(spec.function, TaskAdapter)), None)

    @property
    def _running(self) -> Worker | None:
        session = self.aio._session
        # A forked child has the session of its parent, and runs nothing.
        return session.worker if session is not None and not session.is_gone else None

    @property
    def _is_consuming(self) -> bool:
        worker = self._running
        return worker is not None and worker.is_handling(self.topic, self.consumer_group)

    async def _consuming(self) -> Worker | None:
        """Return the worker when it has a handler of export tasks."""
        worker = self._running
        if worker is not None:
            await worker.added()
        return worker if worker is not None and worker.has(self.topic, self.consumer_group) else None

    async def _resume(self) -> None:
        worker = await self._consuming()
        if worker is not None:
            await worker.resume(self.topic, self.consumer_group)

    async def _pause(self) -> None:
        worker = await self._consuming()
        if worker is not None:
            await worker.pause(self.topic, self.consumer_group)

    async def _restart_consumer(self) -> bool:
        worker = await self._consuming()
        if worker is None:
            return False
        await worker.restart(self.topic, self.consumer_group, self.settings.stop_timeout)
        await worker.resume(self.topic, self.consumer_group)
        return True

    async def _restart_producer(self) -> None:
        await self.aio._use().producer.restart()

    # --- monitoring ---

    def get_queue_status(self) -> dict[str, Any]:
        """Return the state of the topic, of its group and of this process.

        ``topic``, ``consumer_group``, ``health`` {healthy, connection_status ("connected", "disconnected" or
        "disabled"), total_lag}, ``metrics`` {total_messages (all that the group did not finish), active_queues,
        consumer_lag {"0": n, …}, total_lag (ready and unsettled)}, ``connection`` {name_server (the broker's address,
        whatever the backend), connected}, ``components`` {producer_started, consumer_started, consumer_consuming}.

        Neither this nor the other monitoring calls raise for a broker that is down, or create anything.
        """
        return self._look().status()

    def get_health_status(self) -> dict[str, Any]:
        """Return healthy, connection_status, total_lag, topic, consumer_group and last_check.

        These are the ``details`` of the health route.  last_check is ISO 8601, UTC, with milliseconds.
        """
        return self._look().health_status()

    def is_healthy(self) -> bool:
        """Return whether the broker answers and no handler is stuck."""
        return self.settings.enabled and self.monitor.health().healthy

    def get_consumer_lag(self) -> dict[str, Any]:
        """Return topic, consumer_group, consumer_lag {"0": n, …}, total_lag, delay_seconds and last_check.

        consumer_lag counts by queue; a backend that does not tell its queues apart has one, "0".  On RocketMQ with
        several brokers its keys are ``<broker>:<queue>``, and what waits in the retry topic is in total_lag only.
        delay_seconds is how long the oldest ready message has waited.
        """
        return self._look().lag()

    def get_performance_metrics(self) -> dict[str, Any]:
        """Return what this manager did in the last five minutes, or since it was made.

        ``message_throughput`` {produced_per_second, consumed_per_second}, ``latency`` of the handlers {average_ms,
        p95_ms, p99_ms}, ``error_rate`` {send_error_rate, consume_error_rate} (0 to 1; None where nothing was sent or
        handled), ``time_range`` {start, end} (ISO 8601, UTC).  All topics of the manager count.
        """
        return performance(self.monitor.metrics())

    def get_connection_info(self) -> dict[str, Any]:
        """Return backend, name_server, connected, client_id, topic, consumer_group and tag.  No I/O, no secrets."""
        settings = self.settings
        return {
            "backend": settings.backend_name,
            "name_server": address(settings),
            "connected": self.aio.is_connected,
            "client_id": settings.client_id,
            "topic": self.topic,
            "consumer_group": self.consumer_group,
            "tag": self.tag,
        }

    def _look(self) -> Look:
        settings = self.settings
        health, stats = (None, None) if not settings.enabled else self._ask()
        return Look(
            topic=self.topic,
            group=self.consumer_group,
            address=address(settings),
            health=health,
            stats=stats,
            started=self._running is not None,
            consuming=self._is_consuming,
            at=self.clock.time(),
        )

    def _ask(self) -> tuple[Health, GroupStats | None]:
        if not self._gate.closed:
            try:
                return self._gate.call(self._ask_broker)
            except Closed:
                # Closed by another thread meanwhile, which is what the answer then says.
                log.debug("manager %s was closed while it was asked", self.name)
        return self.aio.monitor._closed_health(), None

    async def _ask_broker(self) -> tuple[Health, GroupStats | None]:
        health = await self.aio.monitor.health()
        if health.latency is None:
            return health, None
        topic, group = self.topic, self.consumer_group
        try:
            return health, await self.aio.monitor.stats(topic, group)
        except TopicNotFound:
            return health, None
        except BrokerError as error:
            log.warning("the figures of %s:%s are not known: %s", topic, group, error)
            return health, None


class _Answer(int):
    """A truth value that answers with itself when it is called.

    `Manager` has ``is_connected`` as a property, the document export service as a method.
    """

    def __call__(self) -> bool:
        return bool(self)

    def __repr__(self) -> str:
        return repr(bool(self))

    __str__ = __repr__
