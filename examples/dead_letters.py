"""Read dead letters, send back those that can succeed now, delete the others.

A dead letter belongs to the group that gave up on it and says why.  Reading changes nothing.  A letter that is sent
back keeps its id and begins again as attempt 1, in its group only.  The same from the shell: `brokerkit dead --help`.

    python -m examples.dead_letters

Needs: DEAD_LETTER, BROWSE

Prints:

    refund 1: exhausted, the bank is closed
    refund 2: exhausted, the bank is closed
    refund 3: rejected, negative total
    sent back: 2
    paid: 1, 2
    deleted: 1
    left: 0
"""

from __future__ import annotations

import queue
import threading

from pydantic import BaseModel

from brokerkit import ErrorEvent, Manager, Reject, RetryPolicy, Topic


class Refund(BaseModel):
    id: int
    total: float


refunds = Topic("dead.refunds", Refund, groups=["books"])
manager = Manager()
bank_is_open = threading.Event()
paid: queue.Queue[int] = queue.Queue()
given_up: queue.Queue[ErrorEvent] = queue.Queue()


@manager.handler(refunds, retry=RetryPolicy(max_attempts=2, base_delay=0.1))
def pay(refund: Refund) -> None:
    if refund.total < 0:
        raise Reject("negative total")
    if not bank_is_open.is_set():
        raise ConnectionError("the bank is closed")
    paid.put(refund.id)


@manager.on_error
def tell(event: ErrorEvent) -> None:
    if event.kind == "dead":
        given_up.put(event)


if __name__ == "__main__":
    with manager:
        manager.start()
        for number, total in ((1, 9.5), (2, 20.0), (3, -1.0)):
            manager.send(refunds, Refund(id=number, total=total))
        for _ in range(3):
            given_up.get(timeout=60)

        letters = manager.admin.dead_letters(refunds, "books", limit=100)
        letters.sort(key=lambda letter: letter.message.payload(Refund).id)
        for letter in letters:
            refund = letter.message.payload(Refund)
            print(f"refund {refund.id}: {letter.reason}, {letter.error}")

        bank_is_open.set()
        payable = [letter for letter in letters if letter.reason == "exhausted"]
        print("sent back:", manager.admin.redrive(refunds, "books", payable))
        print("paid:", ", ".join(str(number) for number in sorted(paid.get(timeout=60) for _ in range(2))))
        print("deleted:", manager.admin.discard(refunds, "books"))  # all that are left
        print("left:", len(manager.admin.dead_letters(refunds, "books")))
