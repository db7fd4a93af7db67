"""What mypy --strict must refuse of sending.  ``E:`` names a part of the error expected on its line."""

from __future__ import annotations

from pydantic import BaseModel

from brokerkit import AsyncManager, Manager, Message, Topic


class Order(BaseModel):
    id: int


orders = Topic("orders", Order)
texts = Topic("texts", str)


def blocking(manager: Manager) -> None:
    manager.send(orders, "a text")  # E: "send"
    manager.send(orders, {"id": 1})  # E: "send"
    manager.send(texts, b"bytes")  # E: "send"
    manager.send(orders, Order(id=1), dealy=3)  # E: "dealy"
    manager.send(orders, Order(id=1), delay="3")  # E: "send"
    manager.send("by.name", 1, headers={"a": 1})  # E: Dict entry
    manager.send(7, Order(id=1))  # E: "send"
    manager.send_many(orders, ["a text"])  # E: "send_many"
    manager.send_many(orders, Order(id=1).id)  # E: "send_many"
    manager.request(orders, Order(id=1), reply=int).upper()  # E: "upper"
    Message.of(Order(id=1), topic=7)  # E: "topic"
    Message.of(Order(id=1), tpoic="orders")  # E: "tpoic"
    Message.of(Order(id=1), priority="high")  # E: "priority"
    Message.of(Order(id=1), body=b"x")  # E: "body"
    Message(body=b"x", topic=orders)  # E: "topic"


async def waiting(manager: AsyncManager) -> None:
    await manager.send(orders, "a text")  # E: "send"
    await manager.send_many(orders, [b"bytes"])  # E: "send_many"
    manager.send(orders, Order(id=1)).upper()  # E: "upper"
    await manager.send(orders, Order(id=1), priority="high")  # E: "send"
