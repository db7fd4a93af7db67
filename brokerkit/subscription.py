"""`Subscription`: one group of one topic in a worker: dispatch, order, suspects, drain."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from brokerkit.consumer import Consumer
from brokerkit.disposition import MAX_HELD_DELAY, Disposition
from brokerkit.envelope import SUSPECT, attempt_of
from brokerkit.error_text import clean_text, clean_traceback
from brokerkit.errors import BrokerError, CapabilityNotSupported, ConfigurationError
from brokerkit.intake import Intake
from brokerkit.lanes import Lanes
from brokerkit.names import TagFilter
from brokerkit.retry import RetryPolicy
from brokerkit.router import HandlerSpec
from brokerkit.runner import CRASHED, Runner
from brokerkit.spi import Capability, ConsumerOptions, Inbound, Trials
from brokerkit.suspects import Suspects

if TYPE_CHECKING:
    from brokerkit.worker import Worker

__all__ = ["Subscription"]

log = logging.getLogger("brokerkit.worker")

#: Seconds before a message on which brokerkit failed is tried again.
_FAULT_PAUSE = 1.0


class Subscription:
    """The handlers of one (topic, group), which share one consumer."""

    consumer: Consumer
    fate: Disposition

    def __init__(self, worker: Worker, topic: str, group: str, broadcast: bool) -> None:
        """``broadcast``: every process gets every message."""
        self.topic = topic
        self.group = group
        self.broadcast = broadcast
        self.claims: dict[str, str] = {}
        self.paused = False
        self._worker = worker
        self._runners: dict[str | None, Runner] = {}
        self._lanes: Lanes | None = None
        self._suspects = Suspects(worker.clock, self._dispatch, self._stamp, lambda work: self.fate.spawn(work))
        self._intake = Intake(worker.link, self, admit=self._admit, reopen=self._reopen)
        #: Deliveries that may run again as soon as the handler that nacked them has returned.
        self._resumed: set[Inbound] = set()
        #: What may run, but not now: while an ordered or broadcast group is paused.
        self._aside: list[Inbound] = []
        self._open = False
        self._draining = False

    # --- set-up ---

    def add(self, spec: HandlerSpec, policy: RetryPolicy) -> None:
        """Add a handler; raise `ConfigurationError` where it contradicts the others of the group.

        One that is added to an open group shares its prefetch until the consumer is opened again: opened anew at
        once, all that is under way would run twice.
        """
        if spec.type in self._runners:
            other = self._runners[spec.type].spec
            raise ConfigurationError(
                f"two handlers for topic {self.topic!r}, group {self.group!r}, type {spec.type!r}: "
                f"{other.name} and {spec.name}; give them different types or groups",
                topic=self.topic,
            )
        for other in self.specs:
            differing = "native" if other.native != spec.native else None
            if self.broadcast and _filter_of(other) != _filter_of(spec):
                differing = "tag"
            if differing is not None:
                raise ConfigurationError(
                    f"handlers {other.name} and {spec.name} share a consumer and must agree on {differing}",
                    topic=self.topic,
                )
        if spec.idempotent and self._worker.store is None:
            raise ConfigurationError(
                f"handler {spec.name} is idempotent, but there is no store: set idempotency: {{store: sqlite}} "
                f"in the configuration or give the manager idempotency=",
                topic=self.topic,
            )
        runner = Runner(spec, policy, self._worker, self)
        if self._open:
            self._check_policy(runner)
        self._runners[spec.type] = runner

    @property
    def specs(self) -> list[HandlerSpec]:
        """The handlers' specifications."""
        return [runner.spec for runner in self._runners.values()]

    @property
    def runners(self) -> list[Runner]:
        """The handlers."""
        return list(self._runners.values())

    @property
    def _prefetch(self) -> int:
        return sum(runner.spec.effective_prefetch for runner in self._runners.values())

    @property
    def _tag(self) -> str:
        """The tag filter: that of the group, which is declared; a broadcast has no group, only handlers."""
        if self.broadcast:
            return _filter_of(self.specs[0])
        group = self._worker.link.topology[self.topic].groups.get(self.group)
        return TagFilter(group.tag if group is not None else "*").expression

    async def open(self) -> None:
        """Check what the handlers need, open the consumer and begin to receive."""
        spec = self._worker.link.topology[self.topic].groups.get(self.group)
        ordered = spec is not None and spec.ordered and not self.broadcast
        options = ConsumerOptions(
            topic=self.topic,
            group=self.group,
            prefetch=self._prefetch,
            tag=self._tag,
            ordered=ordered,
            broadcast=self.broadcast,
            native=next(iter(self._runners.values())).spec.native,
        )
        self._lanes = Lanes() if ordered else None
        await self._worker.link.connection()
        # Before the broker is asked for anything.
        for runner in self._runners.values():
            self._check_policy(runner)
        self._adopt(await self._open_consumer(options))
        self._open = True
        if not self.paused:
            self._intake.start()

    def _adopt(self, consumer: Consumer) -> None:
        self.consumer = consumer
        consumer.on_room = self._intake.make_room
        self._suspects.trials = consumer.trials is not None
        worker = self._worker
        self.fate = Disposition(consumer, worker.clock, worker.metrics, worker.hooks, worker.follow_ups, self._resume)
        self.fate.on_sent = self.after

    def _check_policy(self, runner: Runner) -> None:
        offers = self._worker.link.capabilities(self.topic)
        policy = runner.policy
        where = f"handler {runner.name} of topic {self.topic!r}"
        if Capability.DEAD_LETTER not in offers and policy.exhausted == "dead" and not self.broadcast:
            raise CapabilityNotSupported(
                f"{where}: this connection has no dead letters; give "
                f"retry=RetryPolicy(exhausted='requeue') or use another backend",
                topic=self.topic,
            )
        held = self._in_place or Capability.DELAYED_SEND not in offers
        if held and policy.max_delay > MAX_HELD_DELAY and policy.max_attempts > 1:
            raise ConfigurationError(
                f"{where}: retries wait in memory here, at most {MAX_HELD_DELAY:g} s; "
                f"max_delay is {policy.max_delay:g}",
                topic=self.topic,
            )
        if self._lanes is not None and Capability.START_MARKS not in offers and self._worker.store is None:
            log.warning(
                "%s: without an idempotency store a crash is not counted as an attempt in an ordered group", where
            )

    # --- the consumer ---

    async def _reopen(self) -> None:
        """Replace a consumer that is gone, say with its topic; what it delivered cannot be settled any more."""
        old, fate = self.consumer, self.fate
        self._adopt(await self._open_consumer(replace(old.options, prefetch=self._prefetch)))
        # All of these are stale; a lane would wait for ever for one whose turn was forgotten.
        for runner in self._runners.values():
            runner.slots.take_back()
        self._suspects.clear()
        self._resumed.clear()
        self._aside.clear()
        if self._lanes is not None:
            self._lanes = Lanes()
        try:
            await fate.aclose()
        finally:
            await old.aclose()

    async def _open_consumer(self, options: ConsumerOptions) -> Consumer:
        worker = self._worker
        settings = worker.link.topology.settings(self.topic)
        return await Consumer.open(
            worker.link,
            worker.producer,
            worker.metrics,
            options,
            worker.new_id,
            expired=(settings.expired if settings is not None else None) or "drop",
        )

    @property
    def queued(self) -> int:
        """How many deliveries wait for a handler."""
        return sum(len(runner.slots.queue) for runner in self._runners.values())

    @property
    def trouble(self) -> str | None:
        """Why nothing can be received at the moment; None when nothing is wrong, or nothing is wanted."""
        return self._intake.trouble if self.is_receiving else None

    # --- dispatch ---

    def _admit(self, inbound: Inbound) -> None:
        # `redelivered` and `started` are falsy on almost every message.
        if (inbound.redelivered or inbound.started) and self._lanes is None and not self.broadcast:
            if self._suspects.is_suspect(inbound):
                if inbound.message_id is None:
                    # Its copy is known by it.
                    inbound.message_id = self._worker.new_id()
                self._suspects.admit(inbound)
                return
        elif inbound.headers and SUSPECT in inbound.headers and not self._suspects.arrived(inbound):
            return
        if self._lanes is None or self._lanes.enter(inbound):
            self._dispatch(inbound)

    def _dispatch(self, inbound: Inbound) -> None:
        if (self._draining or self.paused) and self._in_place:
            # What is still here at the end goes back with the connection.
            self._aside.append(inbound)
            return
        if self._draining:
            self._give_back_unstarted([inbound])
            return
        runners = self._runners
        runner = runners.get(inbound.type) or runners.get(None)
        if runner is not None:
            runner.slots.submit(inbound)
        else:
            known = ", ".join(sorted(str(type_) for type_ in runners))
            reason = f"no handler for type {inbound.type!r}; handlers exist for {known}"
            self.fate.spawn(self._bury_unhandled(inbound, reason))

    async def _bury_unhandled(self, inbound: Inbound, reason: str) -> None:
        try:
            if self.fate.has_expired(inbound):
                await self.fate.expire(inbound)
                return
            await self.fate.bury(inbound, attempt_of(inbound), "no-handler", reason, None)
        except Exception as error:
            trace = clean_traceback(error)
            log.error("a message of %s:%s without a handler could not be settled\n%s", self.topic, self.group, trace)
            await self.give_back(inbound, error, None)
        finally:
            self.after(inbound)

    def _resume(self, inbound: Inbound) -> None:
        """Run a delivery whose wait in memory is over."""
        if any(inbound in runner.slots.running for runner in self._runners.values()):
            self._resumed.add(inbound)
        else:
            self._dispatch(inbound)

    @property
    def _in_place(self) -> bool:
        return self._lanes is not None or self.broadcast

    def drop_stale(self, inbound: Inbound) -> None:
        """Forget a delivery that was not started and whose connection is gone: it comes again and is no suspect."""
        self._suspects.gave_back(inbound)
        self.consumer.drop_stale(inbound)

    def crashed(self, inbound: Inbound) -> bool:
        """Whether a start of this message certainly ended with its process.

        What a process may have died of is started once more, also after its last attempt: mostly it was innocent.
        """
        # With trials one start is counted that nobody recorded.
        return inbound.crashes > (1 if self._suspects.trials else 0)

    def after(self, inbound: Inbound) -> None:
        """Go on after ``inbound`` left its handler: the next of its lane, the next suspect, more intake."""
        if self._resumed and inbound in self._resumed:
            self._resumed.remove(inbound)
            self._dispatch(inbound)
        elif inbound not in self.fate.waiting:
            if self._lanes is not None:
                following = self._lanes.leave(inbound)
                if following is not None:
                    self._dispatch(following)
            if inbound is self._suspects.running:
                self.fate.spawn(self._end_turn(inbound))
            if self.fate.attempts:
                self.fate.forget(inbound)
        if self._intake.room is not None:
            self._intake.make_room()

    async def _end_turn(self, suspect: Inbound) -> None:
        # The next one may take the process down: what this one achieved must have reached the broker before.
        await self.consumer.settle_all()
        self._suspects.settled(suspect)

    async def begin_trial(self, trials: Trials, inbound: Inbound) -> bool:
        """Record that a suspect starts; return whether it may: if the process died, nobody would know how often."""
        try:
            await trials.begin_trial(inbound)
        except BrokerError as error:
            log.debug("suspect %s of %s:%s is not tried now: %s", inbound.message_id, self.topic, self.group, error)
            # It comes again at once.
            await self._worker.clock.sleep(_FAULT_PAUSE)
            if inbound in self.consumer.unsettled:
                self.consumer.release(inbound)
            return False
        return True

    async def _stamp(self, inbound: Inbound) -> bool:
        """Replace a suspect by its stamped copy; return whether a copy is on its way here."""
        attempt = attempt_of(inbound)
        runner = self._runners.get(inbound.type) or self._runners.get(None)
        limit = runner.policy.max_attempts if runner is not None and runner.policy.exhausted == "dead" else None
        # A stamped copy was surely started when it was lost again; an unstamped message may have been prefetched only.
        if limit is not None and SUSPECT in inbound.headers and attempt >= limit:
            await self.fate.bury(inbound, attempt, "worker-crash", CRASHED, None)
            return False
        copy = self.consumer.settlement.suspect(inbound, attempt=attempt + 1)
        try:
            stamped = await self.consumer.forward(inbound, [copy])
            await self.consumer.settle_all()
            return stamped
        except Exception:
            # Given back as it is: deferred it would come as a message that no process died of.
            if inbound in self.consumer.unsettled:
                self.consumer.release(inbound)
            raise

    async def give_back(self, inbound: Inbound, error: BaseException, handler: str | None) -> None:
        """Have a message on which brokerkit itself failed again, after a while: at once it would fail at once."""
        self.fate.tell("policy", clean_text(error), inbound=inbound, error=error, handler=handler)
        if inbound not in self.consumer.unsettled or inbound in self.fate.waiting:
            return
        try:
            await self.fate.later(inbound, _FAULT_PAUSE)
        except Exception as failure:
            log.error("message %s goes back\n%s", inbound.message_id, clean_traceback(failure))
            if inbound in self.consumer.unsettled:
                self.consumer.release(inbound)

    # --- pause, drain, close ---

    async def pause(self) -> None:
        """Stop receiving; what is queued goes back, what runs goes on.

        In an ordered or broadcast group nothing goes back, as that would lose its order, or be lost: it waits here.
        """
        self.paused = True
        await self._intake.stop()
        if not self.paused:
            return
        if self._in_place:
            self._aside[:0] = self._take_queued()
        else:
            self._return_unstarted()

    def resume(self) -> None:
        """Receive again."""
        if self.paused:
            self.paused = False
            aside, self._aside = self._aside, []
            for inbound in aside:
                self._dispatch(inbound)
            if self._open and not self._draining:
                self._intake.start()

    async def quiesce(self) -> None:
        """Begin the drain: receive nothing more, give back what was not started."""
        self._draining = True
        await self._intake.stop()
        if self._open:
            self._give_back_unstarted(self.fate.hurry())
            self._return_unstarted()

    def _take_queued(self) -> list[Inbound]:
        return [inbound for runner in self._runners.values() for inbound in runner.slots.take_back()]

    def _return_unstarted(self) -> None:
        unstarted = self._take_queued() + self._suspects.take_back() + self._aside
        self._aside.clear()
        for inbound in unstarted:
            self._suspects.forget(inbound)
        if self._in_place:
            # Giving back one by one would reorder on some brokers; dropping the consumer keeps the order.
            return
        self._give_back_unstarted(unstarted + self.consumer.take_held())

    def _give_back_unstarted(self, inbounds: Sequence[Inbound]) -> None:
        for inbound in inbounds:
            self._suspects.gave_back(inbound)
            if inbound in self.consumer.unsettled:
                if SUSPECT in inbound.headers:
                    # Given back as it is, it would be charged for a start, in one process after the other.
                    self.fate.spawn(self._take_back_stamp(inbound))
                else:
                    self.consumer.release(inbound)

    async def _take_back_stamp(self, copy: Inbound) -> None:
        await self.consumer.forward(copy, [self.consumer.settlement.unstamped(copy)])

    @property
    def is_receiving(self) -> bool:
        """Whether it takes messages from the broker now: opened, and neither paused nor ending."""
        return self._open and not self.paused and not self._draining

    @property
    def idle(self) -> bool:
        """Whether no handler runs and no settlement of the core is under way."""
        return not self.fate.busy and not any(runner.slots.running for runner in self._runners.values())

    async def aclose(self) -> None:
        """Cancel what still runs and close the consumer, which gives back what was not settled."""
        await self._intake.stop()
        if not self._open:
            return
        self._open = False
        self._draining = True
        self._return_unstarted()
        for runner in self._runners.values():
            await runner.slots.cancel()
        await self.fate.aclose()
        await self.consumer.aclose()


def _filter_of(spec: HandlerSpec) -> str:
    return TagFilter(spec.tag if spec.tag is not None else "*").expression
