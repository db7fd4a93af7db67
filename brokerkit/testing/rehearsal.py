"""`RehearsedSession`: what a manager has on one event loop while its time stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from brokerkit.clock import SystemClock, wait
from brokerkit.consumer import Consumer
from brokerkit.deliveries import Deliveries
from brokerkit.follow_ups import FollowUps
from brokerkit.link import Link
from brokerkit.producer import Producer
from brokerkit.requests import Requests
from brokerkit.results import Outcome
from brokerkit.router import HandlerSpec
from brokerkit.session import Session
from brokerkit.spi import ConsumerOptions, Inbound, Outbound
from brokerkit.testing.clock import VirtualClock
from brokerkit.topic import Topic
from brokerkit.worker import Worker

__all__ = ["RehearsedSession"]

T = TypeVar("T")
R = TypeVar("R")

Returned = Callable[[Inbound, Any, Sequence[Outbound]], object]

#: Whether this runs on behalf of a handler.
_IN_HANDLER: ContextVar[bool] = ContextVar("brokerkit_in_handler", default=False)
#: What an async handler awaits may be real: a socket, a thread.  Before virtual time passes it gets this share of it in
#: real time, at most so many seconds in a step, and in a call.
_REAL_SHARE, _STEP_GRACE, _GRACE = 0.05, 0.25, 0.5
#: Real seconds between two looks at what waits for no timer.
_LOOK = 0.005


class RehearsedSession(Session):
    """A session whose handlers wait for `advance`.

    Calls that wait for time themselves and whose caller could not advance meanwhile (`request`, `receive` with a
    timeout, `stop`, closing) let it pass, as far as they need it.
    """

    #: Whether its handlers were started once.
    begun = False

    def __init__(self, virtual: VirtualClock, returned: Returned, *args: Any) -> None:
        """``returned`` is told what a handler returned, and the messages that follow from it."""
        super().__init__(*args)
        self._returned = returned
        self._virtual = virtual
        self.requests = _RehearsedRequests(self.link, self.producer, self._passing)
        self._moving = asyncio.Lock()
        #: How many calls of `advance` wait or run.
        self._advancing = 0
        self._forget: Callable[[], None] | None = virtual.watch(self._handlers_in_threads)

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass and return when nothing is runnable."""
        if _IN_HANDLER.get():
            raise RuntimeError("a handler cannot advance the time: the time waits for the handler")
        self._advancing += 1
        try:
            async with self._moving:
                await self._virtual.advance(seconds)
        finally:
            self._advancing -= 1

    async def _start(self, specs: list[HandlerSpec]) -> None:
        # Inherited by every task and thread of the handlers.
        _IN_HANDLER.set(True)
        self.begun = True
        await super()._start(specs)

    def _new_worker(self) -> Worker:
        worker = super()._new_worker()
        worker.follow_ups = _NotedFollowUps(self.producer, self._returned)
        return worker

    async def open_consumer(self, options: ConsumerOptions, deliveries: Deliveries) -> Consumer:
        deliveries.passing = self._passing
        return await super().open_consumer(options, deliveries)

    async def stop(self, timeout: float) -> bool:
        if timeout <= 0:
            self._unwatch()
        return await self._passing(super().stop(timeout))

    async def aclose(self, stop_timeout: float) -> None:
        try:
            await self._passing(super().aclose(stop_timeout))
        finally:
            self._unwatch()

    def _handlers_in_threads(self) -> bool:
        if asyncio.get_running_loop() is not self.loop or self.worker is None:
            return False
        return self.worker.outstanding > 0

    def _unwatch(self) -> None:
        forget, self._forget = self._forget, None
        if forget is not None:
            forget()

    async def _passing(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns; whenever it waits and nothing is runnable, go to the next instant."""
        if _IN_HANDLER.get():
            return await work
        task = self.loop.create_task(work)
        real = SystemClock()
        grace = _GRACE
        try:
            while not task.done():
                async with self._moving:
                    await self._virtual.advance(0)
                    if task.done():
                        break
                    pause = self._virtual.until_next
                    if pause is not None and grace > 0 and self.worker is not None and self.worker.in_flight:
                        share = min(pause * _REAL_SHARE, _STEP_GRACE, grace)
                        grace -= share
                        if await wait(real, task, share):
                            break
                        await self._virtual.advance(0)
                        pause = self._virtual.until_next
                    if pause is not None and not self._advancing and not task.done():
                        await self._virtual.advance(pause)
                        continue
                await wait(real, task, _LOOK)
        except BaseException:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        return task.result()


class _NotedFollowUps(FollowUps):
    def __init__(self, producer: Producer, returned: Returned) -> None:
        super().__init__(producer)
        self._returned = returned

    async def of(self, inbound: Inbound, outcome: Outcome) -> list[Outbound]:
        outbounds = await super().of(inbound, outcome)
        self._returned(inbound, outcome.reply, outbounds)
        return outbounds


class _RehearsedRequests(Requests):
    def __init__(
        self, link: Link, producer: Producer, passing: Callable[[Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]]
    ) -> None:
        super().__init__(link, producer)
        self._passing = passing

    async def request(
        self, topic: Topic[Any] | str, payload: object, reply: type[R], timeout: float, options: Mapping[str, Any]
    ) -> R:
        answer: R = await self._passing(super().request(topic, payload, reply, timeout, options))
        return answer
