"""Whose queues are whose: `Member` shares them with the other members of a group, `Loner` takes all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from brokerkit.errors import AccessRefused, BrokerError, BrokerUnavailable, TopicNotFound
from brokerkit.spi import wait
from brokerkit_rocketmq.assignment import averagely, owners
from brokerkit_rocketmq.errors import NAME, refused
from brokerkit_rocketmq.making import Making
from brokerkit_rocketmq.pulling import pull_fields
from brokerkit_rocketmq.registrations import Registration, Subscription
from brokerkit_rocketmq.remoting.bodies import BadBody, parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode

if TYPE_CHECKING:
    from brokerkit.spi import Clock
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.routes import MessageQueue, Route
    from brokerkit_rocketmq.sources import Source

__all__ = ["Loner", "Member", "Share"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds between two looks at who is there, as Java's client takes them, and while something is not as it should be.
_INTERVAL, _SOON = 20.0, 0.5
#: Seconds for which a topic must be missing until it counts as deleted: it may be declared anew.
_MISSING = 2.0

#: Takes the queues to be read, and all there are.  By queue: whether a member that read it until now is alive.
Assign = Callable[["Mapping[MessageQueue, bool]", "frozenset[MessageQueue]"], None]


class Share(Protocol):
    """Decides which queues a consumer reads, and again whenever that may have changed."""

    async def open(self) -> None:
        """Decide for the first time; raise `BrokerError` when that cannot be done."""
        ...

    def wake(self) -> None:
        """Decide again, now."""
        ...

    async def stop(self) -> None:
        """Decide nothing more."""
        ...

    async def leave(self) -> None:
        """Tell the brokers that the queues are free."""
        ...


class _Watch:
    """Looks at the routes of the topics of a source, and decides again when told or when one of them changes."""

    def __init__(
        self, client: Client, source: Source, clock: Clock, assign: Assign, failed: Callable[[BrokerError | None], None]
    ) -> None:
        self._client = client
        self._source = source
        self._clock = clock
        self._assign = assign
        self._failed = failed
        self._wake: asyncio.Future[None] | None = None
        self._woken = False
        self._keeper: asyncio.Task[None] | None = None
        self._unwatch = [client.routes.watch(topic, lambda _: self.wake()) for topic in source.topics]
        #: Whether the retry topic was there once.
        self._retries = False
        #: Monotonic: since when the topic is missing.
        self._missing_since: float | None = None

    def wake(self) -> None:
        self._woken = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def open(self) -> None:
        settled = await self._decide()
        self._keeper = asyncio.get_running_loop().create_task(
            self._keep(settled), name=f"brokerkit-rocketmq-share-{self._source.native_group}"
        )

    async def stop(self) -> None:
        for unwatch in self._unwatch:
            unwatch()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))

    async def leave(self) -> None:
        return

    async def _keep(self, settled: bool) -> None:
        while True:
            if not self._woken:
                self._wake = asyncio.get_running_loop().create_future()
                await wait(self._clock, self._wake, _INTERVAL if settled else _SOON)
            self._woken = False
            try:
                settled = await self._decide()
                self._missing_since = None
                self._failed(None)
            except TopicNotFound as error:
                settled = False
                self._note_missing(error)
            except AccessRefused as error:
                settled = False
                self._failed(error)
            except BrokerError as error:
                settled = False
                log.info("queues of %s cannot be shared out now: %s", self._source.native_topic, error)
            except Exception:
                # A fault of ours: without this task queues would stay with members that are gone.
                settled = False
                log.exception("queues of %s were not shared out, it is tried again", self._source.native_topic)

    def _note_missing(self, error: TopicNotFound) -> None:
        now = self._clock.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since >= _MISSING:
            self._failed(error)

    async def _routes(self) -> list[Route]:
        """Return the routes; that of the retry topic may be missing."""
        routes = [await self._client.routes.route(self._source.native_topic)]
        for topic in self._source.topics[1:]:
            try:
                routes.append(await self._client.routes.route(topic))
                self._retries = True
            except TopicNotFound as error:
                if self._retries:
                    # It is there as long as the group is.
                    raise TopicNotFound(
                        f"group {self._source.group!r} was deleted", topic=self._source.topic, backend=NAME
                    ) from error
        return routes

    async def _decide(self) -> bool:
        """Hand out the queues; return whether that is final as far as is known."""
        raise NotImplementedError


class Loner(_Watch):
    """Reads all queues, whoever else does."""

    async def open(self) -> None:
        route = await self._client.routes.route(self._source.native_topic)
        await asyncio.gather(*(self._introduce(broker, route) for broker in route.brokers))
        await super().open()

    async def _introduce(self, broker: str, route: Route) -> None:
        """A broker that makes no groups by itself (autoCreateSubscriptionGroup=false) must be told of ours."""
        client, source = self._client, self._source
        queue = next((queue for queue in route.readable if queue.broker == broker), None)
        if queue is None:
            return
        fields = pull_fields(source, queue, 0, count=1, suspend=0.0)
        try:
            frame = await client.call(broker, RequestCode.PULL_MESSAGE, fields, slaves=True)
        except BrokerError as error:
            log.debug("%s is not there to be told of %s: %s", broker, source.native_group, error)
            return
        if frame.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST:
            await Making(client, client.options.timeout).group(broker, source.native_group, source.topic)

    async def _decide(self) -> bool:
        routes = await self._routes()
        queues = frozenset(queue for route in routes for queue in route.readable)
        self._assign(dict.fromkeys(queues, False), queues)
        return True


class Member(_Watch):
    """One member of a group; brokers know it by its heartbeats."""

    def __init__(
        self,
        client: Client,
        source: Source,
        clock: Clock,
        assign: Assign,
        failed: Callable[[BrokerError | None], None],
        *,
        noted: Callable[[frozenset[str]], None],
    ) -> None:
        """``noted`` is called with the members, each time before the queues are handed out."""
        super().__init__(client, source, clock, assign, failed)
        self._noted = noted
        #: Who the members were when the queues were handed out last.
        self._members: frozenset[str] | None = None

    async def open(self) -> None:
        source, client = self._source, self._client
        client.answers.on_members_changed[source.native_group] = self.wake
        version = int(self._clock.time() * 1000)
        subscriptions = [Subscription(source.native_topic, source.expression, version, source.expression_type)]
        subscriptions += [Subscription(topic, version=version) for topic in source.topics[1:]]
        await client.register_consumer(Registration(group=source.native_group, subscriptions=tuple(subscriptions)))
        await super().open()

    async def stop(self) -> None:
        self._client.answers.on_members_changed.pop(self._source.native_group, None)
        await super().stop()

    async def leave(self) -> None:
        await self._client.unregister_consumer(self._source.native_group)

    async def _decide(self) -> bool:
        routes = await self._routes()
        me = self._client.client_id
        members = await self._ask(routes[0])
        if me not in members:
            # The broker has not heard of us, or not again: what we have is not taken from us by that.
            return False
        before = self._members if self._members is not None else members - {me}
        self._members = members
        self._noted(members)
        wanted: dict[MessageQueue, bool] = {}
        for route in routes:
            former = owners(before, route.readable)
            for queue in averagely(me, members, route.readable):
                owner = former.get(queue)
                wanted[queue] = owner is not None and owner != me and owner in members
        self._assign(wanted, frozenset(queue for route in routes for queue in route.readable))
        return True

    async def _ask(self, route: Route) -> frozenset[str]:
        """Return the members that a broker of the topic knows: the first in their order that answers."""
        fields = {"consumerGroup": self._source.native_group}
        failure: BrokerError | None = None
        for broker in sorted(route.brokers):
            try:
                frame = await self._client.call(broker, RequestCode.GET_CONSUMER_LIST_BY_GROUP, fields, slaves=True)
            except BrokerError as error:
                failure = error
                continue
            if frame.code == ResponseCode.SUCCESS:
                # A client with two connections, of which one is half open, is listed twice.
                try:
                    return frozenset(parse_body(frame.body).get("consumerIdList") or ())
                except (BadBody, AttributeError, TypeError) as exc:
                    raise BrokerUnavailable(f"a list of members cannot be read: {exc!r}", backend=NAME) from exc
            failure = refused(frame, f"asking for the members of {self._source.native_group}")
        if failure is None or not failure.retryable:
            raise failure or TopicNotFound("no broker has the topic", topic=self._source.topic)
        return frozenset()
