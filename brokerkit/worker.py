"""`Worker`: the running handlers of one manager."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

from brokerkit.clock import Clock
from brokerkit.deadlines import DeadlineTable
from brokerkit.errors import BrokerError, Closed, ConfigurationError
from brokerkit.events import ErrorEvent, ErrorHooks
from brokerkit.executors import ThreadExecutor
from brokerkit.follow_ups import FollowUps
from brokerkit.idempotency import IdempotencyStore
from brokerkit.link import Link
from brokerkit.metrics import Metrics
from brokerkit.process_executor import ProcessExecutor
from brokerkit.producer import Producer
from brokerkit.retry import RetryPolicy
from brokerkit.router import HandlerSpec
from brokerkit.subscription import Subscription
from brokerkit.watchdog import LoopWatchdog

__all__ = ["Worker"]

#: Topic, group, and whether it is a broadcast: that has nothing in common with a group of the same name.
_Key = tuple[str, str, bool]

log = logging.getLogger("brokerkit.worker")

#: Seconds between two looks at whether a drain is done.
_DRAIN_LOOK = 0.02
#: Share of a claim's lease after which it is renewed.
_RENEW_AT = 1 / 3


class Worker:
    """Opens a subscription per (topic, group), runs the handlers, drains and closes."""

    def __init__(
        self,
        link: Link,
        producer: Producer,
        metrics: Metrics,
        hooks: ErrorHooks,
        *,
        policy_of: Callable[[HandlerSpec], RetryPolicy],
        new_id: Callable[[], str],
        store: IdempotencyStore | None = None,
        owns_store: bool = True,
        claim_lease: float = 30.0,
    ) -> None:
        self.link = link
        self.clock: Clock = link.clock
        self.producer = producer
        self.metrics = metrics
        self.hooks = hooks
        self.new_id = new_id
        self.store = store
        #: Whether nobody else uses the store, so that it closes with the worker.
        self._owns_store = owns_store
        self.claim_lease = claim_lease
        self.deadlines = DeadlineTable(link.clock)
        self.follow_ups = FollowUps(producer)
        self._policy_of = policy_of
        self._subscriptions: dict[_Key, Subscription] = {}
        self._threads: dict[int, ThreadExecutor] = {}
        self._processes: dict[int, ProcessExecutor] = {}
        self._watchdog = LoopWatchdog(self._handler_codes)
        self._renewing: asyncio.Task[None] | None = None
        self._adding: set[asyncio.Task[Any]] = set()
        self._hurried = False
        self._ending = False

    # --- start ---

    async def start(self, specs: Iterable[HandlerSpec]) -> None:
        """Check all handlers, then open their consumers; on failure nothing is left open."""
        if self.store is not None:
            await self.store.open()
        try:
            groups: dict[_Key, list[HandlerSpec]] = {}
            for spec in specs:
                groups.setdefault(_key(spec), []).append(spec)
            fresh = [self._subscription(key, members) for key, members in groups.items()]
            for subscription in fresh:
                await subscription.open()
        except BaseException:
            await self.close()
            raise
        self._watchdog.start()
        if self.store is not None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew_claims(), name="brokerkit-claims")

    def spawn_add(self, spec: HandlerSpec) -> None:
        """Start one more handler in the background; trouble is logged and told to the error hooks."""
        if self._ending:
            return
        task = asyncio.get_running_loop().create_task(self._add(spec))
        self._adding.add(task)
        task.add_done_callback(self._adding.discard)

    async def _add(self, spec: HandlerSpec) -> None:
        key = _key(spec)
        running = self._subscriptions.get(key)
        try:
            if running is not None:
                running.add(spec, self._policy_of(spec))
            else:
                await self._subscription(key, [spec]).open()
        except BrokerError as error:
            if running is None:
                self._subscriptions.pop(key, None)
            log.error("handler %s could not be started: %s", spec.name, error)
            self.hooks.tell(ErrorEvent(kind="receive", topic=spec.topic, group=key[1], reason=str(error), error=error))

    def _subscription(self, key: _Key, specs: list[HandlerSpec]) -> Subscription:
        subscription = Subscription(self, *key)
        for spec in specs:
            subscription.add(spec, self._policy_of(spec))
        self._subscriptions[key] = subscription
        return subscription

    # --- while it runs ---

    def threads(self, spec: HandlerSpec) -> ThreadExecutor:
        """Return the threads of one sync handler, made on first use."""
        found = self._threads.get(id(spec))
        if found is None:
            found = self._threads[id(spec)] = ThreadExecutor(spec.concurrency, f"brokerkit-{spec.name}")
        return found

    def processes(self, spec: HandlerSpec) -> ProcessExecutor:
        """Return the processes of one handler with ``executor="process"``, made on first use."""
        found = self._processes.get(id(spec))
        if found is None:
            found = self._processes[id(spec)] = ProcessExecutor(spec.concurrency, clock=self.clock)
        return found

    async def pause(self, topic: str, group: str | None) -> None:
        """Stop handing out messages of a topic, or of one of its groups, until `resume` or the end of the worker."""
        for key in self._matching(topic, group):
            await self._subscriptions[key].pause()

    async def resume(self, topic: str, group: str | None) -> None:
        """Undo `pause`."""
        for key in self._matching(topic, group):
            self._subscriptions[key].resume()

    def is_handling(self, topic: str, group: str) -> bool:
        """Whether messages of the group are taken from the broker here, now."""
        return any(sub.is_receiving for key, sub in self._subscriptions.items() if key[:2] == (topic, group))

    def has(self, topic: str, group: str) -> bool:
        """Whether there is a handler for the group, paused or not."""
        return any(key[:2] == (topic, group) for key in self._subscriptions)

    async def added(self) -> None:
        """Return when the handlers that were added so far run, or have told why they do not."""
        await asyncio.gather(*self._adding, return_exceptions=True)

    async def restart(self, topic: str, group: str, timeout: float) -> bool:
        """Drain one group for at most ``timeout`` seconds and open its consumer anew; return whether all finished.

        The other groups, and a pause of this one, stay.  Raise `ConfigurationError` when no handler runs for it,
        `Closed` when the worker is stopped meanwhile, and what opening a consumer raises: then nothing is received
        until the next restart.
        """
        task = asyncio.get_running_loop().create_task(self._restart(topic, group, timeout, set(self._adding)))
        self._adding.add(task)
        task.add_done_callback(self._adding.discard)
        await asyncio.wait((task,))
        if task.cancelled():
            raise Closed("the handlers were stopped while a consumer was restarted", topic=topic)
        return task.result()

    async def _restart(self, topic: str, group: str, timeout: float, before: set[asyncio.Task[Any]]) -> bool:
        await asyncio.gather(*before, return_exceptions=True)
        keys = self._matching(topic, group)
        olds = [self._subscriptions[key] for key in keys]
        await asyncio.gather(*(old.quiesce() for old in olds))
        done = await self._idle(olds, timeout)
        for key, old in zip(keys, olds, strict=True):
            await old.aclose()
            new = self._subscription(key, old.specs)
            new.paused = old.paused
            try:
                await new.open()
            except BaseException:
                # Closed as it is, it still knows the handlers for the next try.
                self._subscriptions[key] = old
                raise
        return done

    def _matching(self, topic: str, group: str | None) -> list[_Key]:
        found = [key for key in self._subscriptions if key[0] == topic and group in (None, key[1])]
        if not found:
            what = f"group {group!r} of topic {topic!r}" if group else f"topic {topic!r}"
            raise ConfigurationError(f"no handler runs for {what}", topic=topic)
        return found

    @property
    def in_flight(self) -> int:
        """How many handlers run right now."""
        return sum(len(runner.running) for sub in self._subscriptions.values() for runner in sub.runners)

    @property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """The topic and the group of each consumer, in order."""
        return tuple(sorted({(sub.topic, sub.group) for sub in list(self._subscriptions.values())}))

    def at_work(self) -> list[tuple[str, int]]:
        """Return, for each message in work, its handler and a number that no other one has meanwhile."""
        return [
            (runner.name, id(inbound))
            for sub in list(self._subscriptions.values())
            for runner in sub.runners
            for inbound in list(runner.slots.running)
        ]

    @property
    def outstanding(self) -> int:
        """How many handlers run in threads and processes, those included whose result has not reached the loop."""
        threads = sum(one.outstanding for one in self._threads.values())
        return threads + sum(one.outstanding for one in self._processes.values())

    def stuck(self) -> dict[str, float]:
        """Return the handlers that outlived their timeout: name -> seconds since."""
        now = self.clock.monotonic()
        return {
            runner.name: now - min(runner.invocation.stuck.values())
            for sub in self._subscriptions.values()
            for runner in sub.runners
            if runner.invocation.stuck
        }

    def troubles(self) -> list[str]:
        """Return a text for each group from which nothing can be received at the moment."""
        return [
            f"receiving from {sub.topic}:{sub.group} fails: {sub.trouble}"
            for sub in self._subscriptions.values()
            if sub.trouble is not None
        ]

    def _handler_codes(self) -> list[tuple[str, CodeType]]:
        codes = []
        for sub in list(self._subscriptions.values()):
            for runner in sub.runners:
                code = getattr(runner.spec.function, "__code__", None)
                if isinstance(code, CodeType):
                    codes.append((runner.name, code))
        return codes

    async def _renew_claims(self) -> None:
        store = self.store
        while store is not None:
            await self.clock.sleep(self.claim_lease * _RENEW_AT)
            for sub in self._subscriptions.values():
                for key, owner in list(sub.claims.items()):
                    try:
                        await store.renew([key], owner, self.claim_lease)
                    except BrokerError as error:
                        log.warning("the claim on a message of %s could not be renewed: %s", sub.topic, error)

    # --- stop ---

    async def stop(self, timeout: float) -> bool:
        """Drain: what runs may finish within ``timeout`` seconds, the rest goes back.  Return whether all finished."""
        await self._stop_adding()
        subscriptions = list(self._subscriptions.values())
        await asyncio.gather(*(sub.quiesce() for sub in subscriptions))
        done = await self._idle(subscriptions, timeout)
        await self.close()
        return done

    async def _idle(self, subscriptions: list[Subscription], timeout: float) -> bool:
        deadline = self.clock.monotonic() + timeout
        while not all(sub.idle for sub in subscriptions):
            left = deadline - self.clock.monotonic()
            if left <= 0 or self._hurried:
                limit = "before they were to stop at once" if self._hurried else f"within {timeout:g} s"
                log.warning("%d in work did not finish %s: back to the group", self.in_flight, limit)
                return False
            await self.clock.sleep(min(_DRAIN_LOOK, left))
        return True

    def hurry(self) -> None:
        """End a drain that is under way, or the next one, at once.  Safe in any thread."""
        self._hurried = True

    def abandon(self) -> None:
        """End the threads and processes of a worker whose event loop was closed under it."""
        self._watchdog.stop()
        for threads in self._threads.values():
            threads.close(wait=False)
        for processes in self._processes.values():
            processes.close(wait=False)

    async def _stop_adding(self) -> None:
        self._ending = True
        for adding in self._adding:
            adding.cancel()
        await asyncio.gather(*self._adding, return_exceptions=True)

    async def close(self) -> None:
        """End everything now; what is unsettled goes back."""
        await self._stop_adding()
        subscriptions, self._subscriptions = list(self._subscriptions.values()), {}
        for error in await asyncio.gather(*(sub.aclose() for sub in subscriptions), return_exceptions=True):
            if isinstance(error, Exception):
                # The others, and the threads below, must end all the same.
                log.error("a group could not be closed", exc_info=error)
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None
        self._watchdog.stop()
        self.deadlines.close()
        for threads in self._threads.values():
            threads.close(wait=False)
        # Not by `close`, which waits for the children's ends and would hold up the loop.
        await asyncio.gather(*(processes.aclose(0) for processes in self._processes.values()))
        if self.store is not None and self._owns_store:
            await self.store.aclose()


def _key(spec: HandlerSpec) -> _Key:
    return spec.topic, spec.group or "", spec.broadcast
