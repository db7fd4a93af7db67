"""Follow-ups and replies: from a handler's result to messages, and through the idempotency store and back."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from brokerkit import codec
from brokerkit.envelope import REPLY_ERROR
from brokerkit.error_text import clean_text
from brokerkit.errors import PayloadError
from brokerkit.producer import Producer
from brokerkit.results import Outcome
from brokerkit.spi import Destination, Inbound, Outbound, ToDead, ToGroup, ToInbox, ToTopic

__all__ = ["FollowUps", "dump", "load"]

_DESTINATIONS: Mapping[str, Callable[..., Destination]] = {
    kind.__name__: kind for kind in (ToTopic, ToGroup, ToDead, ToInbox)
}


class FollowUps:
    """Makes the messages that a handled message causes."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def of(self, inbound: Inbound, outcome: Outcome) -> list[Outbound]:
        """Return the follow-ups and the reply of ``outcome``; their topics are declared.

        Raise `PayloadError` when a follow-up has no topic or something cannot be encoded, `CapabilityNotSupported`
        when it asks for what the connection lacks: the handler failed.
        """
        outbounds = []
        for message in outcome.follow_ups:
            if message.topic is None:
                raise PayloadError("a follow-up message needs a topic", topic=inbound.topic)
            if message.topic_object is not None:
                self._producer.know(message.topic_object)
            parent = message.parent_id or inbound.message_id
            outbound = self._producer.outbound(message.topic, message, {"parent": parent} if parent else {})
            await self._producer.prepare(message.topic, outbound)
            outbounds.append(outbound)
        if inbound.reply_to is not None and (outcome.has_reply or not outcome.follow_ups):
            outbounds.append(self.reply(inbound, outcome.reply))
        return outbounds

    def reply(self, inbound: Inbound, value: Any, error: str | None = None) -> Outbound:
        """Return the reply to a request."""
        body, content_type = codec.encode(value)
        return Outbound(
            destination=ToInbox(inbound.reply_to or ""),
            body=body,
            message_id=self._producer.new_id(),
            headers={} if error is None else {REPLY_ERROR: clean_text(error)},
            content_type=content_type,
            correlation_id=inbound.correlation_id or inbound.message_id,
            timestamp=self._producer.now(),
        )


def dump(outbounds: list[Outbound]) -> bytes | None:
    """Return the messages as bytes for an idempotency store; None for none."""
    if not outbounds:
        return None
    return json.dumps([_to_json(outbound) for outbound in outbounds]).encode()


def load(data: bytes | None) -> list[Outbound]:
    """Return what `dump` was given."""
    return [_from_json(item) for item in json.loads(data)] if data else []


def _to_json(outbound: Outbound) -> dict[str, Any]:
    values = {field.name: getattr(outbound, field.name) for field in fields(outbound)}
    destination = outbound.destination
    values["destination"] = [type(destination).__name__, *(getattr(destination, f.name) for f in fields(destination))]
    values["headers"] = dict(outbound.headers)
    values["native"] = dict(outbound.native) if outbound.native else None
    values["body"] = base64.b64encode(outbound.body).decode()
    return values


def _from_json(values: dict[str, Any]) -> Outbound:
    values["body"] = base64.b64decode(values["body"])
    kind, *names = values.pop("destination")
    return Outbound(destination=_DESTINATIONS[kind](*names), **values)
