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
from brokerkit.spi import wait
from brokerkit_rocketmq.asking import Asking
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
#: Seconds after which a member that is gone holds no lock any more.
_GONE = 70.0
#: Seconds that the end waits for locks that nobody needs any more to be given back.
_FAREWELL = 2.0


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
        #: Client ids of members that were seen once and are gone, and since when; monotonic.
        self._gone: dict[str, float] = {}
        self._seen: set[str] = set()
        self._renewing: asyncio.Task[None] | None = None
        #: Give back what was asked for and is not wanted any more.
        self._undoing: dict[MessageQueue, asyncio.Task[None]] = {}

    def members(self, members: Iterable[str]) -> None:
        """Note who is in the group now: locks of those who left can be taken from them."""
        present = set(members)
        now = self._clock.monotonic()
        gone = dict.fromkeys(self._seen - present, now)
        gone |= {one: since for one, since in self._gone.items() if one not in present and now - since < _GONE}
        self._gone = gone
        self._seen = present

    async def acquire(self, queue: MessageQueue) -> None:
        """Return when the queue is locked by us.  Raise `BrokerError`."""
        pause = min(_LOOK, self._longest_look)
        undoing = self._undoing.get(queue)
        if undoing is not None:
            # A broker handles what comes together in any order.
            await asyncio.wait((undoing,))
        while True:
            asked = self._clock.monotonic()
            if queue in await self._ask(queue):
                self._held[queue] = asked
                if self._renewing is None:
                    self._renewing = asyncio.get_running_loop().create_task(
                        self._renew(), name=f"brokerkit-rocketmq-locks-{self._source.native_group}"
                    )
                return
            # A member that crashed holds its locks for a minute.
            for client_id in await self._dead(queue, asked):
                await self._unlock(queue.broker, [queue], client_id)
            await self._clock.sleep(pause)
            pause = min(pause * 1.5, self._longest_look)

    async def _dead(self, queue: MessageQueue, now: float) -> list[str]:
        """Return the members that left and that no broker of the topic has a connection of.

        `members` were told by one broker: one that was just started, or that a member has lost, does not know who is
        at work on the queues of the others.
        """
        gone = [client_id for client_id, since in self._gone.items() if now - since < _GONE]
        if not gone:
            return []
        group, asking = self._source.native_group, Asking(self._client, _TIMEOUT)
        route = await self._client.routes.route(self._source.native_topic)
        others = await asyncio.gather(
            *(asking.members(group, broker) for broker in route.brokers if broker != queue.broker),
            return_exceptions=True,
        )
        # The one that counts: without a connection to it nobody reads the queue.
        present = set(await asking.members(group, queue.broker))
        for members in others:
            if not isinstance(members, BaseException):
                present |= members
            elif not isinstance(members, BrokerError):
                raise members
        return [client_id for client_id in gone if client_id not in present]

    async def _ask(self, queue: MessageQueue) -> set[MessageQueue]:
        request = asyncio.ensure_future(self._lock(queue.broker, [queue]))
        try:
            return await asyncio.shield(request)
        except asyncio.CancelledError:
            # It may be granted all the same, and renewed by nobody it would still be in the way of others.
            self._undoing[queue] = asyncio.get_running_loop().create_task(
                self._undo(queue, request), name=f"brokerkit-rocketmq-unlock-{self._source.native_group}"
            )
            raise

    async def _undo(self, queue: MessageQueue, request: asyncio.Future[set[MessageQueue]]) -> None:
        try:
            if queue in await request:
                await self._unlock(queue.broker, [queue], self._client.client_id)
        except BrokerError as error:
            log.info("queue %d of %s may stay locked for a minute: %s", queue.queue_id, queue.topic, error)
        finally:
            self._undoing.pop(queue, None)

    async def release(self, queues: Iterable[MessageQueue]) -> None:
        """Unlock; where the broker cannot be told the lock ends by itself."""
        for broker, some in _by_broker(queue for queue in queues if queue in self._held).items():
            for queue in some:
                del self._held[queue]
            try:
                await self._unlock(broker, some, self._client.client_id)
            except BrokerError as error:
                log.info("queues on %s stay locked for a minute: %s", broker, error)

    @property
    def held(self) -> frozenset[MessageQueue]:
        """The queues that are locked by us, as far as is known."""
        return frozenset(self._held)

    async def aclose(self) -> None:
        """Renew nothing more, and return when what is given back at the moment is."""
        tasks = [*self._undoing.values()]
        if tasks:
            await wait(self._clock, asyncio.gather(*tasks, return_exceptions=True), _FAREWELL)
        if self._renewing is not None:
            self._renewing.cancel()
            tasks.append(self._renewing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(_RENEWAL)
            for broker, queues in _by_broker(self._held).items():
                try:
                    await self._renew_on(broker, queues)
                except Exception:
                    # A fault of ours: without this task the locks would end, and others read what we read.
                    log.exception("locks on %s were not renewed, it is tried again", broker)
                    self._lose_old(queues, self._clock.monotonic())

    async def _renew_on(self, broker: str, queues: list[MessageQueue]) -> None:
        asked = self._clock.monotonic()
        try:
            locked = await self._lock(broker, queues)
        except BrokerError as error:
            log.info("locks on %s were not renewed: %s", broker, error)
            self._lose_old(queues, asked)
            return
        for queue in locked & self._held.keys():
            self._held[queue] = asked
        self._lose([queue for queue in queues if queue not in locked])

    def _lose_old(self, queues: Iterable[MessageQueue], now: float) -> None:
        """The next renewal would come too late for these."""
        self._lose([queue for queue in queues if now - self._held.get(queue, now) > _LIFE - _RENEWAL / 2])

    def _lose(self, queues: Iterable[MessageQueue]) -> None:
        for queue in queues:
            if self._held.pop(queue, None) is not None:
                log.warning("the lock of queue %d of %s on %s is lost", queue.queue_id, queue.topic, queue.broker)
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
