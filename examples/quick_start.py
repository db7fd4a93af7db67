"""Send messages and handle them: a blocking application with a sync and an async handler.

Each group of a topic gets a copy of every message: here "billing" and "shipping".  The payload is checked by the
type of the handler's first parameter; what else a handler wants to know is in `Message`.

    python -m examples.quick_start

The broker is the one that BROKERKIT_URL names; without it, the file brokerkit.db in the working directory.

Prints, in any order:

    billed order 1: 9.50
    billed order 2: 20.00
    shipped order 1 for customer-7
    shipped order 2 for customer-8
"""

from __future__ import annotations

import queue

from pydantic import BaseModel

from brokerkit import Manager, Message, Topic


class Order(BaseModel):
    id: int
    total: float


orders = Topic("quick.orders", Order, groups=["billing", "shipping"])
manager = Manager()
done: queue.Queue[str] = queue.Queue()


@manager.handler(orders, group="billing")
def bill(order: Order) -> None:  # runs in a thread: it may block
    done.put(f"billed order {order.id}: {order.total:.2f}")


@manager.handler(orders, group="shipping")
async def ship(order: Order, message: Message) -> None:  # runs on the event loop: it must not block
    done.put(f"shipped order {order.id} for {message.key}")


if __name__ == "__main__":
    with manager:  # connects, and at the end stops the handlers and closes
        manager.start()  # handlers run in the background; a worker program calls manager.run() instead
        manager.send(orders, Order(id=1, total=9.5), key="customer-7")  # returns when the message is stored
        manager.send(orders, Order(id=2, total=20.0), key="customer-8")
        for _ in range(4):
            print(done.get(timeout=60))
