"""`Registrations`: what a client tells brokers about itself, again and again, so that they count it as a member."""

from __future__ import annotations

import json
from dataclasses import dataclass

from brokerkit_rocketmq.links import Probe
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.remoting.names import java_hash

__all__ = ["BROADCASTING", "CLUSTERING", "Registration", "Registrations", "Subscription"]

#: ``MessageModel``: each message to one member of the group, or to all.
CLUSTERING = "CLUSTERING"
BROADCASTING = "BROADCASTING"


@dataclass(frozen=True, slots=True)
class Subscription:
    """Which messages of a topic a group takes."""

    topic: str
    #: ``*``, or tags with ``||`` between them, or a condition in SQL.
    expression: str = "*"
    #: Brokers take the newer of two that differ; milliseconds since the epoch.
    version: int = 0
    #: ``TAG`` or ``SQL92``.
    kind: str = "TAG"

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the expression; none for all messages and for SQL."""
        if self.kind != "TAG" or self.expression == "*":
            return ()
        return tuple(dict.fromkeys(tag.strip() for tag in self.expression.split("||") if tag.strip()))

    def as_json(self) -> dict[str, object]:
        """Return it as ``SubscriptionData`` of the Java client."""
        tags = self.tags
        return {
            "topic": self.topic,
            "subString": self.expression,
            "tagsSet": tags,
            "codeSet": [java_hash(tag) for tag in tags],
            "subVersion": self.version,
            "expressionType": self.kind,
            "classFilterMode": False,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A client's membership in a consumer group."""

    group: str
    subscriptions: tuple[Subscription, ...]
    #: `CLUSTERING` or `BROADCASTING`.  All members must say the same: brokers take the last one's.
    model: str = CLUSTERING
    #: ``ConsumeFromWhere``; brokers only show it.
    from_where: str = "CONSUME_FROM_LAST_OFFSET"
    #: ``ConsumeType``.
    kind: str = "CONSUME_PASSIVELY"

    def as_json(self) -> dict[str, object]:
        """Return it as ``ConsumerData`` of the Java client."""
        return {
            "groupName": self.group,
            "consumeType": self.kind,
            "messageModel": self.model,
            "consumeFromWhere": self.from_where,
            "unitMode": False,
            "subscriptionDataSet": [subscription.as_json() for subscription in self.subscriptions],
        }


class Registrations:
    """The groups of one client."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.producers: set[str] = set()
        self.consumers: dict[str, Registration] = {}

    @property
    def topics(self) -> frozenset[str]:
        """The topics that are subscribed to."""
        return frozenset(
            subscription.topic
            for registration in self.consumers.values()
            for subscription in registration.subscriptions
        )

    def heartbeat(self) -> Probe:
        """Return the request that tells a broker all of it."""
        body = {
            "clientID": self.client_id,
            "producerDataSet": [{"groupName": group} for group in sorted(self.producers)],
            "consumerDataSet": [registration.as_json() for registration in self.consumers.values()],
            # 5.x: 0 for a heartbeat that is complete.
            "heartbeatFingerprint": 0,
            "withoutSub": False,
        }
        return Probe(RequestCode.HEART_BEAT, {}, json.dumps(body).encode("ascii"))

    def farewells(self) -> list[dict[str, str]]:
        """Return the fields of the requests that tell a broker that the client leaves its groups."""
        producers = [{"clientID": self.client_id, "producerGroup": group} for group in sorted(self.producers)]
        return producers + [self.farewell(group) for group in self.consumers]

    def farewell(self, group: str) -> dict[str, str]:
        """Return the fields of the request (35) by which the client leaves a consumer group."""
        return {"clientID": self.client_id, "consumerGroup": group}
