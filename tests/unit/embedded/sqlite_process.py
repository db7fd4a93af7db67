"""Another process on the file, for the tests: ``sqlite_process.py FILE COMMAND …``."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import sys
import time
from pathlib import Path

from brokerkit.clock import SystemClock
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.sqlite import SqliteStore
from brokerkit.embedded.store import Claimant
from brokerkit.spi import GroupSpec, Outbound, TopicSpec, ToTopic


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def main(path: Path, command: str, *arguments: str) -> None:
    if command == "lock":
        lock = os.open(path.with_name(path.name + "-lock"), os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        say("locked")
        await asyncio.sleep(600)
    store = SqliteStore(path, settings=EmbeddedSettings(), clock=SystemClock(), attempt_timeout=20.0)
    await store.open()
    await store.declare(TopicSpec(name="t"), GroupSpec(name="g"))
    match command:
        case "send":
            await asyncio.gather(*(send(store, arguments[0], n) for n in range(5)))
        case "echo":
            say("ready")
            while name := (await asyncio.to_thread(sys.stdin.readline)).strip():
                before = time.time()
                await store.send([Outbound(destination=ToTopic("t"), body=b"", message_id=name)])
                say(str(before))
        case "hold":
            claimant = Claimant(topic="t", group="g", owner="dead", lease=60.0)
            for message in await store.claim(claimant, 100):
                if message.message_id in arguments:
                    store.mark_started(claimant, message)
            say("holding")
            await asyncio.sleep(600)
        case "attach":
            _, name = await store.attach("t", "dead")
            say(name)
            await asyncio.sleep(600)


async def send(store: SqliteStore, name: str, lane: int) -> None:
    for number in itertools.count():
        batch = [
            Outbound(destination=ToTopic("t"), body=bytes(512), message_id=f"{name}-{lane}-{number}-{part}")
            for part in range(1 + number % 3)
        ]
        outcomes = await store.send(batch)
        stored = [item.message_id for item, outcome in zip(batch, outcomes, strict=True) if outcome is None]
        say(" ".join(stored))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
