"""RabbitMQ under the conformance suite: one behind a URL, and a private node, which has every hook."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from brokerkit.spi import Backend, BrokerUrl, Connection, Destination
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.harness import Harness, Timing
from brokerkit.testing.interposed import InterposedBackend
from brokerkit.testing.services.ports import free_port
from brokerkit.testing.services.rabbitmq_node import RabbitMQNode

__all__ = ["RabbitMQHarness", "RabbitMQUrlHarness"]

#: Hooks that need the fault proxy between the case and the node; all other cases talk to the node itself.
_PROXIED = frozenset({"drop_connection", "freeze", "thaw", "cut", "stall"})
#: Hooks that need a layer around the backend.
_LAYERED = frozenset({"refuse_sends"})
#: Bytes; the limit of a broker cannot be lowered for one case.
_MOST_BYTES = 8 << 20
#: Seconds; for finding out which address of a name answers.
_DIAL_TIMEOUT = 5.0
#: Nothing listens on ports of the host 127.0.0.1 that were free a moment ago.
_HOST = "127.0.0.1"


class RabbitMQUrlHarness(Harness):
    """The broker behind ``url``, which others may use too: cases break their own links and nothing else.

    Faults of the link are made by a proxy in front of the first host, a refused send by a layer around the backend: a
    queue that is full enough to refuse everything would hold messages of its own; what a real refusal does is tested
    in tests/rabbitmq.
    """

    client_modules = ("pika",)
    timing = Timing(redelivery=5.0, settle=0.5, reconnect=20.0)

    def __init__(self, backend: Backend, url: str) -> None:
        """Raise `ConfigurationError` for a text that is no URL."""
        given = BrokerUrl.parse(url)
        size = given.query.get("max_message_size", "")
        self.max_bytes = min(int(size), _MOST_BYTES) if size.isdecimal() else _MOST_BYTES
        self._given = replace(given, query={**given.query, "max_message_size": str(self.max_bytes)})
        super().__init__(backend, url=self._given.reveal())
        self._plain = backend
        self._direct = self._given.reveal()
        self._proxy: FaultProxy | None = None
        self._layer: InterposedBackend | None = None
        query = given.query
        #: Whether the URL says how to log in; else a function or a certificate does.
        self._logs_in = "credentials" not in query and query.get("mechanism", "PLAIN") == "PLAIN"
        self._tls = given.scheme == "amqps" or query.get("tls", "").lower() in ("1", "true", "yes", "on")
        port = int(query["port"]) if query.get("port", "").isdecimal() else 5671 if self._tls else 5672
        hosts = given.hosts or ((query.get("host", _HOST), None),)
        self._hosts = tuple((host, own or port) for host, own in hosts)
        self._answering: tuple[str, int] | None = None
        self.unreachable_url = self._url((_HOST, free_port()))
        self.failover_url = self._url((_HOST, free_port()), *self._hosts)
        if self._logs_in:
            self.bad_url = self._url(*self._hosts, password="not-the-password")

    def _url(self, *hosts: tuple[str, int], password: str | None = None) -> str:
        """Return the URL with other hosts."""
        query = {name: value for name, value in self._given.query.items() if name not in ("host", "hosts", "port")}
        url = replace(self._given, hosts=hosts, query=query)
        if password is not None:
            user, _ = self._login()
            url = replace(url, user=user, password=password)
        return url.reveal()

    def _login(self) -> tuple[str, str]:
        query = self._given.query
        user, password = self._given.user, self._given.password
        return (
            query.get("user", "guest") if user is None else user,
            query.get("password", "guest") if password is None else password,
        )

    @property
    def label(self) -> str:
        query = self._given.query
        return f"rabbitmq ({'priorities' if 'max_priority' in query else query.get('queue_type', 'quorum')})"

    def offers(self, hook: str) -> bool:
        return super().offers(hook) and (hook != "inject_foreign" or self._logs_in)

    @property
    def client_errors(self) -> tuple[BaseException, ...]:  # type: ignore[override]
        """One instance of each exception of pika."""
        from pika import exceptions

        return tuple(_one_of_each(exceptions))

    @property
    def native_type(self) -> type[Any]:  # type: ignore[override]
        """What a delivery gives access to."""
        from importlib import import_module

        found: type[Any] = import_module("brokerkit_rabbitmq.native").NativeMessage
        return found

    async def versions(self, connection: Connection) -> Mapping[str, str]:
        broker = ".".join(map(str, getattr(connection, "version", ()))) or "unknown"
        return {"rabbitmq": broker, "pika": version("pika"), "python": sys.version.split()[0]}

    # --- layers -----------------------------------------------------------------------------------------------

    async def begin(self, case: str, needs: frozenset[str]) -> None:
        await super().begin(case, needs)
        if needs & _PROXIED:
            host, port = self._hosts[0]
            if self._answering is None:
                self._answering = await asyncio.to_thread(_answering, host, port)
            self._proxy = FaultProxy(*self._answering)
            self._proxy.start()
            self.url = self._url((self._proxy.host, self._proxy.port))
            if self._tls and "server_name" not in self._given.query:
                # The certificate is that of the broker, not of the proxy.
                self.url += f"&server_name={quote(host, safe='')}"
        if needs & _LAYERED:
            self._layer = InterposedBackend(self._plain)
            self.backend = self._layer

    async def end(self) -> None:
        self.url, self.backend = self._direct, self._plain
        proxy, self._proxy, self._layer = self._proxy, None, None
        try:
            if proxy is not None:
                await asyncio.to_thread(proxy.close)
        finally:
            await super().end()

    # --- hooks ------------------------------------------------------------------------------------------------

    def _faults(self) -> FaultProxy:
        if self._proxy is None:
            raise RuntimeError(f"name the hook in @needs: one of {', '.join(sorted(_PROXIED))}")
        return self._proxy

    async def drop_connection(self) -> None:
        await asyncio.to_thread(self._faults().reset)

    async def freeze(self) -> None:
        await asyncio.to_thread(self._faults().freeze, existing_only=True)

    async def thaw(self) -> None:
        await asyncio.to_thread(self._faults().thaw)

    async def cut(self, after: int) -> None:
        proxy = self._faults()
        if after:
            await asyncio.to_thread(proxy.cut_at, after, "up", on="current")
        else:
            await asyncio.to_thread(proxy.reset)

    @asynccontextmanager
    async def stall(self) -> AsyncIterator[None]:
        proxy = self._faults()
        await asyncio.to_thread(proxy.freeze)
        try:
            yield
        finally:
            await asyncio.to_thread(proxy.thaw)

    async def inject_foreign(
        self, topic: str, body: bytes, native_headers: Mapping[str, Any] | None = None, *, message_id: str | None = None
    ) -> None:
        await asyncio.to_thread(self._publish, topic, body, native_headers, message_id)

    def _publish(self, topic: str, body: bytes, headers: Mapping[str, Any] | None, message_id: str | None) -> None:
        import pika

        host, port = self._hosts[0]
        user, password = self._login()
        tls = pika.SSLOptions(self._tls_context(), self._given.query.get("server_name", host)) if self._tls else None
        connection = pika.BlockingConnection(
            pika.ConnectionParameters(
                host, port, self._given.vhost, pika.PlainCredentials(user, password), ssl_options=tls
            )
        )
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            properties = pika.BasicProperties(headers=dict(headers or {}), message_id=message_id)
            channel.basic_publish(topic, "", body, properties, mandatory=True)
        finally:
            connection.close()

    def _tls_context(self) -> ssl.SSLContext:
        query = self._given.query
        context = ssl.create_default_context(cafile=query.get("ca_file"))
        if "cert_file" in query:
            context.load_cert_chain(query["cert_file"], query.get("key_file"), query.get("key_password", ""))
        if query.get("verify", "true").lower() in ("0", "false", "no", "off"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def refuse_sends(self, destination: Destination) -> AbstractAsyncContextManager[None]:
        if self._layer is None:
            raise RuntimeError("name the hook refuse_sends in @needs")
        return self._layer.refusing(destination)


class RabbitMQHarness(RabbitMQUrlHarness):
    """``node`` is the harness' own: cases stop, kill and freeze it.

    With ``max_priority`` all groups without an order have priorities.
    """

    def __init__(
        self, backend: Backend, node: RabbitMQNode, *, queue_type: str = "quorum", max_priority: int | None = None
    ) -> None:
        self.node = node
        address = node.address
        login = f"{quote(address.user, safe='')}:{quote(address.password, safe='')}"
        management = quote(f"http://{address.host}:{address.management_port}", safe="")
        options = f"queue_type={queue_type}&management_url={management}"
        if max_priority is not None:
            options += f"&max_priority={max_priority}"
        super().__init__(backend, f"amqp://{login}@{address.host}:{address.port}/?{options}")

    @asynccontextmanager
    async def restart(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.node.stop_app)
        try:
            yield
        finally:
            await asyncio.to_thread(self.node.start_app)

    async def kill(self) -> None:
        await asyncio.to_thread(self.node.kill)
        await asyncio.to_thread(self.node.start)


def _answering(host: str, port: int) -> tuple[str, int]:
    """Return the address of ``host`` where something listens: a name may have several."""
    try:
        with socket.create_connection((host, port), timeout=_DIAL_TIMEOUT) as found:
            name = found.getpeername()
            return str(name[0]), int(name[1])
    except OSError:
        return host, port


def _one_of_each(module: Any) -> list[BaseException]:
    made: list[BaseException] = []
    for name in sorted(vars(module)):
        found = getattr(module, name)
        if isinstance(found, type) and issubclass(found, module.AMQPError) and found is not module.AMQPError:
            tries: tuple[tuple[Any, ...], ...] = ((), (320, "text"), ("text",), ([], "text"))
            for arguments in tries:
                try:
                    made.append(found(*arguments))
                    break
                except TypeError:
                    continue
            else:
                raise RuntimeError(f"{name} takes none of the arguments that pika's exceptions take")
    return made
