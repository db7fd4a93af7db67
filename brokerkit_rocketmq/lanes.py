"""`Lane`: the messages for one native topic, handed to the strands that its route asks for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from brokerkit.errors import BrokerError, BrokerUnavailable
from brokerkit_rocketmq.calls import Call, Entry
from brokerkit_rocketmq.errors import NAME, fresh
from brokerkit_rocketmq.queue_choice import Fixed, Rotation, queue_of_key, settled_queues
from brokerkit_rocketmq.strands import Sending, Strand

if TYPE_CHECKING:
    from brokerkit.spi import Outbound
    from brokerkit_rocketmq.routes import MessageQueue, Route

__all__ = ["Lane"]


class Lane:
    """One strand over all queues of a topic; of an ordered topic one strand a queue, chosen by the key.

    Messages that are added in one turn of the loop leave together.
    """

    def __init__(self, topic: str, sending: Sending, *, ordered: bool = False, oneway: bool = False) -> None:
        self.topic = topic
        self._sending = sending
        self._ordered = ordered
        self._oneway = oneway
        self._loop = asyncio.get_running_loop()
        #: In the order of their queues; none until the route is known.
        self._strands: tuple[Strand, ...] = ()
        self._queues: tuple[MessageQueue, ...] = ()
        #: The queues of an ordered topic, when others: as soon as nothing is under way to those that were.
        self._next_queues: tuple[MessageQueue, ...] = ()
        #: Messages that no strand has yet.
        self._unplaced: deque[Entry] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._scheduled = False
        self._closed = False
        self._unwatch: Callable[[], None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not (self._unplaced or self._scheduled or self._reading) and all(one.idle for one in self._strands)

    # --- messages ---

    def add(self, message: Outbound, call: Call, index: int) -> None:
        """Send the message now if nothing else is going on, at the end of this turn of the loop, or later."""
        if self._strands and not self._scheduled and not self._next_queues:
            strand = self._strand_of(message)
            if strand.is_quiet:
                strand.waiting.append((message, call, index))
                strand.flush()
                return
        self._unplaced.append((message, call, index))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _strand_of(self, message: Outbound) -> Strand:
        strands = self._strands
        return strands[0] if len(strands) == 1 else strands[queue_of_key(message.key, len(strands))]

    def _flush(self) -> None:
        self._scheduled = False
        if not self._strands:
            if self._unplaced:
                self._read()
            return
        if self._next_queues:
            return
        while self._unplaced:
            entry = self._unplaced.popleft()
            self._strand_of(entry[0]).waiting.append(entry)
        for strand in self._strands:
            if strand.waiting:
                strand.flush()

    def drop_expired(self) -> None:
        """Forget what waited and is given up."""
        while self._unplaced and self._unplaced[0][1].done.done():
            self._unplaced.popleft()
        for strand in self._strands:
            strand.drop_expired()

    # --- the route ---

    def _read(self) -> None:
        if self._reading is None and not self._closed:
            self._reading = self._loop.create_task(self._read_route(), name=f"brokerkit-route-{self.topic}")

    async def _read_route(self) -> None:
        routes = self._sending.client.routes
        try:
            self._adopt(await self._sending.route(self.topic))
        except BrokerError as error:
            while self._unplaced:
                _, call, index = self._unplaced.popleft()
                call.settle(index, fresh(error))
        else:
            if self._unwatch is None:
                self._unwatch = routes.watch(self.topic, self._changed)
        finally:
            self._reading = None
        self._flush()

    def _changed(self, route: Route) -> None:
        if route.writable and self._strands:
            self._adopt(route)
            self._flush()

    def _adopt(self, route: Route) -> None:
        queues = settled_queues(self._queues, route) if self._ordered else route.writable
        if not queues:
            raise BrokerUnavailable(f"no broker takes messages for {self.topic!r} at the moment", backend=NAME)
        if queues == self._queues:
            self._next_queues = ()
        elif self._ordered:
            self._next_queues = queues
            # In each strand messages of one key are in their order, and all of them.
            waiting = [entry for strand in self._strands for entry in strand.withdraw()]
            self._unplaced.extendleft(reversed(waiting))
            self._switch()
        else:
            self._queues = queues
            rotation = Rotation(queues, self._sending.outlets)
            if self._strands:
                self._strands[0].choice = rotation
            else:
                self._strands = (Strand(self.topic, rotation, self._sending, oneway=self._oneway),)

    def _switch(self) -> None:
        """Use other queues, once nothing is under way that a message with the same key could overtake."""
        if not self._next_queues or any(not strand.idle for strand in self._strands):
            return
        sending = self._sending
        self._queues, self._next_queues = self._next_queues, ()
        self._strands = tuple(
            Strand(self.topic, Fixed(queue, sending.outlets), sending, ordered=True, oneway=self._oneway)
            for queue in self._queues
        )
        for strand in self._strands:
            strand.on_over = self._switch
        self._flush()

    # --- the end ---

    def close(self) -> list[asyncio.Task[None]]:
        """Send nothing more, and look at no more answers; return the tasks that were cancelled."""
        self._closed = True
        if self._unwatch is not None:
            self._unwatch()
        cancelled = [task for strand in self._strands for task in strand.close()]
        if self._reading is not None:
            self._reading.cancel()
            cancelled.append(self._reading)
        return cancelled
