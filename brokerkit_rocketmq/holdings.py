"""`Holdings`: the queues of one consumer, from the moment that they are to be read until they are in other hands."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from brokerkit.errors import BrokerError
from brokerkit.spi import wait
from brokerkit_rocketmq.handover import PATIENCE, begin_at, begin_at_end, go_on, take_over
from brokerkit_rocketmq.holding import Holding
from brokerkit_rocketmq.marks import MOST_IN_HAND, Mark
from brokerkit_rocketmq.progress import Progress
from brokerkit_rocketmq.reader import Reader

if TYPE_CHECKING:
    from brokerkit_rocketmq.holding_tools import Tools
    from brokerkit_rocketmq.pulling import Puller
    from brokerkit_rocketmq.remoting.messages import StoredMessage
    from brokerkit_rocketmq.routes import MessageQueue

__all__ = ["Holdings"]

log = logging.getLogger("brokerkit.rocketmq")

#: Pauses before a queue that cannot be begun is tried again, in seconds: doubled up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: Seconds for which a member keeps the lock of a queue that it lost, while handlers are at work on it.
_ORDERED_PATIENCE = 30.0
#: Seconds for which a message of a lost queue may still be worked on, where nobody else gets it.
_LONGEST_WORK = 60.0
#: Seconds between two looks at what the brokers have as our offsets.
_CHECK = 10.0
#: Seconds that giving a queue away may take.
_FAREWELL = 5.0


class Holdings:
    """A task for each queue: it begins where the queue is to be begun, then reads.

    ``readers`` are those whose messages may be settled: the queues that are read, and those that were ours until a
    moment ago.
    """

    def __init__(self, tools: Tools, puller: Puller, lost: Callable[[], None]) -> None:
        """``lost`` is called when a queue has to be shared out again."""
        self.readers: set[Reader] = set()
        self._tools = tools
        self._puller = puller
        self._lost = lost
        #: The queues that are ours, and who reads them.
        self._held: dict[MessageQueue, Holding] = {}
        self._leaving: dict[MessageQueue, asyncio.Task[None]] = {}
        #: How far queues were that were lost with their broker.
        self._past: dict[MessageQueue, Progress[StoredMessage]] = {}
        #: Where queues are to be begun, whatever was before.
        self._begin_at: dict[MessageQueue, int] = {}
        self._checking: asyncio.Task[None] | None = None
        self._closed = False
        tools.commits.before = self._check_offset

    @property
    def queues(self) -> dict[MessageQueue, Reader | None]:
        """The queues that are ours; None while one is being begun."""
        return {queue: holding.reader for queue, holding in self._held.items()}

    # --- what is ours ---

    def assign(self, wanted: Mapping[MessageQueue, bool], existing: Collection[MessageQueue]) -> None:
        """Hold exactly these queues of those that exist: begin those that are new, give the others away.

        The value says whether a member that read the queue until now is alive.
        """
        if self._closed:
            return
        for queue in [queue for queue in self._held if queue not in wanted]:
            if queue in existing:
                self._give_away(queue)
            else:
                self._let_go(queue)
            # Neither what kept it from being read nor where it was to begin is of interest any more.
            self._tools.failed(queue, None)
            self._begin_at.pop(queue, None)
        for queue, inherited in wanted.items():
            if queue not in self._held:
                self._hold(queue, inherited)
        if self._checking is None and self._tools.source.shared:
            self._checking = asyncio.get_running_loop().create_task(
                self._check_offsets(), name=f"brokerkit-rocketmq-offsets-{self._tools.source.native_group}"
            )
        # Those that are there and not ours are read by others.  The rest come back with their brokers.
        for queue in [queue for queue in self._past if queue not in self._held and queue in existing]:
            del self._past[queue]
            self._tools.commits.give_up(queue)
        self._unlock_others(existing)

    def _unlock_others(self, existing: Collection[MessageQueue]) -> None:
        """Unlock what was ours when its broker was lost and is for others now: we would keep it from them for ever."""
        locks = self._tools.locks
        if locks is None:
            return
        for queue in locks.held:
            if queue in existing and queue not in self._held and queue not in self._leaving:
                self._leave_later(queue, locks.release([queue]))

    async def begun(self) -> None:
        """Return when every queue is read, or has failed to be once."""
        waiting = [holding.begun for holding in self._held.values() if not holding.begun.done()]
        if waiting:
            await asyncio.wait(waiting)

    def move(self, queue: MessageQueue, offset: int) -> None:
        """Begin a queue anew at ``offset``; what is handed out of it is stale."""
        if queue not in self._held or self._closed:
            return
        log.warning("queue %d of %s on %s goes on at offset %d", queue.queue_id, queue.topic, queue.broker, offset)
        self._drop(queue)
        self._past.pop(queue, None)
        self._begin_at[queue] = offset
        self._hold(queue, False)

    def lose(self, queue: MessageQueue) -> None:
        """Note that others may read the queue from now on; it is ours again when it is assigned again."""
        if queue in self._held and not self._closed:
            self._let_go(queue)
            self._lost()

    def _let_go(self, queue: MessageQueue) -> None:
        """Read no more, and remember how far we are."""
        reader = self._held[queue].reader
        if reader is not None and not self._tools.source.shared:
            # What is at work goes on: nobody else gets it.
            self._give_away(queue)
            return
        if reader is not None:
            self._tools.commits.lose(reader, returns=True)
        self._drop(queue)
        if reader is not None:
            self._past[queue] = reader.progress

    def _lose_holding(self, queue: MessageQueue, holding: Holding) -> None:
        if self._held.get(queue) is holding:
            self.lose(queue)

    # --- what others do to it ---

    async def _check_offsets(self) -> None:
        """See to it that the broker has what we committed, as far as it is not meant to have something else."""
        while True:
            await self._tools.clock.sleep(_CHECK)
            for holding in tuple(self._held.values()):
                if holding.reader is not None:
                    try:
                        await self._check_queue(holding.reader)
                        await self._check_offset(holding.reader)
                    except BrokerError as error:
                        log.debug("the offset of a queue of %s is not known: %s", self._tools.source.topic, error)

    async def _check_queue(self, reader: Reader) -> None:
        """Begin anew in a queue that is not the one that we know: its topic was deleted and made again.

        Its offset may be one of ours all the same, from a commit that was under way meanwhile.
        """
        queue, witness, offsets = reader.queue, reader.progress.witness, self._tools.offsets
        holding = self._held.get(queue)
        master = await self._tools.client.link(queue.broker)
        if witness is None or master.current is not reader.home or await offsets.holds(queue, witness):
            return
        first = await offsets.first(queue)
        if holding is not None and self._held.get(queue) is holding and holding.reader is reader:
            self.move(queue, first)

    async def _check_offset(self, reader: Reader) -> bool:
        """Look at one; return False when its queue is to be read from elsewhere, and has another reader now."""
        queue, expected = reader.queue, reader.committed
        holding = self._held.get(queue)
        if expected < 0 or holding is None or holding.reader is not reader:
            return True
        master = await self._tools.client.link(queue.broker)
        committed = await self._tools.offsets.committed(queue)
        if self._held.get(queue) is not holding or expected != reader.committed:
            return True
        if committed is not None and committed >= expected:
            return True
        fresh = self._tools.clock.monotonic() - holding.since < 2 * PATIENCE + _CHECK
        if (holding.inherited and fresh) or master.current is not reader.home:
            # The last commit of a former reader came after our first; or this is a master that was started again and
            # forgot, or a copy that is not up to date.
            reader.committed = -1
            self._tools.commits.soon(reader)
            return True
        # An administrator wants it so, or the topic is not the one that it was.
        self.move(queue, committed or 0)
        return False

    # --- beginning ---

    def _hold(self, queue: MessageQueue, inherited: bool) -> None:
        holding = self._held[queue] = Holding(inherited)
        name = f"brokerkit-rocketmq-read-{queue.topic}-{queue.broker}-{queue.queue_id}"
        task = holding.task = asyncio.get_running_loop().create_task(self._read(queue, holding, inherited), name=name)

        def ended(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                # A fault of ours must not end a queue in silence.
                log.error("reading queue %d of %s failed", queue.queue_id, queue.topic, exc_info=error)
                holding.is_begun()
                self._tools.clock.call_later(_LONGEST_PAUSE, lambda: self._lose_holding(queue, holding))

        task.add_done_callback(ended)

    async def _read(self, queue: MessageQueue, holding: Holding, inherited: bool) -> None:
        leaving = self._leaving.get(queue)
        if leaving is not None:
            await asyncio.wait((leaving,))
        if inherited:
            # Nobody need wait for what the former reader still does.
            holding.is_begun()
        pause = _FIRST_PAUSE
        while True:
            try:
                reader = await self._begin(queue, inherited)
                break
            except BrokerError as error:
                log.info("queue %d of %s cannot be begun now: %s", queue.queue_id, queue.topic, error)
                if not error.retryable:
                    self._tools.failed(queue, error)
                holding.is_begun()
            await self._tools.clock.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        self._past.pop(queue, None)
        self._begin_at.pop(queue, None)
        holding.reader = reader
        holding.since = self._tools.clock.monotonic()
        holding.is_begun()
        self.readers.add(reader)
        if self._tools.source.shared:
            # What the broker has may be nothing, or lost.
            self._tools.commits.soon(reader)
            reader.home.lost.add_done_callback(lambda _: self._home_lost(reader))
        await self._puller.run(reader)

    async def _begin(self, queue: MessageQueue, inherited: bool) -> Reader:
        tools = self._tools
        link = await tools.client.link(queue.broker, slaves=True)
        home = await link.connected(tools.client.options.timeout)
        past = self._past.get(queue)
        shares = tools.source.shared
        if shares and tools.locks is not None:
            await tools.locks.acquire(queue)
        if queue in self._begin_at:
            progress = await begin_at(tools.offsets, queue, self._begin_at[queue], commit=shares)
        elif not shares:
            progress = Progress(past.next) if past is not None else await begin_at_end(tools.offsets, queue)
        elif past is not None:
            progress = await go_on(tools.offsets, queue, past)
        else:
            progress = await take_over(tools.offsets, queue, tools.clock, wait=inherited and tools.locks is None)
        if tools.locks is not None:
            # Ordered messages are never tried out of turn.
            progress.suspected = 0
        if shares and not tools.offsets.marks(queue.broker):
            progress.doubtful = sys.maxsize
        return Reader(queue, progress, home, ahead=min(tools.source.prefetch, MOST_IN_HAND))

    def _home_lost(self, reader: Reader) -> None:
        if reader in self.readers and reader.live:
            holding = self._held.get(reader.queue)
            if holding is not None and holding.reader is reader:
                self._lose_holding(reader.queue, holding)
            else:
                self._tools.commits.lose(reader, returns=False)
                self._forget(reader)

    # --- ending ---

    def _drop(self, queue: MessageQueue) -> None:
        """Read no more, at once, and tell nobody."""
        holding = self._held.pop(queue)
        holding.end()
        if holding.reader is not None:
            self._forget(holding.reader)

    def _forget(self, reader: Reader) -> None:
        self.readers.discard(reader)
        self._tools.commits.forget(reader)
        reader.drop()
        reader.settled()
        self._tools.changed()

    def _give_away(self, queue: MessageQueue) -> None:
        holding = self._held.pop(queue)
        holding.end()
        reader = holding.reader
        if reader is None:
            if self._tools.locks is not None:
                self._leave_later(queue, self._tools.locks.release([queue]))
            return
        reader.giving = False
        if self._tools.source.shared and self._tools.locks is None:
            reader.take_back_unstarted()
        if not self._tools.source.shared:
            # It comes back when its broker does.
            self._past[queue] = Progress(reader.progress.high)
        self._tools.changed()
        self._leave_later(queue, self._leave(reader))

    def _leave_later(self, queue: MessageQueue, leaving: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(leaving, name=f"brokerkit-rocketmq-leave-{queue.topic}")
        self._leaving[queue] = task

        def left(done: asyncio.Task[None]) -> None:
            if self._leaving.get(queue) is done:
                del self._leaving[queue]
            if not done.cancelled() and (error := done.exception()) is not None:
                log.error("queue %d of %s was not given away well", queue.queue_id, queue.topic, exc_info=error)

        task.add_done_callback(left)

    async def _leave(self, reader: Reader) -> None:
        """Let what is handed out be settled, for a while, then tell the broker how far we are."""
        shares = self._tools.source.shared
        patience = _LONGEST_WORK if not shares else PATIENCE if self._tools.locks is None else _ORDERED_PATIENCE
        await wait(self._tools.clock, reader.emptied(), patience)
        if shares:
            await self._conclude(reader, unfinished=bool(reader.progress.handed) and not self._closed)
        else:
            self._forget(reader)

    async def _conclude(self, reader: Reader, *, unfinished: bool) -> None:
        """Leave the queue so that the next reader gets all that is not settled, and nothing else.

        With ``unfinished`` handlers may still be at work on it: what they hold counts as handed out.
        """
        tools, queue, progress = self._tools, reader.queue, reader.progress
        # From here on no settlement is accepted: the broker is told what holds now.
        reader.live = False
        try:
            if reader.home.error is None:
                if not unfinished:
                    # What was being tried did not end this process.
                    progress.trials.cancel_all()
                if tools.locks is None and (holes := progress.holes):
                    messages = reader.messages(holes)
                    if await tools.copy(reader, messages):
                        progress.skip(message.queue_offset for message in messages)
                await tools.commits.commit(reader)
                if not unfinished:
                    await reader.all_marked()
                    mark = progress.mark if progress.suspects else Mark(progress.low)
                    await tools.offsets.try_mark(queue, mark)
                if tools.locks is not None:
                    await tools.locks.release([queue])
        except BrokerError as error:
            # As after a crash: what was not told comes again.
            log.info("leaving queue %d of %s on %s: %s", queue.queue_id, queue.topic, queue.broker, error)
        finally:
            tools.commits.lose(reader, returns=False)
            self._forget(reader)

    async def aclose(self) -> None:
        """Give everything away, whatever is unsettled."""
        self._closed = True
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait((self._checking,))
        holdings, self._held = list(self._held.values()), {}
        for holding in holdings:
            holding.end()
        reading = [holding.task for holding in holdings if holding.task is not None]
        if reading:
            await asyncio.wait(reading)
        for reader in self.readers:
            reader.hurry()
        farewells = [*self._leaving.values()]
        if self._tools.source.shared:
            readers = [holding.reader for holding in holdings if holding.reader is not None]
            if self._tools.locks is not None:
                # Those of queues that were not read yet.
                others = self._tools.locks.held - {reader.queue for reader in readers} - self._leaving.keys()
                farewells.append(asyncio.ensure_future(self._tools.locks.release(others)))
            farewells += [asyncio.ensure_future(self._conclude(reader, unfinished=False)) for reader in readers]
        if farewells:
            together = asyncio.gather(*farewells, return_exceptions=True)
            if not await wait(self._tools.clock, together, _FAREWELL):
                log.warning("leaving %s took too long", self._tools.source.native_topic)
                together.cancel()
                await asyncio.wait((together,))
        for reader in tuple(self.readers):
            self._forget(reader)
