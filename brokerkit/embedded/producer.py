"""The producer driver of the embedded backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from brokerkit.embedded.store import Store
from brokerkit.errors import BrokerError, Closed
from brokerkit.spi import ConnectOptions, Outbound, wait

__all__ = ["EmbeddedProducer"]

#: A store in memory answers without suspending; after so many sends the loop gets its turn.
_YIELD_EVERY = 64


class EmbeddedProducer:
    """A `brokerkit.spi.ProducerDriver` on a `Store`, which bounds the time of each send itself."""

    def __init__(self, store: Store, options: ConnectOptions, on_close: Callable[[EmbeddedProducer], None]) -> None:
        self._store = store
        self._persistent = store.persistent
        self._clock = options.clock
        self._attempt_timeout = options.attempt_timeout
        self._on_close = on_close
        self._closed = False
        self._sends = 0
        #: Sends that the store has not answered yet, and who waits for their end.
        self._under_way = 0
        self._answered: asyncio.Future[None] | None = None

    async def send(self, messages: Sequence[Outbound]) -> Sequence[BrokerError | None]:
        if self._closed:
            raise Closed("the producer is closed", backend="embedded")
        self._under_way += 1
        try:
            outcomes = await self._store.send(messages)
        finally:
            self._under_way -= 1
            if self._answered is not None and not self._under_way and not self._answered.done():
                self._answered.set_result(None)
        if not self._persistent:
            self._sends += 1
            if not self._sends % _YIELD_EVERY:
                await self._clock.sleep(0)
        return outcomes

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._under_way:
                self._answered = asyncio.get_running_loop().create_future()
                await wait(self._clock, self._answered, self._attempt_timeout)
        finally:
            self._on_close(self)
