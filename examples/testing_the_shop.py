"""Test an application without a broker and without waiting.

`in_memory` puts the manager of the application on a private broker in memory and on a clock that stands still until
the test moves it: the bank of this test is closed for two hours, and the test takes milliseconds.  Handlers,
retries and topics are those of the application; nothing is patched.

    python -m examples.testing_the_shop
    pytest examples/testing_the_shop.py

Prints:

    billed and shipped: passed
    tried again every hour until the bank opens: passed
    a negative total is a dead letter: passed
"""

from __future__ import annotations

from brokerkit.testing import in_memory
from examples.routers import manager
from examples.shop.billing import bank
from examples.shop.messages import Ordered, Shipment, orders


def test_an_order_is_billed_and_shipped() -> None:
    with in_memory(manager) as broker:
        order_id = manager.send(orders, Ordered(id=1, total=9.5), type="ordered")
        broker.advance()  # runs what is runnable now

    billed, shipped = broker.handled
    assert (billed.group, shipped.group) == ("billing", "carrier")
    assert shipped.message.payload(Shipment) == Shipment(order_id=1)
    assert shipped.message.parent_id == order_id


def test_an_order_is_tried_again_every_hour_until_the_bank_opens() -> None:
    bank.is_open = False
    with in_memory(manager) as broker:
        manager.send(orders, Ordered(id=2, total=20.0), type="ordered")
        broker.advance(7200)
        assert [str(failure.error) for failure in broker.failures] == ["the bank is closed"] * 3

        bank.is_open = True
        broker.advance(3600)
        assert [(each.group, each.attempt) for each in broker.handled] == [("billing", 4), ("carrier", 1)]
        assert broker.dead == []


def test_a_negative_total_is_a_dead_letter() -> None:
    with in_memory(manager) as broker:
        manager.send(orders, Ordered(id=3, total=-1.0), type="ordered")
        broker.advance()
        assert [(letter.reason, letter.error) for letter in broker.dead] == [("rejected", "negative total")]


if __name__ == "__main__":
    test_an_order_is_billed_and_shipped()
    print("billed and shipped: passed")
    test_an_order_is_tried_again_every_hour_until_the_bank_opens()
    print("tried again every hour until the bank opens: passed")
    test_a_negative_total_is_a_dead_letter()
    print("a negative total is a dead letter: passed")
