"""`Asking`: what brokers are asked about queues and groups, one request each; many may be under way at once.

Request codes and fields: ``RequestCode`` and the ``protocol.header`` classes of apache/rocketmq 4.9.4 and 5.x.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from brokerkit.errors import BrokerError
from brokerkit_rocketmq.catching_up import CatchingUp
from brokerkit_rocketmq.client import Client
from brokerkit_rocketmq.errors import is_acl_refusal, refused
from brokerkit_rocketmq.remoting.bodies import parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.frames import Frame
from brokerkit_rocketmq.routes import MessageQueue

__all__ = ["Asking"]

#: Bit of ``sysFlag``: the filter is in the request, so that the asker need not be a member (``PullSysFlag``).
_SUBSCRIPTION = 4
_FOUND_NOTHING = frozenset({ResponseCode.PULL_NOT_FOUND, ResponseCode.PULL_RETRY_IMMEDIATELY})


class Asking:
    """Questions to masters.  Each raises `BrokerError` for what is neither an answer nor a plain "there is none"."""

    def __init__(self, client: Client, timeout: float, *, slaves: bool = False) -> None:
        """With ``slaves`` questions about one queue go to a copy while the master is away."""
        self.client = client
        self.timeout = timeout
        self._slaves = slaves
        self._catching_up = CatchingUp(client, timeout)

    # --- queues ---

    async def max_offset(self, queue: MessageQueue) -> int:
        """Return where the next message of the queue will be."""
        return await self._offset(RequestCode.GET_MAX_OFFSET, queue)

    async def min_offset(self, queue: MessageQueue) -> int:
        """Return where the oldest message of the queue is, or would be."""
        return await self._offset(RequestCode.GET_MIN_OFFSET, queue)

    async def offset_at(self, queue: MessageQueue, instant: float) -> int:
        """Return the offset of the message stored nearest to ``instant``, in seconds since the epoch."""
        return await self._offset(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, queue, timestamp=str(int(instant * 1000)))

    async def _offset(self, code: RequestCode, queue: MessageQueue, **more: str) -> int:
        fields = {"topic": queue.topic, "queueId": str(queue.queue_id), **more}
        frame = await self._call(queue.broker, code, fields)
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, f"asking for an offset of {text_of(queue)}", topic=queue.topic)
        # -1: the broker has no such queue yet.
        return max(0, int(frame.fields["offset"]))

    async def _call(self, broker: str, code: RequestCode, fields: Mapping[str, str]) -> Frame:
        return await self.client.call(broker, code, fields, timeout=self.timeout, slaves=self._slaves)

    async def caught_up(self, brokers: Iterable[str]) -> None:
        """Return when what was stored before this call has its place in its queue, or after some seconds."""
        await asyncio.gather(*(self._catching_up.caught_up(broker) for broker in set(brokers)))

    # --- offsets of groups ---

    async def committed(self, group: str, queue: MessageQueue) -> int | None:
        """Return the committed offset, None when there is none.

        4.9.4 answers 0 instead of none while the queue still holds its first message.
        """
        fields = {
            "consumerGroup": group,
            "topic": queue.topic,
            "queueId": str(queue.queue_id),
            # 5.x does the same as 4.9.4 without this.
            "setZeroIfNotFound": "false",
        }
        frame = await self._call(queue.broker, RequestCode.QUERY_CONSUMER_OFFSET, fields)
        if frame.code == ResponseCode.SUCCESS:
            offset = int(frame.fields["offset"])
            return offset if offset >= 0 else None
        if frame.code == ResponseCode.QUERY_NOT_FOUND:
            return None
        raise refused(frame, f"asking for the offset of group {group!r} in {text_of(queue)}", topic=queue.topic)

    async def commit(self, group: str, queue: MessageQueue, offset: int) -> None:
        """Commit, and return when the broker has it."""
        frame = await self._call(queue.broker, RequestCode.UPDATE_CONSUMER_OFFSET, offset_fields(group, queue, offset))
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, f"committing an offset of group {group!r} in {text_of(queue)}", topic=queue.topic)

    async def members(self, group: str, broker: str) -> frozenset[str]:
        """Return the client ids of the members that one broker knows."""
        frame = await self.client.call(
            broker, RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": group}, timeout=self.timeout
        )
        if frame.code == ResponseCode.SUCCESS:
            # A client with two connections is listed twice.
            return frozenset(parse_body(frame.body).get("consumerIdList") or ())
        if frame.code in (ResponseCode.SYSTEM_ERROR, ResponseCode.CONSUMER_NOT_ONLINE) and not is_acl_refusal(frame):
            return frozenset()
        raise refused(frame, f"asking for the members of group {group!r}")

    # --- messages ---

    async def pull(
        self, group: str, queue: MessageQueue, offset: int, *, count: int = 32, tag: str = "*"
    ) -> tuple[Frame, int]:
        """Read from a queue without being a member, and commit nothing; return the frame and the next offset.

        The body of the frame is empty when there is nothing from ``offset`` on: then the next offset is not larger.
        The broker returns at most 32 messages and 256 KiB, but at least one message.
        """
        fields = pull_fields(group, queue, offset, count=count, tag=tag)
        frame = await self._call(queue.broker, RequestCode.PULL_MESSAGE, fields)
        if frame.code == ResponseCode.SUCCESS or frame.code == ResponseCode.PULL_OFFSET_MOVED:
            return frame, int(frame.fields["nextBeginOffset"])
        if frame.code in _FOUND_NOTHING:
            return frame, int(frame.fields.get("nextBeginOffset", offset))
        raise refused(frame, f"reading {text_of(queue)}", topic=queue.topic)

    # --- anything else ---

    async def ask(
        self, broker: str, code: RequestCode, fields: Mapping[str, str], what: str, *, body: bytes = b""
    ) -> Any:
        """Return the parsed body of an answer, None when that is empty; raise what `refused` makes of other codes."""
        frame = await self.client.call(broker, code, fields, body, timeout=self.timeout)
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, what)
        return parse_body(frame.body) if frame.body else None

    async def locked(self, code: RequestCode, group: str, client_id: str, queues: Sequence[MessageQueue]) -> int:
        """Lock (41) or unlock (42) queues of one broker for one client id; return how many are locked by it now."""
        request = {
            "consumerGroup": group,
            "clientId": client_id,
            "mqSet": [{"topic": one.topic, "brokerName": one.broker, "queueId": one.queue_id} for one in queues],
            "onlyThisBroker": False,
        }
        body = json.dumps(request).encode()
        answer = await self.ask(queues[0].broker, code, {}, f"locking {queues[0].topic!r}", body=body)
        return len((answer or {}).get("lockOKMQSet") or ())


def offset_fields(group: str, queue: MessageQueue, offset: int) -> dict[str, str]:
    """Return the header that stores an offset (``UpdateConsumerOffsetRequestHeader``)."""
    return {
        "consumerGroup": group,
        "topic": queue.topic,
        "queueId": str(queue.queue_id),
        "commitOffset": str(offset),
    }


def pull_fields(
    group: str, queue: MessageQueue, offset: int, *, count: int = 32, tag: str = "*", suspend: float | None = None
) -> dict[str, str]:
    """Return the header of a pull by somebody who is no member; ``suspend``: seconds that the broker may hold it."""
    return {
        "consumerGroup": group,
        "topic": queue.topic,
        "queueId": str(queue.queue_id),
        "queueOffset": str(offset),
        "maxMsgNums": str(count),
        # 2 is SUSPEND.
        "sysFlag": str(_SUBSCRIPTION | (0 if suspend is None else 2)),
        "commitOffset": "0",
        "suspendTimeoutMillis": str(0 if suspend is None else int(suspend * 1000)),
        "subscription": tag,
        "subVersion": "0",
        "expressionType": "TAG",
    }


def text_of(queue: MessageQueue) -> str:
    """Return a queue as texts name it."""
    return f"queue {queue.queue_id} of {queue.topic!r} on {queue.broker}"


def first_error(results: Sequence[object]) -> BrokerError | None:
    """Return the first error among the results of a gather; raise one that is no `BrokerError`."""
    for result in results:
        if isinstance(result, BrokerError):
            return result
        if isinstance(result, BaseException):
            raise result
    return None
