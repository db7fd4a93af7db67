"""RocketMQ under the conformance suite: one behind a URL, and a private server, which has every hook."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

from brokerkit.spi import Backend, BrokerUrl, Connection, Destination
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.harness import Harness, Timing
from brokerkit.testing.interposed import InterposedBackend
from brokerkit.testing.services.ports import free_port
from brokerkit.testing.services.rocketmq_name_server import registered_brokers
from brokerkit.testing.services.rocketmq_server import RocketMQServer
from brokerkit.testing.services.rocketmq_wire import Login, request

__all__ = ["RocketMQHarness", "RocketMQUrlHarness"]

#: Hooks that need fault proxies between the case and the servers; all other cases talk to the servers themselves.
_PROXIED = frozenset({"drop_connection", "freeze", "thaw", "cut", "stall"})
#: Hooks that need a layer around the backend.
_LAYERED = frozenset({"refuse_sends"})
#: Bytes; brokers take 4 MiB, properties included, unless they are told otherwise.
_MOST_BYTES = 2 << 20
#: Nothing listens on ports of the host 127.0.0.1 that were free a moment ago.
_HOST = "127.0.0.1"
_NAME_SERVER_PORT = 9876
#: org.apache.rocketmq.remoting.protocol.RequestCode.SEND_MESSAGE_V2
_SEND_MESSAGE_V2 = 310


class RocketMQUrlHarness(Harness):
    """The RocketMQ behind ``url``, which others may use too: cases break their own links and nothing else.

    Faults of the links are made by proxies in front of the NameServers and of the brokers that these tell of; a
    refused send by a layer around the backend, as a broker refuses all topics or none (4.9.4).
    """

    timing = Timing(redelivery=5.0, rebalance=35.0, delay_tolerance=2.0, settle=0.5, reconnect=20.0, per_message=0.05)

    def __init__(self, backend: Backend, url: str) -> None:
        """Raise `ConfigurationError` for a text that is no URL."""
        given = BrokerUrl.parse(url)
        size = given.query.get("max_message_size", "")
        self.max_bytes = min(int(size), _MOST_BYTES) if size.isdecimal() else _MOST_BYTES
        self._given = replace(given, query={**given.query, "max_message_size": str(self.max_bytes)})
        super().__init__(backend, url=self._given.reveal())
        self._plain = backend
        self._direct = self._given.reveal()
        self._proxies: dict[str, FaultProxy] = {}
        self._layer: InterposedBackend | None = None
        self._name_servers = tuple((host, port or _NAME_SERVER_PORT) for host, port in given.hosts)
        self._login = Login(given.user, given.password) if given.user and given.password else None
        self.unreachable_url = self._url((_HOST, free_port()))
        self.failover_url = self._url((_HOST, free_port()), *self._name_servers)

    def _url(self, *hosts: tuple[str, int], password: str | None = None, **options: str) -> str:
        """Return the URL with other NameServers."""
        url = replace(self._given, hosts=hosts, query={**self._given.query, **options})
        return (url if password is None else replace(url, password=password)).reveal()

    @property
    def label(self) -> str:
        return "rocketmq"

    @property
    def client_errors(self) -> tuple[BaseException, ...]:  # type: ignore[override]
        """One instance of each exception of the protocol layer."""
        errors = import_module("brokerkit_rocketmq.remoting.errors")
        kinds = [getattr(errors, name) for name in errors.__all__]
        return tuple(kind("text") for kind in kinds)

    @property
    def native_type(self) -> type[Any]:  # type: ignore[override]
        """What a delivery gives access to."""
        found: type[Any] = import_module("brokerkit_rocketmq.remoting.messages").StoredMessage
        return found

    async def versions(self, connection: Connection) -> Mapping[str, str]:
        brokers = await connection.native_admin.brokers()  # type: ignore[attr-defined]
        found = sorted({broker.version for broker in brokers if broker.version})
        return {"rocketmq": ", ".join(found) or "unknown", "python": sys.version.split()[0]}

    # --- layers -----------------------------------------------------------------------------------------------

    async def begin(self, case: str, needs: frozenset[str]) -> None:
        await super().begin(case, needs)
        if needs & _PROXIED:
            self.url = await asyncio.to_thread(self._interpose)
        if needs & _LAYERED:
            self._layer = InterposedBackend(self._plain)
            self.backend = self._layer

    async def end(self) -> None:
        self.url, self.backend = self._direct, self._plain
        self._layer = None
        try:
            for proxy in self._taken_out():
                await asyncio.to_thread(proxy.close)
        finally:
            await super().end()

    def _interpose(self) -> str:
        """Put a proxy in front of each server; return the URL by which they are used."""
        brokers = registered_brokers(_address(*self._name_servers[0]))
        for address in (*(_address(*server) for server in self._name_servers), *brokers.values()):
            host, _, port = address.rpartition(":")
            proxy = self._proxies[address] = FaultProxy(host, int(port))
            proxy.start()
        in_front = {address: _address(proxy.host, proxy.port) for address, proxy in self._proxies.items()}
        mapped = ",".join(f"{address}={in_front[address]}" for address in brokers.values())
        servers = [self._proxies[_address(*server)] for server in self._name_servers]
        return self._url(*((proxy.host, proxy.port) for proxy in servers), address_map=mapped)

    def _taken_out(self) -> Iterator[FaultProxy]:
        while self._proxies:
            yield self._proxies.popitem()[1]

    # --- hooks ------------------------------------------------------------------------------------------------

    async def _at_all(self, what: str, *arguments: Any, **options: Any) -> None:
        if not self._proxies:
            raise RuntimeError(f"name the hook in @needs: one of {', '.join(sorted(_PROXIED))}")
        for proxy in self._proxies.values():
            await asyncio.to_thread(getattr(proxy, what), *arguments, **options)

    async def drop_connection(self) -> None:
        await self._at_all("reset")

    async def freeze(self) -> None:
        await self._at_all("freeze", existing_only=True)

    async def thaw(self) -> None:
        await self._at_all("thaw")

    async def cut(self, after: int) -> None:
        if after:
            await self._at_all("cut_at", after, "up", on="current")
        else:
            await self._at_all("reset")

    @asynccontextmanager
    async def stall(self) -> AsyncIterator[None]:
        await self._at_all("freeze")
        try:
            yield
        finally:
            await self._at_all("thaw")

    async def inject_foreign(
        self, topic: str, body: bytes, native_headers: Mapping[str, Any] | None = None, *, message_id: str | None = None
    ) -> None:
        await asyncio.to_thread(self._send, topic, body, native_headers or {}, message_id)

    def _send(self, topic: str, body: bytes, headers: Mapping[str, Any], message_id: str | None) -> None:
        """Send as a client does that knows nothing of brokerkit."""
        properties = {name: str(value) for name, value in headers.items()}
        properties["UNIQ_KEY"] = message_id or uuid.uuid4().hex.upper()
        fields = {
            "a": "foreign",
            "b": topic.replace(".", "|"),
            "c": "TBW102",
            "d": "4",
            "e": "0",
            "f": "0",
            "g": str(int(self.clock.time() * 1000)),
            "h": "0",
            "i": "".join(f"{name}\x01{value}\x02" for name, value in properties.items()),
            "j": "0",
            "k": "false",
            "m": "false",
        }
        brokers = registered_brokers(_address(*self._name_servers[0]))
        master = next(address for (_, id), address in sorted(brokers.items()) if id == 0)
        request(master, _SEND_MESSAGE_V2, fields, body, login=self._login)

    def refuse_sends(self, destination: Destination) -> AbstractAsyncContextManager[None]:
        if self._layer is None:
            raise RuntimeError("name the hook refuse_sends in @needs")
        return self._layer.refusing(destination)


class RocketMQHarness(RocketMQUrlHarness):
    """``server`` is the harness' own: cases stop, kill and freeze it.  Wrong credentials need its ACL."""

    def __init__(self, backend: Backend, server: RocketMQServer) -> None:
        self.server = server
        super().__init__(backend, server.url)
        if self._login is not None:
            self.bad_url = self._url(*self._name_servers, password="not-the-secret-key")

    @property
    def label(self) -> str:
        return f"rocketmq ({self.server.installation.version})"

    @asynccontextmanager
    async def restart(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.server.stop)
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)

    async def kill(self) -> None:
        await asyncio.to_thread(self.server.kill)
        await asyncio.to_thread(self.server.start)


def _address(host: str, port: int) -> str:
    return f"{host}:{port}"
