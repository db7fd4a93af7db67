"""`Invocation`: one call of a handler: on the loop, in a thread or in a process, within its timeout."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from brokerkit.blocking_delivery import BlockingDelivery
from brokerkit.clock import Clock
from brokerkit.deadlines import DeadlineTable
from brokerkit.delivery import Delivery, Settler
from brokerkit.envelope import message_of
from brokerkit.errors import Closed, DecodeError
from brokerkit.executors import ThreadExecutor
from brokerkit.handler import CallPlan
from brokerkit.metrics import Metrics
from brokerkit.process_executor import ProcessExecutor
from brokerkit.router import HandlerSpec
from brokerkit.slots import Slots
from brokerkit.spi import Inbound

__all__ = ["Executors", "HandlerFailed", "Invocation"]

log = logging.getLogger("brokerkit.worker")

#: Seconds, real ones, between two looks of a waiting thread at whether its event loop still exists.
_LOOK = 1.0


class Executors(Protocol):
    """Where handlers run, and what limits their time."""

    clock: Clock
    metrics: Metrics
    deadlines: DeadlineTable

    def threads(self, spec: HandlerSpec) -> ThreadExecutor: ...

    def processes(self, spec: HandlerSpec) -> ProcessExecutor: ...


class HandlerFailed(Exception):
    """The handler returned a result that says it failed, or did what counts as failing."""


class Invocation:
    """Calls one handler with the arguments that its signature asks for."""

    def __init__(self, spec: HandlerSpec, executors: Executors, settler: Settler) -> None:
        """Resolve the handler's signature; raise `ConfigurationError` when it can never be called."""
        self.plan = CallPlan(spec.function, spec.name)
        #: Sync handlers that outlived their timeout: since when, monotonic.
        self.stuck: dict[Inbound, float] = {}
        self._spec = spec
        self._executors = executors
        self._monotonic = executors.clock.monotonic
        self._record_latency = executors.metrics.record_latency
        self._settler = settler
        self._function = spec.function
        self._in_process = spec.executor == "process"
        if self._in_process:
            if self.plan.needs_delivery:
                raise spec._wrong("a handler in a process cannot get a Delivery")
            executors.processes(spec).check(spec.function)
        # A handler that takes the payload alone needs no list of arguments.
        self._decode = self.plan.decode if not self.plan.extras else None

    @property
    def outlives_cancellation(self) -> bool:
        """Whether the function may still run after its call was cancelled: nothing can stop a thread."""
        return not self.plan.is_async and not self._in_process

    async def run(self, inbound: Inbound, attempt: int, slots: Slots) -> tuple[Any, Delivery | None]:
        """Run the handler; return its value, or the exception it failed with, and the delivery if it got one.

        Raise CancelledError only when ``slots`` are being closed.
        """
        monotonic = self._monotonic
        delivery: Delivery | None = None
        began = monotonic()
        try:
            if inbound.problem is not None:
                raise DecodeError(inbound.problem)
            if self._decode is not None:
                arguments = [self._decode(inbound.body)]
            else:
                now = self._executors.clock.time()
                delivery = Delivery(inbound, self._settler, attempt, now)
                arguments = self._arguments(inbound, attempt, delivery, now)
            if self._in_process:
                value = await self._run_in_process(arguments)
            elif not self.plan.is_async:
                value = await self._run_in_thread(arguments, inbound, delivery)
            elif self._spec.timeout is None:
                value = await self._function(*arguments)
            else:
                value = await self._run_with_timeout(arguments, self._spec.timeout, slots)
        except asyncio.CancelledError as error:
            if slots.closing:
                raise
            # The handler cancelled itself: that is its failure, not ours.
            slots.outlive_cancellation()
            return error, delivery
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except SystemExit as error:
            # Would end the loop, and with it every other handler.
            return HandlerFailed(f"the handler called sys.exit({error.code!r})"), delivery
        except BaseException as error:
            return error, delivery
        finally:
            ended = monotonic()
            self._record_latency("handle", ended - began, ended)
        return value, delivery

    def _arguments(self, inbound: Inbound, attempt: int, delivery: Delivery, now: float) -> list[Any]:
        given: Delivery | BlockingDelivery = delivery
        if self.plan.needs_delivery and not self.plan.is_async:
            given = BlockingDelivery(delivery, partial(_call, asyncio.get_running_loop()))
        return self.plan.arguments(inbound, given, lambda: message_of(inbound, now, attempt))

    async def _run_with_timeout(self, arguments: list[Any], timeout: float, slots: Slots) -> Any:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a handler runs in a task")
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        deadline = self._executors.deadlines.add(timeout, expire)
        try:
            value = await self._function(*arguments)
        except asyncio.CancelledError:
            if expired and not slots.closing:
                raise TimeoutError(f"the handler ran longer than its timeout of {timeout:g} s") from None
            raise
        finally:
            self._executors.deadlines.remove(deadline)
            if expired:
                # Also where it swallowed the cancellation and finished after all, or made another error of it.
                task.uncancel()
        return value

    async def _run_in_process(self, arguments: list[Any]) -> Any:
        processes = self._executors.processes(self._spec)
        return await _result(processes.submit(self._function, tuple(arguments), self._spec.timeout))

    async def _run_in_thread(self, arguments: list[Any], inbound: Inbound, delivery: Delivery | None) -> Any:
        executors, timeout = self._executors, self._spec.timeout
        future = executors.threads(self._spec).submit(self._function, *arguments)
        if timeout is None:
            return await _result(future)

        def expire() -> None:
            # Nothing can stop a thread: it is told, and the slot stays taken until it returns.
            if delivery is not None:
                delivery.cancelled = True
            self.stuck[inbound] = executors.clock.monotonic()
            log.warning(
                "handler %s runs longer than its timeout of %g s; threads cannot be stopped", self._spec.name, timeout
            )

        deadline = executors.deadlines.add(timeout, expire)
        try:
            value = await _result(future)
        finally:
            executors.deadlines.remove(deadline)
            late = self.stuck.pop(inbound, None) is not None
        if late:
            raise TimeoutError(f"the handler ran longer than its timeout of {timeout:g} s")
        return value


async def _result(future: asyncio.Future[Any]) -> Any:
    """Return what a thread returned."""
    try:
        value = await future
    except KeyboardInterrupt:
        # In a thread it is no Ctrl-C but something that the handler raised; here it would end the loop.
        raise HandlerFailed("the handler raised KeyboardInterrupt") from None
    if inspect.iscoroutine(value):
        value.close()
        raise HandlerFailed("the handler is no `async def` but returned a coroutine, which nothing awaits")
    return value


def _call(loop: asyncio.AbstractEventLoop, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a verb on the worker's loop, from the thread of a handler; raise `Closed` when the loop has ended."""
    gone = "the worker of this delivery has ended; the message comes again"
    if loop.is_closed():
        raise Closed(gone)
    settling = start()
    try:
        future = asyncio.run_coroutine_threadsafe(settling, loop)
    except RuntimeError as exc:
        # The loop was closed just now.
        settling.close()
        raise Closed(gone) from exc
    while True:
        try:
            return future.result(_LOOK)
        except concurrent.futures.CancelledError as exc:
            raise Closed(gone) from exc
        except TimeoutError:
            # Its own, or that of this look.
            if future.done():
                raise
            if loop.is_closed():
                raise Closed(gone) from None
