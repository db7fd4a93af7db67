"""Split an application over modules, and handle several types of messages of one topic.

The modules of shop/ collect their handlers in a `Router` and name no broker; the program includes them in its
manager.  Two handlers share the group "billing": ``type=`` says which messages each one gets.  A type that no
handler takes is a dead letter, not a lost message.

    python -m examples.routers

Prints, in any order:

    booked: order 1: +9.50
    booked: order 2: cancelled, too late
    shipped: order 1
    dead letter: no-handler, type returned
"""

from __future__ import annotations

import queue

from brokerkit import ErrorEvent, Manager
from examples.shop import billing, shipping
from examples.shop.messages import Cancelled, Ordered, orders

manager = Manager()
manager.include(billing.router)
manager.include(shipping.router)
given_up: queue.Queue[ErrorEvent] = queue.Queue()
manager.on_error(given_up.put)

if __name__ == "__main__":
    with manager:
        manager.start()
        manager.send(orders, Ordered(id=1, total=9.5), type="ordered", key="1")
        manager.send(orders, Cancelled(id=2, reason="too late"), type="cancelled", key="2")
        manager.send(orders, Cancelled(id=3, reason="broken"), type="returned", key="3")
        print("shipped: order", shipping.carried.get(timeout=60))
        event = given_up.get(timeout=60)
        print(f"dead letter: {event.reason}, type {event.message.type if event.message else None}")
    # The manager is closed: what ran has ended.
    for booking in billing.bank.bookings:
        print("booked:", booking)
    manager.connect()
    manager.admin.discard(orders, "billing")
    manager.close()
