"""Shipping: hands parcels to the carrier."""

from __future__ import annotations

import queue

from brokerkit import Router
from examples.shop.messages import Shipment, shipments

__all__ = ["carried", "router"]

router = Router()
carried: queue.Queue[int] = queue.Queue()


@router.handler(shipments)
async def ship(shipment: Shipment) -> None:
    carried.put(shipment.order_id)
