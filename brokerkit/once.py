"""Effectively once: claim, run, complete, send follow-ups, acknowledge (guarantee 3)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from brokerkit.envelope import attempt_of
from brokerkit.error_text import clean_text
from brokerkit.errors import BrokerError
from brokerkit.follow_ups import dump, load
from brokerkit.idempotency import Busy, Done, IdempotencyStore
from brokerkit.spi import Inbound, Outbound, ToInbox

if TYPE_CHECKING:
    from brokerkit.runner import Runner, Tools
    from brokerkit.subscription import Subscription

__all__ = ["handle_once"]

log = logging.getLogger("brokerkit.worker")

#: The loser of a claim looks again after at least and at most so many seconds.
_SOONEST, _LATEST = 0.1, 2.0


async def handle_once(
    runner: Runner, sub: Subscription, tools: Tools, inbound: Inbound, attempt: int, key: str
) -> None:
    """Handle one delivery whose identity is ``key`` so that a completed one never runs again."""
    from brokerkit.runner import CRASHED

    store = tools.store
    if store is None:
        raise RuntimeError("an idempotent handler was started without a store")
    owner = tools.new_id()
    claim = await store.claim(key, owner, tools.claim_lease, attempt)
    if isinstance(claim, Done):
        tools.metrics.count("duplicates")
        caused = load(claim.follow_ups) if not claim.sent or inbound.reply_to is not None else []
        again = _reply_again(tools, inbound, caused)
        await _finish(store, sub, key, owner, inbound, again if claim.sent else [*caused, *again], sent=claim.sent)
        return
    if isinstance(claim, Busy):
        # Somebody handles it right now; the attempt stays the same.
        delay = min(max(claim.until - tools.clock.time(), _SOONEST), _LATEST)
        await sub.fate.later(inbound, delay)
        return
    # The store counted each start, those that a crash ended included: that makes the limit exact.
    attempt = max(attempt, claim.token)
    if attempt > runner.policy.max_attempts and runner.policy.exhausted == "dead":
        buried = await sub.fate.bury(inbound, attempt - 1, "worker-crash", CRASHED, runner.name)
        await _let_go(store, key, owner, forget=buried)
        return
    sub.claims[key] = owner
    try:
        value, delivery = await runner.run(inbound, attempt)
    except BaseException:
        # Cancelled: the attempt did not end and nothing crashed, so it counts as no start; another worker may have
        # it.  Not so while the thread of a sync handler goes on with it: then the claim ends with its lease.
        if not runner.invocation.outlives_cancellation:
            await _let_go(store, key, owner, uncount=True)
        raise
    finally:
        sub.claims.pop(key, None)
    if delivery is not None and delivery.settled:
        runner.settled_by_handler(inbound, delivery, value)
        if delivery.verb == "ack":
            await store.complete(key, owner, None, None)
        else:
            await _let_go(store, key, owner, forget=delivery.verb == "reject")
        return
    outcome = value if isinstance(value, BaseException) else await runner.conclude(inbound, value)
    if isinstance(outcome, BaseException):
        # Free before the next attempt can arrive, which would find it busy.
        await _let_go(store, key, owner)
        if await runner.failed(inbound, attempt, outcome):
            # Redriven, it begins again with attempt 1.
            await _let_go(store, key, owner, forget=True)
        return
    follow_ups = dump(outcome)
    try:
        ours = await store.complete(key, owner, None, follow_ups)
    except BrokerError as error:
        # Not recorded, so not acknowledged: it will run again.
        log.error("the completion of a message for %s could not be recorded: %s", runner.name, clean_text(error))
        await sub.fate.later(inbound, _SOONEST)
        return
    if not ours:
        # The claim ended while the handler ran, and another worker has it now: it settles the message.
        await sub.fate.later(inbound, _SOONEST)
        return
    tools.metrics.count("handled")
    await _finish(store, sub, key, owner, inbound, load(follow_ups))


async def _let_go(
    store: IdempotencyStore, key: str, owner: str, *, forget: bool = False, uncount: bool = False
) -> None:
    """Free the claim, or make the key unknown; a store that fails keeps the claim until its lease ends."""
    try:
        if forget:
            await store.forget(key)
        else:
            await store.abandon(key, owner, uncount=uncount)
    except BrokerError as error:
        log.warning("a claim could not be given up, and ends with its lease: %s", clean_text(error))


def _reply_again(tools: Tools, inbound: Inbound, caused: Sequence[Outbound]) -> list[Outbound]:
    """Return the reply of the completed message, for a request that is not the one that it answered.

    Whoever got no answer in time asks again with the same id, from where it is then.
    """
    if inbound.reply_to is None:
        return []
    asked = (ToInbox(inbound.reply_to), inbound.correlation_id or inbound.message_id)
    for one in caused:
        if isinstance(one.destination, ToInbox) and (one.destination, one.correlation_id) != asked:
            now = tools.clock.time()
            return [
                replace(one, destination=asked[0], correlation_id=asked[1], message_id=tools.new_id(), timestamp=now)
            ]
    return []


async def _finish(
    store: IdempotencyStore,
    sub: Subscription,
    key: str,
    owner: str,
    inbound: Inbound,
    outbounds: Sequence[Outbound],
    *,
    sent: bool = False,
) -> None:
    """Send what a completed message caused, remember that unless it was ``sent`` before, acknowledge."""
    if not outbounds:
        sub.consumer.ack(inbound)
        return
    error = await sub.consumer.try_forward(inbound, outbounds)
    if error is None:
        if not sent:
            await store.mark_sent(key, owner)
    elif inbound in sub.consumer.unsettled:
        # Refused for good.  Its key stays done: redriven, it does not run but sends them again.
        await sub.fate.bury(inbound, attempt_of(inbound), "not-retryable", error)
