"""`RabbitMQHarness`: a private RabbitMQ node under the conformance suite, with every hook."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any, cast
from urllib.parse import quote

from brokerkit.spi import Backend, Connection, Destination
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.harness import Harness, Timing
from brokerkit.testing.interposed import InterposedBackend
from brokerkit.testing.services.ports import free_port
from brokerkit.testing.services.rabbitmq_node import RabbitMQNode

__all__ = ["RabbitMQHarness"]

#: Hooks that need the fault proxy between the case and the node; all other cases talk to the node itself.
_PROXIED = frozenset({"drop_connection", "freeze", "thaw", "cut", "stall"})
#: Hooks that need a layer around the backend.
_LAYERED = frozenset({"refuse_sends"})


class RabbitMQHarness(Harness):
    """``node`` is the harness' own: cases stop, kill and freeze it.

    A refused send (`refuse_sends`) is made by a layer around the backend: a queue that is full enough to refuse
    everything would hold messages of its own; what a real refusal does is tested in tests/rabbitmq.
    """

    #: Bytes; the limit of a broker cannot be lowered for one case.
    max_bytes = 8 << 20
    client_modules = ("pika",)
    timing = Timing(redelivery=5.0, settle=0.5, reconnect=20.0)

    def __init__(self, backend: Backend, node: RabbitMQNode, *, queue_type: str = "quorum") -> None:
        self.node = node
        self._queue_type = queue_type
        super().__init__(backend, url=self._url(node.port))
        self.bad_url = self._url(node.port, password="not-the-password")
        self.unreachable_url = self._url(free_port())
        self.failover_url = self._url(free_port(), more=f",{node.host}:{node.port}")
        self._plain = backend
        self._direct = cast(str, self.url)
        self._proxy: FaultProxy | None = None
        self._layer: InterposedBackend | None = None

    def _url(self, port: int, *, password: str | None = None, more: str = "") -> str:
        address = self.node.address
        login = f"{quote(address.user, safe='')}:{quote(password or address.password, safe='')}"
        options = {
            "queue_type": self._queue_type,
            "max_message_size": str(self.max_bytes),
            "management_url": f"http://{address.host}:{address.management_port}",
        }
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
        return f"amqp://{login}@{address.host}:{port}{more}/?{query}"

    @property
    def label(self) -> str:
        return f"rabbitmq ({self._queue_type})"

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
        found = await asyncio.to_thread(self.node.evaluate, "rabbit_misc:version()")
        return {"rabbitmq": str(found), "pika": version("pika"), "python": sys.version.split()[0]}

    # --- layers -----------------------------------------------------------------------------------------------

    async def begin(self, case: str, needs: frozenset[str]) -> None:
        await super().begin(case, needs)
        if needs & _PROXIED:
            self._proxy = FaultProxy(self.node.host, self.node.port)
            self._proxy.start()
            self.url = self._url(self._proxy.port)
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

        connection = pika.BlockingConnection(pika.URLParameters(self.node.url))
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            properties = pika.BasicProperties(headers=dict(headers or {}), message_id=message_id)
            channel.basic_publish(topic, "", body, properties, mandatory=True)
        finally:
            connection.close()

    def refuse_sends(self, destination: Destination) -> AbstractAsyncContextManager[None]:
        if self._layer is None:
            raise RuntimeError("name the hook refuse_sends in @needs")
        return self._layer.refusing(destination)


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
