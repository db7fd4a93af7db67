"""Build a pipeline: a handler returns the messages that its work causes.

Follow-ups are stored before the message that caused them is acknowledged, so a crash in between loses none.  A list
sends several, `MessageResult` says whether the work succeeded as well.  ``parent_id`` says what caused a message.

    python -m examples.follow_ups

Prints:

    order 1 was ordered
    order 1 became 2 parcels
    parcel 1.1 left, caused by the order
    parcel 1.2 left, caused by the order
"""

from __future__ import annotations

import queue

from pydantic import BaseModel

from brokerkit import Manager, Message, MessageResult, Topic


class Order(BaseModel):
    id: int
    items: list[str]


class Parcel(BaseModel):
    number: str
    item: str


orders = Topic("pipeline.orders", Order, groups=["packing"])
parcels = Topic("pipeline.parcels", Parcel, groups=["carrier"])
manager = Manager()
packed: queue.Queue[str] = queue.Queue()
left: queue.Queue[tuple[str, str | None]] = queue.Queue()


@manager.handler(orders)
def pack(order: Order, message: Message) -> MessageResult:
    boxes = [Parcel(number=f"{order.id}.{place}", item=item) for place, item in enumerate(order.items, 1)]
    packed.put(f"order {order.id} became {len(boxes)} parcels")
    following = [Message.of(box, topic=parcels, parent_id=message.message_id) for box in boxes]
    return MessageResult(success=True, next_message=following)  # `return following` does the same


@manager.handler(parcels)
async def carry(parcel: Parcel, message: Message) -> None:
    left.put((parcel.number, message.parent_id))


if __name__ == "__main__":
    with manager:
        manager.start()
        order_id = manager.send(orders, Order(id=1, items=["lamp", "bulb"]))
        print("order 1 was ordered")
        print(packed.get(timeout=60))
        for number, cause in sorted(left.get(timeout=60) for _ in range(2)):
            print(f"parcel {number} left, caused by {'the order' if cause == order_id else 'something else'}")
