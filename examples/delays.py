"""Send now what is to be handled later, or not at all once it is too late.

``delay`` is seconds from now, ``due`` an instant: the message does not come before it, and delays of different
lengths do not wait for each other.  ``ttl`` is seconds after which nobody wants the message any more: it is dropped
and counted, or becomes a dead letter where the topic says so, as here.

    python -m examples.delays

Needs: DELAYED_SEND

Prints, in any order:

    at once: handled
    delay: handled, not before it was due
    due: handled, not before it was due
    ttl: dead letter, expired
"""

from __future__ import annotations

import queue
from datetime import UTC, datetime, timedelta

from brokerkit import ErrorEvent, Manager, Message, Topic, TopicSettings

reminders = Topic("delays.reminders", str, groups=["clerk"])
manager = Manager()
manager.configure_topic("delays.reminders", TopicSettings(expired="dead"))  # or in brokerkit.yaml, below `topics:`
done: queue.Queue[str] = queue.Queue()


@manager.handler(reminders)
async def remind(text: str, message: Message) -> None:
    if message.due is None or message.receive_time is None:
        done.put(f"{text}: handled")
    else:
        done.put(f"{text}: handled, {'not' if message.receive_time >= message.due else 'long'} before it was due")


@manager.on_error
def tell(event: ErrorEvent) -> None:
    if event.kind == "dead" and event.message is not None:
        done.put(f"{event.message.payload(str)}: dead letter, {event.reason}")


if __name__ == "__main__":
    with manager:
        manager.start()
        manager.send(reminders, "delay", delay=0.6)
        manager.send(reminders, "due", due=datetime.now(UTC) + timedelta(seconds=0.3))
        manager.send(reminders, "ttl", delay=0.3, ttl=0.1)  # over when it arrives, as after an outage of the workers
        manager.send(reminders, "at once")
        for _ in range(4):
            print(done.get(timeout=60))
        manager.admin.discard(reminders, "clerk")
