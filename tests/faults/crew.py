"""The worker processes of the ledger tests: each writes down every start, end and recorded completion.

A line is appended by one ``write`` before the next step is taken, so that what a SIGKILL ends is exactly what is
missing.  Lines: ``S`` a handler starts, ``E`` it ends, ``C`` the idempotency store recorded the completion; then the
monotonic time in ns (the same clock for all processes of a machine), the attempt, the message id.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from brokerkit import AsyncManager, Message, RetryPolicy, Topic
from brokerkit.clock import SystemClock
from brokerkit.idempotency_sqlite import SqliteIdempotencyStore

TOPIC: Topic[bytes] = Topic("ledger", bytes, groups=["crew"])
POISON = b"poison"


class Log:
    """One file per process."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, step: str, message_id: str, attempt: int = 0) -> None:
        os.write(self._file, f"{step} {time.monotonic_ns()} {attempt} {message_id}\n".encode())


class LoggingStore(SqliteIdempotencyStore):
    """The real store; it notes each completion that it recorded."""

    log: Log

    async def complete(self, key: str, owner: str, result: bytes | None, follow_ups: bytes | None) -> bool:
        recorded = await super().complete(key, owner, result, follow_ups)
        if recorded:
            self.log.write("C", key.rpartition("\x1f")[2])
        return recorded


async def work(folder: str, concurrency: int, pause: float, max_attempts: int, idempotent: bool) -> None:
    """Handle messages until SIGTERM."""
    home = Path(folder)
    log = Log(home)
    store = None
    if idempotent:
        store = LoggingStore(home / "done.db", SystemClock(), 3600.0)
        store.log = log
    settings = {"url": f"sqlite:///{home / 'broker.db'}?lease=5", "idempotency": {"lease": 2.0}}
    manager = AsyncManager(settings=settings, idempotency=store)

    @manager.handler(
        TOPIC,
        concurrency=concurrency,
        idempotent=idempotent,
        retry=RetryPolicy(max_attempts=max_attempts, base_delay=0.05, max_delay=0.1),
    )
    async def handle(body: bytes, message: Message) -> None:
        log.write("S", message.message_id or "", message.attempt)
        if body == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        if pause:
            await asyncio.sleep(pause)
        log.write("E", message.message_id or "", message.attempt)

    await manager.run()


@dataclass
class Books:
    """What all processes wrote, by message id: times in ns."""

    starts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    completions: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def read(cls, folder: Path) -> Books:
        """Read the logs; the last line of a killed process may be torn and then did not happen."""
        books = cls()
        kinds = {"S": books.starts, "E": books.ends, "C": books.completions}
        for path in folder.glob("*.log"):
            for line in path.read_text().splitlines():
                parts = line.split(" ")
                if len(parts) == 4:
                    kinds[parts[0]][parts[3]].append(int(parts[1]))
        return books

    def repeated(self) -> list[str]:
        """Ids whose handler ended more than once."""
        return [message_id for message_id, times in self.ends.items() if len(times) > 1]
