"""Tell every process that is connected: to load settings again, to forget a cache.

A broadcast handler gets every message in each process, at most once; what is sent while a process is not connected
is not kept for it.  The two processes are two managers here, each with a cache of its own.

    python -m examples.broadcast

Needs: BROADCAST

Prints:

    web-1: greeting is now 'hello'
    web-2: greeting is now 'hello'
    web-1: greeting is now 'welcome'
    web-2: greeting is now 'welcome'
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from brokerkit import AsyncManager, Topic


class Change(BaseModel):
    setting: str
    value: str


changes = Topic("broadcast.changes", Change)  # no groups: nobody shares these


class WebServer:
    def __init__(self, name: str) -> None:
        self.name = name
        self.settings: dict[str, str] = {}
        self.changed = asyncio.Event()
        self.mq = AsyncManager()
        self.mq.add_handler(changes, self.apply, broadcast=True)  # `handler` as a plain call, for methods

    async def apply(self, change: Change) -> None:
        self.settings[change.setting] = change.value
        self.changed.set()

    async def show_change(self) -> None:
        await self.changed.wait()
        self.changed.clear()
        print(f"{self.name}: greeting is now {self.settings['greeting']!r}")


async def main() -> None:
    one, two = WebServer("web-1"), WebServer("web-2")
    async with one.mq, two.mq, asyncio.timeout(60):
        await one.mq.start()  # connected: from here on nothing is missed
        await two.mq.start()
        for value in ("hello", "welcome"):
            await one.mq.send(changes, Change(setting="greeting", value=value))
            await one.show_change()
            await two.show_change()


if __name__ == "__main__":
    asyncio.run(main())
