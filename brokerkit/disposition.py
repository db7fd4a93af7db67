"""`Disposition`: carries out what was decided about a delivery: dead letter, again later, again with no count.

Used by the worker for its handlers and by `Deliveries` for the verbs of an application.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from brokerkit.clock import Clock, Timer
from brokerkit.consumer import Consumer
from brokerkit.envelope import attempt_of, message_of
from brokerkit.errors import CapabilityNotSupported
from brokerkit.events import ErrorEvent, ErrorHooks, EventKind
from brokerkit.follow_ups import FollowUps
from brokerkit.metrics import Metrics
from brokerkit.spi import Inbound

__all__ = ["MAX_HELD_DELAY", "Disposition"]

log = logging.getLogger("brokerkit.worker")

#: Longest delay, in seconds, for which a delivery waits unsettled in memory: in ordered and broadcast groups, and
#: where the connection cannot delay.
MAX_HELD_DELAY = 60.0


class Disposition:
    """What becomes of the deliveries of one consumer that were not simply acknowledged.

    ``in_place``: deliveries that fail wait here, in their order, instead of going back through the broker.
    ``resume`` is called with a delivery whose wait here is over.
    """

    def __init__(
        self,
        consumer: Consumer,
        clock: Clock,
        metrics: Metrics,
        hooks: ErrorHooks,
        follow_ups: FollowUps,
        resume: Callable[[Inbound], None],
    ) -> None:
        self.consumer = consumer
        self.in_place = consumer.options.ordered or consumer.options.broadcast
        self._buries = consumer.can_bury and not consumer.options.broadcast
        self._clock = clock
        self._metrics = metrics
        self._hooks = hooks
        self._follow_ups = follow_ups
        self._resume = resume
        #: Attempts of deliveries that are tried again in place.
        self.attempts: dict[Inbound, int] = {}
        self._timers: dict[Inbound, Timer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def attempt(self, inbound: Inbound) -> int:
        """Return which start of a handler this would be."""
        return self.attempts.get(inbound) or attempt_of(inbound)

    def waits(self, inbound: Inbound) -> bool:
        """Whether ``inbound`` waits here to be tried again."""
        return inbound in self._timers

    @property
    def busy(self) -> bool:
        """Whether a settlement is under way."""
        return bool(self._tasks)

    def check_delay(self, delay: float) -> None:
        """Raise `CapabilityNotSupported` when a retry cannot wait so long."""
        if delay > MAX_HELD_DELAY and (self.in_place or not self.consumer.can_delay):
            raise CapabilityNotSupported(
                f"a retry waits in memory here, at most {MAX_HELD_DELAY:g} s; {delay:g} s were asked for",
                topic=self.consumer.options.topic,
            )

    # --- the decisions ---

    async def bury(
        self,
        inbound: Inbound,
        attempt: int,
        reason: str,
        error: BaseException | str | None,
        handler: str | None = None,
    ) -> None:
        """Make a dead letter; where there are none, tell the error hook, count, log and drop."""
        cause = error if isinstance(error, BaseException) else None
        text = str(error) if error is not None else reason
        where = f"{inbound.topic}:{inbound.group}"
        answers = [self._follow_ups.reply(inbound, None, text)] if inbound.reply_to is not None else []
        consumer = self.consumer
        if self._buries:
            letter = consumer.settlement.dead(inbound, reason=reason, attempt=attempt, error=error)
            if await consumer.forward(inbound, [letter, *answers]):
                self._metrics.count("dead")
                log.warning("message %s of %s is a dead letter (%s): %s", inbound.message_id, where, reason, text)
                self.tell("dead", reason, inbound=inbound, attempt=attempt, error=cause, handler=handler)
            return
        self._metrics.count("dropped")
        log.error("message %s of %s is dropped (%s): %s", inbound.message_id, where, reason, text)
        self.tell("dropped", reason, inbound=inbound, attempt=attempt, error=cause, handler=handler)
        if answers:
            await consumer.forward(inbound, answers)
        else:
            consumer.ack(inbound)

    async def again(
        self,
        inbound: Inbound,
        attempt: int,
        delay: float,
        error: BaseException | None = None,
        handler: str | None = None,
    ) -> None:
        """Have the message again as attempt + 1 after ``delay`` seconds."""
        self._metrics.count("retried")
        if error is not None:
            self.tell("failed", str(error), inbound=inbound, attempt=attempt, error=error, handler=handler)
            where = f"{inbound.topic}:{inbound.group}"
            log.info("message %s of %s failed: %r; again in %.2f s", inbound.message_id, where, error, delay)
        if self.in_place:
            self.attempts[inbound] = attempt + 1
            self._hold(inbound, delay, self._resume)
        elif delay > 0 and not self.consumer.can_delay:
            self._hold(inbound, delay, lambda held: self.spawn(self._send_retry(held, attempt, 0.0)))
        else:
            await self._send_retry(inbound, attempt, delay)

    async def later(self, inbound: Inbound, delay: float) -> None:
        """Have the message again after ``delay`` seconds with the same attempt."""
        self._metrics.count("deferred")
        if self.in_place or not self.consumer.can_delay:
            self.attempts[inbound] = self.attempt(inbound)
            self._hold(inbound, delay, self._resume)
        else:
            due = self._clock.time() + delay
            await self.consumer.forward(inbound, [self.consumer.settlement.deferral(inbound, due=due)])

    async def _send_retry(self, inbound: Inbound, attempt: int, delay: float) -> None:
        now = self._clock.time()
        due = now + delay if delay > 0 else None
        copy = self.consumer.settlement.retry(inbound, attempt=attempt + 1, due=due, first_failure=now)
        await self.consumer.forward(inbound, [copy])

    # --- waiting in memory ---

    def _hold(self, inbound: Inbound, delay: float, then: Callable[[Inbound], None]) -> None:
        def ring() -> None:
            del self._timers[inbound]
            then(inbound)

        self._timers[inbound] = self._clock.call_later(min(delay, MAX_HELD_DELAY), ring)

    def take_back(self) -> list[Inbound]:
        """Return the deliveries that wait here, and forget them."""
        waiting = list(self._timers)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self.attempts.clear()
        return waiting

    # --- telling and doing ---

    def tell(
        self,
        kind: EventKind,
        reason: str,
        *,
        inbound: Inbound | None = None,
        attempt: int | None = None,
        error: BaseException | None = None,
        handler: str | None = None,
    ) -> None:
        """Tell the error hooks."""
        if not self._hooks:
            return
        options = self.consumer.options
        self._hooks.tell(
            ErrorEvent(
                kind=kind,
                topic=options.topic,
                group=options.group,
                reason=reason,
                error=error,
                message=message_of(inbound, None, attempt) if inbound is not None else None,
                attempt=attempt,
                handler=handler,
            )
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a settlement of the core's own; a failure is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            options = self.consumer.options
            log.error("a settlement of %s:%s failed", options.topic, options.group, exc_info=error)
            self.tell("policy", str(error), error=error)

    async def aclose(self) -> None:
        """Cancel the settlements that are under way."""
        self.take_back()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
