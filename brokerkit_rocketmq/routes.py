"""Where the queues of a topic are: `Routes` asks the NameServer, remembers, and notices changes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from brokerkit.errors import BrokerError, BrokerUnavailable, TopicNotFound
from brokerkit.spi import Clock, wait
from brokerkit_rocketmq.errors import NAME, fresh, refused
from brokerkit_rocketmq.name_servers import NameServers
from brokerkit_rocketmq.remoting.bodies import BadBody, parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.frames import Frame

__all__ = ["MASTER", "MessageQueue", "Route", "Routes", "parse_brokers", "parse_route"]

log = logging.getLogger("brokerkit.rocketmq")

#: The id of the broker that takes messages; its copies have other ids (``MixAll.MASTER_ID``).
MASTER = 0

#: Bits of ``perm`` (``PermName``).
_READ, _WRITE = 4, 2

#: Seconds after which a route that was called in question is read again, the first time and at most.
_FIRST_LOOK, _LONGEST_LOOK = 0.2, 8.0
#: Seconds for which a topic nobody asks for is still refreshed.
_IN_USE = 600.0


@dataclass(frozen=True, slots=True, order=True)
class MessageQueue:
    """One queue; the order is Java's, by which the members of a group share queues out."""

    topic: str
    broker: str
    queue_id: int


@dataclass(frozen=True, slots=True)
class Route:
    """The brokers and queues of one topic."""

    topic: str
    #: By name of the broker and its id: ``host:port``.
    brokers: Mapping[str, Mapping[int, str]]
    #: Queues that can be read, in their order; a slave will do.
    readable: tuple[MessageQueue, ...]
    #: Queues that can be written, in their order: those of brokers with a master.
    writable: tuple[MessageQueue, ...]


@dataclass(slots=True, eq=False)
class _Entry:
    """What is known of one topic."""

    route: Route | None = None
    #: Monotonic: when it was asked for last, when it is read again, and the pause before that.
    used: float = 0.0
    due: float = 0.0
    pause: float = 0.0
    reading: asyncio.Task[Route | BrokerError] | None = None
    watchers: list[Callable[[Route], None]] = field(default_factory=list)


class Routes:
    """The routes of the topics in use, each read again now and then, and soon after it was called in question."""

    def __init__(
        self, name_servers: NameServers, clock: Clock, *, timeout: float = 5.0, interval: float = 30.0
    ) -> None:
        """``timeout``: seconds for one request; ``interval``: seconds between two looks at a topic in use."""
        self._name_servers = name_servers
        self._clock = clock
        self._timeout = timeout
        self._interval = interval
        self._entries: dict[str, _Entry] = {}
        #: By name of the broker and its id: all that any route or list has named.
        self._brokers: dict[str, Mapping[int, str]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._closed = False

    # --- asking ---

    def known(self, topic: str) -> Route | None:
        """Return the route as it was read last; None when it never was.  No I/O."""
        entry = self._entries.get(topic)
        return None if entry is None else entry.route

    @property
    def brokers(self) -> Mapping[str, Mapping[int, str]]:
        """The addresses of all brokers that the routes name: by name and id."""
        return self._brokers

    async def route(self, topic: str, *, refresh: bool = False) -> Route:
        """Return the route of a topic, remembered or read now.

        Raise `TopicNotFound`, or `BrokerUnavailable` when no NameServer answers or none knows a broker.
        """
        entry = self._entry(topic)
        entry.used = self._clock.monotonic()
        if entry.route is not None and not refresh:
            return entry.route
        outcome = await self._read(topic, entry)
        if isinstance(outcome, BrokerError):
            raise fresh(outcome)
        return outcome

    async def read_brokers(self) -> Mapping[str, Mapping[int, str]]:
        """Read the addresses of all brokers that the NameServer knows; by name and id."""
        frame = await self._name_servers.call(
            RequestCode.GET_BROKER_CLUSTER_INFO, timeout=self._timeout, satisfied=lambda frame: _has_brokers(frame)
        )
        brokers = parse_brokers(frame)
        self._brokers.update(brokers)
        return brokers

    # --- noticing changes ---

    def watch(self, topic: str, callback: Callable[[Route], None]) -> Callable[[], None]:
        """Call ``callback`` with each route of ``topic`` that differs from the one before; return how to end that."""
        entry = self._entry(topic)
        entry.watchers.append(callback)
        self._stir()

        def unwatch() -> None:
            if callback in entry.watchers:
                entry.watchers.remove(callback)

        return unwatch

    def invalidate(self, topic: str) -> None:
        """Something contradicts the route: read it again soon, and several times, until it is old again."""
        entry = self._entries.get(topic)
        if entry is not None:
            entry.pause = _FIRST_LOOK
            entry.due = min(entry.due, self._clock.monotonic() + _FIRST_LOOK)
            self._stir()

    def invalidate_broker(self, address: str) -> None:
        """A broker is gone, or is there again: the same for all topics that have queues there."""
        for topic, entry in self._entries.items():
            route = entry.route
            if route is not None and any(address in ids.values() for ids in route.brokers.values()):
                self.invalidate(topic)

    async def aclose(self) -> None:
        """Stop looking.  Idempotent."""
        self._closed = True
        readings = (entry.reading for entry in self._entries.values())
        tasks: list[asyncio.Task[Any]] = [task for task in (self._keeper, *readings) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._keeper = None

    # --- reading ---

    def _entry(self, topic: str) -> _Entry:
        entry = self._entries.get(topic)
        if entry is None:
            entry = self._entries[topic] = _Entry(due=self._clock.monotonic(), pause=_FIRST_LOOK)
        return entry

    async def _read(self, topic: str, entry: _Entry) -> Route | BrokerError:
        """All who need the same route at the same time share one request."""
        if entry.reading is None:
            entry.reading = asyncio.get_running_loop().create_task(
                self._fetch(topic, entry), name=f"brokerkit-rocketmq-route-{topic}"
            )
        reading = entry.reading
        await asyncio.wait((reading,))
        if reading.cancelled():
            return BrokerUnavailable("the connection is closed", backend=NAME)
        return reading.result()

    async def _fetch(self, topic: str, entry: _Entry) -> Route | BrokerError:
        try:
            frame = await self._name_servers.call(
                RequestCode.GET_ROUTEINFO_BY_TOPIC,
                {"topic": topic},
                timeout=self._timeout,
                # One that was started a moment ago does not know its brokers yet; they tell it within 30 s.
                satisfied=lambda frame: frame.code != ResponseCode.TOPIC_NOT_EXIST,
            )
            if frame.code == ResponseCode.TOPIC_NOT_EXIST:
                return await self._missing(topic, entry)
            route = parse_route(topic, frame)
        except BrokerError as error:
            return error
        finally:
            entry.reading = None
            self._schedule(entry)
        self._brokers.update(route.brokers)
        if route != entry.route:
            entry.route = route
            for watcher in tuple(entry.watchers):
                try:
                    watcher(route)
                except Exception:
                    # A fault of ours: the others are told, and who asked gets the route.
                    log.exception("one who watches the route of %s failed", topic)
        return route

    async def _missing(self, topic: str, entry: _Entry) -> Route | BrokerError:
        """A topic without a route was deleted, never existed, or its brokers are away: then it is not gone."""
        brokers = await self.read_brokers()
        if not brokers:
            return BrokerUnavailable("the NameServer knows no broker", topic=topic, backend=NAME)
        if entry.route is not None:
            away = [name for name in entry.route.brokers if name not in brokers]
            if away:
                return BrokerUnavailable(
                    f"the brokers of the topic are not registered: {', '.join(away)}", topic=topic, backend=NAME
                )
            entry.route = None
        return TopicNotFound("the topic does not exist", topic=topic, backend=NAME)

    # --- keeping up to date ---

    def _schedule(self, entry: _Entry) -> None:
        """After a question the looks become rarer until they are as rare as usual."""
        entry.pause = min(max(entry.pause * 2, _FIRST_LOOK), self._interval)
        if entry.pause > _LONGEST_LOOK:
            entry.pause = self._interval
        entry.due = self._clock.monotonic() + entry.pause * random.uniform(0.9, 1.1)
        self._stir()

    def _stir(self) -> None:
        if self._closed:
            return
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="brokerkit-rocketmq-routes")
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _keep(self) -> None:
        while True:
            now = self._clock.monotonic()
            for topic, entry in tuple(self._entries.items()):
                if entry.reading is None and not entry.watchers and now - entry.used > _IN_USE:
                    del self._entries[topic]
                elif entry.due <= now and entry.reading is None:
                    await self._look(topic, entry)
            now = self._clock.monotonic()
            self._wake = asyncio.get_running_loop().create_future()
            pause = min((entry.due for entry in self._entries.values()), default=now + self._interval) - now
            await wait(self._clock, self._wake, max(pause, 0.01))

    async def _look(self, topic: str, entry: _Entry) -> None:
        try:
            outcome = await self._read(topic, entry)
        except Exception:
            # A fault of ours, maybe in one who watches: without this task no change would be noticed any more.
            log.exception("the route of %s was not read, it is tried again", topic)
            return
        if isinstance(outcome, BrokerError):
            log.debug("the route of %s was not read: %s", topic, outcome)


def parse_route(topic: str, frame: Frame) -> Route:
    """Return the route that the answer to GET_ROUTEINFO_BY_TOPIC (105) holds; raise `BrokerUnavailable` for none."""
    data = _parsed(frame, f"for the route of {topic!r}")
    try:
        brokers = {
            str(broker["brokerName"]): {int(number): str(address) for number, address in broker["brokerAddrs"].items()}
            for broker in data.get("brokerDatas") or ()
        }
        readable: list[MessageQueue] = []
        writable: list[MessageQueue] = []
        for queue in data.get("queueDatas") or ():
            name, perm = str(queue["brokerName"]), int(queue["perm"])
            ids = brokers.get(name)
            if not ids:
                continue
            if perm & _READ:
                readable.extend(MessageQueue(topic, name, number) for number in range(int(queue["readQueueNums"])))
            if perm & _WRITE and MASTER in ids:
                writable.extend(MessageQueue(topic, name, number) for number in range(int(queue["writeQueueNums"])))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise _unreadable(f"for the route of {topic!r}", exc) from exc
    return Route(topic, brokers, tuple(sorted(readable)), tuple(sorted(writable)))


def parse_brokers(frame: Frame) -> dict[str, dict[int, str]]:
    """Return the addresses that the answer to GET_BROKER_CLUSTER_INFO (106) holds: by name of the broker and id."""
    data = _parsed(frame, "for the list of brokers")
    try:
        return {
            str(name): {int(number): str(address) for number, address in broker["brokerAddrs"].items()}
            for name, broker in (data.get("brokerAddrTable") or {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise _unreadable("for the list of brokers", exc) from exc


def _has_brokers(frame: Frame) -> bool:
    return frame.code == ResponseCode.SUCCESS and bool(parse_brokers(frame))


def _parsed(frame: Frame, what: str) -> Any:
    if frame.code != ResponseCode.SUCCESS:
        raise refused(frame, f"asking the NameServer {what}")
    try:
        data = parse_body(frame.body)
    except BadBody as exc:
        raise _unreadable(what, exc) from exc
    return {} if data is None else data


def _unreadable(what: str, exc: Exception) -> BrokerError:
    return BrokerUnavailable(f"the NameServer answered {what} what cannot be read: {exc!r}", backend=NAME)
