"""The consumer drivers of the embedded backend: of a group, of an inbox and of dead letters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from brokerkit.embedded.store import Claimant, Store
from brokerkit.errors import BrokerUnavailable, Closed
from brokerkit.spi import Clock, Inbound, Outbound, wait

__all__ = ["EmbeddedConsumer", "EmbeddedDeadLetters", "EmbeddedInbox"]

_log = logging.getLogger("brokerkit.embedded")

#: A store in memory answers without suspending; after so many claims the loop gets its turn.
_YIELD_EVERY = 16
#: Another process may write to a file without a wake-up reaching this one: seconds between two looks.
_SLOW_POLL = 1.0


class EmbeddedConsumer:
    """A `brokerkit.spi.ConsumerDriver` on a `Store`, with LEASE, ATOMIC_SETTLE and START_MARKS.

    ``tags`` is what a broadcast consumer wants of its private group; None: everything.
    """

    def __init__(
        self,
        store: Store,
        claimant: Claimant,
        clock: Clock,
        *,
        prefetch: int,
        on_close: Callable[[EmbeddedConsumer], None],
        tags: frozenset[str] | None = None,
    ) -> None:
        self.lease = claimant.lease
        #: How many settlements came with a token that no longer held.
        self.stale = 0
        self._store = store
        self._claimant = claimant
        self._clock = clock
        self._prefetch = prefetch
        self._on_close = on_close
        self._tags = tags
        #: When the lease of each unsettled delivery ends, by token.
        self._held: dict[object, float] = {}
        self._closed = False
        self._receiving = False
        self._signalled = False
        self._waiter: asyncio.Future[None] | None = None
        self._claims = 0
        self._claiming: asyncio.Task[list[Inbound]] | None = None
        self._unsubscribe = store.subscribe(claimant.topic, claimant.group, self._wake)

    # --- receiving ----------------------------------------------------------------------------------------------

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        if self._closed:
            raise self._closed_error()
        if self._receiving:
            raise RuntimeError("receive() is already under way on this consumer: one call at a time")
        self._receiving = True
        try:
            self._claims += 1
            if not self._claims % _YIELD_EVERY:
                # Before the claim, where a cancellation has nothing to lose.
                await self._clock.sleep(0)
            return await self._receive(max_messages, timeout)
        finally:
            self._receiving = False

    async def _receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        started = self._clock.monotonic()
        while not self._closed:
            self._signalled = False
            limit = min(max_messages, self._room())
            if limit > 0:
                messages = await self._claim(limit)
                if messages:
                    return messages
            left = timeout - (self._clock.monotonic() - started)
            if left <= 0:
                break
            if not self._signalled:
                await self._sleep(min(left, self._pause()))
        if self._closed:
            raise self._closed_error()
        return ()

    async def _claim(self, limit: int) -> Sequence[Inbound]:
        now = self._clock.time()
        if self._store.persistent:
            messages = await self._claim_shielded(limit)
        else:
            messages = await self._take(limit)
        if self._closed:
            # Closed meanwhile: `aclose` has given them back or will.
            return ()
        end = now + self.lease
        for message in messages:
            self._held[message.token] = end
        if self._tags is not None and messages:
            messages = await self._filtered(messages)
        return messages

    async def _take(self, limit: int) -> list[Inbound]:
        return await self._store.claim(self._claimant, limit)

    async def _claim_shielded(self, limit: int) -> list[Inbound]:
        """Claim so that a cancellation during the transaction gives back what it claimed."""
        task = self._claiming = asyncio.ensure_future(self._take(limit))
        try:
            messages = await asyncio.shield(task)
        except asyncio.CancelledError:
            # The transaction cannot be called back, so its end is awaited, however often we are cancelled.
            while not task.done():
                try:
                    await asyncio.wait((task,))
                except asyncio.CancelledError:
                    continue
            if not task.cancelled() and task.exception() is None and task.result():
                await self._store.release(self._claimant, task.result())
            raise
        finally:
            self._claiming = None
        return messages

    async def _filtered(self, messages: Sequence[Inbound]) -> list[Inbound]:
        tags = self._tags or frozenset()
        unwanted = [message for message in messages if message.tag not in tags]
        if unwanted:
            await self.ack(unwanted)
        return [message for message in messages if message.tag in tags]

    def _room(self) -> int:
        held = self._held
        if len(held) >= self._prefetch:
            now = self._clock.time()
            for token in [token for token, end in held.items() if end <= now]:
                # The lease ended: the group has the message again and this consumer has the place.
                del held[token]
        return self._prefetch - len(held)

    def _pause(self) -> float:
        """Return how long nothing can happen without a wake-up."""
        now = self._clock.time()
        if len(self._held) >= self._prefetch:
            return max(0.0, min(self._held.values()) - now)
        # A lease that somebody else begins while we wait ends no earlier than this.
        pause = _SLOW_POLL if self._store.persistent else self.lease
        event = self._store.next_event(self._claimant.topic, self._claimant.group)
        return pause if event is None else max(0.0, min(pause, event - now))

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0:
            # What is due now needs a turn of the loop all the same, or two consumers could spin on it.
            await self._clock.sleep(0)
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await wait(self._clock, self._waiter, seconds)
        finally:
            self._waiter = None

    def _wake(self) -> None:
        self._signalled = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _closed_error(self) -> Closed:
        return Closed("the consumer is closed", topic=self._claimant.topic, backend="embedded")

    # --- settling -----------------------------------------------------------------------------------------------

    async def ack(self, messages: Sequence[Inbound]) -> None:
        known = self._known(messages)
        if known:
            self.stale += await self._store.ack(self._claimant, known)
            self._forget(known)

    async def release(self, messages: Sequence[Inbound]) -> None:
        known = self._known(messages)
        if known:
            self.stale += await self._store.release(self._claimant, known)
            self._forget(known)

    def live(self, message: Inbound) -> bool:
        end = self._held.get(message.token)
        return end is not None and self._clock.time() < end

    async def extend(self, messages: Sequence[Inbound], seconds: float) -> None:
        known = self._known(messages)
        if known:
            until = self._clock.time() + seconds
            self.stale += await self._store.extend(self._claimant, known, until)
            for message in known:
                if message.token in self._held:
                    self._held[message.token] = until

    async def settle_with(self, message: Inbound, outbounds: Sequence[Outbound]) -> None:
        known = self._known((message,))
        if known:
            await self._store.settle_with(self._claimant, message, outbounds)
            self._forget(known)

    def mark_started(self, message: Inbound) -> None:
        if message.token in self._held:
            self._store.mark_started(self._claimant, message)

    def _known(self, messages: Sequence[Inbound]) -> Sequence[Inbound]:
        """Return the messages whose tokens this consumer holds; count the others as stale."""
        held = self._held
        for message in messages:
            if message.token not in held:
                known = [message for message in messages if message.token in held]
                self.stale += len(messages) - len(known)
                return known
        return messages

    def _forget(self, messages: Sequence[Inbound]) -> None:
        held = self._held
        full = len(held) >= self._prefetch
        for message in messages:
            held.pop(message.token, None)
        if full:
            self._wake()

    # --- closing ------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._held.clear()
        self._unsubscribe()
        self._wake()
        try:
            if self._claiming is not None:
                await asyncio.wait((self._claiming,))
            await self._store.detach(self._claimant.owner)
        except BrokerUnavailable as error:
            _log.warning("a consumer of %s gave nothing back, its leases end by time: %s", self._claimant.topic, error)
        finally:
            self._on_close(self)


class EmbeddedInbox(EmbeddedConsumer):
    """A `brokerkit.spi.InboxDriver`: the private group of one address."""

    #: What goes into `Outbound.reply_to` and `ToInbox`.
    address: str = ""


class EmbeddedDeadLetters(EmbeddedConsumer):
    """The consumer that `brokerkit.spi.DeadLetters.take_dead` returns."""

    #: The message ids that are asked for; None: all.
    ids: frozenset[str] | None = None

    async def _take(self, limit: int) -> list[Inbound]:
        return await self._store.claim_dead(self._claimant, limit, self.ids)

    async def _receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        limit = min(max_messages, self._room())
        messages = await self._claim(limit) if limit > 0 else ()
        if self._closed:
            raise self._closed_error()
        return messages or ()

    async def release(self, messages: Sequence[Inbound]) -> None:
        # Given back when this consumer closes: it would receive them again and again otherwise.
        self._known(messages)
