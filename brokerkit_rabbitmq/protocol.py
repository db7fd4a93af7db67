"""`Amqp`: one AMQP connection on one socket, from its login to its end.  It does not come back."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Any, TypeVar, cast

from pika import frame, spec

from brokerkit.errors import BrokerError, BrokerUnavailable, Closed
from brokerkit.spi import Clock, Timer, wait
from brokerkit_rabbitmq.channel import Channel
from brokerkit_rabbitmq.errors import NAME, close_error
from brokerkit_rabbitmq.frames import BODY, END, HEADER, HEARTBEAT, HEARTBEAT_FRAME, METHOD, OVERHEAD

__all__ = ["Amqp", "Tuning"]

log = logging.getLogger("brokerkit.rabbitmq")

C = TypeVar("C", bound=Channel)

_HEAD = struct.Struct(">BHI")
#: Bytes that may wait in the transport before writers are asked to pause.
_WRITE_BUFFER = 1 << 20
#: Section 4.2.2 of the protocol: protocol id 0, version 0-9-1.
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
#: The smallest frame_max that every version of RabbitMQ takes (4.1 and later refuse less).
_LEAST_FRAME_MAX = 8192


class Tuning:
    """What client and broker agreed on: seconds between heartbeats (0: none), bytes of a frame, channels."""

    __slots__ = ("channel_max", "frame_max", "heartbeat")

    def __init__(self, heartbeat: float, frame_max: int, channel_max: int) -> None:
        self.heartbeat = heartbeat
        self.frame_max = frame_max
        self.channel_max = channel_max


class Amqp(asyncio.Protocol):
    """Reads and writes frames, keeps heartbeats, notices that the broker is gone.

    Frames written in one turn of the loop leave together.  `lost` is done when the connection is over, `error` then
    says why.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, tuning: Tuning, call_timeout: float) -> None:
        self.loop = loop
        self.tuning = tuning
        self.lost: asyncio.Future[None] = loop.create_future()
        self.error: BrokerError | None = None
        #: Whether the broker ended it by a word of AMQP.
        self.dismissed = False
        #: Why the broker does not read from us (connection.blocked); None when it does.
        self.blocked: str | None = None
        #: Called when `blocked` changed and when writers may go on.
        self.on_change: Callable[[], None] | None = None
        #: Whether publishers may write: the broker reads and the socket is not full.
        self.may_write = True
        self._full = False
        #: What the broker says about itself: product, version, capabilities.
        self.server: dict[str, Any] = {}
        #: Addresses of the two ends, for messages.
        self.peer = ""
        self._clock = clock
        self._call_timeout = call_timeout
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._out: list[bytes] = []
        #: Bytes in `_out`.
        self._gathered = 0
        self._flushing = False
        self._channels: dict[int, Channel] = {}
        self._control = Control(self, 0)
        self._heard = True
        self._spoke = False
        self._silence = 0
        self._due = 0.0
        self._pulse: Timer | None = None

    # --- login ---

    async def login(self, mechanism: str, response: str, vhost: str, properties: dict[str, Any]) -> None:
        """Say who we are and open ``vhost``.  Raise `AccessRefused`, or why the connection ended."""
        control = self._control
        start = await control.expect(spec.Connection.Start, _PROTOCOL_HEADER)
        self.server = start.server_properties
        offered = str(start.mechanisms, "ascii", "replace") if isinstance(start.mechanisms, bytes) else start.mechanisms
        if mechanism not in offered.split():
            raise BrokerUnavailable(
                f"the broker offers the login mechanisms {offered}, not {mechanism}", backend=NAME, retryable=False
            )
        start_ok = spec.Connection.StartOk(properties, mechanism, response, "en_US")
        tune = await control.call(start_ok, spec.Connection.Tune)
        asked = self.tuning
        self.tuning = Tuning(
            asked.heartbeat,
            max(_LEAST_FRAME_MAX, min(asked.frame_max, tune.frame_max or asked.frame_max)),
            min(asked.channel_max, tune.channel_max or asked.channel_max),
        )
        tuned = self.tuning
        # Whole seconds travel; what is less than one is at least one.
        heartbeat = max(1, round(tuned.heartbeat)) if tuned.heartbeat else 0
        control.start(spec.Connection.TuneOk(tuned.channel_max, tuned.frame_max, heartbeat))
        await control.call(spec.Connection.Open(vhost), spec.Connection.OpenOk)
        if tuned.heartbeat:
            self._schedule_pulse()

    @property
    def version(self) -> tuple[int, ...]:
        """The version of the broker as numbers; (0,) when it does not say."""
        text = self.server.get("version", "")
        text = text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)
        numbers = []
        for part in text.split("."):
            digits = part[: len(part) - len(part.lstrip("0123456789"))]
            if digits:
                numbers.append(int(digits))
            if digits != part:
                # "4.3.0-rc.1"
                break
        return tuple(numbers) or (0,)

    # --- channels ---

    async def open_channel(self, kind: type[C], *arguments: Any) -> C:
        """Open a channel of the class ``kind``, made with the connection, its number and ``arguments``."""
        if self.error is not None:
            raise self.error
        number = next((n for n in range(1, self.tuning.channel_max + 1) if n not in self._channels), None)
        if number is None:
            raise BrokerUnavailable(
                f"all {self.tuning.channel_max} channels of the connection are in use", backend=NAME
            )
        channel = kind(self, number, *arguments)
        self._channels[number] = channel
        try:
            await channel.call(spec.Channel.Open(), spec.Channel.OpenOk)
        except BaseException:
            # Its number may be used again only when the broker has forgotten it too; a cancelled caller goes at once.
            channel.close_soon()
            raise
        return channel

    def forget(self, channel: Channel) -> None:
        """Free the number of a channel that both sides have closed."""
        if self._channels.get(channel.number) is channel:
            del self._channels[channel.number]

    async def answered(self, future: asyncio.Future[Any]) -> None:
        """Wait for the reply to a call.

        A broker that does not answer in time is not heard any more: the connection is given up, with
        `BrokerUnavailable`.  One that blocks us answers when it reads again.
        """
        while not await wait(self._clock, future, self._call_timeout):
            if self.blocked is not None:
                continue
            self.abort(BrokerUnavailable(f"no answer from {self.peer} in {self._call_timeout:g} s", backend=NAME))

    # --- writing ---

    def write(self, data: bytes) -> None:
        """Write ``data`` with all else that is written in this turn of the loop."""
        self._out.append(data)
        self._gathered += len(data)
        if self._gathered > _WRITE_BUFFER:
            # Now, so that writers learn in time that the socket is full.
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def write_now(self, data: bytes) -> None:
        """Write ``data`` and what waits at once."""
        self._out.append(data)
        self._flush()

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, []
        self._gathered = 0
        if out and self._transport is not None and self.error is None:
            self._spoke = True
            self._transport.write(b"".join(out))

    def pause_writing(self) -> None:
        self._full = True
        self.may_write = False

    def resume_writing(self) -> None:
        self._full = False
        self._may_write_again()

    # --- ending ---

    async def close(self) -> None:
        """Close in good order; returns when it is over.  No-op when it is."""
        if self.blocked is not None:
            # Nobody reads what we would say.
            self.abort(Closed("the connection is closed", backend=NAME))
        if self.error is None:
            closing = self._control.start(spec.Connection.Close(200, "", 0, 0), spec.Connection.CloseOk)
            try:
                await self.answered(closing)
            finally:
                if closing.done() and not closing.cancelled():
                    closing.exception()
                self.abort(Closed("the connection is closed", backend=NAME))
        if not self.lost.done():
            await asyncio.wait((self.lost,))

    def hang_up(self) -> None:
        """Send what was written, then close the socket without a word of AMQP.

        The broker takes back what is unsettled in its order; cancelling a consumer first would not keep it.
        """
        self.end_after_writing(Closed("the connection is closed", backend=NAME))

    def end_after_writing(self, error: BrokerError) -> None:
        """Send what was written, then close the socket; everything on the connection ends with ``error``."""
        if self.error is None:
            self._flush()
            self._end(error)
            if self._transport is not None:
                self._transport.close()

    def set_blocked(self, reason: str | None) -> None:
        """Note that the broker reads no more from us, or that it does again."""
        self.blocked = reason
        if reason is not None:
            self.may_write = False
            log.warning("%s blocks publishers: %s", self.peer, reason)
            self._notify()
        else:
            self._may_write_again()

    def _may_write_again(self) -> None:
        self.may_write = not self._full and self.blocked is None
        self._notify()

    def _notify(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def abort(self, error: BrokerError) -> None:
        """Drop the socket at once; everything on the connection ends with ``error``."""
        if self.error is None:
            self._end(error)
        if self._transport is not None:
            self._transport.abort()
        elif not self.lost.done():
            self.lost.set_result(None)

    def _end(self, error: BrokerError) -> None:
        self.error = error
        if self._pulse is not None:
            self._pulse.cancel()
        channels, self._channels = self._channels, {}
        for channel in (*channels.values(), self._control):
            channel.end(error)
        self._out.clear()

    # --- called by asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.error is None:
            reason = f": {exc}" if exc else ""
            self._end(BrokerUnavailable(f"the link to {self.peer} broke{reason}", backend=NAME))
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self._rest:
            data = self._rest + data
        offset, end = 0, len(data)
        channels = self._channels
        try:
            while end - offset >= OVERHEAD:
                kind, number, size = _HEAD.unpack_from(data, offset)
                start = offset + 7
                stop = start + size
                if stop >= end:
                    if size > self.tuning.frame_max:
                        self._refuse(data)
                    break
                if data[stop] != END:
                    self._refuse(data)
                channel = channels.get(number) if number else self._control
                # A channel that we closed may still get what was under way.
                if channel is not None:
                    if kind == BODY:
                        channel.body(data, start, stop)
                    elif kind == METHOD:
                        channel.method(data, start, stop)
                    elif kind == HEADER:
                        channel.header(data, start, stop)
                    elif kind != HEARTBEAT:
                        raise ValueError(f"unknown kind of frame {kind}")
                if self.error is not None:
                    return
                offset = stop + 1
        except (ValueError, IndexError, struct.error) as exc:
            # Nothing after this could be understood either.
            error = BrokerUnavailable(f"{self.peer} sent what is not AMQP 0-9-1: {exc}", backend=NAME)
            error.__cause__ = exc
            self.abort(error)
            return
        self._rest = data[offset:] if offset < end else b""

    def _refuse(self, data: bytes) -> None:
        if data.startswith(b"AMQP"):
            raise ValueError(f"it speaks version {tuple(data[4:8])}")
        raise ValueError("a frame without an end mark")

    # --- heartbeats ---

    def _schedule_pulse(self) -> None:
        pause = self.tuning.heartbeat / 2
        self._due = self._clock.monotonic() + pause
        self._pulse = self._clock.call_later(pause, self._beat)

    def _beat(self) -> None:
        """Every half of an interval: speak if nothing was said, and give up after two silent intervals."""
        late = self._clock.monotonic() - self._due > self.tuning.heartbeat / 2
        if self._heard:
            self._silence = 0
        elif not late:
            # After a stall of the loop what the broker sent may lie in the socket: it is read before the next beat.
            self._silence += 1
        self._heard = False
        if self._silence >= 4:
            self.abort(
                BrokerUnavailable(
                    f"nothing was heard from {self.peer} for {2 * self.tuning.heartbeat:g} s", backend=NAME
                )
            )
            return
        if not self._spoke and self._transport is not None:
            self._transport.write(HEARTBEAT_FRAME)
        self._spoke = False
        self._schedule_pulse()


class Control(Channel):
    """Channel 0: the connection itself."""

    def expect(self, reply: type[Any], data: bytes) -> asyncio.Future[Any]:
        """Write ``data``, which is no frame, and return the future of the method that answers it."""
        future: asyncio.Future[Any] = self.connection.loop.create_future()
        self._replies.append(((reply,), future))
        self.connection.write(data)
        return future

    def event(self, method: Any) -> None:
        connection = self.connection
        if isinstance(method, spec.Connection.Close):
            connection.dismissed = True
            connection.write(frame.Method(0, spec.Connection.CloseOk()).marshal())
            connection.end_after_writing(close_error(method.reply_code, method.reply_text))
        elif isinstance(method, spec.Connection.Blocked):
            reason = method.reason
            # pika leaves what is no UTF-8 as it is.
            text = str(reason, "utf-8", "replace") if isinstance(reason, bytes) else reason
            connection.set_blocked(text or "no reason given")
        elif isinstance(method, spec.Connection.Unblocked):
            connection.set_blocked(None)
