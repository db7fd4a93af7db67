"""`Client`: one client as brokers count them, with an id, its connections, its routes and its groups."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from brokerkit.errors import AccessRefused, BrokerError, BrokerUnavailable, Closed, TopicNotFound
from brokerkit.spi import Clock, wait
from brokerkit_rocketmq.addresses import Address
from brokerkit_rocketmq.answers import Answers
from brokerkit_rocketmq.dialing import Dialer, DialOptions
from brokerkit_rocketmq.errors import NAME, refused, unreachable
from brokerkit_rocketmq.links import Link, LinkOptions, Links
from brokerkit_rocketmq.name_servers import NAME_SERVER_PROBE, NameServers
from brokerkit_rocketmq.registrations import Registration, Registrations, Subscription
from brokerkit_rocketmq.remoting.codes import VERSION_5, RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.connection import RemotingConnection
from brokerkit_rocketmq.remoting.errors import RemotingError
from brokerkit_rocketmq.remoting.frames import Frame
from brokerkit_rocketmq.routes import MASTER, Routes

__all__ = ["Client", "ClientOptions", "Registration", "Subscription"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds for saying farewell.
_FAREWELL = 2.0
#: Seconds between two looks at brokers that a consumer needs and that are away.
_COME_BACK = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Where the brokers are and how to stay connected to them.  Times are seconds."""

    name_servers: tuple[Address, ...]
    dial: DialOptions = field(default_factory=DialOptions)
    links: LinkOptions = field(default_factory=LinkOptions)
    #: Middle part of the ids of clients; None: the process id.
    instance_name: str | None = None
    #: For one call, unless it says otherwise.
    timeout: float = 5.0
    #: Between two heartbeats to all brokers in use; they forget a client after 120 s.
    heartbeat_interval: float = 30.0
    #: Between two looks at the route of a topic in use.
    route_interval: float = 30.0


class Client:
    """Calls brokers by their names and keeps them informed of the groups that the client is in.

    Brokers tell members of a group by their connections, so two consumers of one group need two clients.
    """

    def __init__(self, options: ClientOptions, clock: Clock, *, client_id: str | None = None) -> None:
        """``client_id``: made of host, process and chance when not given; it stays when connections are made anew.

        Raise `ConfigurationError` for files that cannot be used.
        """
        self.options = options
        self.clock = clock
        instance = options.instance_name or os.getpid()
        self.client_id = client_id or f"{socket.gethostname()}@{instance}#{secrets.token_hex(8)}"
        #: Who is told and asked when brokers send requests.
        self.answers = Answers()
        self.registrations = Registrations(self.client_id)
        self.links = Links(
            Dialer(options.dial, self.answers.answer), self.registrations.heartbeat, clock, options.links
        )
        self.name_servers = NameServers(
            options.name_servers, Links(Dialer(options.dial), lambda: NAME_SERVER_PROBE, clock, options.links), clock
        )
        self.routes = Routes(self.name_servers, clock, timeout=options.timeout, interval=options.route_interval)
        self.links.listeners.append(self._link_changed)
        self._beating: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        #: Monotonic: when all brokers are told again.
        self._due = 0.0
        self._closed = False

    # --- beginning and ending ---

    async def open(self) -> None:
        """Ask a NameServer for the brokers, and keep them informed from then on.

        Raise `BrokerUnavailable` when no NameServer can be reached or none knows a broker; the client is closed then.
        """
        try:
            if not await self.routes.read_brokers():
                raise BrokerUnavailable("the NameServer knows no broker", backend=NAME)
        except BaseException:
            await self.aclose()
            raise
        self._beating = asyncio.get_running_loop().create_task(self._beat(), name="brokerkit-rocketmq-heartbeats")

    async def aclose(self) -> None:
        """Leave the groups and close all connections.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._beating is not None:
                self._beating.cancel()
                await asyncio.wait((self._beating,))
            farewells = [
                connection.request(RequestCode.UNREGISTER_CLIENT, fields, timeout=_FAREWELL)
                for connection in self._connections()
                for fields in self.registrations.farewells()
            ]
            if farewells:
                await asyncio.wait(farewells)
        finally:
            # Also when it is cancelled: nobody would come back for the sockets.
            try:
                await self.routes.aclose()
            finally:
                await asyncio.gather(self.links.aclose(), self.name_servers.aclose())

    # --- asking ---

    async def call(
        self,
        broker: str,
        code: int,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        timeout: float | None = None,
        slaves: bool = False,
    ) -> Frame:
        """Return the answer of the master of ``broker``, whatever response code it has.

        With ``slaves`` a copy is asked when the master is away.  Raise a `BrokerError` when there is no answer in
        ``timeout`` seconds, connecting included.
        """
        seconds = self.options.timeout if timeout is None else timeout
        deadline = self.clock.monotonic() + seconds
        if not slaves:
            return await self._call(await self.link(broker), code, fields, body, deadline)
        failure: BrokerError | None = None
        candidates = await self._candidates(broker)
        for number, link in enumerate(candidates):
            now = self.clock.monotonic()
            try:
                return await self._call(
                    link, code, fields, body, now + max(deadline - now, 0.0) / (len(candidates) - number)
                )
            except BrokerUnavailable as error:
                failure = failure or error
        raise failure or self._unknown(broker)

    async def _call(
        self, link: Link, code: int, fields: Mapping[str, str] | None, body: bytes, deadline: float
    ) -> Frame:
        connection = await link.connected(max(deadline - self.clock.monotonic(), 0.0))
        try:
            left = max(deadline - self.clock.monotonic(), 0.001)
            return await connection.call(code, fields, body, timeout=left)
        except RemotingError as exc:
            raise unreachable(exc) from exc

    async def link(self, broker: str, *, slaves: bool = False, broker_id: int | None = None) -> Link:
        """Return the link to the master of ``broker``, or to the one with ``broker_id``.

        With ``slaves`` it is the link to a copy while the master cannot be reached.  Raise `BrokerUnavailable` when
        the NameServer does not know it.
        """
        if slaves and broker_id is None:
            candidates = await self._candidates(broker)
            if candidates:
                return candidates[0]
            raise self._unknown(broker)
        wanted = MASTER if broker_id is None else broker_id
        address = self.routes.brokers.get(broker, {}).get(wanted)
        if address is None:
            address = (await self.routes.read_brokers()).get(broker, {}).get(wanted)
        if address is None:
            raise self._unknown(broker, "" if broker_id is None else f" with the id {broker_id}")
        return self.links.get(address)

    async def _candidates(self, broker: str) -> list[Link]:
        """Return the links that can be read from: the master's first, but last while it cannot be reached."""
        ids = self.routes.brokers.get(broker) or (await self.routes.read_brokers()).get(broker, {})
        links = [self.links.get(address) for _, address in sorted(ids.items())]
        for link in links:
            if link.error is not None and not link.is_up:
                # Nobody waits for it, and the next one to come may find it up.
                link.dial()
        return sorted(links, key=lambda link: link.error is not None and not link.is_up)

    def _unknown(self, broker: str, which: str = "") -> BrokerError:
        return BrokerUnavailable(f"no NameServer knows a broker {broker!r}{which}", backend=NAME)

    async def brokers(self, *, refresh: bool = False) -> Mapping[str, Mapping[int, str]]:
        """Return the addresses of all brokers by name and id, as known or as the NameServer knows them now."""
        known = self.routes.brokers
        return known if known and not refresh else await self.routes.read_brokers()

    async def call_name_server(
        self, code: int, fields: Mapping[str, str] | None = None, body: bytes = b"", *, timeout: float | None = None
    ) -> Frame:
        """Return the answer of the first NameServer that gives one; raise `BrokerUnavailable` when none does."""
        seconds = self.options.timeout if timeout is None else timeout
        return await self.name_servers.call(code, fields, body, timeout=seconds)

    def version(self, broker: str) -> int | None:
        """Return the version of the master of ``broker`` (``MQVersion``); None while it has never been connected."""
        address = self.routes.brokers.get(broker, {}).get(MASTER)
        return None if address is None else self.links.get(address).version

    def is_five(self, broker: str) -> bool:
        """Return whether the master of ``broker`` is known to be a 5.x."""
        return (self.version(broker) or 0) >= VERSION_5

    # --- groups ---

    def register_producer(self, group: str) -> None:
        """Be a member of a producer group; brokers are told with the next heartbeat, which goes out now."""
        if group not in self.registrations.producers:
            self.registrations.producers.add(group)
            self._tell_all_soon()

    async def register_consumer(self, registration: Registration) -> None:
        """Be a member of a consumer group, or subscribe anew; return when the brokers of its topics know.

        Brokers that cannot be reached now are told when they can.  Raise `AccessRefused` when one refuses,
        `TopicNotFound` when none of the topics exists, `BrokerUnavailable` when no broker took it; the client is
        registered nevertheless, until `unregister_consumer`.
        """
        self.registrations.consumers[registration.group] = registration
        topics = [subscription.topic for subscription in registration.subscriptions]
        addresses, errors = await self._addresses(topics)
        outcomes = await self._tell(addresses)
        errors += [error for error in outcomes if error is not None]
        refusal = next((error for error in errors if isinstance(error, AccessRefused)), None)
        if refusal is not None:
            raise refusal
        if not any(error is None for error in outcomes):
            others = [error for error in errors if not isinstance(error, TopicNotFound)]
            nobody = BrokerUnavailable(f"no broker has a topic of group {registration.group!r}", backend=NAME)
            raise (others or errors or [nobody])[0]

    async def unregister_consumer(self, group: str) -> None:
        """Leave a consumer group; return when the connected brokers know, or after two seconds."""
        if self.registrations.consumers.pop(group, None) is None:
            return
        fields = self.registrations.farewell(group)
        farewells = [
            connection.request(RequestCode.UNREGISTER_CLIENT, fields, timeout=_FAREWELL)
            for connection in self._connections()
        ]
        if farewells:
            await asyncio.wait(farewells)

    # --- heartbeats ---

    def _connections(self) -> list[RemotingConnection]:
        return [link.current for link in self.links.up() if link.current is not None]

    def _link_changed(self, link: Link) -> None:
        """What is known about a broker that came or went is not sure any more."""
        self.routes.invalidate_broker(link.address)
        if not link.is_up and self.registrations.consumers:
            # A member without a connection is none: its queues go to others unless it comes back.
            self._wake_up()

    def _tell_all_soon(self) -> None:
        self._due = 0.0
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _beat(self) -> None:
        """Send heartbeats when they are due, and bring back the connections that make us a member of a group."""
        while True:
            self._wake = asyncio.get_running_loop().create_future()
            try:
                pause = await self._beat_once()
            except Exception:
                # A fault of ours: without this task brokers would forget us, and our queues go to others.
                log.exception("a heartbeat failed, it is tried again")
                pause = _COME_BACK
            await wait(self.clock, self._wake, pause)

    async def _beat_once(self) -> float:
        """Tell the brokers that are to be told now; return the seconds until the next look."""
        needed, _ = await self._addresses(self.registrations.topics)
        now = self.clock.monotonic()
        if now >= self._due:
            self._due = now + self.options.heartbeat_interval * random.uniform(0.9, 1.0)
            await self._tell({link.address: None for link in self.links.up()} | needed)
        else:
            await self._tell({address: None for address in needed if not self.links.get(address).is_up})
        down = any(not self.links.get(address).is_up for address in needed)
        left = self._due - self.clock.monotonic()
        return max(min(left, _COME_BACK) if down else left, 0.01)

    async def _addresses(self, topics: Iterable[str]) -> tuple[dict[str, None], list[BrokerError]]:
        """Return the addresses of all brokers that have one of the topics, copies included, as Java's client does."""
        addresses: dict[str, None] = {}
        errors: list[BrokerError] = []
        for topic in topics:
            try:
                route = await self.routes.route(topic)
            except BrokerError as error:
                errors.append(error)
                continue
            for ids in route.brokers.values():
                addresses.update(dict.fromkeys(ids.values()))
        return addresses, errors

    async def _tell(self, addresses: Mapping[str, None]) -> list[BrokerError | None]:
        """Send a heartbeat to each address; return what became of it."""
        outcomes = await asyncio.gather(*(self._heartbeat(address) for address in addresses))
        for address, error in zip(addresses, outcomes, strict=True):
            if error is not None and not isinstance(error, BrokerUnavailable | Closed):
                # A link that is down says so itself.
                log.warning("%s does not take the groups of this client: %s", address, error)
        return outcomes

    async def _heartbeat(self, address: str) -> BrokerError | None:
        link = self.links.get(address)
        try:
            connection = await link.connected(self.options.timeout)
            # Also when a connection was just made: its first request may have told what was true before.
            frame = await link.introduce(connection, self.options.timeout)
        except BrokerError as error:
            return error
        except RemotingError as exc:
            return unreachable(exc)
        if frame.code == ResponseCode.SUCCESS:
            return None
        return refused(frame, "being told of the groups of this client")
