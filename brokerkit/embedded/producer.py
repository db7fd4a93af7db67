"""The producer driver of the embedded backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from brokerkit.embedded.store import Store
from brokerkit.errors import BrokerError, Closed, SendTimeout
from brokerkit.spi import ConnectOptions, Outbound, wait

__all__ = ["EmbeddedProducer"]

#: A store in memory answers without suspending; after so many sends the loop gets its turn.
_YIELD_EVERY = 64


class EmbeddedProducer:
    """A `brokerkit.spi.ProducerDriver` on a `Store`."""

    def __init__(self, store: Store, options: ConnectOptions, on_close: Callable[[EmbeddedProducer], None]) -> None:
        self._store = store
        self._clock = options.clock
        self._attempt_timeout = options.attempt_timeout
        self._on_close = on_close
        self._closed = False
        self._sends = 0
        #: Sends that a file has not answered yet.
        self._pending: set[asyncio.Task[list[BrokerError | None]]] = set()

    async def send(self, messages: Sequence[Outbound]) -> Sequence[BrokerError | None]:
        if self._closed:
            raise Closed("the producer is closed", backend="embedded")
        if self._store.persistent:
            return await self._send_in_time(messages)
        outcomes = await self._store.send(messages)
        self._sends += 1
        if not self._sends % _YIELD_EVERY:
            await self._clock.sleep(0)
        return outcomes

    async def _send_in_time(self, messages: Sequence[Outbound]) -> Sequence[BrokerError | None]:
        # A task of its own: the commit goes on when the caller is cancelled or has waited long enough.
        task = asyncio.ensure_future(self._store.send(messages))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        if await wait(self._clock, task, self._attempt_timeout):
            return task.result()
        task.add_done_callback(_look_at)
        return [
            SendTimeout(
                f"the file did not take the message within {self._attempt_timeout:g} s; it may be stored later",
                topic=getattr(message.destination, "topic", None),
                backend="embedded",
            )
            for message in messages
        ]

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._pending:
                answered = asyncio.gather(*self._pending, return_exceptions=True)
                if not await wait(self._clock, answered, self._attempt_timeout):
                    answered.cancel()
                    await asyncio.wait((answered,))
        finally:
            self._on_close(self)


def _look_at(task: asyncio.Task[list[BrokerError | None]]) -> None:
    # Nobody waits for the outcome any more; asyncio would report an exception that was never looked at.
    if not task.cancelled():
        task.exception()
