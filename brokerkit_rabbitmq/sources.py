"""What a consumer reads: the queue of a group, a queue of its own for broadcasts, an inbox, dead letters."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

from pika import spec

from brokerkit_rabbitmq.consuming import ConsumeChannel

__all__ = ["BroadcastSource", "GroupSource", "InboxSource", "Source"]


class Source(Protocol):
    """Where deliveries come from."""

    #: For logs.
    name: str
    topic: str
    group: str

    async def subscribe(self, channel: ConsumeChannel) -> None:
        """Declare what belongs to this consumer alone, and consume."""
        ...

    async def may_be_forgotten(self, channel: ConsumeChannel) -> bool:
        """Return whether the broker may have lost the consumer; asked when nothing came for a while."""
        ...

    def tag_of(self, exchange: str, routing_key: str) -> str | None:
        """Return the tag of a message that came this way and has no header that names one."""
        ...


class _Routed:
    """Messages of a topic: in its exchange a routing key is a tag, unless it is the one for messages without."""

    def __init__(self, topic: str, group: str, exchange: str, untagged: str) -> None:
        self.topic = topic
        self.group = group
        self._exchange = exchange
        self._untagged = untagged

    def tag_of(self, exchange: str, routing_key: str) -> str | None:
        if exchange != self._exchange or routing_key in ("", self._untagged):
            return None
        return routing_key


class GroupSource(_Routed):
    """The queue of a group, which exists."""

    def __init__(
        self,
        topic: str,
        group: str,
        *,
        queue: str,
        exchange: str,
        untagged: str,
        prefetch: int,
        ordered: bool = False,
    ) -> None:
        super().__init__(topic, group, exchange, untagged)
        self.name = queue
        self._prefetch = prefetch
        self._ordered = ordered

    async def subscribe(self, channel: ConsumeChannel) -> None:
        await channel.consume(self.name, self._prefetch)

    async def may_be_forgotten(self, channel: ConsumeChannel) -> bool:
        """A quorum queue that is deleted and declared again at once forgets its consumers without a word.

        12 times out of 12 on 3.10.8; consuming anew on the same channel gets nothing either.
        """
        if not self._ordered:
            return True
        # Consuming anew would make another consumer the active one, with messages under way to this one.
        answer = await channel.call(spec.Queue.Declare(0, self.name, passive=True), spec.Queue.DeclareOk)
        return not answer.consumer_count


class BroadcastSource(_Routed):
    """A queue of this consumer's own, bound like that of a group; it is gone with the connection."""

    def __init__(
        self, topic: str, group: str, *, exchanges: Sequence[str], untagged: str, keys: Sequence[str], prefetch: int
    ) -> None:
        super().__init__(topic, group, exchanges[0], untagged)
        self.name = f"broadcasts of {topic}"
        self._exchanges = exchanges
        self._keys = keys
        self._prefetch = prefetch

    async def subscribe(self, channel: ConsumeChannel) -> None:
        # The broker gives the name.  Exclusive queues are classic, and gone with the connection.
        declare = spec.Queue.Declare(0, "", exclusive=True, auto_delete=True, durable=False)
        queue = (await channel.call(declare, spec.Queue.DeclareOk)).queue
        for exchange in self._exchanges:
            for key in self._keys:
                await channel.call(spec.Queue.Bind(0, queue, exchange, key), spec.Queue.BindOk)
        await channel.consume(queue, self._prefetch)

    async def may_be_forgotten(self, channel: ConsumeChannel) -> bool:
        return False  # nobody else can delete an exclusive queue


class InboxSource:
    """A queue for replies, under a name that stays the same over reconnections."""

    def __init__(self, prefetch: int) -> None:
        self.name = self.topic = self.group = f"bk.inbox.{secrets.token_hex(12)}"
        self._prefetch = prefetch

    async def subscribe(self, channel: ConsumeChannel) -> None:
        # Locked (405) while the broker still holds a dead connection of ours; the consumer tries again.
        declare = spec.Queue.Declare(0, self.name, exclusive=True, auto_delete=True, durable=False)
        await channel.call(declare, spec.Queue.DeclareOk)
        await channel.consume(self.name, self._prefetch)

    async def may_be_forgotten(self, channel: ConsumeChannel) -> bool:
        return False  # nobody else can delete an exclusive queue

    def tag_of(self, exchange: str, routing_key: str) -> str | None:
        return None
