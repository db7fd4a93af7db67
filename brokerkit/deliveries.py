"""`Deliveries`: what ``manager.consume(…)`` gives: the deliveries of one group, one by one."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from brokerkit.clock import Clock
from brokerkit.consumer import Consumer
from brokerkit.delivery import Delivery
from brokerkit.disposition import Disposition
from brokerkit.errors import Closed
from brokerkit.events import ErrorHooks
from brokerkit.follow_ups import FollowUps
from brokerkit.lanes import Lanes
from brokerkit.metrics import Metrics
from brokerkit.retry import RetryPolicy
from brokerkit.spi import Inbound

__all__ = ["Deliveries"]

#: Seconds that one receive of the driver waits.
_RECEIVE = 1.0


class Deliveries:
    """An async context manager and iterator of `Delivery`.

    In an ordered group the next message of a key comes only after the one before it was settled.
    """

    def __init__(
        self,
        open_consumer: Callable[[], Awaitable[Consumer]],
        clock: Clock,
        metrics: Metrics,
        hooks: ErrorHooks,
        follow_ups: Callable[[], FollowUps],
        policy: RetryPolicy,
        on_close: Callable[[], object],
    ) -> None:
        self._open_consumer = open_consumer
        self._clock = clock
        self._metrics = metrics
        self._hooks = hooks
        self._follow_ups = follow_ups
        self._policy = policy
        self._on_close = on_close
        #: Awaits what waits for time; set where time stands still (`brokerkit.testing.in_memory`).
        self.passing: Callable[[Coroutine[Any, Any, Delivery | None]], Awaitable[Delivery | None]] | None = None
        self._consumer: Consumer | None = None
        self._fate: Disposition | None = None
        self._lanes: Lanes | None = None
        self._ready: deque[Inbound] = deque()
        self._pump: asyncio.Task[list[Inbound]] | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._opening = asyncio.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _start(self) -> tuple[Consumer, Disposition]:
        if self._closed:
            raise Closed("these deliveries were closed")
        if self._consumer is None or self._fate is None:
            async with self._opening:
                await self._open()
        return self._parts()

    async def _open(self) -> None:
        if self._consumer is not None:
            return
        consumer = await self._open_consumer()
        if self._closed:
            await consumer.aclose()
            raise Closed("these deliveries were closed while they were opened")
        consumer.on_room = self._ring
        self._lanes = Lanes() if consumer.options.ordered else None
        self._consumer = consumer
        self._fate = Disposition(consumer, self._clock, self._metrics, self._hooks, self._follow_ups(), self._resume)
        self._fate.on_sent = self._leave

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        delivery = await self.receive()
        if delivery is None:
            raise StopAsyncIteration
        return delivery

    async def receive(self, timeout: float | None = None) -> Delivery | None:
        """Return the next delivery, or None after ``timeout`` seconds; without a timeout wait for ever.

        Raise `Closed` when the deliveries are closed meanwhile.  If cancelled, nothing is lost.  Several tasks may
        wait at once: each delivery goes to one of them.
        """
        consumer, fate = await self._start()
        if timeout is not None and self.passing is not None:
            return await self.passing(self._receive(consumer, fate, timeout))
        return await self._receive(consumer, fate, timeout)

    async def _receive(self, consumer: Consumer, fate: Disposition, timeout: float | None) -> Delivery | None:
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        while True:
            if self._ready:
                inbound = self._ready.popleft()
                if not consumer.driver.live(inbound):
                    consumer.drop_stale(inbound)
                    self._leave(inbound)
                    continue
                if fate.has_expired(inbound):
                    await self._expire(fate, inbound)
                    continue
                consumer.mark_started(inbound)
                return Delivery(inbound, self, fate.attempt(inbound), self._clock.time())
            left = None if deadline is None else deadline - self._clock.monotonic()
            if left is not None and left <= 0 and timeout:
                return None
            await self._fill(consumer, left)
            if timeout == 0 and not self._ready:
                return None

    async def _fill(self, consumer: Consumer, left: float | None) -> None:
        """Wait until something may be ready or ``left`` seconds passed."""
        room = consumer.options.prefetch - consumer.pending
        if self._pump is None and room > 0:
            # The pump outlives a cancelled or timed-out receive, so that what it received is not lost.
            self._pump = asyncio.get_running_loop().create_task(consumer.receive(room, _RECEIVE))
            self._pump.add_done_callback(self._ring)
        if self._pump is None or not self._pump.done():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            timer = self._clock.call_later(max(left, 0.01), self._ring) if left is not None else None
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
                if timer is not None:
                    timer.cancel()
        if self._closed:
            raise Closed("these deliveries were closed while one was waited for")
        if self._pump is not None and self._pump.done():
            pump, self._pump = self._pump, None
            for inbound in pump.result():
                if self._lanes is None or self._lanes.enter(inbound):
                    self._ready.append(inbound)
            # Others wait for what this one received, or must see that the pump stands still.
            self._ring()

    async def _expire(self, fate: Disposition, inbound: Inbound) -> None:
        try:
            await fate.expire(inbound)
        except BaseException:
            self._ready.appendleft(inbound)
            raise
        self._leave(inbound)

    def _ring(self, _: object = None) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _resume(self, inbound: Inbound) -> None:
        if not self._closed:
            self._ready.append(inbound)
            self._ring()

    def _leave(self, inbound: Inbound) -> None:
        if self._fate is not None and inbound in self._fate.waiting:
            return
        if self._fate is not None:
            self._fate.forget(inbound)
        if self._lanes is not None:
            following = self._lanes.leave(inbound)
            if following is not None:
                self._ready.append(following)
        self._ring()

    async def aclose(self) -> None:
        """Close the consumer; what was not settled goes back.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._on_close()
        self._ring()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        if self._fate is not None:
            await self._fate.aclose()
        if self._consumer is not None:
            await self._consumer.aclose()

    # --- brokerkit.delivery.Settler ---

    async def settle_ack(self, inbound: Inbound) -> None:
        consumer, _ = self._parts()
        consumer.ack(inbound)
        self._metrics.count("handled")
        self._leave(inbound)

    async def settle_nack(self, inbound: Inbound, attempt: int, delay: float | None) -> None:
        _, fate = self._parts()
        wait = self._policy.delay(attempt, random.random) if delay is None else delay
        fate.check_delay(wait)
        if not self._closed:
            await fate.again(inbound, attempt, wait)
        self._leave(inbound)

    async def settle_reject(self, inbound: Inbound, attempt: int, reason: str) -> None:
        _, fate = self._parts()
        await fate.bury(inbound, attempt, "rejected", reason, keep=True)
        self._leave(inbound)

    async def extend(self, inbounds: Sequence[Inbound], seconds: float) -> None:
        consumer, _ = self._parts()
        await consumer.extend(inbounds, seconds)

    def is_live(self, inbound: Inbound) -> bool:
        return not self._closed and self._consumer is not None and self._consumer.driver.live(inbound)

    def _parts(self) -> tuple[Consumer, Disposition]:
        if self._consumer is None or self._fate is None:
            raise Closed("these deliveries were never opened")
        return self._consumer, self._fate
