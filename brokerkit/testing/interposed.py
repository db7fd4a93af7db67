"""`InterposedBackend`: a layer around any backend that counts calls, refuses or stalls sends, and goes down.

It is what the embedded harness makes its faults with: there is no server that could refuse, hang or restart.  Its
connections behave as a connection to a server does: while the broker is down sends fail with `BrokerUnavailable`
and receives find nothing, afterwards they go on by themselves, and deliveries of before are stale.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from brokerkit.errors import BrokerError, BrokerUnavailable, Closed, SendRefused, SendTimeout
from brokerkit.spi import (
    AtomicSettle,
    Backend,
    Browse,
    Capability,
    Connection,
    ConnectOptions,
    ConsumerDriver,
    ConsumerOptions,
    DeadLetters,
    Destination,
    GroupSpec,
    GroupStats,
    Inbound,
    InboxDriver,
    Inboxes,
    Lease,
    Manage,
    Outbound,
    ProducerDriver,
    Purge,
    StartMarks,
    Stats,
    TopicSpec,
    wait,
)

__all__ = ["InterposedBackend"]

T = TypeVar("T")


class InterposedBackend:
    """Passes everything on to ``inner``, but for what it is told to do otherwise.

    All its methods are called on the loop of the connections.  The layers have the methods of every optional
    protocol; `Connection.capabilities` says which of them work, as it does on the inner backend.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name = inner.name
        self.schemes = inner.schemes
        self.capabilities = inner.capabilities
        #: SPI method to the number of its calls, of all connections.
        self.calls: Counter[str] = Counter()
        self._refused: Counter[Destination] = Counter()
        self._stalled: asyncio.Future[None] | None = None
        self._down = False
        self._connections: set[_Connection] = set()

    async def connect(self, options: ConnectOptions) -> Connection:
        self.calls["connect"] += 1
        self.check_up()
        connection = _Connection(self, options, await self.inner.connect(options))
        self._connections.add(connection)
        return connection

    def map_error(self, exc: BaseException) -> BrokerError | None:
        return self.inner.map_error(exc)

    # --- what it is told ---

    @asynccontextmanager
    async def refusing(self, destination: Destination) -> AsyncIterator[None]:
        """Answer sends to ``destination`` with `SendRefused` while the context is open."""
        self._refused[destination] += 1
        try:
            yield
        finally:
            self._refused[destination] -= 1

    @asynccontextmanager
    async def stalling(self) -> AsyncIterator[None]:
        """Give sends no answer while the context is open; nothing of them is stored."""
        stalled = self._stalled = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            self._stalled = None
            stalled.set_result(None)

    @asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """Be down while the context is open: every link is lost on entry and made again on exit."""
        await self.stop()
        try:
            yield
        finally:
            await self.start()

    async def stop(self) -> None:
        """Lose every link."""
        self._down = True
        for connection in tuple(self._connections):
            await connection.lose()

    async def start(self) -> None:
        """Make every link again."""
        for connection in tuple(self._connections):
            await connection.restore()
        self._down = False
        for connection in tuple(self._connections):
            connection.announce()

    # --- for the layers ---

    @property
    def down(self) -> bool:
        return self._down

    @property
    def stalled(self) -> asyncio.Future[None] | None:
        return self._stalled

    def check_up(self) -> None:
        if self._down:
            raise BrokerUnavailable("the broker is down", backend=self.name)

    def refuses(self, outbound: Outbound) -> bool:
        return self._refused[outbound.destination] > 0

    def refusal(self, outbound: Outbound) -> BrokerError:
        return SendRefused(f"the broker refused the message for {outbound.destination}", backend=self.name)

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)


class _Connection:
    """One connection, and what was opened on it."""

    def __init__(self, backend: InterposedBackend, options: ConnectOptions, inner: Connection) -> None:
        self.backend = backend
        self.options = options
        self.inner = inner
        self._members: set[_Producer | _Consumer] = set()
        self.closed = False

    async def lose(self) -> None:
        await self.inner.aclose()

    async def restore(self) -> None:
        if not self.closed:
            self.inner = await self.backend.inner.connect(self.options)
            for member in tuple(self._members):
                await member.restore()

    def announce(self) -> None:
        for member in tuple(self._members):
            member.announce()

    def forget(self, member: _Producer | _Consumer) -> None:
        self._members.discard(member)

    def _call(self, name: str) -> None:
        self.backend.calls[name] += 1
        if not self.closed:
            self.backend.check_up()

    def capabilities(self, topic: str) -> frozenset[Capability]:
        return self.inner.capabilities(topic)

    async def open_producer(self) -> ProducerDriver:
        self._call("open_producer")
        producer = _Producer(self, await self.inner.open_producer())
        self._members.add(producer)
        return producer

    async def open_consumer(self, options: ConsumerOptions) -> ConsumerDriver:
        self._call("open_consumer")
        return await self._consumer(lambda: self.inner.open_consumer(options))

    async def open_inbox(self) -> InboxDriver:
        self._call("open_inbox")
        return await self._consumer(lambda: cast(Inboxes, self.inner).open_inbox())

    async def take_dead(self, topic: str, group: str, ids: Sequence[str] | None) -> ConsumerDriver:
        self._call("take_dead")
        return await self._consumer(lambda: cast(DeadLetters, self.inner).take_dead(topic, group, ids))

    async def _consumer(self, make: Callable[[], Awaitable[ConsumerDriver]]) -> _Consumer:
        consumer = _Consumer(self, make, await make())
        self._members.add(consumer)
        return consumer

    async def ping(self, timeout: float) -> None:
        self._call("ping")
        await self.inner.ping(timeout)

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        self._call("declare")
        await cast(Manage, self.inner).declare(topic, group)

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        self._call("verify")
        await cast(Manage, self.inner).verify(topic, group)

    async def delete(self, topic: str, group: str | None) -> None:
        self._call("delete")
        await cast(Manage, self.inner).delete(topic, group)

    async def purge(self, topic: str, group: str) -> int:
        self._call("purge")
        return await cast(Purge, self.inner).purge(topic, group)

    async def stats(self, topic: str, group: str) -> GroupStats:
        self._call("stats")
        return await cast(Stats, self.inner).stats(topic, group)

    async def browse(self, topic: str, group: str, limit: int) -> Sequence[Inbound]:
        self._call("browse")
        return await cast(Browse, self.inner).browse(topic, group, limit)

    async def aclose(self) -> None:
        self.closed = True
        self.backend.forget(self)
        for member in tuple(self._members):
            await member.aclose()
        await self.inner.aclose()


class _Producer:
    def __init__(self, connection: _Connection, inner: ProducerDriver) -> None:
        self._connection = connection
        self._backend = connection.backend
        self._inner = inner
        self._closed = False

    async def restore(self) -> None:
        self._inner = await self._connection.inner.open_producer()

    def announce(self) -> None:
        pass

    async def send(self, messages: Sequence[Outbound]) -> Sequence[BrokerError | None]:
        self._backend.calls["send"] += 1
        if self._closed:
            raise Closed("the producer is closed", backend=self._backend.name)
        if self._backend.stalled is not None:
            options = self._connection.options
            await wait(options.clock, self._backend.stalled, options.attempt_timeout)
            return [SendTimeout("no answer came in time", backend=self._backend.name) for _ in messages]
        if self._backend.down:
            return [BrokerUnavailable("the broker is down", backend=self._backend.name) for _ in messages]
        passed = [message for message in messages if not self._backend.refuses(message)]
        try:
            outcomes = iter(await self._inner.send(passed) if passed else ())
        except Closed:
            if self._closed:
                raise
            return [BrokerUnavailable("the link was lost", backend=self._backend.name) for _ in messages]
        return [
            self._backend.refusal(message) if self._backend.refuses(message) else next(outcomes) for message in messages
        ]

    async def aclose(self) -> None:
        self._closed = True
        self._connection.forget(self)
        await self._inner.aclose()


class _Consumer:
    """A consumer of a group, an inbox or dead letters; what was received on a lost link is stale."""

    def __init__(
        self, connection: _Connection, make: Callable[[], Awaitable[ConsumerDriver]], inner: ConsumerDriver
    ) -> None:
        self._connection = connection
        self._backend = connection.backend
        self._make = make
        self._closed = False
        self._adopt(inner)
        self._mine: set[Inbound] = set()
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _adopt(self, inner: ConsumerDriver) -> None:
        self._inner = inner
        # Only inboxes have an address, and only consumers with LEASE a lease.
        self.address: str = getattr(inner, "address", "")
        self.lease: float = getattr(inner, "lease", 0.0)

    async def restore(self) -> None:
        self._mine.clear()
        self._adopt(await self._make())

    def announce(self) -> None:
        """Wake who waits for the broker to come back, or for the consumer to be closed."""
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    # --- receiving ---

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        self._backend.calls["receive"] += 1
        clock = self._connection.options.clock
        deadline = clock.monotonic() + timeout
        while True:
            if self._closed:
                raise Closed("the consumer is closed", backend=self._backend.name)
            left = deadline - clock.monotonic()
            if self._backend.down:
                if not await wait(clock, self._changed, left):
                    return ()
                continue
            try:
                received = await self._inner.receive(max_messages, max(0.0, left))
            except Closed:
                if self._closed or not self._backend.down:
                    raise
                continue
            self._mine.update(received)
            return received

    # --- settling ---

    def _settled(self, messages: Sequence[Inbound]) -> list[Inbound]:
        live = [message for message in messages if message in self._mine]
        self._mine.difference_update(live)
        return live

    async def _settle(self, name: str, messages: Sequence[Inbound], act: Callable[[list[Inbound]], Any]) -> None:
        self._backend.calls[name] += 1
        if self._backend.down and not self._closed:
            return  # all of them are stale
        await act(self._settled(messages))

    async def ack(self, messages: Sequence[Inbound]) -> None:
        await self._settle("ack", messages, self._inner.ack)

    async def release(self, messages: Sequence[Inbound]) -> None:
        await self._settle("release", messages, self._inner.release)

    def live(self, message: Inbound) -> bool:
        return message in self._mine and not self._backend.down and self._inner.live(message)

    async def settle_with(self, message: Inbound, outbounds: Sequence[Outbound]) -> None:
        self._backend.calls["settle_with"] += 1
        self._backend.check_up()
        for outbound in outbounds:
            if self._backend.refuses(outbound):
                raise self._backend.refusal(outbound)
        if message in self._mine:
            await cast(AtomicSettle, self._inner).settle_with(message, outbounds)
            self._mine.discard(message)

    async def extend(self, messages: Sequence[Inbound], seconds: float) -> None:
        self._backend.calls["extend"] += 1
        if not self._backend.down:
            live = [message for message in messages if message in self._mine]
            await cast(Lease, self._inner).extend(live, seconds)

    def mark_started(self, message: Inbound) -> None:
        self._backend.calls["mark_started"] += 1
        if message in self._mine:
            cast(StartMarks, self._inner).mark_started(message)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self.announce()
        self._connection.forget(self)
        await self._inner.aclose()
