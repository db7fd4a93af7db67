"""Handle a message once, however often it comes.

Every message may come twice: a sender repeats it, a worker dies before its acknowledgement.  An idempotent handler
runs effectively once per group and message id, or per ``dedup_key`` where senders make a new id each time.  A failed
attempt does not count: it runs again.

The store that remembers is set below.  "sqlite" is a file that the processes of a machine share; this program takes
"memory", which forgets at its end, so that a second run prints the same.

    python -m examples.idempotency

Prints, in any order:

    charged order 7, sent three times with one id
    mailed order 7, sent three times with three ids
    charged order 8 at attempt 2
    runs: 3, duplicates: 4
"""

from __future__ import annotations

import queue
import time

from pydantic import BaseModel

from brokerkit import Delivery, Manager, Message, RetryPolicy, Topic


class Order(BaseModel):
    id: int


payments = Topic("once.payments", Order, groups=["bank"])
receipts = Topic("once.receipts", Order, groups=["mail"])
manager = Manager(settings={"idempotency": {"store": "memory"}})
done: queue.Queue[str] = queue.Queue()


@manager.handler(payments, idempotent=True, retry=RetryPolicy(base_delay=0.1))
def charge(order: Order, delivery: Delivery) -> None:
    if order.id == 7:
        done.put("charged order 7, sent three times with one id")
    elif delivery.attempt == 1:
        raise ConnectionError("the bank does not answer")
    else:
        done.put(f"charged order {order.id} at attempt {delivery.attempt}")


def receipt_of(message: Message) -> str:
    return f"receipt-{message.payload(Order).id}"


@manager.handler(receipts, idempotent=True, dedup_key=receipt_of)
def mail(order: Order) -> None:
    done.put(f"mailed order {order.id}, sent three times with three ids")


if __name__ == "__main__":
    with manager:
        manager.start()
        for _ in range(3):
            manager.send(payments, Order(id=7), message_id="order-7")  # as a sender does that got a SendTimeout
            manager.send(receipts, Order(id=7))
        manager.send(payments, Order(id=8))
        for _ in range(3):
            print(done.get(timeout=60))

        deadline = time.monotonic() + 60
        while (totals := manager.monitor.metrics().totals)["duplicates"] < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        print(f"runs: {totals['handled']}, duplicates: {totals['duplicates']}")
