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
from typing import Any, cast

from brokerkit_rocketmq.remoting.codes import ResponseCode
from brokerkit_rocketmq.remoting.errors import (
    ConnectionLost,
    FrameError,
    NotConnected,
    Oversized,
    RemotingError,
    RequestTimeout,
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
from brokerkit_rocketmq.remoting.signing import UNSIGNED, Signer

__all__ = ["Answer", "OnRequest", "RemotingConnection", "dial"]

log = logging.getLogger("brokerkit.rocketmq")

#: Bytes that may wait in the transport before writers are asked to pause.
_WRITE_BUFFER = 1 << 20
#: Seconds between two looks at the deadlines, at least.
_SWEEP = 0.02
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
        self._pending: dict[int, tuple[asyncio.Future[Frame], float]] = {}
        self._opaque = 0
        #: The last request that was handed to the transport: what came after it was never written.
        self._written = 0
        self._out: list[bytes] = []
        #: Bytes in `_out`.
        self._gathered = 0
        self._flushing = False
        self._paused = False
        self._writers: deque[asyncio.Future[None]] = deque()
        self._sweep_at = float("inf")
        self._sweeper: asyncio.TimerHandle | None = None

    # --- asking ---

    def request(
        self,
        code: int,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        timeout: float,
        at_once: bool = False,
    ) -> asyncio.Future[Frame]:
        """Write a request and return the future of its answer, whatever response code that has.

        ``at_once``: no other will join it, so it does not wait for the end of the turn of the loop.
        It fails with `NotConnected`, `ConnectionLost`, `RequestTimeout` after ``timeout`` seconds, or `Oversized`.
        Cancelling it does not unwrite the request; the answer is dropped.
        """
        version = PROTOCOL_VERSION
        if self._signer is not None:
            fields = dict(fields) if fields else {}
            self._signer.sign(fields, body)
            if UNSIGNED in fields:
                version = _UNSIGNED_VERSION
        before, after = render_head(code, fields, version=version)
        return self._post(before, after, body, timeout, at_once)

    def request_rendered(self, before: bytes, after: bytes, body: bytes, *, timeout: float) -> asyncio.Future[Frame]:
        """Write a request whose JSON header the caller has rendered, but for the number of ``opaque``.

        The header is ``before``, the number, ``after``, as `render_head` returns them.  Otherwise like `request`.
        Without a signer nothing of it is looked at; with one the header is read and rendered again.
        """
        if self._signer is not None:
            header = json.loads(before + b"0" + after)
            return self.request(header["code"], header.get("extFields"), body, timeout=timeout)
        return self._post(before, after, body, timeout)

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

    def _post(
        self, before: bytes, after: bytes, body: bytes, timeout: float, at_once: bool = False
    ) -> asyncio.Future[Frame]:
        future: asyncio.Future[Frame] = self.loop.create_future()
        if self.error is not None:
            _fail(future, NotConnected(f"not connected to {self.peer}: {self.error}"))
            return future
        self._opaque = opaque = (self._opaque + 1) & _OPAQUE_MASK
        try:
            head = rendered_request(before, opaque, after, len(body), self._frame_max)
        except Oversized as exc:
            _fail(future, exc)
            return future
        deadline = self.loop.time() + timeout
        self._pending[opaque] = (future, deadline)
        if deadline < self._sweep_at:
            self._sweep_later(deadline)
        self._write(head, body, at_once)
        return future

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

    # --- deadlines ---

    def _sweep_later(self, deadline: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweep_at = deadline
        self._sweeper = self.loop.call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        """Fail what is overdue, and look again when the next deadline is due: about once in a timeout."""
        self._sweeper = None
        self._sweep_at = float("inf")
        now = self.loop.time()
        overdue = [opaque for opaque, (_, deadline) in self._pending.items() if deadline <= now]
        for opaque in overdue:
            future, _ = self._pending.pop(opaque)
            _fail(future, RequestTimeout(f"no answer from {self.peer} in time"))
        if self._pending:
            next_deadline = min(deadline for _, deadline in self._pending.values())
            self._sweep_later(max(next_deadline, now + _SWEEP))

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
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        pending, self._pending = self._pending, {}
        unwritten = (self._opaque - self._written) & _OPAQUE_MASK
        for opaque, (future, _) in pending.items():
            if (self._opaque - opaque) & _OPAQUE_MASK < unwritten:
                _fail(future, NotConnected(f"not written to {self.peer}: {error}"))
            else:
                _fail(future, ConnectionLost(str(error)))
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
        pending = self._pending
        for frame in frames:
            if frame.flag & 1:
                entry = pending.pop(frame.opaque, None)
                # What nobody waits for any more came too late.
                if entry is not None and not entry[0].done():
                    entry[0].set_result(frame)
            else:
                self._answer(frame)
        if frames:
            self.server_version = frames[-1].version

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


def _fail(future: asyncio.Future[Any], error: RemotingError) -> None:
    if not future.done():
        future.set_exception(error)
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
