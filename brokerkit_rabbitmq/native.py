"""`NativeMessage`: a received message as RabbitMQ delivered it, for what is not portable."""

from __future__ import annotations

import struct
from functools import cached_property

from pika import spec

__all__ = ["NativeMessage"]

_U64 = struct.Struct(">Q")


class NativeMessage:
    """What basic.deliver said, and the properties as pika's `BasicProperties`; decoded when it is looked at."""

    def __init__(self, method: bytes, header: bytes) -> None:
        self._method = method
        self._header = header

    @cached_property
    def properties(self) -> spec.BasicProperties:
        """All properties and headers, ``x-death`` and other native ones included."""
        return spec.BasicProperties().decode(self._header)

    @cached_property
    def deliver(self) -> spec.Basic.Deliver:
        """consumer_tag, delivery_tag, redelivered, exchange and routing_key of this delivery."""
        return spec.Basic.Deliver().decode(self._method)

    @property
    def exchange(self) -> str:
        """The exchange that the message came through last; empty for a queue addressed directly."""
        return str(self.deliver.exchange)

    @property
    def routing_key(self) -> str:
        """The routing key that it was sent with last."""
        return str(self.deliver.routing_key)
