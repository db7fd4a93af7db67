"""`Runner`: runs one handler for the deliveries of its group and decides what becomes of each."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from brokerkit.delivery import Delivery
from brokerkit.envelope import message_of
from brokerkit.error_text import clean_traceback, named_text
from brokerkit.errors import CapabilityNotSupported, DecodeError, Reject, Retry
from brokerkit.events import ErrorHooks
from brokerkit.follow_ups import FollowUps
from brokerkit.invocation import Executors, HandlerFailed, Invocation
from brokerkit.message import Message
from brokerkit.process_executor import WorkerCrashed
from brokerkit.results import ConsumeResult, MessageResult, Outcome, outcome_of
from brokerkit.retry import RetryPolicy
from brokerkit.router import HandlerSpec
from brokerkit.slots import Slots
from brokerkit.spi import Inbound, Outbound

if TYPE_CHECKING:
    from brokerkit.idempotency import IdempotencyStore
    from brokerkit.subscription import Subscription

__all__ = ["CRASHED", "Runner", "Tools"]

log = logging.getLogger("brokerkit.worker")

#: Stands in the dead letter of a message whose handler took its process down.
CRASHED = "the process died while it handled this message"


class Tools(Executors, Protocol):
    """What all runners of one worker share."""

    hooks: ErrorHooks
    follow_ups: FollowUps
    store: IdempotencyStore | None
    claim_lease: float
    new_id: Callable[[], str]


class Runner:
    """One handler of a group: runs it in its slots and settles what it was given."""

    def __init__(self, spec: HandlerSpec, policy: RetryPolicy, tools: Tools, subscription: Subscription) -> None:
        """Resolve the handler's signature; raise `ConfigurationError` when it can never be called."""
        self.spec = spec
        self.policy = policy
        self.name = spec.name
        self.invocation = Invocation(spec, tools, self)
        self.slots = Slots(
            spec.name,
            spec.concurrency,
            tools.clock,
            work=self._handle,
            failed=self._fault,
            after=subscription.after,
        )
        #: What runs now.
        self.running = self.slots.running
        self._tools = tools
        self._sub = subscription
        self._warned_reply = False
        self._warned_id = False

    async def _fault(self, inbound: Inbound, error: BaseException) -> None:
        """Give back a message on which brokerkit failed, not the handler; the fault is reported."""
        if isinstance(error, Exception):
            log.error("brokerkit failed on a message for %s\n%s", self.name, clean_traceback(error))
        await self._sub.give_back(inbound, error, self.name)

    # --- one delivery ---

    async def _handle(self, inbound: Inbound) -> None:
        sub = self._sub
        consumer = sub.consumer
        if not consumer.driver.live(inbound):
            sub.drop_stale(inbound)
            return
        attempt = 1
        if inbound.headers or inbound.crashes or inbound.native_attempt != 1 or sub.fate.attempts:
            attempt = sub.fate.attempt(inbound)
            if sub.fate.has_expired(inbound):
                await sub.fate.expire(inbound)
                return
            if sub.crashed(inbound) and attempt > self.policy.max_attempts and self.policy.exhausted == "dead":
                await sub.fate.bury(inbound, attempt - 1, "worker-crash", CRASHED, self.name)
                return
            if inbound.started and consumer.trials is not None and not await sub.begin_trial(consumer.trials, inbound):
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

    def run(self, inbound: Inbound, attempt: int) -> Coroutine[Any, Any, tuple[Any, Delivery | None]]:
        """Run the handler; return its value, or the exception it failed with, and the delivery if it got one."""
        self._sub.consumer.mark_started(inbound)
        # Not awaited here: each coroutine in between costs every message.
        return self.invocation.run(inbound, attempt, self.slots)

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
                "handler %s failed after its %s of message %s of %s, which stands: %s",
                self.name,
                delivery.verb,
                inbound.message_id,
                where,
                named_text(outcome),
            )

    async def failed(self, inbound: Inbound, attempt: int, error: BaseException) -> bool:
        """Decide about a failed attempt: again later, or a dead letter; return whether it became the latter."""
        self._tools.metrics.count("failed")
        reason = self._fatal(attempt, error)
        if reason is not None:
            return await self._sub.fate.bury(inbound, attempt, reason, error, self.name)
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

    # --- what a Delivery asks for (brokerkit.delivery.Settler) ---

    async def settle_ack(self, inbound: Inbound) -> None:
        self._sub.consumer.ack(inbound)
        self._tools.metrics.count("handled")

    async def settle_nack(self, inbound: Inbound, attempt: int, delay: float | None) -> None:
        wait = self.policy.delay(attempt, random.random) if delay is None else delay
        self._sub.fate.check_delay(wait)
        await self._sub.fate.again(inbound, attempt, wait, handler=self.name)

    async def settle_reject(self, inbound: Inbound, attempt: int, reason: str) -> None:
        await self._sub.fate.bury(inbound, attempt, "rejected", reason, None, keep=True)

    async def extend(self, inbounds: Sequence[Inbound], seconds: float) -> None:
        await self._sub.consumer.extend(inbounds, seconds)

    def is_live(self, inbound: Inbound) -> bool:
        return self._sub.consumer.driver.live(inbound)

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
        # Imported here: an application without idempotency needs no stores.
        from brokerkit.idempotency import idempotency_key

        return idempotency_key(inbound.topic, inbound.group, identity)

    def _message(self, inbound: Inbound) -> Message:
        return message_of(inbound, self._tools.clock.time())

    async def _handle_once(self, inbound: Inbound, attempt: int, key: str) -> None:
        # Imported here: an application without idempotency needs neither the stores nor sqlite3.
        from brokerkit.once import handle_once

        await handle_once(self, self._sub, self._tools, inbound, attempt, key)
