"""`RocketMQConsumer`: the deliveries of one group, from whichever queues are its own at the time."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brokerkit.errors import BrokerError, Closed
from brokerkit.spi import Clock, Inbound, Outbound, wait
from brokerkit_rocketmq.commits import Commits
from brokerkit_rocketmq.errors import NAME, fresh
from brokerkit_rocketmq.handing_out import HandingOut
from brokerkit_rocketmq.holding_tools import Tools
from brokerkit_rocketmq.holdings import Holdings
from brokerkit_rocketmq.locks import Locks
from brokerkit_rocketmq.member import Loner, Member, Share
from brokerkit_rocketmq.offsets import Offsets
from brokerkit_rocketmq.pulling import Puller, PullLimits, check_expression

if TYPE_CHECKING:
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.mapping import Codec
    from brokerkit_rocketmq.reader import Reader
    from brokerkit_rocketmq.remoting.messages import StoredMessage
    from brokerkit_rocketmq.routes import MessageQueue
    from brokerkit_rocketmq.sources import Source

__all__ = ["RocketMQConsumer"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds that the first queues may take until `open` returns without them.
_OPENING = 5.0

#: Stores messages, as `ProducerDriver.send` does.
Store = Callable[[Sequence[Outbound]], Awaitable[Sequence[BrokerError | None]]]


class RocketMQConsumer:
    """A `brokerkit.spi.ConsumerDriver`.

    Its token is (reader, offset): a reader is one queue from its assignment until that is lost, so what was handed out
    on an earlier one is stale.  The client is its own, as brokers tell members of a group by their connections.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        codec: Codec,
        *,
        clock: Clock,
        limits: PullLimits | None = None,
        store: Store | None = None,
        lock_pause: float = 1.0,
        on_close: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """``store``: for copies of messages that are given back from below settled ones; None: those come again.

        ``lock_pause``: most seconds until an ordered queue that another member has locked is tried again.
        """
        self._client = client
        self._source = source
        self._handing_out = HandingOut(source, codec)
        self._clock = clock
        self._store = store
        self._on_close = on_close
        self._offsets = Offsets(client, source)
        self._commits = Commits(self._offsets, clock)
        self._locks: Locks | None = None
        if source.ordered and source.shared:
            self._locks = Locks(client, source, clock, self._lock_lost, pause=lock_pause)
        tools = Tools(
            client,
            source,
            clock,
            offsets=self._offsets,
            commits=self._commits,
            locks=self._locks,
            copy=self._copy,
            changed=self._wake,
            failed=self._fail,
        )
        puller = Puller(
            client,
            source,
            limits or PullLimits(),
            clock,
            arrived=self._messages_arrived,
            moved=self._moved,
            failed=self._fail,
        )
        self._holdings = Holdings(tools, puller, self._share_anew)
        self._share: Share | None = None
        #: Readers with messages, in the order of their turns.
        self._ready: deque[Reader] = deque()
        self._arrived: asyncio.Future[None] | None = None
        #: What keeps queues from being read, by queue; None: all of them.
        self._failures: dict[MessageQueue | None, BrokerError] = {}
        self._closing: asyncio.Task[None] | None = None
        #: Settlements of deliveries that were not ours any more.
        self.stale = 0

    # --- beginning ---

    async def open(self) -> None:
        """Join the group and begin to read; return when the first queues are read, or need longer.

        Raise `TopicNotFound`, `AccessRefused`, `BrokerUnavailable`, or `ConfigurationError` for a condition in SQL
        that the broker does not take.
        """
        client, source = self._client, self._source
        await client.open()
        if source.shared:
            locks = self._locks
            share: Share = Member(
                client,
                source,
                self._clock,
                self._holdings.assign,
                lambda error: self._fail(None, error),
                noted=locks.members if locks is not None else lambda _: None,
            )
            client.answers.on_reset[source.native_group] = self._reset
            client.answers.offsets[source.native_group] = self._offsets_of
            client.answers.running_info[source.native_group] = self._running_info
        else:
            share = Loner(client, source, self._clock, self._holdings.assign, lambda error: self._fail(None, error))
        self._share = share
        if source.expression_type != "TAG":
            route = await client.routes.route(source.native_topic)
            for broker in route.brokers:
                await check_expression(client, source, broker)
        await share.open()
        if self._closing is not None:
            # Meanwhile, when there was nothing to stop yet.
            await share.stop()
        await self._begun()

    async def _begun(self) -> None:
        begun = asyncio.get_running_loop().create_task(self._holdings.begun())
        try:
            await wait(self._clock, begun, _OPENING)
        finally:
            if not begun.done():
                begun.cancel()
                await asyncio.wait((begun,))
        self._check()

    # --- receiving ---

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        """Return deliveries, as `brokerkit.spi.ConsumerDriver.receive` says."""
        deadline = self._clock.monotonic() + timeout
        while True:
            if self._closing is not None:
                raise Closed("the consumer is closed", backend=NAME)
            messages = self._take(min(max_messages, self._room()))
            if messages:
                return messages
            # Only now: what can be read of a topic is delivered, whatever cannot.
            self._check()
            arrived = self._arrived = asyncio.get_running_loop().create_future()
            try:
                if not await wait(self._clock, arrived, deadline - self._clock.monotonic()):
                    return ()
            finally:
                self._arrived = None

    def _check(self) -> None:
        if self._closing is not None:
            raise Closed("the consumer is closed", backend=NAME)
        for failure in self._failures.values():
            raise fresh(failure)

    def _room(self) -> int:
        handed = sum(len(reader.progress.handed) for reader in self._holdings.readers)
        return self._source.prefetch - handed

    def _take(self, room: int) -> list[Inbound]:
        """Hand out up to ``room`` messages, some of each queue in turn."""
        ready = self._ready
        taken: list[Inbound] = []
        blocked: list[Reader] = []
        while ready and room > 0:
            reader = ready.popleft()
            if not reader.giving or not reader.buffer:
                reader.waiting = False
                continue
            before = reader.progress.high
            messages = reader.take(room)
            if not messages:
                blocked.append(reader)
                continue
            room -= len(messages)
            if reader.buffer:
                ready.append(reader)
            else:
                reader.waiting = False
            if reader.progress.high > before:
                # Written before any handler can start.
                self._offsets.mark_soon(reader)
            refused = self._handing_out.deliveries(reader, messages, before, taken)
            room += refused
            if refused and self._source.shared:
                self._commits.soon(reader)
        ready.extend(blocked)
        return taken

    def mark_started(self, message: Inbound) -> None:
        """Note that a handler is at work on it: it may end when its queue goes to another member."""
        reader, offset = message.token
        reader.at_work.add(offset)

    async def begin_trial(self, message: Inbound) -> None:
        """Record that a suspect is about to be started alone, as `brokerkit.spi.Trials` says."""
        reader, offset = message.token
        if reader.live and offset in reader.progress.handed:
            # From here on it is at work: taken back now it would run here and elsewhere.
            reader.at_work.add(offset)
            reader.progress.begin_trial(offset)
            await self._offsets.mark_now(reader)

    # --- what comes in ---

    def _messages_arrived(self, reader: Reader, messages: list[StoredMessage]) -> None:
        if not messages:
            if self._source.shared:
                # The filter kept everything away: that is progress, too.
                self._commits.soon(reader)
            return
        self._enqueue(reader)

    def _enqueue(self, reader: Reader) -> None:
        if not reader.waiting and reader.giving and reader.buffer:
            reader.waiting = True
            if reader.queue.topic == self._source.native_topic:
                self._ready.append(reader)
            else:
                # What was tried before goes first.
                self._ready.appendleft(reader)
        self._wake()

    def _wake(self) -> None:
        arrived = self._arrived
        if arrived is not None and not arrived.done():
            arrived.set_result(None)

    def _moved(self, reader: Reader, offset: int, wanted: bool) -> None:
        """The broker has nothing at the next offset, or somebody wants it to be read from elsewhere."""
        if offset > reader.progress.next and not wanted:
            # What lay between was removed.  What is handed out stays as it is.
            reader.fill([], offset)
            self._messages_arrived(reader, [])
        else:
            self._holdings.move(reader.queue, offset)

    def _reset(self, topic: str, offsets: Mapping[MessageQueue, int]) -> None:
        for queue, offset in offsets.items():
            self._holdings.move(queue, offset)

    def _lock_lost(self, queue: MessageQueue) -> None:
        self._holdings.lose(queue)

    def _share_anew(self) -> None:
        self._wake()
        if self._share is not None:
            self._share.wake()

    def _fail(self, queue: MessageQueue | None, error: BrokerError | None) -> None:
        if error is None:
            self._failures.pop(queue, None)
            return
        if queue not in self._failures:
            log.warning("%s cannot be consumed: %s", self._source.native_topic, error)
        self._failures[queue] = error
        self._wake()

    # --- settling ---

    async def ack(self, messages: Sequence[Inbound]) -> None:
        """Acknowledge; stale ones are counted in `stale`.  The broker knows within 100 ms, or after `settled`."""
        progressed: set[Reader] = set()
        last: Reader | None = None
        for message in messages:
            reader, offset = message.token
            reader.at_work.discard(offset)
            if not (reader.live and reader.progress.settle(offset)):
                self.stale += 1
            elif reader is not last:
                progressed.add(reader)
                last = reader
        for reader in progressed:
            reader.settled()
            if self._source.shared:
                self._commits.soon(reader)
        if self._ready:
            self._wake()

    async def release(self, messages: Sequence[Inbound]) -> None:
        """Give back: they come again from here first of all; stale ones are counted in `stale`."""
        by_reader: defaultdict[Reader, list[int]] = defaultdict(list)
        for message in messages:
            reader, offset = message.token
            if reader.live:
                by_reader[reader].append(offset)
            else:
                self.stale += 1
        for reader, offsets in by_reader.items():
            self.stale += reader.give_back(offsets)
            # What was tried and is given back ended no process: that start does not count.
            if any([reader.progress.trials.cancel(offset) for offset in offsets]):
                self._offsets.mark_soon(reader)
            reader.settled()
            self._enqueue(reader)

    async def settled(self) -> None:
        """Return when the brokers have all progress; what is settled above an unsettled one they cannot know."""
        await self._commits.now()

    def live(self, message: Inbound) -> bool:
        """Return whether the delivery is still ours, as far as is known here."""
        reader, offset = message.token
        return reader.live and offset in reader.progress.handed

    # --- what administrators ask ---

    def _offsets_of(self, topic: str) -> Mapping[MessageQueue, int]:
        return {
            queue: reader.progress.low
            for queue, reader in self._holdings.queues.items()
            if reader is not None and queue.topic == topic
        }

    def _running_info(self) -> Mapping[str, Any]:
        """Return what ``ConsumerRunningInfo`` shows of a member; see ``ProcessQueueInfo``."""
        source = self._source
        queues = {queue: reader for queue, reader in self._holdings.queues.items() if reader is not None}
        return {
            "properties": {
                "PROP_CONSUME_TYPE": "CONSUME_PASSIVELY",
                "PROP_CONSUMEORDERLY": "true" if source.ordered else "false",
                "PROP_CLIENT_VERSION": "brokerkit",
            },
            "mqTable": {queue: reader.info(locked=self._locks is not None) for queue, reader in queues.items()},
        }

    # --- closing ---

    async def _copy(self, reader: Reader, messages: list[StoredMessage]) -> bool:
        if self._store is None:
            return False
        copies = self._handing_out.copies(reader.progress, messages, self._clock.time())
        return all(outcome is None for outcome in await self._store(copies))

    async def aclose(self) -> None:
        """Stop receiving, give back what is not settled, leave the group, close.  Idempotent.

        It goes on when it is cancelled: what is half closed would keep its queues from the other members.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(
                self._close(), name=f"brokerkit-rocketmq-close-{self._source.native_group}"
            )
            self._wake()
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            if self._share is not None:
                await self._share.stop()
            await self._holdings.aclose()
            self._commits.close()
            if self._locks is not None:
                await self._locks.aclose()
            if self._share is not None:
                await self._share.leave()
        finally:
            self._ready.clear()
            try:
                await self._client.aclose()
            finally:
                self._on_close(self)
