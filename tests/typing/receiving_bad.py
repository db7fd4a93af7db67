"""What mypy --strict must refuse of handlers and deliveries.  ``E:`` names a part of the error expected on its line."""

from __future__ import annotations

from brokerkit import AsyncManager, Manager, Topic

orders = Topic("orders", int, groups=[7])  # E: List item
manager = Manager()


@manager.handler(orders, executor="fork")  # E: "executor"
def forked(order: int) -> None: ...


@manager.handler(orders, concurency=3)  # E: "concurency"
def misspelt(order: int) -> None: ...


def blocking() -> None:
    with manager.consume(orders) as deliveries:
        delivery = deliveries.receive(1)
        delivery.ack()  # E: "ack"
        for each in deliveries:
            each.payload(int).upper()  # E: "upper"
    manager.monitor.no_such_figure()  # E: "no_such_figure"
    manager.admin.purge(orders)  # E: "group"
    manager.admin.redrive(orders, "billing", [7])  # E: List item
    manager.no_such_call()  # E: "no_such_call"
    manager.aclose()  # E: "aclose"


async def waiting(aio: AsyncManager) -> None:
    with aio:  # E: __enter__
        pass
    for delivery in aio.consume(orders):  # E: __iter__
        delivery.ack()
    assert aio.monitor.health().healthy  # E: "healthy"
