"""`EmbeddedHarness`: the embedded broker under the conformance suite, on a file or in memory."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.embedded.url import parse_url
from brokerkit.message import MessageIds
from brokerkit.spi import Backend, Connection, Destination, Outbound, ToTopic
from brokerkit.testing.harness import Harness, Timing
from brokerkit.testing.interposed import InterposedBackend

__all__ = ["EmbeddedHarness"]

#: Hooks that put a layer between the cases and the backend; all other cases run on the backend itself.
_LAYERED = frozenset({"restart", "kill", "refuse_sends", "stall"})

#: A process that dies in the middle of a transaction, the write lock in its hand.
_HOLD_LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
database.execute("BEGIN IMMEDIATE")
database.execute("CREATE TABLE killed_in_the_middle (a)")
database.execute("INSERT INTO killed_in_the_middle VALUES (zeroblob(1000000))")
print("ready", flush=True)
sys.stdin.read()
"""


class EmbeddedHarness(Harness):
    """``sqlite:///file`` or ``memory://name``.

    What needs a server to happen is made by a layer around the backend (`InterposedBackend`): restarts, refused
    and unanswered sends.  A file has no address, no link and no credentials: ``bad_url``, ``unreachable_url``,
    ``failover_url``, ``drop_connection``, ``freeze``, ``thaw`` and ``cut`` have no subject.
    """

    #: Seconds until an unsettled delivery returns: short, so that the cases of killed processes are.
    LEASE = 3.0

    max_bytes = 4 << 20
    timing = Timing(redelivery=LEASE + 1.0)

    def __init__(self, url: str, backend: Backend | None = None, *, lease: float = LEASE) -> None:
        options = f"lease={lease}&max_message_size={self.max_bytes}"
        super().__init__(backend or EmbeddedBackend(), url=f"{url}{'&' if '?' in url else '?'}{options}")
        self._plain = self.backend
        self._layer: InterposedBackend | None = None
        self._anchor: Connection | None = None
        self._in_memory = url.startswith("memory:")

    @property
    def label(self) -> str:
        name = "memory" if self._in_memory else "sqlite"
        return name if self.backend.name == "embedded" else self.backend.name

    def offers(self, hook: str) -> bool:
        # Nobody but this process could be killed: there is no file.
        return super().offers(hook) and not (hook == "kill" and self._in_memory)

    async def versions(self, connection: Connection) -> Mapping[str, str]:
        return {"sqlite": sqlite3.sqlite_version, "python": sys.version.split()[0]}

    async def begin(self, case: str, needs: frozenset[str]) -> None:
        await super().begin(case, needs)
        self._layer = InterposedBackend(self._plain) if needs & _LAYERED else None
        self.backend = self._layer or self._plain
        if self._in_memory:
            # A store in memory lives as long as somebody is connected: longer than one manager of a case.
            self._anchor = await self._plain.connect(self.connect_options())

    async def end(self) -> None:
        self.backend = self._plain
        try:
            await super().end()
        finally:
            anchor, self._anchor = self._anchor, None
            if anchor is not None:
                await anchor.aclose()

    def _interposed(self) -> InterposedBackend:
        if self._layer is None:
            raise RuntimeError(f"name the hook in @needs: one of {', '.join(sorted(_LAYERED))}")
        return self._layer

    def restart(self) -> AbstractAsyncContextManager[None]:
        return self._interposed().stopped()

    async def kill(self) -> None:
        path = parse_url(self.url).path or ""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _HOLD_LOCK, path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            await cast(asyncio.StreamReader, process.stdout).readline()
        finally:
            process.kill()
            await process.communicate()
        async with self._interposed().stopped():
            pass

    async def inject_foreign(
        self, topic: str, body: bytes, native_headers: Mapping[str, Any] | None = None, *, message_id: str | None = None
    ) -> None:
        headers = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in (native_headers or {}).items()
        }
        if message_id is None and not self._in_memory:
            message_id = MessageIds()()  # a row has an id
        message = Outbound(
            destination=ToTopic(topic),
            body=body,
            headers=headers,
            # What brokerkit sends has an id always; in memory a foreign message may have none.
            message_id=cast(str, message_id),
        )
        connection = await self._plain.connect(self.connect_options())
        try:
            producer = await connection.open_producer()
            for error in await producer.send([message]):
                if error is not None:
                    raise error
        finally:
            await connection.aclose()

    def refuse_sends(self, destination: Destination) -> AbstractAsyncContextManager[None]:
        return self._interposed().refusing(destination)

    @asynccontextmanager
    async def stall(self) -> AsyncIterator[None]:
        async with self._interposed().stalling():
            yield
