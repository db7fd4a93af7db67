"""What mypy --strict accepts of sending: checked by test_typing.py, never run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import assert_type

from pydantic import BaseModel

from brokerkit import AsyncManager, Group, Manager, Message, SendOutcome, Topic


class Order(BaseModel):
    id: int


class RushOrder(Order):
    by: float


orders = Topic("orders", Order, groups=["billing", Group("audit", tag="big||small")])
batches = Topic("batches", list[Order])
texts = Topic("texts", str, ordered=True)
blobs = Topic("blobs", bytes)
anything = Topic("anything")
maybe = Topic("maybe", Order | None)

assert_type(orders, Topic[Order])
assert_type(batches, Topic[list[Order]])


def blocking(manager: Manager) -> None:
    assert_type(manager.send(orders, Order(id=1)), str)
    manager.send(orders, RushOrder(id=1, by=2.0))
    manager.send(orders, Message.of(Order(id=1)))
    assert_type(Message.of(Order(id=1), topic=orders, key="k", ttl=5, headers={"a": "b"}), Message)
    Message.of({"any": "thing"}, topic="by.name", parent_id=Message.of(1).message_id)
    manager.send(batches, [Order(id=1)])
    manager.send(texts, "text", key="k", delay=1.5, headers={"a": "b"}, priority=9)
    manager.send(blobs, b"bytes", due=datetime.now(UTC), ttl=60)
    manager.send(anything, {"any": "thing"})
    manager.send(maybe, None)
    manager.send("by.name", {"any": "thing"})
    assert_type(manager.send_many(orders, [Order(id=1)]), list[SendOutcome])
    manager.send_many(orders, (Order(id=number) for number in range(3)))
    manager.send_many("by.name", [1, "two", None])
    assert_type(manager.request(orders, Order(id=1), reply=int, timeout=1.0), int)


async def waiting(manager: AsyncManager) -> None:
    assert_type(await manager.send(orders, Order(id=1)), str)
    await manager.send(orders, Message.of(Order(id=1)), parent="an id")
    await manager.send("by.name", 1)
    assert_type(await manager.send_many(batches, [[Order(id=1)]]), list[SendOutcome])
    assert_type(await manager.request("by.name", 1, reply=Order), Order)
