"""Run handlers in processes of their own: for code that computes for long, hangs or crashes.

A handler in a thread cannot be ended from outside: after its timeout it keeps its place.  One with
``executor="process"`` is killed, and its message comes again as the retry policy says.  A crash hurts nobody else:
the worker goes on with another process.

Such a handler is a function of a module, gets its payload and `Message`, not a `Delivery`, and shares no variables
with the program: its result goes out as reply or as follow-up.

    python -m examples.processes

Needs: INBOX

Prints:

    counted the primes below 10000 in another process: 1229
    hanging was killed after its timeout of 2 s and tried again: attempt 2 answered
    crashing took its process down and was tried again: attempt 2 answered
"""

from __future__ import annotations

import os

from brokerkit import Manager, Message, RetryPolicy, Topic

primes = Topic("processes.primes", int, groups=["counters"])
troubles = Topic("processes.troubles", str, groups=["victims"])
manager = Manager()


@manager.handler(primes, executor="process", concurrency=2)
def count(limit: int) -> int:
    return sum(all(number % divisor for divisor in range(2, int(number**0.5) + 1)) for number in range(2, limit))


@manager.handler(troubles, executor="process", concurrency=1, timeout=2, retry=RetryPolicy(base_delay=0.1))
def make(trouble: str, message: Message) -> str:
    if message.attempt == 1 and trouble == "hanging":
        while True:
            pass
    if message.attempt == 1 and trouble == "crashing":
        os._exit(3)
    return f"attempt {message.attempt} answered"


if __name__ == "__main__":  # needed: the processes import this file too
    with manager:
        manager.start()
        below = manager.request(primes, 10_000, reply=int, timeout=60)
        print("counted the primes below 10000 in another process:", below)
        answer = manager.request(troubles, "hanging", reply=str, timeout=60)
        print("hanging was killed after its timeout of 2 s and tried again:", answer)
        answer = manager.request(troubles, "crashing", reply=str, timeout=60)
        print("crashing took its process down and was tried again:", answer)
