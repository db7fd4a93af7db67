"""Request and reply: any number of requests at once over one inbox."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from brokerkit import codec
from brokerkit.clock import wait
from brokerkit.envelope import REPLY_ERROR
from brokerkit.errors import BrokerError, BrokerUnavailable, Closed, PayloadError, RemoteError, ReplyTimeout
from brokerkit.link import Link
from brokerkit.producer import Producer
from brokerkit.spi import Capability, Inbound, InboxDriver, Inboxes
from brokerkit.topic import Topic

__all__ = ["Requests"]

log = logging.getLogger("brokerkit.requests")

R = TypeVar("R")

#: Replies taken from the inbox at once, and seconds that one look at it waits.
_BATCH = 100
_RECEIVE = 1.0
#: Pause after trouble with the inbox, in seconds.
_PAUSE = 0.5


class Requests:
    """The inbox of one manager, opened by the first request."""

    def __init__(self, link: Link, producer: Producer) -> None:
        self._link = link
        self._producer = producer
        self._inbox: InboxDriver | None = None
        self._waiting: dict[str, asyncio.Future[Inbound]] = {}
        self._task: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[str] | None = None

    async def request(
        self,
        topic: Topic[Any] | str,
        payload: object,
        reply: type[R],
        timeout: float,
        options: Mapping[str, Any],
    ) -> R:
        """Send a request and return its decoded reply.

        Raise `ReplyTimeout` after ``timeout`` seconds and `RemoteError` when the handler failed for good.
        """
        for name in ("reply_to", "correlation_id"):
            if options.get(name) is not None:
                raise PayloadError(f"request sets {name} itself")
        name = topic if isinstance(topic, str) else topic.name
        clock = self._link.clock
        deadline = clock.monotonic() + timeout
        address = await self._address(name, timeout)
        correlation_id = self._producer.new_id()
        future: asyncio.Future[Inbound] = asyncio.get_running_loop().create_future()
        self._waiting[correlation_id] = future
        try:
            # A handler that is too late does not start at all: nobody waits for its answer.
            ttl = {"ttl": timeout} if options.get("ttl") is None else {}
            sent = {**options, **ttl, "reply_to": address, "correlation_id": correlation_id}
            await self._producer.send(topic, payload, sent, deadline - clock.monotonic())
            if not await wait(clock, future, deadline - clock.monotonic()):
                raise ReplyTimeout(f"no reply within {timeout:g} s", topic=name, backend=self._link.backend.name)
            answer = future.result()
        finally:
            # A reply that comes after this is dropped.
            del self._waiting[correlation_id]
            if future.done() and not future.cancelled():
                # Closed while the request was still being sent: seen, so that asyncio does not report it.
                future.exception()
        failure = answer.headers.get(REPLY_ERROR)
        if failure is not None:
            raise RemoteError(failure, topic=name, backend=self._link.backend.name)
        decoded: R = codec.decode(answer.body, reply)
        return decoded

    async def _address(self, topic: str, timeout: float) -> str:
        """Return the address of the inbox, opening it on the first call."""
        if self._inbox is not None:
            return self._inbox.address
        if self._opening is None:
            # Of all who wait for it: one that gives up must not take the inbox from the others.
            self._opening = asyncio.get_running_loop().create_task(self._open(topic), name="brokerkit-open-inbox")
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        if not await wait(self._link.clock, opening, timeout):
            raise BrokerUnavailable(
                f"the inbox for the reply was not open within {timeout:g} s; nothing was sent",
                topic=topic,
                backend=self._link.backend.name,
            )
        if opening.cancelled():
            raise Closed("the manager was closed before the request was sent", topic=topic)
        return opening.result()

    async def _open(self, topic: str) -> str:
        connection = await self._link.connection()
        self._link.require(Capability.INBOX, topic, "request and reply")
        if not isinstance(connection, Inboxes):
            raise TypeError(f"{type(connection).__name__} declares INBOX without open_inbox")
        self._inbox = await connection.open_inbox()
        self._task = asyncio.get_running_loop().create_task(self._collect(self._inbox), name="brokerkit-inbox")
        return self._inbox.address

    def _opened(self, task: asyncio.Task[str]) -> None:
        self._opening = None
        if not task.cancelled():
            # Whoever waited for it got the error; when all of them gave up nobody looks at it.
            task.exception()

    async def _collect(self, inbox: InboxDriver) -> None:
        while True:
            try:
                answers = await inbox.receive(_BATCH, _RECEIVE)
                for answer in answers:
                    future = self._waiting.get(answer.correlation_id or "")
                    if future is not None and not future.done():
                        future.set_result(answer)
                if answers:
                    await inbox.ack(answers)
            except Closed:
                if self._inbox is inbox:
                    # The next request opens another one.
                    self._inbox = None
                return
            except BrokerError as error:
                log.warning("the inbox could not be read: %s", error)
                await self._link.clock.sleep(_PAUSE)
            except Exception:
                # A fault of a driver must not let all requests wait for nothing.
                log.exception("the inbox could not be read")
                await self._link.clock.sleep(_PAUSE)

    async def aclose(self) -> None:
        """Close the inbox; requests that wait fail with `Closed`."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Closed("the manager was closed while a request waited for its reply"))
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._inbox is not None:
            await self._inbox.aclose()
