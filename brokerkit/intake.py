"""`Intake`: receives for one group until it is stopped, through whatever trouble there is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from brokerkit.consumer import Consumer
from brokerkit.disposition import Disposition
from brokerkit.error_text import clean_text, clean_traceback, named_text
from brokerkit.errors import BrokerError, Closed, TopicNotFound
from brokerkit.link import Link
from brokerkit.spi import Inbound

__all__ = ["Intake"]

log = logging.getLogger("brokerkit.worker")

#: Seconds that one receive waits; also how long a drain may wait for it on a driver that cannot be cancelled.
_RECEIVE = 1.0
#: Pauses after trouble with the consumer, in seconds: doubled up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Receiver(Protocol):
    """Whose intake it is."""

    topic: str
    group: str
    consumer: Consumer
    fate: Disposition

    @property
    def queued(self) -> int:
        """How many deliveries wait for a handler."""


class Intake:
    """The task that receives for one group.

    admit:  takes each delivery
    reopen: replaces a consumer that is gone; raises `BrokerError` when that cannot be done now
    """

    def __init__(
        self,
        link: Link,
        receiver: Receiver,
        *,
        admit: Callable[[Inbound], None],
        reopen: Callable[[], Awaitable[None]],
    ) -> None:
        #: Why nothing is received at the moment; None while all is well.
        self.trouble: str | None = None
        self._link = link
        self._receiver = receiver
        self._admit = admit
        self._reopen = reopen
        self._task: asyncio.Task[None] | None = None
        #: Set while there is no room, and done when there may be.
        self.room: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to receive.  No-op while it does."""
        if self._task is None:
            name = f"brokerkit-intake-{self._receiver.topic}:{self._receiver.group}"
            self._task = asyncio.get_running_loop().create_task(self._run(), name=name)

    async def stop(self) -> None:
        """Receive nothing more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def make_room(self) -> None:
        """Note that something was settled or left the queue."""
        if self.room is not None and not self.room.done():
            self.room.set_result(None)

    async def _run(self) -> None:
        receiver, clock = self._receiver, self._link.clock
        where = f"{receiver.topic}:{receiver.group}"
        pause = _FIRST_PAUSE
        while True:
            began = clock.monotonic()
            try:
                await self._receive_for_ever()
            except Closed as error:
                if self._link.closed:
                    return
                # The link is not: only this consumer is gone, and nobody would bring it back.
                self.trouble = clean_text(error)
                await self._replace(where)
            except TopicNotFound as error:
                self._tell(error)
                self._link.forget(receiver.topic)
                await self._replace(where)
            except BrokerError as error:
                self._tell(error)
                log.warning("receiving from %s failed: %s", where, self.trouble)
            except Exception as error:
                # A fault of a driver must not end a group in silence.
                self._tell(error)
                self.trouble = named_text(error)
                log.error("receiving from %s failed\n%s", where, clean_traceback(error))
            if clock.monotonic() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await clock.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _tell(self, error: Exception) -> None:
        self.trouble = clean_text(error)
        self._receiver.fate.tell("receive", self.trouble, error=error)

    async def _replace(self, where: str) -> None:
        try:
            await self._reopen()
        except BrokerError as error:
            self.trouble = clean_text(error)
            log.warning("receiving from %s could not begin again: %s", where, self.trouble)

    async def _receive_for_ever(self) -> None:
        receiver, admit = self._receiver, self._admit
        prefetch = receiver.consumer.options.prefetch
        few = max(1, prefetch // 4)
        loop = asyncio.get_running_loop()
        while True:
            consumer = receiver.consumer
            room = prefetch - consumer.pending
            # Large batches cost less a message; while plenty waits here there is no hurry.
            if room <= 0 or (room < few and receiver.queued >= few):
                self.room = loop.create_future()
                await self.room
                self.room = None
                continue
            for inbound in await consumer.receive(room, _RECEIVE):
                admit(inbound)
            self.trouble = None
