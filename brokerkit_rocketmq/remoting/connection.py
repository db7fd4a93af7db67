"""`RemotingConnection`: one connection to a NameServer or a broker.  When it ends it does not come back."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl as tls
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from brokerkit_rocketmq.remoting.codes import ResponseCode
from brokerkit_rocketmq.remoting.errors import (
    ConnectionLost,
    FrameError,
    NotConnected,
    Oversized,
    RemotingError,
)
from brokerkit_rocketmq.remoting.frames import (
    FRAME_MAX,
    PROTOCOL_VERSION,
    Frame,
    FrameParser,
    encode_response,
    render_head,
    rendered_request,
)
from brokerkit_rocketmq.remoting.pending import OnAnswer, PendingRequests
from brokerkit_rocketmq.remoting.signing import UNSIGNED, Signer

__all__ = ["Answer", "OnRequest", "RemotingConnection", "dial"]

log = logging.getLogger("brokerkit.rocketmq")

#: Bytes that may wait in the transport before writers are asked to pause.
_WRITE_BUFFER = 1 << 20
#: Seconds for the other side to answer the end of TLS, which 4.9.x does not.
_TLS_GOODBYE = 0.2
_OPAQUE_MASK = 0x7FFFFFFF
#: Servers leave the flag of a query by id out of the signature for versions up to this one.
_UNSIGNED_VERSION = 399


@dataclass(slots=True)
class Answer:
    """What is answered to a request of the peer."""

    code: int = ResponseCode.SUCCESS
    fields: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    remark: str | None = None


#: Answers a request of the peer; None: it is not known here.  What it returns for a oneway request is not sent.
OnRequest = Callable[["RemotingConnection", Frame], Answer | None]


class RemotingConnection(asyncio.Protocol):
    """Pairs requests with their answers, which come in any order.

    What is written in one turn of the loop leaves together.  `lost` is done when the connection is over.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        peer: str,
        signer: Signer | None = None,
        on_request: OnRequest | None = None,
        frame_max: int = FRAME_MAX,
    ) -> None:
        self.loop = loop
        #: ``host:port`` as it was dialled, for messages.
        self.peer = peer
        #: Has why the connection ended as its result, once it has; never an exception.
        self.lost: asyncio.Future[RemotingError] = loop.create_future()
        #: Why the connection ended; None while it is up.
        self.error: RemotingError | None = None
        #: The version in the last frame of the peer (``MQVersion``); at least 413 is 5.x.
        self.server_version: int | None = None
        #: Loop time of the last byte of the peer.
        self.last_received = loop.time()
        self._signer = signer
        self._on_request = on_request
        self._frame_max = frame_max
        self._transport: asyncio.Transport | None = None
        self._parser = FrameParser(frame_max)
        self._pending = PendingRequests(loop, peer)
        self._opaque = 0
        #: The last request that was handed to the transport: what came after it was never written.
        self._written = 0
        self._out: list[bytes] = []
        #: Bytes in `_out`.
        self._gathered = 0
        self._flushing = False
        self._paused = False
        self._writers: deque[asyncio.Future[None]] = deque()

    # --- asking ---

    def ask(
        self,
        code: int,
        fields: Mapping[str, str] | None,
        body: bytes,
        answered: OnAnswer,
        *,
        timeout: float,
        at_once: bool = False,
    ) -> None:
        """Write a request and call ``answered``, once, with what came of it; never before this returns.

        An answer is told when it is read, and not a turn of the loop later as with a future; errors are those of
        `request`.  ``at_once``: no other request will join it, so it does not wait for the end of this turn.
        """
        before, after = self._render(code, fields, body)
        self._post(before, after, body, timeout, answered, at_once)

    def request(
        self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"", *, timeout: float
    ) -> asyncio.Future[Frame]:
        """Write a request and return the future of its answer, whatever response code that has.

        It fails with `NotConnected`, `ConnectionLost`, `RequestTimeout` after ``timeout`` seconds, or `Oversized`.
        Cancelling it does not unwrite the request; the answer is dropped.
        """
        before, after = self._render(code, fields, body)
        return self._posted(before, after, body, timeout)

    def request_rendered(self, before: bytes, after: bytes, body: bytes, *, timeout: float) -> asyncio.Future[Frame]:
        """Write a request whose JSON header the caller has rendered, but for the number of ``opaque``.

        The header is ``before``, the number, ``after``, as `render_head` returns them.  Otherwise like `request`.
        Without a signer nothing of it is looked at; with one the header is read and rendered again.
        """
        if self._signer is not None:
            header = json.loads(before + b"0" + after)
            return self.request(header["code"], header.get("extFields"), body, timeout=timeout)
        return self._posted(before, after, body, timeout)

    async def call(
        self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"", *, timeout: float
    ) -> Frame:
        """Return the answer to a request; raise as `request` says."""
        return await self.request(code, fields, body, timeout=timeout)

    def send_oneway(self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Write a request that is not answered.  Dropped without a word when there is no connection.

        Raise `Oversized` when no peer would read it.
        """
        if self.error is not None:
            return
        if self._signer is not None:
            fields = dict(fields) if fields else {}
            self._signer.sign(fields, body)
        self._opaque = (self._opaque + 1) & _OPAQUE_MASK
        before, after = render_head(code, fields, oneway=True)
        self._write(rendered_request(before, self._opaque, after, len(body), self._frame_max), body)

    @property
    def socket(self) -> socket.socket | None:
        """The socket, for its options; None when the connection is over."""
        return None if self._transport is None else self._transport.get_extra_info("socket")

    @property
    def encrypted(self) -> bool:
        """Whether it speaks TLS."""
        return self._transport is not None and self._transport.get_extra_info("ssl_object") is not None

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answers."""
        return len(self._pending)

    @property
    def may_write(self) -> bool:
        """Whether the transport takes more; `writable` waits until it does."""
        return not self._paused

    async def writable(self) -> None:
        """Return when the transport takes more, or when the connection ended."""
        while self._paused and self.error is None:
            waiter = self.loop.create_future()
            self._writers.append(waiter)
            try:
                await waiter
            finally:
                if not waiter.done():
                    waiter.cancel()

    def _render(self, code: int, fields: Mapping[str, str] | None, body: bytes) -> tuple[bytes, bytes]:
        version = PROTOCOL_VERSION
        if self._signer is not None:
            fields = dict(fields) if fields else {}
            self._signer.sign(fields, body)
            if UNSIGNED in fields:
                version = _UNSIGNED_VERSION
        return render_head(code, fields, version=version)

    def _posted(self, before: bytes, after: bytes, body: bytes, timeout: float) -> asyncio.Future[Frame]:
        future: asyncio.Future[Frame] = self.loop.create_future()
        self._post(before, after, body, timeout, partial(_settle, future))
        return future

    def _post(
        self, before: bytes, after: bytes, body: bytes, timeout: float, answered: OnAnswer, at_once: bool = False
    ) -> None:
        if self.error is not None:
            self._pending.fail(answered, NotConnected(f"not connected to {self.peer}: {self.error}"))
            return
        self._opaque = opaque = (self._opaque + 1) & _OPAQUE_MASK
        try:
            head = rendered_request(before, opaque, after, len(body), self._frame_max)
        except Oversized as exc:
            self._pending.fail(answered, exc)
            return
        self._pending.add(opaque, answered, timeout)
        self._write(head, body, at_once)

    # --- writing ---

    def _write(self, head: bytes, body: bytes, at_once: bool = False) -> None:
        out = self._out
        out.append(head)
        if body:
            out.append(body)
        self._gathered += len(head) + len(body)
        if at_once or self._gathered > _WRITE_BUFFER:
            # Much, so that writers learn in time that the socket is full.
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        out = self._out
        if not out or self._transport is None or self.error is not None:
            return
        self._out = []
        self._gathered = 0
        self._written = self._opaque
        self._transport.write(b"".join(out))

    # --- ending ---

    def abort(self, error: RemotingError | None = None) -> None:
        """Drop the socket at once; what waits for an answer fails."""
        self._end(error or ConnectionLost(f"the connection to {self.peer} was dropped"))
        if self._transport is not None:
            self._transport.abort()

    async def aclose(self, timeout: float = 2.0) -> None:
        """Send what was written, within ``timeout`` seconds, and close the socket.  Idempotent."""
        if self.error is None:
            self._flush()
            self._end(ConnectionLost(f"the connection to {self.peer} was closed here"))
        transport = self._transport
        if transport is not None:
            transport.close()
            await asyncio.wait((self.lost,), timeout=timeout)
            if not self.lost.done():
                # A peer that reads no more would keep us for ever.
                transport.abort()
                await asyncio.wait((self.lost,))

    def _end(self, error: RemotingError) -> None:
        if self.error is not None:
            return
        self.error = error
        unwritten = (self._opaque - self._written) & _OPAQUE_MASK

        def error_of(opaque: int) -> RemotingError:
            if (self._opaque - opaque) & _OPAQUE_MASK < unwritten:
                return NotConnected(f"not written to {self.peer}: {error}")
            return ConnectionLost(str(error))

        self._pending.fail_all(error_of)
        self._out.clear()
        self._wake_writers()

    def _wake_writers(self) -> None:
        while self._writers:
            waiter = self._writers.popleft()
            if not waiter.done():
                waiter.set_result(None)

    # --- called by asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        self.last_received = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f": {exc}" if exc else " by the peer"
        self._end(ConnectionLost(f"the connection to {self.peer} was closed{reason}"))
        self._transport = None
        if not self.lost.done() and self.error is not None:
            self.lost.set_result(self.error)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake_writers()

    def data_received(self, data: bytes) -> None:
        self.last_received = self.loop.time()
        try:
            frames = self._parser.feed(data)
        except FrameError as exc:
            self.abort(FrameError(f"{self.peer} does not speak the remoting protocol: {exc}"))
            return
        if frames:
            self.server_version = frames[-1].version
        for frame in frames:
            if frame.flag & 1:
                self._pending.answer(frame)
            else:
                self._answer(frame)

    def _answer(self, frame: Frame) -> None:
        answer: Answer | None = None
        if self._on_request is not None:
            try:
                answer = self._on_request(self, frame)
            except Exception as exc:
                log.exception("a request with code %d of %s failed", frame.code, self.peer)
                answer = Answer(ResponseCode.SYSTEM_ERROR, remark=f"{type(exc).__name__} in the client")
        if frame.is_oneway or self.error is not None:
            return
        if answer is None:
            answer = Answer(
                ResponseCode.REQUEST_CODE_NOT_SUPPORTED, remark=f"request code {frame.code} is not supported here"
            )
        try:
            data = encode_response(answer.code, frame.opaque, answer.fields, answer.body, answer.remark)
        except Oversized as exc:
            data = encode_response(ResponseCode.SYSTEM_ERROR, frame.opaque, remark=str(exc))
        self._write(data, b"")


def _settle(future: asyncio.Future[Frame], outcome: Frame | RemotingError) -> None:
    if future.done():
        return
    if isinstance(outcome, Frame):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
        # Whoever gave up on the answer is not to be told by the loop that nobody looked at it.
        future.exception()


async def dial(
    host: str,
    port: int,
    *,
    ssl: tls.SSLContext | None = None,
    server_hostname: str | None = None,
    signer: Signer | None = None,
    on_request: OnRequest | None = None,
    timeout: float,
) -> RemotingConnection:
    """Connect to ``host``, over TLS when there is a context.

    ``server_hostname`` is the name that the certificate must have.  Raise `OSError`, also `ssl.SSLError`, or
    `NotConnected` after ``timeout`` seconds.
    """
    loop = asyncio.get_running_loop()
    peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        async with asyncio.timeout(timeout):
            _, connection = await loop.create_connection(
                lambda: RemotingConnection(loop, peer=peer, signer=signer, on_request=on_request),
                host,
                port,
                ssl=ssl,
                server_hostname=(server_hostname or host) if ssl is not None else None,
                ssl_shutdown_timeout=_TLS_GOODBYE if ssl is not None else None,
            )
    except TimeoutError as exc:
        if exc.errno is not None:
            raise  # ETIMEDOUT of the system
        raise NotConnected(f"no connection to {peer} in {timeout:g} s") from exc
    return connection
