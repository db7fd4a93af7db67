"""Whole deliveries: what `Decoder` and `NativeMessage` make of what basic.deliver and its header frame say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import spec

from brokerkit_rabbitmq.decoding import Decoder
from brokerkit_rabbitmq.native import NativeMessage
from brokerkit_rabbitmq.sources import GroupSource
from brokerkit_rabbitmq.tables import encode_table

X_DEATH = [{"queue": "q", "reason": "expired", "count": 3, "exchange": "", "routing-keys": ["q"]}]


def from_pika(**fields: Any) -> bytes:
    return b"".join(spec.BasicProperties(**fields).encode())


def source() -> GroupSource:
    return GroupSource("t", "g", queue="t:g", exchange="t", untagged="all", prefetch=1)


def delivery(exchange: str, key: str) -> tuple[bytes, bytes]:
    """Address and method of basic.deliver as they travel."""
    method = b"".join(spec.Basic.Deliver("consumer", 5, False, exchange, key).encode())
    return method[len("consumer") + 10 :], method


@pytest.mark.parametrize(
    ("exchange", "key", "tag"),
    [("t", "eu", "eu"), ("t", "", None), ("t", "all", None), ("", "t:g", None), ("elsewhere", "eu", None)],
)
def test_a_routing_key_is_a_tag_only_on_the_way_through_the_exchange_of_the_topic(
    exchange: str, key: str, tag: str | None
) -> None:
    decoder = Decoder(source())
    address, method = delivery(exchange, key)

    for _ in range(2):
        inbound = decoder.decode((1, 5), False, address, method, from_pika(message_id="m"), b"body")
        assert (inbound.tag, inbound.message_id, inbound.body, inbound.token) == (tag, "m", b"body", (1, 5))
        assert (inbound.topic, inbound.group, inbound.redelivered) == ("t", "g", False)


def test_tags_are_right_when_there_are_more_of_them_than_are_remembered() -> None:
    decoder = Decoder(source())

    for number in (*range(2_500), 0, 1, 2_499):
        address, method = delivery("t", f"tag-{number}")
        assert decoder.decode(None, False, address, method, from_pika(), b"").tag == f"tag-{number}"


DEEP = encode_table({"n": "innermost"})
for _ in range(3_000):
    DEEP = (len(DEEP) + 3).to_bytes(4) + b"\x01nF" + DEEP


@pytest.mark.parametrize(
    "header", [b"", b"\xff", b"\xff\xff\x10", (1 << 13).to_bytes(2) + DEEP], ids=["no", "half", "cut", "bottomless"]
)
def test_a_message_whose_properties_cannot_be_decoded_arrives_with_its_body(
    header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    address, method = delivery("t", "eu")
    inbound = Decoder(source()).decode((1, 5), True, address, method, header, b"body")

    assert (inbound.body, inbound.redelivered, inbound.message_id) == (b"body", True, None)
    assert "t:g has properties that cannot be decoded" in caplog.text


@given(st.binary(max_size=80))
def test_no_property_list_makes_a_delivery_fail(header: bytes) -> None:
    address, method = delivery("t", "eu")

    assert Decoder(source()).decode(None, False, address, method, header, b"body").body == b"body"


def test_the_native_message_shows_all_that_came() -> None:
    _, method = delivery("exchange", "key")
    native = NativeMessage(method, from_pika(headers={"x-death": X_DEATH}, expiration="5"))

    assert (native.exchange, native.routing_key) == ("exchange", "key")
    assert (native.deliver.delivery_tag, native.deliver.consumer_tag, native.deliver.redelivered) == (
        5,
        "consumer",
        False,
    )
    assert native.properties.headers == {"x-death": X_DEATH}
    assert native.properties.expiration == "5"
