"""`Producer`: checks, declares, sends and, where that may help, sends again with the same id."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from brokerkit import codec
from brokerkit.clock import TimeIsUp, within
from brokerkit.envelope import check_options
from brokerkit.errors import (
    BrokerError,
    BrokerUnavailable,
    MessageTooLarge,
    PayloadError,
    SendRefused,
    SendTimeout,
)
from brokerkit.link import Link
from brokerkit.message import Message
from brokerkit.metrics import Metrics
from brokerkit.spi import Capability, Destination, Outbound, ProducerDriver, ToTopic
from brokerkit.topic import Topic

__all__ = ["Producer", "SendOutcome"]

#: Messages of one `send_many` that are encoded and handed to the driver together.
_CHUNK = 500
#: Chunks of one `send_many` under way at once: one is encoded while the other is stored.
_CHUNKS_IN_FLIGHT = 2
#: Pause before a send is tried again, in seconds: doubled each time, with full jitter.
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """What became of one message of `send_many`: ``error`` is None when it is stored."""

    message_id: str
    error: BrokerError | None = None


class Producer:
    """Sends for one manager.  All coroutines run on the manager's loop."""

    def __init__(
        self,
        link: Link,
        ids: Callable[[], str],
        metrics: Metrics,
        *,
        send_timeout: float = 30.0,
        max_message_size: int | None = None,
    ) -> None:
        self._link = link
        self._clock = link.clock
        self._topology = link.topology
        self._ids = ids
        self._metrics = metrics
        self._send_timeout = send_timeout
        self._max_size = max_message_size
        self._driver: ProducerDriver | None = None
        #: Of ordered topics.
        self._turns: dict[str, asyncio.Lock] = {}
        #: By topic.
        self._destinations: dict[str, ToTopic] = {}
        #: `Topic` objects that the topology knows already.
        self._entered: set[Topic[Any]] = set()

    # --- the public calls ---

    async def send(
        self, topic: Topic[Any] | str, payload: object, options: Mapping[str, Any], timeout: float | None = None
    ) -> str:
        """Send one message; return its id when the broker has taken responsibility for it.

        What may pass is tried again for ``timeout`` seconds, by default for ``send_timeout``.
        """
        name = self._enter(topic)
        try:
            outbound = self.outbound(name, payload, options)
        except BrokerError as error:
            error.with_context(topic=name, backend=self._link.backend.name)
            raise
        patience = self._send_timeout if timeout is None else min(timeout, self._send_timeout)
        if outbound.ordered:
            failure = await self._send_in_turn(name, outbound, patience)
        else:
            failure = await self._send(name, outbound, patience)
        if failure is not None:
            self._metrics.count("send_failed")
            raise failure
        self._metrics.count("sent")
        return outbound.message_id

    async def send_many(
        self, topic: Topic[Any] | str, payloads: Iterable[object], options: Mapping[str, Any]
    ) -> list[SendOutcome]:
        """Send many messages; return one outcome each, in their order.  A bad one fails alone."""
        if options.get("message_id") is not None:
            raise PayloadError("send_many makes an id for each message; message_id cannot be given")
        name = self._enter(topic)
        # Options that cannot work fail the call, not a thousand messages.
        check_options(options, self._clock.time())
        await self._ready(name, None, self._send_timeout)
        if self._topology.ensure(name).ordered:
            async with self._turn(name):
                return await self._send_chunks(name, payloads, options, 1)
        return await self._send_chunks(name, payloads, options, _CHUNKS_IN_FLIGHT)

    async def _send_chunks(
        self, name: str, payloads: Iterable[object], options: Mapping[str, Any], in_flight: int
    ) -> list[SendOutcome]:
        outcomes: list[SendOutcome] = []
        under_way: list[tuple[list[SendOutcome | Outbound], asyncio.Task[list[BrokerError | None]]]] = []

        async def finish_oldest() -> None:
            parts, task = under_way.pop(0)
            errors = iter(await task)
            outcomes.extend(
                SendOutcome(part.message_id, next(errors)) if isinstance(part, Outbound) else part for part in parts
            )

        loop = asyncio.get_running_loop()
        try:
            for chunk in _chunks(payloads, _CHUNK):
                parts = [self._try_outbound(name, payload, options) for payload in chunk]
                good = [part for part in parts if isinstance(part, Outbound)]
                if len(under_way) == in_flight:
                    await finish_oldest()
                under_way.append((parts, loop.create_task(self._deliver(good, self._send_timeout))))
            while under_way:
                await finish_oldest()
        finally:
            # Left when the payloads or a send raised.
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        failed = sum(outcome.error is not None for outcome in outcomes)
        self._metrics.count("sent", len(outcomes) - failed)
        if failed:
            self._metrics.count("send_failed", failed)
        return outcomes

    async def deliver(self, outbounds: Sequence[Outbound], timeout: float | None = None) -> list[BrokerError | None]:
        """Send what the core itself sends (retries, dead letters, follow-ups, replies); return the outcomes.

        Nothing is declared: a destination the core sends to exists, or the outcome says that it does not.
        """
        timeout = self._send_timeout if timeout is None else timeout
        ordered = {one.destination.topic for one in outbounds if one.ordered and isinstance(one.destination, ToTopic)}
        async with AsyncExitStack() as turns:
            for topic in sorted(ordered):
                await turns.enter_async_context(self._turn(topic))
            return await self._deliver(outbounds, timeout)

    async def prepare(self, topic: str, outbound: Outbound) -> None:
        """Connect and declare ``topic`` without sending; raise `CapabilityNotSupported` as a send of it would."""
        await self._ready(topic, outbound, self._send_timeout)

    async def restart(self) -> None:
        """Send through a new driver from now on; what the old one was asked to send ends with it, unharmed."""
        self._driver, old = await self._link.replace_producer()
        if old is not None:
            await old.aclose()

    def new_id(self) -> str:
        """Return an id for one more message."""
        return self._ids()

    def now(self) -> float:
        """Return the wall-clock time."""
        return self._clock.time()

    def know(self, topic: Topic[Any]) -> None:
        """Enter a topic that a message brought along, so that the next send to it declares its groups.  No I/O."""
        self._topology.add_topic(topic)

    # --- making the outbound ---

    def outbound(self, name: str, payload: object, options: Mapping[str, Any]) -> Outbound:
        """Return the checked and encoded message.  Raise `PayloadError` or `MessageTooLarge`; no I/O."""
        if isinstance(payload, Message):
            return self._of_message(name, payload, options)
        body, content_type = codec.encode(payload)
        if self._max_size is not None:
            self._check_size(name, len(body))
        now = self._clock.time()
        spec = self._topology.ensure(name)
        destination = self._destinations.get(name) or self._destinations.setdefault(name, ToTopic(name))
        if not options:
            outbound = Outbound(destination, body, self._ids())
            outbound.content_type = content_type
            outbound.timestamp = now
            outbound.ordered = spec.ordered
            return outbound
        headers, due = check_options(options, now)
        if due is not None and spec.ordered:
            raise PayloadError("a delayed message has no place in the order of an ordered topic", topic=name)
        return Outbound(
            destination=destination,
            body=body,
            message_id=options.get("message_id") or self._ids(),
            headers=headers,
            due=due,
            key=options.get("key"),
            tag=options.get("tag"),
            type=options.get("type"),
            content_type=content_type,
            priority=options.get("priority", 0),
            timestamp=now,
            correlation_id=options.get("correlation_id"),
            reply_to=options.get("reply_to"),
            ordered=spec.ordered,
            native=options.get("native"),
        )

    def _of_message(self, name: str, message: Message, options: Mapping[str, Any]) -> Outbound:
        """Merge a `Message` with the options of the call; the options win."""
        given: dict[str, Any] = {
            "key": message.key,
            "tag": message.tag,
            "type": message.type,
            "headers": message.headers or None,
            "ttl": message.ttl,
            "priority": message.priority,
            "message_id": message.message_id,
            "correlation_id": message.correlation_id,
            "reply_to": message.reply_to,
            "parent": message.parent_id,
        }
        if options.get("delay") is None and options.get("due") is None:
            given["due"] = message.due
        given = {key: value for key, value in given.items() if value is not None}
        outbound = self.outbound(name, message.body, {**given, **options})
        outbound.content_type = message.content_type or outbound.content_type
        return outbound

    def _try_outbound(self, name: str, payload: object, options: Mapping[str, Any]) -> SendOutcome | Outbound:
        try:
            outbound = self.outbound(name, payload, options)
            self._check_offers(name, outbound)
        except BrokerError as error:
            error.with_context(topic=name, backend=self._link.backend.name)
            return SendOutcome(getattr(payload, "message_id", None) or self._ids(), error)
        return outbound

    def _check_size(self, name: str, size: int) -> None:
        if self._max_size is not None and size > self._max_size:
            raise MessageTooLarge(
                f"the body has {size} bytes, the configured max_message_size is {self._max_size}", topic=name
            )

    def _check_offers(self, name: str, outbound: Outbound) -> None:
        if outbound.due is not None:
            self._link.require(Capability.DELAYED_SEND, name, "a delayed send")

    # --- sending ---

    def _enter(self, topic: Topic[Any] | str) -> str:
        if isinstance(topic, str):
            self._topology.ensure(topic)
            return topic
        if topic not in self._entered:
            self._topology.add_topic(topic)
            self._entered.add(topic)
        return topic.name

    async def _prepare(self, name: str, outbound: Outbound | None) -> ProducerDriver:
        await self._link.connection()
        if outbound is not None:
            # Before the topic is declared: what is not offered is refused without any I/O.
            self._check_offers(name, outbound)
        if not self._link.is_declared(name):
            await self._link.declare(name)
        # Last, so that nothing comes between it and the send: `restart` may replace it at any await.
        driver = self._driver = await self._link.producer()
        return driver

    async def _ready(self, name: str, outbound: Outbound | None, timeout: float) -> ProducerDriver:
        """Connect and declare; what may pass is tried again for ``timeout`` seconds, and cut short at their end."""
        deadline = self._clock.monotonic() + timeout
        pause = _FIRST_PAUSE
        failure: BrokerError | None = None
        while True:
            try:
                return await within(self._clock, self._prepare(name, outbound), deadline - self._clock.monotonic())
            except TimeIsUp:
                raise failure or BrokerUnavailable(
                    f"the broker was not ready within {timeout:g} s; nothing was sent",
                    topic=name,
                    backend=self._link.backend.name,
                ) from None
            except BrokerError as error:
                failure = error
                wait = random.uniform(pause / 2, pause)
                if not error.retryable or self._clock.monotonic() + wait >= deadline:
                    raise
            pause = min(pause * 2, _LONGEST_PAUSE)
            await self._clock.sleep(wait)

    async def _send(self, name: str, outbound: Outbound, patience: float) -> BrokerError | None:
        driver = self._driver
        deadline = self._clock.monotonic() + patience
        if driver is None or self._link.closed or not self._link.is_declared(name):
            driver = await self._ready(name, outbound, patience)
            patience = deadline - self._clock.monotonic()
        else:
            self._check_offers(name, outbound)
        failure = (await self._attempt(driver, (outbound,), patience))[0]
        return failure and (await self._insist([outbound], [failure], deadline))[0]

    def _attempt(
        self,
        driver: ProducerDriver,
        outbounds: Sequence[Outbound],
        seconds: float,
        before: Sequence[BrokerError | None] | None = None,
    ) -> Coroutine[Any, Any, Sequence[BrokerError | None]]:
        """Hand the messages to the driver once; after ``seconds`` without an answer the outcome is unknown.

        ``before``: the outcomes of the attempt before, which say more than that this one took too long.
        """
        if seconds >= self._link.attempt_timeout:
            # The driver ends in time by itself, and knows better what became of them.  Not awaited here: each
            # coroutine in between costs every message.
            return driver.send(outbounds)
        return self._cut_attempt(driver, outbounds, seconds, before)

    async def _cut_attempt(
        self,
        driver: ProducerDriver,
        outbounds: Sequence[Outbound],
        seconds: float,
        before: Sequence[BrokerError | None] | None,
    ) -> Sequence[BrokerError | None]:
        try:
            return await within(self._clock, driver.send(outbounds), seconds)
        except TimeIsUp:
            return [_unanswered(error) for error in before or [None] * len(outbounds)]

    async def _send_in_turn(self, name: str, outbound: Outbound, patience: float) -> BrokerError | None:
        deadline = self._clock.monotonic() + patience
        async with self._turn(name):
            left = deadline - self._clock.monotonic()
            if left > 0:
                return await self._send(name, outbound, left)
        error = SendRefused("not sent: what was sent before it on this ordered topic took all of its time")
        return self._with_context(outbound, error)

    def _turn(self, name: str) -> asyncio.Lock:
        """Return the lock of an ordered topic: sends get it in the order of their calls and keep it until the end."""
        return self._turns.setdefault(name, asyncio.Lock())

    async def _deliver(self, outbounds: Sequence[Outbound], timeout: float) -> list[BrokerError | None]:
        if not outbounds:
            return []
        deadline = self._clock.monotonic() + timeout
        driver = self._driver or await self._link.producer()
        errors = list(await self._attempt(driver, outbounds, timeout))
        if any(errors):
            errors = await self._insist(outbounds, errors, deadline)
        return errors

    async def _insist(
        self, outbounds: Sequence[Outbound], errors: list[BrokerError | None], deadline: float
    ) -> list[BrokerError | None]:
        """Send again, with the same ids, what failed with a retryable error, until ``deadline``, monotonic."""
        pause = _FIRST_PAUSE
        while True:
            again = _to_send_again(outbounds, errors)
            wait = random.uniform(pause / 2, pause)
            if not again or self._clock.monotonic() + wait >= deadline:
                break
            pause = min(pause * 2, _LONGEST_PAUSE)
            await self._clock.sleep(wait)
            driver = await self._link.producer()
            left = deadline - self._clock.monotonic()
            answers = await self._attempt(driver, [outbounds[i] for i in again], left, [errors[i] for i in again])
            for index, error in zip(again, answers, strict=True):
                errors[index] = error
        return [self._with_context(outbound, error) for outbound, error in zip(outbounds, errors, strict=True)]

    def _with_context(self, outbound: Outbound, error: BrokerError | None) -> BrokerError | None:
        if error is None:
            return None
        topic = getattr(outbound.destination, "topic", None)
        return error.with_context(topic=topic, backend=self._link.backend.name)


def _unanswered(before: BrokerError | None) -> SendTimeout:
    hint = f"; the attempt before it: {before.message}" if before is not None else ""
    error = SendTimeout(f"its time was over before the broker answered; whether it is stored is unknown{hint}")
    error.__cause__ = before
    return error


def _chunks(items: Iterable[object], size: int) -> Iterable[list[object]]:
    chunk: list[object] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _to_send_again(outbounds: Sequence[Outbound], errors: Sequence[BrokerError | None]) -> list[int]:
    """Return which messages to send again: what may pass, and where order counts all that came after it.

    That stores again what was stored already, behind what it would else have overtaken for good.
    """
    again = []
    broken: set[tuple[Destination, str | None]] = set()
    for index, (outbound, error) in enumerate(zip(outbounds, errors, strict=True)):
        if error is not None:
            if not error.retryable:
                continue
            if outbound.ordered:
                broken.add((outbound.destination, outbound.key))
        elif not outbound.ordered or (outbound.destination, outbound.key) not in broken:
            continue
        again.append(index)
    return again
