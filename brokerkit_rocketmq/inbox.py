"""`RocketMQInbox`: what others send to one private address.

All inboxes share one topic; the address is the tag, by which the broker filters.  A topic for each would leave its
files behind on the broker; and RocketMQ's own replies (324, pushed by 326) are not stored: the broker drops them while
the receiver reconnects (``ReplyMessageProcessor``).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from brokerkit.spi import Clock
from brokerkit_rocketmq.client import Client
from brokerkit_rocketmq.consumer import RocketMQConsumer
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.mapping import Codec
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.sources import Source

__all__ = ["RocketMQInbox"]

#: Queues of the topic on each broker: so many that senders are spread, so few that each inbox can read them all.
_QUEUES = 4
#: Deliveries that an inbox holds at once.
_PREFETCH = 1000


class RocketMQInbox(RocketMQConsumer):
    """A `brokerkit.spi.InboxDriver`: reads all queues from where they end when it is opened.

    The address stays the same over reconnections, after which it goes on where it was.
    """

    def __init__(
        self,
        client: Client,
        making: Making,
        names: Names,
        codec: Codec,
        *,
        clock: Clock,
        on_close: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """``client`` is the inbox's own, ``making`` that of the connection."""
        self.address = secrets.token_hex(12)
        self._making = making
        self._native = names.inbox
        source = Source(
            topic=self.address,
            group=self.address,
            native_topic=names.inbox,
            native_group=names.inbox,
            expression=self.address,
            tags=frozenset((self.address,)),
            shared=False,
            prefetch=_PREFETCH,
        )
        super().__init__(client, source, codec, clock=clock, on_close=on_close)

    async def open(self) -> None:
        """Create the topic where it is missing, and read.  Raise `AccessRefused` that says what is to be created."""
        await self._making.plain(self._native, _QUEUES, self._native)
        await super().open()
