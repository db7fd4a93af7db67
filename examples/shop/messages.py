"""The topics of the shop, for those who send and those who handle.  No broker is named here."""

from __future__ import annotations

from pydantic import BaseModel

from brokerkit import Topic

__all__ = ["Cancelled", "Ordered", "Shipment", "orders", "shipments"]


class Ordered(BaseModel):
    id: int
    total: float


class Cancelled(BaseModel):
    id: int
    reason: str


class Shipment(BaseModel):
    order_id: int


#: Two types of messages on one topic: what happens to one order stays together.
orders = Topic("shop.orders", Ordered | Cancelled, groups=["billing"])
shipments = Topic("shop.shipments", Shipment, groups=["carrier"])
