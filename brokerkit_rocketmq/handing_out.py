"""`HandingOut`: stored messages as the SPI has them, with what is known of their earlier deliveries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from brokerkit.spi import Outbound, ToGroup
from brokerkit_rocketmq.property_text import ATTEMPT, written_attempt

if TYPE_CHECKING:
    from brokerkit.spi import Inbound
    from brokerkit_rocketmq.mapping import Codec
    from brokerkit_rocketmq.progress import Progress
    from brokerkit_rocketmq.reader import Reader
    from brokerkit_rocketmq.remoting.messages import StoredMessage
    from brokerkit_rocketmq.sources import Source

__all__ = ["HandingOut"]


class HandingOut:
    """Makes deliveries of what readers hand out, and copies of what is given back."""

    def __init__(self, source: Source, codec: Codec) -> None:
        self._source = source
        self._codec = codec

    def deliveries(self, reader: Reader, messages: Iterable[StoredMessage], before: int, taken: list[Inbound]) -> int:
        """Append the deliveries of messages; settle those that the tag filter refuses, and return how many.

        ``before``: offsets below it were handed out earlier.
        """
        source, progress = self._source, reader.progress
        decode, topic, group, tags = self._codec.decode, source.topic, source.group, source.tags
        if reader.queue.topic != source.native_topic:
            # The group alone is meant.
            tags = None
        # Below this it may have been delivered before, for all that is known.
        unknown = progress.doubtful
        refused = 0
        for stored in messages:
            offset = stored.queue_offset
            if tags is not None and stored.properties.get("TAGS") not in tags:
                # Its tag has the hash of another one.
                progress.settle(offset)
                refused += 1
                continue
            inbound = decode(stored, topic, group)
            inbound.token = (reader, offset)
            if offset < before:
                inbound.redelivered = True
                _suspect(inbound, progress, offset)
            else:
                inbound.redelivered = False if offset >= unknown else None
            taken.append(inbound)
        return refused

    def copies(
        self, progress: Progress[StoredMessage], messages: Iterable[StoredMessage], now: float
    ) -> list[Outbound]:
        """Return the messages as they are, for their own group alone, with the starts that were counted.

        Where one that is not settled lies below settled ones, all of them would come again; its copy lets them be.
        """
        return [self._copy(progress, stored, now) for stored in messages]

    def _copy(self, progress: Progress[StoredMessage], stored: StoredMessage, now: float) -> Outbound:
        inbound = self._codec.decode(stored, self._source.topic, self._source.group)
        written = written_attempt(inbound.headers)
        attempt = inbound.native_attempt if written is None else written
        if stored.queue_offset < progress.suspected:
            attempt += progress.trials.starts(stored.queue_offset)
        return Outbound(
            destination=ToGroup(inbound.topic, inbound.group),
            body=inbound.body,
            # The codec gives an id to messages that came without one.
            message_id=inbound.message_id or "",
            headers={**inbound.headers, ATTEMPT: str(attempt)} if attempt > 1 else inbound.headers,
            due=inbound.due,
            key=inbound.key,
            tag=inbound.tag,
            type=inbound.type,
            content_type=inbound.content_type,
            priority=inbound.priority,
            timestamp=inbound.timestamp if inbound.timestamp is not None else now,
            correlation_id=inbound.correlation_id,
            reply_to=inbound.reply_to,
        )


def _suspect(inbound: Inbound, progress: Progress[StoredMessage], offset: int) -> None:
    """Say whether a process may have died of a message that was handed out before, and how often."""
    inbound.started = offset < progress.suspected
    if inbound.started:
        inbound.crashes = progress.trials.starts(offset)
