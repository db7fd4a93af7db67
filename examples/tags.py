"""Let each group choose the messages that it gets.

A tag is a label on a message.  A group subscribes to ``*``, or to some tags joined by ``||``; the filter belongs to
the group, so all its workers have the same one.

    python -m examples.tags

Needs: TAGS, CONSUMER_GROUPS

Prints, in any order:

    archive: login by ada (info)
    archive: disk is nearly full (warning)
    archive: database is gone (error)
    on-call: disk is nearly full (warning)
    on-call: database is gone (error)
"""

from __future__ import annotations

import queue

from brokerkit import Group, Manager, Message, Topic

events = Topic("tags.events", str, groups=["archive", Group("on-call", tag="warning||error")])
manager = Manager()
seen: queue.Queue[str] = queue.Queue()


@manager.handler(events, group="archive")
async def keep(text: str, message: Message) -> None:
    seen.put(f"archive: {text} ({message.tag})")


@manager.handler(events, group="on-call")
async def call(text: str, message: Message) -> None:
    seen.put(f"on-call: {text} ({message.tag})")


if __name__ == "__main__":
    with manager:
        manager.start()
        manager.send(events, "login by ada", tag="info")
        manager.send(events, "disk is nearly full", tag="warning")
        manager.send(events, "database is gone", tag="error")
        for _ in range(5):
            print(seen.get(timeout=60))
