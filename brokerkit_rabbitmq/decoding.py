"""`Decoder`: deliveries of RabbitMQ as messages of the SPI."""

from __future__ import annotations

import logging
import struct
from typing import Any

from brokerkit.spi import Inbound
from brokerkit_rabbitmq.mapping import fill_inbound
from brokerkit_rabbitmq.native import NativeMessage
from brokerkit_rabbitmq.properties import decode_properties
from brokerkit_rabbitmq.sources import Source

__all__ = ["Decoder"]

log = logging.getLogger("brokerkit.rabbitmq")

#: Addresses whose tag is remembered.
_MOST_TAGS = 1024


class Decoder:
    """Decodes for one source, and remembers what comes again and again."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._topic = source.topic
        self._group = source.group
        self._tags: dict[bytes, str | None] = {}
        self._content_types: dict[bytes, str] = {}

    def decode(
        self, token: Any, redelivered: bool, address: bytes, method: bytes, header: bytes, body: bytes
    ) -> Inbound:
        """Return the message.  ``address`` is exchange and routing key as they travel, as two short strings."""
        inbound = Inbound(
            topic=self._topic,
            group=self._group,
            body=body,
            message_id=None,
            redelivered=redelivered,
            token=token,
            native=NativeMessage(method, header),
        )
        try:
            tag = self._tags[address]
        except KeyError:
            tag = self._remember_tag(address)
        try:
            fill_inbound(inbound, decode_properties(header, 0, self._content_types), tag)
        except (ValueError, IndexError, struct.error) as exc:
            # A foreign sender's mistake; the body may be good all the same.
            log.warning("a message in %s has properties that cannot be decoded: %s", self._source.name, exc)
        return inbound

    def _remember_tag(self, address: bytes) -> str | None:
        if len(self._tags) >= _MOST_TAGS:
            self._tags.clear()
        size = address[0]
        exchange = address[1 : 1 + size].decode("utf-8", "replace")
        routing_key = address[2 + size :].decode("utf-8", "replace")
        tag = self._tags[address] = self._source.tag_of(exchange, routing_key)
        return tag
