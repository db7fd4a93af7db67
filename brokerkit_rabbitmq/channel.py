"""`Channel`: calls and their replies, and messages put together from their frames."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from pika import frame, spec

from brokerkit.errors import BrokerError, Closed
from brokerkit_rabbitmq.errors import NAME, close_error

if TYPE_CHECKING:
    from brokerkit_rabbitmq.protocol import Amqp

__all__ = ["Channel"]

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


class Channel:
    """One channel of one connection.  It ends with the connection or when the broker closes it, and stays so.

    Subclasses take what comes unasked: `content`, `event`, `gone`.
    """

    def __init__(self, connection: Amqp, number: int) -> None:
        self.connection = connection
        self.number = number
        #: Why it is closed; None while it is open.
        self.error: BrokerError | None = None
        self._replies: deque[tuple[tuple[type[Any], ...], asyncio.Future[Any]]] = deque()
        # The message that is coming in.
        self._method_id = 0
        self._method = b""
        self._header = b""
        self._missing = 0
        self._parts: list[bytes] = []

    # --- calling ---

    def start(self, method: Any, *replies: type[Any]) -> asyncio.Future[Any]:
        """Write ``method`` and return the future of its reply; replies come in the order of the calls.

        Without ``replies`` none comes, and the future is done.  It fails with what closed the channel.
        """
        future: asyncio.Future[Any] = self.connection.loop.create_future()
        if self.error is not None:
            future.set_exception(self.error)
            return future
        self.connection.write(frame.Method(self.number, method).marshal())
        if replies:
            self._replies.append((replies, future))
        else:
            future.set_result(None)
        return future

    async def call(self, method: Any, *replies: type[Any]) -> Any:
        """Write ``method``, wait for its reply and return it.

        Raise what the broker closed the channel with, `BrokerUnavailable` when the link broke or no reply came in
        time: the channel is then of no use.
        """
        future = self.start(method, *replies)
        await self.connection.answered(future)
        return future.result()

    async def close(self) -> None:
        """Close the channel; what it holds unsettled goes back.  No-op when it is closed.  Raises nothing."""
        if self.error is None:
            await self.connection.answered(self._start_closing())

    def close_soon(self) -> None:
        """Close the channel without waiting for the broker.  No-op when it is closed."""
        if self.error is None:
            self._start_closing()

    def _start_closing(self) -> asyncio.Future[Any]:
        closing = self.start(spec.Channel.Close(200, "", 0, 0), spec.Channel.CloseOk)
        self.error = Closed("the channel is closed", backend=NAME)
        # Also when nobody waits for it any more: until then its number is in use.
        closing.add_done_callback(self._closed)
        return closing

    def _closed(self, closing: asyncio.Future[Any]) -> None:
        if not closing.cancelled():
            closing.exception()
        self.connection.forget(self)

    # --- coming in; called by the connection ---

    def method(self, data: bytes, start: int, stop: int) -> None:
        """Take a method frame: ``data[start:stop]`` is its payload."""
        (method_id,) = _U32.unpack_from(data, start)
        if method_id in _WITH_CONTENT:
            self._method_id = method_id
            self._method = data[start + 4 : stop]
            return
        known = spec.methods.get(method_id)
        if known is None:
            raise ValueError(f"unknown method {method_id:#x}")
        try:
            method = known().decode(data[start + 4 : stop])
        except Exception as exc:
            # pika raises whatever the bytes lead it to; its text may quote them.
            raise ValueError(f"a malformed {known.NAME} ({type(exc).__name__})") from exc
        if isinstance(method, spec.Channel.Close):
            self.connection.write(frame.Method(self.number, spec.Channel.CloseOk()).marshal())
            self.connection.forget(self)
            self.end(close_error(method.reply_code, method.reply_text))
        elif self._replies and isinstance(method, self._replies[0][0]):
            _, future = self._replies.popleft()
            if not future.done():
                future.set_result(method)
        else:
            self.event(method)

    def header(self, data: bytes, start: int, stop: int) -> None:
        """Take a content header frame."""
        (self._missing,) = _U64.unpack_from(data, start + 4)
        self._header = data[start + 12 : stop]
        if not self._missing:
            self.content(self._method_id, self._method, self._header, b"")

    def body(self, data: bytes, start: int, stop: int) -> None:
        """Take a body frame."""
        size = stop - start
        if size == self._missing and not self._parts:
            self.content(self._method_id, self._method, self._header, data[start:stop])
            return
        self._parts.append(data[start:stop])
        self._missing -= size
        if self._missing < 0:
            raise ValueError("a message is longer than its header said")
        if not self._missing:
            body = b"".join(self._parts)
            self._parts.clear()
            self.content(self._method_id, self._method, self._header, body)

    def end(self, error: BrokerError) -> None:
        """Note that the channel is gone, because of ``error``."""
        if self.error is None:
            self.error = error
        replies, self._replies = self._replies, deque()
        for _, future in replies:
            if not future.done():
                future.set_exception(error)
                # Seen: whoever waits raises it, and if nobody does it is not a fault.
                future.exception()
        self.gone(error)

    # --- for subclasses ---

    def content(self, method_id: int, method: bytes, header: bytes, body: bytes) -> None:
        """Take a whole message: its method, its property list and its body."""

    def event(self, method: Any) -> None:
        """Take a method that nobody asked for."""

    def gone(self, error: BrokerError) -> None:
        """Note the end of the channel."""


#: Methods that a header frame follows: basic.return, basic.deliver, basic.get-ok.
_WITH_CONTENT = frozenset((spec.Basic.Return.INDEX, spec.Basic.Deliver.INDEX, spec.Basic.GetOk.INDEX))
