"""`Answers`: what a client answers when a broker asks it something."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from brokerkit_rocketmq.remoting.bodies import BadBody, parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.connection import Answer, RemotingConnection
from brokerkit_rocketmq.remoting.frames import Frame
from brokerkit_rocketmq.routes import MessageQueue

__all__ = ["Answers", "as_fastjson"]

log = logging.getLogger("brokerkit.rocketmq")


class Answers:
    """Who is to be told or asked, for each consumer group of the client.

    The functions are called on the event loop and must not wait.
    """

    def __init__(self) -> None:
        #: A member joined or left the group (40).
        self.on_members_changed: dict[str, Callable[[], None]] = {}
        #: An administrator set the offsets of a topic anew (220, sent by 4.9.x): the topic and the offsets.
        self.on_reset: dict[str, Callable[[str, Mapping[MessageQueue, int]], None]] = {}
        #: Returns the fields of ``ConsumerRunningInfo`` (307) by their names; `MessageQueue` may be a key.
        self.running_info: dict[str, Callable[[], Mapping[str, Any]]] = {}
        #: Returns the offsets of a topic (221).
        self.offsets: dict[str, Callable[[str], Mapping[MessageQueue, int]]] = {}

    def answer(self, connection: RemotingConnection, frame: Frame) -> Answer | None:
        """Answer a request of a broker; None: it is not known here."""
        code = frame.code
        if code == RequestCode.NOTIFY_CONSUMER_IDS_CHANGED:
            changed = self.on_members_changed.get(frame.fields.get("consumerGroup", ""))
            if changed is not None:
                changed()
            return Answer()
        if code == RequestCode.RESET_CONSUMER_CLIENT_OFFSET:
            return self._reset(frame)
        if code == RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT:
            return self._offsets(frame)
        if code == RequestCode.GET_CONSUMER_RUNNING_INFO:
            return self._running_info(frame)
        if code == RequestCode.CONSUME_MESSAGE_DIRECTLY:
            return Answer(
                ResponseCode.SYSTEM_ERROR,
                remark="a brokerkit consumer handles no message on request: send it again, or redrive its dead letter",
            )
        if code == RequestCode.CHECK_TRANSACTION_STATE:
            # Oneway.  We begin no transactions, so whose it is belongs to another client of the same producer group.
            log.warning("%s asks for the state of a transaction, which brokerkit never begins", connection.peer)
            return Answer()
        return None

    def _reset(self, frame: Frame) -> Answer:
        """The topic and the group are in the header, the offsets by queue in the body (``ResetOffsetBody``)."""
        group, topic = frame.fields.get("group", ""), frame.fields.get("topic", "")
        reset = self.on_reset.get(group)
        if reset is None:
            return _not_a_member(group)
        try:
            offsets = {
                queue: int(offset) for queue, offset in _by_queue((parse_body(frame.body) or {}).get("offsetTable"))
            }
        except (BadBody, KeyError, TypeError, ValueError, AttributeError) as exc:
            log.warning("the offsets of a reset of group %s cannot be read: %r", group, exc)
            return Answer(ResponseCode.SYSTEM_ERROR, remark="the offsets of the reset cannot be read")
        reset(topic, offsets)
        return Answer()

    def _offsets(self, frame: Frame) -> Answer:
        group, topic = frame.fields.get("group", ""), frame.fields.get("topic", "")
        offsets = self.offsets.get(group)
        if offsets is None:
            return _not_a_member(group)
        # ``GetConsumerStatusBody``.
        return Answer(body=as_fastjson({"messageQueueTable": offsets(topic), "consumerTable": {}}))

    def _running_info(self, frame: Frame) -> Answer:
        group = frame.fields.get("consumerGroup", "")
        info = self.running_info.get(group)
        if info is None:
            return _not_a_member(group)
        # Java's tools read each of these without asking whether it is there.
        complete: dict[str, Any] = {"properties": {}, "subscriptionSet": [], "mqTable": {}, "statusTable": {}}
        return Answer(body=as_fastjson({**complete, **info()}))


def _not_a_member(group: str) -> Answer:
    return Answer(ResponseCode.SYSTEM_ERROR, remark=f"this client is no member of the group {group}")


def _by_queue(table: Any) -> list[tuple[MessageQueue, Any]]:
    """Read a map whose keys are queues; 5.x may send a list of pairs instead."""
    pairs = table.items() if isinstance(table, Mapping) else [] if table is None else table
    found = []
    for key, value in pairs:
        queue = dict(key)
        found.append((MessageQueue(str(queue["topic"]), str(queue["brokerName"]), int(queue["queueId"])), value))
    return found


def as_fastjson(value: Any) -> bytes:
    """Return ``value`` as JSON in which a `MessageQueue` may be a key: an object in its place, as fastjson has it."""
    return _text(value).encode("ascii")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(name)}:{_text(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ",".join(_text(item) for item in value) + "]"
    if isinstance(value, MessageQueue):
        return _queue(value)
    return json.dumps(value)


def _key(name: Any) -> str:
    return _queue(name) if isinstance(name, MessageQueue) else json.dumps(str(name))


def _queue(queue: MessageQueue) -> str:
    return json.dumps({"brokerName": queue.broker, "queueId": queue.queue_id, "topic": queue.topic})
