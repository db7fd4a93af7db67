"""`Runner`: runs one handler for the deliveries of its group and decides what becomes of each."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from brokerkit.clock import wait
from brokerkit.deadlines import DeadlineTable
from brokerkit.delivery import Delivery
from brokerkit.envelope import expires_of, message_of
from brokerkit.errors import CapabilityNotSupported, DecodeError, Reject, Retry
from brokerkit.events import ErrorHooks
from brokerkit.executors import ThreadExecutor
from brokerkit.follow_ups import FollowUps
from brokerkit.handler import CallPlan
from brokerkit.message import Message
from brokerkit.metrics import Metrics
from brokerkit.process_executor import ProcessExecutor, WorkerCrashed
from brokerkit.results import ConsumeResult, MessageResult, Outcome, outcome_of
from brokerkit.retry import RetryPolicy
from brokerkit.router import HandlerSpec
from brokerkit.spi import Clock, Inbound, Outbound

if TYPE_CHECKING:
    from brokerkit.idempotency import IdempotencyStore
    from brokerkit.subscription import Subscription

__all__ = ["CRASHED", "HandlerFailed", "Runner", "Tools"]

log = logging.getLogger("brokerkit.worker")

#: Messages that a slot handles before it lets the loop turn: a handler that never suspends would starve the rest.
_STREAK = 20

#: Seconds that cancelled handlers have to end before a closing worker leaves them behind.
_CANCEL_PATIENCE = 5.0

#: Stands in the dead letter of a message whose handler took its process down.
CRASHED = "the process died while it handled this message"


class Tools(Protocol):
    """What all runners of one worker share."""

    clock: Clock
    metrics: Metrics
    hooks: ErrorHooks
    deadlines: DeadlineTable
    follow_ups: FollowUps
    store: IdempotencyStore | None
    claim_lease: float
    new_id: Callable[[], str]

    def threads(self, spec: HandlerSpec) -> ThreadExecutor: ...

    def processes(self, spec: HandlerSpec) -> ProcessExecutor: ...


class HandlerFailed(Exception):
    """The handler returned a result that says it failed."""


class Runner:
    """A pool of ``concurrency`` slots, each a task that takes deliveries from one queue.

    A task per message would cost three times as much as the whole core.
    """

    def __init__(self, spec: HandlerSpec, policy: RetryPolicy, tools: Tools, subscription: Subscription) -> None:
        """Resolve the handler's signature; raise `ConfigurationError` when it can never be called."""
        self.spec = spec
        self.policy = policy
        self.name = spec.name
        self.plan = CallPlan(spec.function, spec.name)
        self.queue: deque[Inbound] = deque()
        self.running: set[Inbound] = set()
        #: Sync handlers that outlived their timeout: since when, monotonic.
        self.stuck: dict[Inbound, float] = {}
        self._tools = tools
        self._sub = subscription
        self._function = spec.function
        self._idle: deque[asyncio.Future[None]] = deque()
        self._slots: set[asyncio.Task[None]] = set()
        #: Slots that were cancelled by somebody else than `cancel`: they end when nothing is queued.
        self._leaving: set[asyncio.Task[None] | None] = set()
        self._closing = False
        self._in_process = spec.executor == "process"
        if self._in_process:
            if self.plan.needs_delivery:
                raise spec._wrong("a handler in a process cannot get a Delivery")
            tools.processes(spec).check(spec.function)
        # A handler that takes the payload alone needs no list of arguments.
        self._decode = self.plan.decode if not self.plan.extras else None
        self._warned_reply = False
        self._warned_id = False

    # --- the slots ---

    def submit(self, inbound: Inbound) -> None:
        """Queue a delivery."""
        self.queue.append(inbound)
        while self._idle:
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)
                return
        if len(self._slots) < self.spec.concurrency:
            task = asyncio.get_running_loop().create_task(self._slot(), name=f"brokerkit-handler-{self.name}")
            self._slots.add(task)

    async def _slot(self) -> None:
        try:
            while not self._closing:
                try:
                    await self._serve()
                    return
                except asyncio.CancelledError:
                    if self._closing:
                        raise
                    self._outlive_cancellation()
        finally:
            # Not in a callback, which comes a turn later: until then `submit` would count on this slot.
            task = asyncio.current_task()
            if task is not None:
                self._slots.discard(task)
                self._leaving.discard(task)

    def _outlive_cancellation(self) -> None:
        """Go on in a task that was cancelled, by its handler or by who ends the event loop, until nothing is queued.

        The two look the same.  If the slot stayed for good, ``asyncio.run`` would wait for it for ever; if it ended
        at once, what is queued would wait for the next message.
        """
        if _uncancel():
            self._leaving.add(asyncio.current_task())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        queue, running, sub = self.queue, self.running, self._sub
        streak = 0
        while True:
            while queue:
                inbound = queue.popleft()
                running.add(inbound)
                try:
                    await self._handle(inbound)
                except Exception as error:
                    # Not the handler's failure but ours: the message comes again and the fault is reported.
                    log.exception("brokerkit failed on a message for %s", self.name)
                    await sub.give_back(inbound, error, self.name)
                except asyncio.CancelledError as error:
                    if not self._closing:
                        await sub.give_back(inbound, error, self.name)
                    raise
                finally:
                    running.discard(inbound)
                    sub.after(inbound)
                if self._closing:
                    # The handler swallowed its cancellation and came to its end.
                    return
                streak += 1
                if streak >= _STREAK:
                    streak = 0
                    await asyncio.sleep(0)
            if asyncio.current_task() in self._leaving:
                return
            idle = loop.create_future()
            self._idle.append(idle)
            await idle

    def take_back(self) -> list[Inbound]:
        """Return what is queued and not started, and forget it."""
        waiting = list(self.queue)
        self.queue.clear()
        return waiting

    async def cancel(self) -> None:
        """End the slots; what runs is cancelled and stays unsettled."""
        self._closing = True
        slots = list(self._slots)
        if not slots:
            return
        for slot in slots:
            slot.cancel()
        ended = asyncio.gather(*slots, return_exceptions=True)
        if not await wait(self._tools.clock, ended, _CANCEL_PATIENCE):
            log.error("handler %s ignored its cancellation for %g s and is left behind", self.name, _CANCEL_PATIENCE)

    # --- one delivery ---

    async def _handle(self, inbound: Inbound) -> None:
        sub = self._sub
        consumer = sub.consumer
        if not consumer.driver.live(inbound):
            sub.drop_stale(inbound)
            return
        attempt = 1
        if inbound.headers or inbound.native_attempt != 1 or sub.fate.attempts:
            attempt = sub.fate.attempt(inbound)
            expires = expires_of(inbound)
            if expires is not None and expires <= self._tools.clock.time():
                await consumer.expire(inbound)
                return
            if sub.crashed(inbound) and attempt > self.policy.max_attempts and self.policy.exhausted == "dead":
                await sub.fate.bury(inbound, attempt - 1, "worker-crash", CRASHED, self.name)
                return
        if self.spec.idempotent:
            try:
                key = self._key(inbound)
            except Exception as error:
                # dedup_key is the application's, as the handler is.
                await self.failed(inbound, attempt, error)
                return
            if key is not None:
                await self._handle_once(inbound, attempt, key)
                return
        outcome, delivery = await self.run(inbound, attempt)
        if delivery is not None and delivery.settled:
            self.settled_by_handler(inbound, delivery, outcome)
        elif isinstance(outcome, BaseException):
            await self.failed(inbound, attempt, outcome)
        else:
            if outcome is None and inbound.reply_to is None:
                consumer.ack(inbound)
                self._tools.metrics.count("handled")
            else:
                await self._succeeded(inbound, attempt, outcome)

    async def run(self, inbound: Inbound, attempt: int) -> tuple[Any, Delivery | None]:
        """Run the handler; return its value, or the exception it failed with, and the delivery if there is one."""
        tools = self._tools
        delivery: Delivery | None = None
        monotonic = tools.clock.monotonic
        self._sub.consumer.mark_started(inbound)
        began = monotonic()
        try:
            if self._decode is not None:
                arguments = [self._decode(inbound.body)]
            else:
                now = tools.clock.time()
                delivery = Delivery(inbound, self._sub, attempt, now)
                arguments = self.plan.arguments(inbound, delivery, lambda: message_of(inbound, now, attempt))
            if not self.plan.is_async:
                delivery = delivery or Delivery(inbound, self._sub, attempt, began)
                value = await self._run_sync(arguments, inbound, delivery)
            elif self.spec.timeout is None and not self._in_process:
                value = await self._function(*arguments)
            elif self._in_process:
                value = await self._run_sync(arguments, inbound, delivery)
            else:
                value = await self._run_with_timeout(arguments, self.spec.timeout or 0.0)
        except asyncio.CancelledError as error:
            if self._closing:
                raise
            # The handler cancelled itself: that is its failure, not ours.
            self._outlive_cancellation()
            return error, delivery
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except SystemExit as error:
            # Would end the loop, and with it every other handler.
            return HandlerFailed(f"the handler called sys.exit({error.code!r})"), delivery
        except BaseException as error:
            return error, delivery
        finally:
            tools.metrics.record_latency("handle", monotonic() - began)
        return value, delivery

    async def _run_with_timeout(self, arguments: list[Any], timeout: float) -> Any:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a handler runs in a task")
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        deadline = self._tools.deadlines.add(timeout, expire)
        try:
            value = await self._function(*arguments)
        except asyncio.CancelledError:
            if expired and not self._closing:
                raise TimeoutError(f"the handler ran longer than its timeout of {timeout:g} s") from None
            raise
        finally:
            self._tools.deadlines.remove(deadline)
            if expired:
                # Also where it swallowed the cancellation and finished after all, or made another error of it.
                task.uncancel()
        return value

    async def _run_sync(self, arguments: list[Any], inbound: Inbound, delivery: Delivery | None) -> Any:
        tools, timeout = self._tools, self.spec.timeout
        if self._in_process:
            return await tools.processes(self.spec).submit(self._function, tuple(arguments), timeout)
        future = tools.threads(self.spec).submit(self._function, *arguments)
        if timeout is None:
            return await _result(future)

        def expire() -> None:
            # Nothing can stop a thread: it is told, and the slot stays taken until it returns.
            if delivery is not None:
                delivery.cancelled = True
            self.stuck[inbound] = tools.clock.monotonic()
            log.warning(
                "handler %s runs longer than its timeout of %g s; threads cannot be stopped", self.name, timeout
            )

        deadline = tools.deadlines.add(timeout, expire)
        try:
            value = await _result(future)
        finally:
            tools.deadlines.remove(deadline)
            late = self.stuck.pop(inbound, None) is not None
        if late:
            raise TimeoutError(f"the handler ran longer than its timeout of {timeout:g} s")
        return value

    # --- what becomes of it ---

    async def _succeeded(self, inbound: Inbound, attempt: int, value: Any) -> None:
        consumer = self._sub.consumer
        outbounds = await self.conclude(inbound, value)
        if isinstance(outbounds, BaseException):
            await self.failed(inbound, attempt, outbounds)
            return
        if not outbounds:
            consumer.ack(inbound)
        elif (error := await consumer.try_forward(inbound, outbounds)) is not None:
            if inbound in consumer.unsettled:
                # What the handler wants sent can never be sent.
                await self.failed(inbound, attempt, error)
            return
        self._tools.metrics.count("handled")

    async def conclude(self, inbound: Inbound, value: Any) -> list[Outbound] | BaseException:
        """Return what is to be sent for a handler's value, or the error when the value means that it failed."""
        try:
            outcome = outcome_of(value) if value is not None else Outcome()
            if outcome.failure is not None:
                return HandlerFailed(outcome.failure)
            if outcome.has_reply and inbound.reply_to is None and not isinstance(value, MessageResult | ConsumeResult):
                self._warn_of_reply()
            return await self._tools.follow_ups.of(inbound, outcome)
        except Exception as error:
            return error

    def _warn_of_reply(self) -> None:
        if not self._warned_reply:
            self._warned_reply = True
            log.warning("handler %s returned a value to a message without reply_to; it is ignored", self.name)

    def settled_by_handler(self, inbound: Inbound, delivery: Delivery, outcome: Any) -> None:
        """Leave it at the verb that the handler used, whatever came after it."""
        if isinstance(outcome, BaseException):
            self._tools.metrics.count("failed")
            where = f"{inbound.topic}:{inbound.group}"
            log.warning(
                "handler %s failed after its %s of message %s of %s, which stands: %r",
                self.name,
                delivery.verb,
                inbound.message_id,
                where,
                outcome,
            )

    async def failed(self, inbound: Inbound, attempt: int, error: BaseException) -> bool:
        """Decide about a failed attempt: again later, or a dead letter; return whether it became the latter."""
        self._tools.metrics.count("failed")
        reason = self._fatal(attempt, error)
        if reason is not None:
            why = error.reason if isinstance(error, Reject) else error
            return await self._sub.fate.bury(inbound, attempt, reason, why, self.name)
        delay = self._asked_delay(error)
        if delay is None:
            delay = self.policy.delay(attempt, random.random)
        await self._sub.fate.again(inbound, attempt, max(0.0, delay), error, self.name)
        return False

    def _asked_delay(self, error: BaseException) -> float | None:
        if not isinstance(error, Retry) or error.delay is None:
            return None
        try:
            self._sub.fate.check_delay(error.delay)
        except CapabilityNotSupported as refused:
            log.error("handler %s raised Retry, but %s; the delay of its policy is taken", self.name, refused)
            return None
        return error.delay

    def _fatal(self, attempt: int, error: BaseException) -> str | None:
        """Return the reason for a dead letter, or None when there is another attempt."""
        if isinstance(error, Reject):
            return "rejected"
        if isinstance(error, DecodeError):
            return "undecodable"
        # A handler that cancelled itself is worth another attempt, though CancelledError is no Exception.
        if not isinstance(error, asyncio.CancelledError) and not self.policy.is_retryable(error):
            return "not-retryable"
        if attempt < self.policy.max_attempts or self.policy.exhausted == "requeue":
            return None
        return "worker-crash" if isinstance(error, WorkerCrashed) else "exhausted"

    # --- effectively once ---

    def _key(self, inbound: Inbound) -> str | None:
        """Return the key of the delivery in the idempotency store; None where it has none."""
        identity = inbound.message_id
        if self.spec.dedup_key is not None:
            identity = self.spec.dedup_key(self._message(inbound))
        if identity is None:
            if not self._warned_id:
                self._warned_id = True
                log.warning("handler %s is idempotent, but a message came without an id; give dedup_key=", self.name)
            return None
        return f"{inbound.topic}\x1f{inbound.group}\x1f{identity}"

    def _message(self, inbound: Inbound) -> Message:
        return message_of(inbound, self._tools.clock.time())

    async def _handle_once(self, inbound: Inbound, attempt: int, key: str) -> None:
        # Imported here: an application without idempotency needs neither the stores nor sqlite3.
        from brokerkit.once import handle_once

        await handle_once(self, self._sub, self._tools, inbound, attempt, key)


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


def _uncancel() -> bool:
    """Undo all requests to cancel the current task; return whether there were any."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return False
    while task.uncancel():
        pass
    return True
