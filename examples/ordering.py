"""Keep the order of the messages that belong together, and handle the others beside them.

In an ordered topic the messages of one key are handled one after the other, in the order of the sends, by however
many workers.  A failed message is tried again in place: its key waits, the other keys go on.

    python -m examples.ordering

Needs: ORDERED_BY_KEY

Prints:

    job-1: fetch, convert, convert again, store
    job-2: fetch, convert, store
    job-3: fetch, convert, store
"""

from __future__ import annotations

import threading
from collections import defaultdict

from brokerkit import Delivery, Manager, Message, RetryPolicy, Topic

STEPS = ["fetch", "convert", "store"]
JOBS = ["job-1", "job-2", "job-3"]

steps = Topic("ordering.steps", str, groups=["workers"], ordered=True)
manager = Manager()
history: defaultdict[str, list[str]] = defaultdict(list)
all_stored = threading.Barrier(len(JOBS) + 1)


@manager.handler(steps, concurrency=4, retry=RetryPolicy(base_delay=0.1))
def do(step: str, message: Message, delivery: Delivery) -> None:
    job = message.key or ""
    history[job].append(step if delivery.attempt == 1 else f"{step} again")
    if job == "job-1" and step == "convert" and delivery.attempt == 1:
        raise OSError("out of memory")  # "store" of job-1 waits for the second attempt
    if step == "store":
        all_stored.wait(timeout=60)  # each job waits for the others here: they run side by side


if __name__ == "__main__":
    with manager:
        manager.start()
        for step in STEPS:
            for job in JOBS:
                manager.send(steps, step, key=job)
        all_stored.wait(timeout=60)
    for job in JOBS:
        print(f"{job}: {', '.join(history[job])}")
