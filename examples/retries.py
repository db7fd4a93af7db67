"""Try again what may pass, and give up on what cannot.

Five payments, five ways: an error is tried again with a growing delay (`RetryPolicy`), at most three times in all;
`Retry` says when to come again; `Reject` and errors in ``fatal`` are given up at once.  What was given up on is a
dead letter: dead_letters.py goes on from there.

    python -m examples.retries

Prints, in any order:

    ada: paid at attempt 2
    bob: paid at attempt 2
    cyd: dead after 3 attempts, exhausted: the bank does not answer
    dan: dead after 1 attempts, rejected: the account is closed
    eve: dead after 1 attempts, not-retryable: the amount is negative
"""

from __future__ import annotations

import queue

from pydantic import BaseModel

from brokerkit import Delivery, ErrorEvent, Manager, Reject, Retry, RetryPolicy, Topic


class Payment(BaseModel):
    customer: str
    amount: float = 5.0


payments = Topic("retries.payments", Payment, groups=["bank"])
manager = Manager()
done: queue.Queue[str] = queue.Queue()


@manager.handler(payments, retry=RetryPolicy(max_attempts=3, base_delay=0.1, multiplier=2, fatal=(ValueError,)))
def pay(payment: Payment, delivery: Delivery) -> None:
    if payment.amount < 0:
        raise ValueError("the amount is negative")
    if payment.customer == "dan":
        raise Reject("the account is closed")
    if payment.customer == "cyd" or (payment.customer == "ada" and delivery.attempt == 1):
        raise ConnectionError("the bank does not answer")
    if payment.customer == "bob" and delivery.attempt == 1:
        raise Retry(delay=0.2)  # the bank said when to come again; it counts as an attempt
    done.put(f"{payment.customer}: paid at attempt {delivery.attempt}")


@manager.on_error
def tell(event: ErrorEvent) -> None:  # runs on the event loop: it must not block
    if event.kind == "dead" and event.message is not None:  # "failed": it comes again
        customer = event.message.payload(Payment).customer
        done.put(f"{customer}: dead after {event.attempt} attempts, {event.reason}: {event.error}")


if __name__ == "__main__":
    with manager:
        manager.start()
        for customer in ("ada", "bob", "cyd", "dan"):
            manager.send(payments, Payment(customer=customer))
        manager.send(payments, Payment(customer="eve", amount=-1))
        for _ in range(5):
            print(done.get(timeout=60))
        manager.admin.discard(payments, "bank")  # so that a second run begins as the first one did
