"""What mypy --strict accepts of handlers and deliveries: checked by test_typing.py, never run."""

from __future__ import annotations

from typing import assert_type

from pydantic import BaseModel

from brokerkit import (
    AsyncManager,
    BlockingDelivery,
    Delivery,
    ErrorEvent,
    GroupStats,
    Health,
    Manager,
    Message,
    RetryPolicy,
    Router,
    Topic,
)


class Order(BaseModel):
    id: int


orders = Topic("orders", Order, groups=["billing"])
manager = Manager(retry={"max_attempts": 3}, send_timeout=5.0)
aio = AsyncManager("memory://typed", name="other")
router = Router()


@manager.handler(orders, retry=RetryPolicy(max_attempts=5), executor="process")
def bill(order: Order) -> None: ...


@aio.handler(orders, type="created", timeout=10.0)
async def created(order: Order, message: Message, delivery: Delivery) -> int:
    return order.id


@router.handler("by.name", group="g", dedup_key=lambda message: message.key)
def by_name(body: bytes) -> None: ...


@manager.on_error
def told(event: ErrorEvent) -> None: ...


manager.include(router)
aio.include(router)
# A handler is returned unchanged, with its signature.
assert_type(bill(Order(id=1)), None)


async def call_it() -> None:
    assert_type(await created(Order(id=1), Message(body=b""), await a_delivery()), int)


async def a_delivery() -> Delivery:
    async with aio.consume(orders, prefetch=5) as deliveries:
        async for delivery in deliveries:
            async with delivery:
                assert_type(delivery.payload(Order), Order)
                assert_type(delivery.message, Message)
            return delivery
        delivery_or_none = await deliveries.receive(1.0)
        assert delivery_or_none is not None
        return delivery_or_none


def blocking() -> None:
    with manager, manager.consume(orders, group="billing") as deliveries:
        assert_type(deliveries.receive(1.0), BlockingDelivery | None)
        for delivery in deliveries:
            with delivery:
                assert_type(delivery.payload(Order), Order)
            delivery.nack(None)
            delivery.reject("why")
            delivery.extend(30)
    assert_type(manager.aio, AsyncManager)
    assert_type(manager.stop(timeout=1.0), bool)
    assert_type(manager.admin.redrive(orders, "billing", limit=3), int)
    letters = manager.admin.dead_letters(orders, "billing")
    manager.admin.redrive(orders, "billing", letters)
    manager.admin.discard(orders, "billing", [letter.id for letter in letters])
    assert_type(manager.monitor.health(), Health)
    assert_type(manager.monitor.stats(orders, "billing"), GroupStats)
