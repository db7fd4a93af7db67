"""What a client says to a broker: a proxy that keeps its requests, and swallows some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from brokerkit.clock import SystemClock
from brokerkit.testing.faults import Answer, FaultProxy
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.remoting.frames import Frame, FrameParser

__all__ = ["Request", "Wire", "overheard"]

_CLOCK = SystemClock()


@dataclass(frozen=True)
class Request:
    """One request, and when it came, in monotonic seconds."""

    at: float
    frame: Frame


@dataclass
class Wire:
    """All requests to one broker through a proxy."""

    #: For the section of the client: leads it to the proxy.
    address_map: dict[str, str]
    requests: list[Request] = field(default_factory=list)
    #: Requests with these codes never reach the broker.
    swallowed: frozenset[int] = frozenset()

    def of(self, *codes: int, **fields: str) -> list[Request]:
        """Return the requests with one of the codes and all of these fields, in their order."""
        return [
            request
            for request in tuple(self.requests)
            if request.frame.code in codes and fields.items() <= request.frame.fields.items()
        ]


class _Listening(Answer):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._parser = FrameParser()
        self._raw = bytearray()

    def upstream(self, data: bytes) -> tuple[bytes, bytes]:
        self._raw += data
        forward = b""
        for frame in self._parser.feed(data):
            size = 4 + int.from_bytes(self._raw[:4], "big")
            raw, self._raw = bytes(self._raw[:size]), self._raw[size:]
            if not frame.is_response:
                self._wire.requests.append(Request(_CLOCK.monotonic(), frame))
                if frame.code in self._wire.swallowed:
                    continue
            forward += raw
        return forward, b""


@contextmanager
def overheard(server: RocketMQControl) -> Iterator[Wire]:
    """Listen to what a client with this ``address_map`` asks the server's first broker."""
    broker = server.address.masters[0].address
    host, _, port = broker.rpartition(":")
    with FaultProxy(host, int(port)) as proxy:
        wire = Wire({broker: f"{proxy.host}:{proxy.port}"})
        proxy.answer(lambda: _Listening(wire))
        yield wire
