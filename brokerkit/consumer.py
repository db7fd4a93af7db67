"""`Consumer`: what every consumer of a group does, whoever handles the deliveries.

It filters what the broker could not, holds back or defers what came early, counts what is unsettled, bundles
acknowledgements and keeps leases alive.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from typing import Any, Literal

from brokerkit.errors import BrokerError, Closed
from brokerkit.link import Link
from brokerkit.metrics import Metrics
from brokerkit.names import TagFilter
from brokerkit.producer import Producer
from brokerkit.settlement import Settlement
from brokerkit.spi import (
    AtomicSettle,
    Capability,
    ConsumerDriver,
    ConsumerOptions,
    Inbound,
    Lease,
    Outbound,
    SettleBarrier,
    StartMarks,
    Trials,
)

__all__ = ["Consumer"]

log = logging.getLogger("brokerkit.consumer")

#: Seconds before its due time up to which an early delivery is held here; what is earlier is sent back.
HOLD = 1.0
#: Share of a lease after which it is extended.
_EXTEND_AT = 1 / 3
#: Pause before settlements that the broker did not take are handed over again, in seconds.
_SETTLE_PAUSE = 0.2
#: Seconds before a message whose copy is refused for good is given back (in an ordered group: tried again):
#: it comes again at once, and would go round as fast as the machine can.
_REFUSED_PAUSE = 1.0


class Consumer:
    """The portable consumer of one (topic, group) on one connection.

    `receive` hands out deliveries; each is settled once by `ack`, `release` or `forward`.
    """

    def __init__(
        self,
        link: Link,
        driver: ConsumerDriver,
        producer: Producer,
        metrics: Metrics,
        options: ConsumerOptions,
        ids: Callable[[], str],
        *,
        expired: Literal["drop", "dead"] = "drop",
    ) -> None:
        self.options = options
        self.driver = driver
        self.settlement = Settlement(driver, producer, link.clock, ids)
        self._clock = link.clock
        self._metrics = metrics
        #: What becomes of messages whose time to live is over.
        self.expired = expired
        self._filter = TagFilter(options.tag)
        self._link = link
        offers = link.capabilities(options.topic)
        if Capability.ATOMIC_SETTLE in offers and isinstance(driver, AtomicSettle):
            self.settlement.use_atomic(driver)
        self._lease = driver if Capability.LEASE in offers and isinstance(driver, Lease) else None
        self._barrier = driver if isinstance(driver, SettleBarrier) else None
        exact = Capability.START_MARKS in offers
        #: Counts starts of suspects; None: the driver does not, or counts all starts.
        self.trials = driver if not exact and isinstance(driver, Trials) else None
        marks = driver if isinstance(driver, StartMarks) and (exact or self.trials is not None) else None
        #: Records that a handler starts on a delivery, where the backend can.
        self.mark_started: Callable[[Inbound], None] = marks.mark_started if marks is not None else _unrecorded
        self.can_delay = Capability.DELAYED_SEND in offers
        self.can_bury = Capability.DEAD_LETTER in offers
        #: Handed out and not settled.
        self.unsettled: set[Inbound] = set()
        self._held: list[tuple[float, int, Inbound]] = []
        self._order = count()
        self._acks: list[Inbound] = []
        self._releases: list[Inbound] = []
        self._handing_over = asyncio.Lock()
        self._under_way = 0
        self._settle_wake: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        #: Called after each settlement, so that a waiting intake can go on.
        self.on_room: Callable[[], None] | None = None

    @classmethod
    async def open(
        cls,
        link: Link,
        producer: Producer,
        metrics: Metrics,
        options: ConsumerOptions,
        ids: Callable[[], str],
        *,
        expired: Literal["drop", "dead"] = "drop",
    ) -> Consumer:
        """Check what the options need, declare the topic, open the driver's consumer and start its upkeep."""
        connection = await link.connection()
        if options.broadcast:
            link.require(Capability.BROADCAST, options.topic, "broadcast=True")
        if options.ordered:
            link.require_order(options.topic, "an ordered group")
        if options.tag != "*":
            link.require(Capability.TAGS, options.topic, f"the tag filter {options.tag!r}")
        await link.declare(options.topic)
        try:
            driver = await connection.open_consumer(options)
        except Exception as exc:
            raise link.wrap(exc, options.topic) from exc
        consumer = cls(link, driver, producer, metrics, options, ids, expired=expired)
        consumer._spawn(consumer._settle_loop(), "settle")
        if consumer._lease is not None:
            consumer._spawn(consumer._extend_loop(consumer._lease), "extend")
        return consumer

    # --- receiving ---

    async def receive(self, max_messages: int, timeout: float) -> list[Inbound]:
        """Return 1..max_messages deliveries that may be handled now, or [] after about ``timeout`` seconds."""
        ready = self._matured()
        if ready:
            return ready
        if self._held:
            timeout = min(timeout, max(0.0, self._held[0][0] - self._clock.time()))
        try:
            received = await self.driver.receive(max_messages, timeout)
        except BrokerError as error:
            error.with_context(topic=self.options.topic, backend=self._link.backend.name)
            raise
        self.unsettled.update(received)
        plain = self._filter.tags is None
        for index, inbound in enumerate(received):
            # Nothing to check on a message without headers and due time in a group without a filter.
            if plain and not inbound.headers and inbound.due is None:
                ready.append(inbound)
                continue
            try:
                if await self._admit(inbound):
                    ready.append(inbound)
            except BaseException:
                # Nobody will see what is not returned.
                for lost in (*ready, *received[index:]):
                    if lost in self.unsettled:
                        self.release(lost)
                raise
        if self._held:
            ready += self._matured()
        return ready

    async def _admit(self, inbound: Inbound) -> bool:
        """Return whether ``inbound`` may be handled now; deal with it otherwise."""
        if not self._filter.matches(inbound.tag):
            self._metrics.count("filtered")
            self.ack(inbound)
            return False
        now = self._clock.time()
        if inbound.due is not None and inbound.due > now:
            # Where nothing can be delayed it waits here, however long: given back it would come again at once.  The
            # broker counts it against the prefetch until then.
            if inbound.due - now < HOLD or not self.can_delay:
                heapq.heappush(self._held, (inbound.due, next(self._order), inbound))
            else:
                self._metrics.count("deferred")
                await self.forward(inbound, [self.settlement.deferral(inbound, due=inbound.due)])
            return False
        return True

    def _matured(self) -> list[Inbound]:
        ready: list[Inbound] = []
        if self._held:
            now = self._clock.time()
            while self._held and self._held[0][0] <= now:
                ready.append(heapq.heappop(self._held)[2])
        return ready

    def take_held(self) -> list[Inbound]:
        """Return the deliveries that came early and wait here, and forget them."""
        held = [inbound for _, _, inbound in sorted(self._held)]
        self._held.clear()
        return held

    # --- settling ---

    def ack(self, inbound: Inbound) -> None:
        """Settle as done.  Bundled with others and handed to the broker at once, without waiting for it."""
        self.unsettled.discard(inbound)
        self._acks.append(inbound)
        if self._settle_wake is not None:
            self._wake_settler()

    def release(self, inbound: Inbound) -> None:
        """Give back, not counted."""
        self.unsettled.discard(inbound)
        self._releases.append(inbound)
        self._metrics.count("released")
        self._wake_settler()

    def drop_stale(self, inbound: Inbound) -> None:
        """Forget a delivery whose token does not hold any more; the broker delivers it again."""
        self.unsettled.discard(inbound)
        self._metrics.count("stale")
        if self.on_room is not None:
            self.on_room()

    async def forward(self, inbound: Inbound, outbounds: Sequence[Outbound]) -> bool:
        """Store copies, then acknowledge; where that cannot be done the original goes back to the broker."""
        return await self.try_forward(inbound, outbounds, insist=True) is None

    async def try_forward(
        self, inbound: Inbound, outbounds: Sequence[Outbound], *, insist: bool = False
    ) -> BrokerError | None:
        """Do as `forward`; but where a copy is refused for good return why, with ``inbound`` still unsettled.

        With ``insist`` that is a failure like any other.  In an ordered group, where what goes back would be
        overtaken, such failures are tried again for as long as the delivery is live.
        """
        while (error := await self.settlement.forward(inbound, outbounds)) is not None:
            live = not isinstance(error, Closed) and self.driver.live(inbound)
            if live and not error.retryable:
                if not insist:
                    return error
                where = f"{self.options.topic}:{self.options.group}"
                log.error("a copy of message %s of %s is refused for good: %s", inbound.message_id, where, error)
            if live and (self.options.ordered or not error.retryable):
                await self._clock.sleep(_REFUSED_PAUSE)
                if self.options.ordered:
                    continue
            self.release(inbound)
            return error
        self.settled(inbound)
        return None

    async def forward_or_keep(self, inbound: Inbound, outbounds: Sequence[Outbound]) -> bool:
        """Do as `forward`, but raise why it cannot be done and leave ``inbound`` unsettled; False when it is stale."""
        error = await self.settlement.forward(inbound, outbounds)
        if error is None:
            self.settled(inbound)
            return True
        if self.driver.live(inbound):
            raise error
        self.release(inbound)
        return False

    def settled(self, inbound: Inbound) -> None:
        """Note that ``inbound`` was settled by `Settlement.forward`."""
        self.unsettled.discard(inbound)
        if self.on_room is not None:
            self.on_room()

    async def extend(self, inbounds: Sequence[Inbound], seconds: float) -> None:
        """Extend leases; no-op on a backend without leases, where a delivery stays ours while we are connected."""
        if self._lease is not None:
            await self._lease.extend(inbounds, seconds)

    async def flush(self) -> None:
        """Hand over all settlements that wait."""
        while self._acks or self._releases or self._under_way:
            if self._closed or not await self._hand_over():
                return

    async def settle_all(self) -> None:
        """Return when the broker has every settlement there is, so that no crash of this process undoes one."""
        await self.flush()
        if self._barrier is not None:
            try:
                await self._barrier.settled()
            except BrokerError as error:
                # The link broke: what had not arrived comes again, as after a crash.
                log.debug("settlements of group %s may be lost: %s", self.options.group, error)

    def _wake_settler(self) -> None:
        wake, self._settle_wake = self._settle_wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def _settle_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not (self._acks or self._releases):
                wake = self._settle_wake = loop.create_future()
                await wake
            try:
                done = await self._hand_over()
            except Exception:
                # A fault of a driver; without this loop nothing would ever be settled again.
                log.exception("settling in group %s failed; it is tried again", self.options.group)
                done = False
            if not done:
                await self._clock.sleep(_SETTLE_PAUSE)

    async def _hand_over(self) -> bool:
        """Hand over what waits; return False when it must be tried again."""
        async with self._handing_over:
            return await self._hand_over_now()

    async def _hand_over_now(self) -> bool:
        acks, self._acks = self._acks, []
        releases, self._releases = self._releases, []
        self._under_way = len(acks) + len(releases)
        try:
            if acks:
                await self.driver.ack(acks)
                acks = []
            if releases:
                await self.driver.release(releases)
                releases = []
        except Closed:
            acks, releases = [], []
        except BrokerError as error:
            if error.retryable:
                return False
            log.error("settlements of group %s were refused (%d): %s", self.options.group, len(acks + releases), error)
            acks, releases = [], []
        finally:
            self._under_way = 0
            # What was not taken waits in front of what came meanwhile.
            self._acks[:0] = acks
            self._releases[:0] = releases
        if self.on_room is not None:
            self.on_room()
        return True

    @property
    def pending(self) -> int:
        """How many deliveries the broker still counts as ours: unsettled ones and settlements not handed over.

        Those held back here do not count: they leave through `receive` only, which nobody would call without room.
        """
        return len(self.unsettled) - len(self._held) + len(self._acks) + len(self._releases) + self._under_way

    # --- upkeep ---

    async def _extend_loop(self, lease: Lease) -> None:
        while True:
            await self._clock.sleep(lease.lease * _EXTEND_AT)
            mine = list(self.unsettled)
            if not mine:
                continue
            try:
                await lease.extend(mine, lease.lease)
            except Closed:
                return
            except BrokerError as error:
                log.warning("leases of group %s could not be extended: %s", self.options.group, error)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], what: str) -> None:
        name = f"brokerkit-{what}-{self.options.topic}:{self.options.group}"
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)

    async def aclose(self) -> None:
        """Hand over what was settled, give back the rest, close the driver.  Idempotent."""
        if self._closed:
            return
        try:
            await self.flush()
        except Exception:
            # What was not handed over comes again, as after a crash.
            log.exception("the last settlements of group %s failed", self.options.group)
        finally:
            self._closed = True
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.driver.aclose()
        self.unsettled.clear()
        self._held.clear()


def _unrecorded(inbound: Inbound) -> None:
    """Do nothing: the backend records no starts."""
