"""`Locks`: the queues of an ordered group are read by one member at a time, and the brokers see to it.

A lock lives 60 s from its last renewal (``RebalanceLockManager``); its holder counts on it for 30 s only, as Java's
does.  It belongs to a client id, so it outlives a connection, and the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from brokerkit.errors import BrokerError, BrokerUnavailable
from brokerkit_rocketmq.errors import NAME, refused
from brokerkit_rocketmq.remoting.bodies import BadBody, parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.routes import MessageQueue

if TYPE_CHECKING:
    from brokerkit.spi import Clock
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.sources import Source

__all__ = ["Locks"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds between two renewals, and after which a lock that was not renewed is not counted on.
_RENEWAL, _LIFE = 20.0, 30.0
#: Seconds between the first two attempts to lock a queue that another member holds.
_LOOK = 0.1
#: Seconds between two of them, at least, whatever is configured.
_LEAST_LOOK = 0.01
#: Seconds for one request.
_TIMEOUT = 5.0


class Locks:
    """The locks that one consumer holds."""

    def __init__(
        self,
        client: Client,
        source: Source,
        clock: Clock,
        on_lost: Callable[[MessageQueue], None],
        *,
        pause: float = 1.0,
    ) -> None:
        """``pause``: most seconds until a queue that another member has locked is tried again."""
        self._client = client
        self._source = source
        self._clock = clock
        self._on_lost = on_lost
        self._longest_look = max(pause, _LEAST_LOOK)
        #: Monotonic time of the last renewal.
        self._held: dict[MessageQueue, float] = {}
        #: Client ids of members that were seen once and are gone.
        self._gone: set[str] = set()
        self._seen: set[str] = set()
        self._renewing: asyncio.Task[None] | None = None

    def members(self, members: Iterable[str]) -> None:
        """Note who is in the group now: locks of those who left can be taken from them."""
        present = set(members)
        self._gone = (self._gone | self._seen) - present
        self._seen = present

    async def acquire(self, queue: MessageQueue) -> None:
        """Return when the queue is locked by us.  Raise `BrokerError`."""
        pause = min(_LOOK, self._longest_look)
        while True:
            asked = self._clock.monotonic()
            if queue in await self._lock(queue.broker, [queue]):
                self._held[queue] = asked
                if self._renewing is None:
                    self._renewing = asyncio.get_running_loop().create_task(
                        self._renew(), name=f"brokerkit-rocketmq-locks-{self._source.native_group}"
                    )
                return
            # A member that crashed holds its locks for a minute.
            for client_id in tuple(self._gone):
                await self._unlock(queue.broker, [queue], client_id)
            await self._clock.sleep(pause)
            pause = min(pause * 1.5, self._longest_look)

    async def release(self, queues: Iterable[MessageQueue]) -> None:
        """Unlock; where the broker cannot be told the lock ends by itself."""
        for broker, some in _by_broker(queue for queue in queues if queue in self._held).items():
            for queue in some:
                del self._held[queue]
            try:
                await self._unlock(broker, some, self._client.client_id)
            except BrokerError as error:
                log.info("queues on %s stay locked for a minute: %s", broker, error)

    def forget(self, queue: MessageQueue) -> None:
        """Count on a lock no more, without unlocking."""
        self._held.pop(queue, None)

    def close(self) -> None:
        """Renew nothing more."""
        if self._renewing is not None:
            self._renewing.cancel()

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(_RENEWAL)
            for broker, queues in _by_broker(self._held).items():
                asked = self._clock.monotonic()
                try:
                    locked = await self._lock(broker, queues)
                except BrokerError as error:
                    log.info("locks on %s were not renewed: %s", broker, error)
                    lost = [queue for queue in queues if asked - self._held.get(queue, asked) > _LIFE - _RENEWAL / 2]
                else:
                    lost = [queue for queue in queues if queue not in locked]
                    for queue in locked & self._held.keys():
                        self._held[queue] = asked
                for queue in lost:
                    if self._held.pop(queue, None) is not None:
                        log.warning("the lock of queue %d of %s on %s is lost", queue.queue_id, queue.topic, broker)
                        self._on_lost(queue)

    async def _lock(self, broker: str, queues: list[MessageQueue]) -> set[MessageQueue]:
        frame = await self._client.call(
            broker, RequestCode.LOCK_BATCH_MQ, {}, self._body(queues, self._client.client_id), timeout=_TIMEOUT
        )
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, f"locking queues of {self._source.native_topic}", topic=self._source.topic)
        try:
            answer = parse_body(frame.body) if frame.body else {}
            return {
                MessageQueue(one["topic"], one["brokerName"], int(one["queueId"]))
                for one in answer.get("lockOKMQSet") or ()
            }
        except (BadBody, AttributeError, KeyError, TypeError, ValueError) as exc:
            raise BrokerUnavailable(f"a list of locked queues cannot be read: {exc!r}", backend=NAME) from exc

    async def _unlock(self, broker: str, queues: list[MessageQueue], client_id: str) -> None:
        frame = await self._client.call(
            broker, RequestCode.UNLOCK_BATCH_MQ, {}, self._body(queues, client_id), timeout=_TIMEOUT
        )
        if frame.code != ResponseCode.SUCCESS:
            raise refused(frame, f"unlocking queues of {self._source.native_topic}", topic=self._source.topic)

    def _body(self, queues: list[MessageQueue], client_id: str) -> bytes:
        names = [{"topic": one.topic, "brokerName": one.broker, "queueId": one.queue_id} for one in queues]
        request = {
            "consumerGroup": self._source.native_group,
            "clientId": client_id,
            "mqSet": names,
            "onlyThisBroker": False,
        }
        return json.dumps(request).encode()


def _by_broker(queues: Iterable[MessageQueue]) -> dict[str, list[MessageQueue]]:
    found: defaultdict[str, list[MessageQueue]] = defaultdict(list)
    for queue in queues:
        found[queue.broker].append(queue)
    return found
