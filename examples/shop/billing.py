"""Billing: the handlers of what happens to orders, one for each type of message."""

from __future__ import annotations

from brokerkit import Message, Reject, RetryPolicy, Router
from examples.shop.messages import Cancelled, Ordered, Shipment, orders, shipments

__all__ = ["Bank", "bank", "router"]

router = Router()


class Bank:
    """Stands for something outside."""

    def __init__(self) -> None:
        self.is_open = True
        self.bookings: list[str] = []


bank = Bank()


#: The bank may be closed for hours: every hour for a day.
PATIENT = RetryPolicy(max_attempts=25, base_delay=3600, multiplier=1, max_delay=3600)


@router.handler(orders, type="ordered", retry=PATIENT)
def bill(order: Ordered, message: Message) -> Message:
    if order.total < 0:
        raise Reject("negative total")
    if not bank.is_open:
        raise ConnectionError("the bank is closed")
    bank.bookings.append(f"order {order.id}: {order.total:+.2f}")
    return Message.of(Shipment(order_id=order.id), topic=shipments, parent_id=message.message_id)


@router.handler(orders, type="cancelled")
def refund(order: Cancelled) -> None:
    bank.bookings.append(f"order {order.id}: cancelled, {order.reason}")
