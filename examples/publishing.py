"""Send much: many messages at once, and from many threads.

`send_many` sends without waiting for each message and returns one outcome for each, in their order; a bad message
fails alone.  A manager may be used by any number of threads; sends at the same time share the broker's work.

    python -m examples.publishing

Prints:

    send_many: 299 of 300 stored
    number 150 failed: MessageTooLarge, another try is in vain
    8 threads: 200 stored
    handled: 499
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from brokerkit import Manager, Topic

lines = Topic("publishing.lines", str, groups=["index"])
manager = Manager(max_message_size=10_000)  # bytes
handled: set[str] = set()
all_handled = threading.Event()


@manager.handler(lines)
async def index(line: str) -> None:
    handled.add(line)
    if len(handled) == 499:
        all_handled.set()


def read_file() -> Iterator[str]:
    for number in range(300):
        yield "x" * 20_000 if number == 150 else f"line {number}"


def publish(thread: int) -> int:
    return len([manager.send(lines, f"thread {thread}, line {number}") for number in range(25)])


if __name__ == "__main__":
    with manager:
        manager.start()
        outcomes = manager.send_many(lines, read_file())
        print(f"send_many: {sum(outcome.error is None for outcome in outcomes)} of {len(outcomes)} stored")
        for number, outcome in enumerate(outcomes):
            if outcome.error is not None:
                advice = "try again" if outcome.error.retryable else "another try is in vain"
                print(f"number {number} failed: {type(outcome.error).__name__}, {advice}")

        with ThreadPoolExecutor(8) as threads:
            print("8 threads:", sum(threads.map(publish, range(8))), "stored")
        all_handled.wait(timeout=60)
        print("handled:", len(handled))
