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
from brokerkit.envelope import attempt_of, expires_of, message_of
from brokerkit.error_text import clean_text, clean_traceback, named_text
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
        self._first_failures: dict[Inbound, float] = {}
        #: What waits here to be tried again.
        self.waiting: dict[Inbound, Timer] = {}
        #: Of those, the retries whose copies are sent when their time has come: attempt and instant that failed.
        self._copies: dict[Inbound, tuple[int, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._hurried = False
        #: Called with a delivery whose retry waited here and was then sent.
        self.on_sent: Callable[[Inbound], None] | None = None

    def attempt(self, inbound: Inbound) -> int:
        """Return which start of a handler this would be."""
        return self.attempts.get(inbound) or attempt_of(inbound)

    def forget(self, inbound: Inbound) -> None:
        """Note that ``inbound`` is done with."""
        self.attempts.pop(inbound, None)
        self._first_failures.pop(inbound, None)

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
        *,
        keep: bool = False,
    ) -> bool:
        """Make a dead letter; where there are none, tell the error hook, count, log and drop.

        Return whether that was done; else the message has gone back to the broker.  With ``keep`` raise why it
        could not be done and leave the message unsettled.
        """
        cause = error if isinstance(error, BaseException) else None
        text = clean_text(error) if error is not None else reason
        where = f"{inbound.topic}:{inbound.group}"
        answers = [self._follow_ups.reply(inbound, None, text)] if inbound.reply_to is not None else []
        consumer = self.consumer
        forward = consumer.forward_or_keep if keep else consumer.forward
        if self._buries:
            first = self._first_failures.get(inbound)
            letter = consumer.settlement.dead(inbound, reason=reason, attempt=attempt, error=error, first_failure=first)
            if not await forward(inbound, [letter, *answers]):
                return False
            self._metrics.count("dead")
            log.warning("message %s of %s is a dead letter (%s): %s", inbound.message_id, where, reason, text)
            self.tell("dead", reason, inbound=inbound, attempt=attempt, error=cause, handler=handler)
            return True
        if not answers:
            consumer.ack(inbound)
        elif not await forward(inbound, answers):
            return False
        self._metrics.count("dropped")
        log.error("message %s of %s is dropped (%s): %s", inbound.message_id, where, reason, text)
        self.tell("dropped", reason, inbound=inbound, attempt=attempt, error=cause, handler=handler)
        return True

    def has_expired(self, inbound: Inbound) -> bool:
        """Whether the time to live of ``inbound`` is over."""
        expires = expires_of(inbound) if inbound.headers else None
        return expires is not None and expires <= self._clock.time()

    async def expire(self, inbound: Inbound) -> None:
        """Settle a message whose time to live is over, as its topic's ``expired`` setting says."""
        self._metrics.count("expired")
        if self.consumer.expired == "dead" and self._buries:
            await self.bury(inbound, self.attempt(inbound), "expired", "its time to live is over")
        else:
            self.consumer.ack(inbound)
            self.tell("dropped", "expired", inbound=inbound, attempt=self.attempt(inbound))

    async def again(
        self,
        inbound: Inbound,
        attempt: int,
        delay: float,
        error: BaseException | None = None,
        handler: str | None = None,
    ) -> None:
        """Have the message again as attempt + 1 after ``delay`` seconds."""
        now = self._clock.time()
        if error is not None:
            self.tell("failed", clean_text(error), inbound=inbound, attempt=attempt, error=error, handler=handler)
            where = f"{inbound.topic}:{inbound.group}"
            log.info(
                "message %s of %s failed: %s; again in %.2f s", inbound.message_id, where, named_text(error), delay
            )
        if self.in_place:
            self._metrics.count("retried")
            self.attempts[inbound] = attempt + 1
            self._first_failures.setdefault(inbound, now)
            self._hold(inbound, delay, self._resume)
        elif self.consumer.can_delay:
            await self._send_retry(inbound, attempt, now, delay)
        elif delay > 0 and not self._hurried:
            self._copies[inbound] = (attempt, now)
            self._hold(inbound, delay, self._send_copy)
        else:
            await self._send_retry(inbound, attempt, now, 0.0)

    def _send_copy(self, inbound: Inbound) -> None:
        self.spawn(self._send_waiting(inbound, *self._copies.pop(inbound)))

    async def _send_waiting(self, inbound: Inbound, attempt: int, failed_at: float) -> None:
        await self._send_retry(inbound, attempt, failed_at, 0.0)
        if self.on_sent is not None:
            self.on_sent(inbound)

    def hurry(self) -> list[Inbound]:
        """Let nothing wait here any more; return what can go back as it is.

        The copies of retries are sent at once: one that comes early still counts, a lost wait would not.  What waits
        for its turn in an ordered or broadcast group stays.
        """
        self._hurried = True
        for inbound in list(self._copies):
            self.waiting.pop(inbound).cancel()
            self._send_copy(inbound)
        return [] if self.in_place else self.take_back()

    async def later(self, inbound: Inbound, delay: float) -> None:
        """Have the message again after ``delay`` seconds with the same attempt."""
        self._metrics.count("deferred")
        if self.in_place or not self.consumer.can_delay:
            self.attempts[inbound] = self.attempt(inbound)
            self._hold(inbound, delay, self._resume)
        else:
            due = self._clock.time() + delay
            await self.consumer.forward(inbound, [self.consumer.settlement.deferral(inbound, due=due)])

    async def _send_retry(self, inbound: Inbound, attempt: int, failed_at: float, delay: float) -> None:
        due = self._clock.time() + delay if delay > 0 else None
        copy = self.consumer.settlement.retry(inbound, attempt=attempt + 1, due=due, first_failure=failed_at)
        if await self.consumer.forward(inbound, [copy]):
            self._metrics.count("retried")

    # --- waiting in memory ---

    def _hold(self, inbound: Inbound, delay: float, then: Callable[[Inbound], None]) -> None:
        def ring() -> None:
            del self.waiting[inbound]
            then(inbound)

        self.waiting[inbound] = self._clock.call_later(min(delay, MAX_HELD_DELAY), ring)

    def take_back(self) -> list[Inbound]:
        """Return the deliveries that wait here, and forget them."""
        waiting = list(self.waiting)
        for timer in self.waiting.values():
            timer.cancel()
        self.waiting.clear()
        self._copies.clear()
        self.attempts.clear()
        self._first_failures.clear()
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
            log.error("a settlement of %s:%s failed\n%s", options.topic, options.group, clean_traceback(error))
            self.tell("policy", clean_text(error), error=error)

    async def aclose(self) -> None:
        """Cancel the settlements that are under way."""
        self.take_back()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
