"""Bodies that a driver could not decode: no handler is given one, and no queue stops for it."""

from __future__ import annotations

from typing import Any

import pytest

from brokerkit.delivery import Delivery
from brokerkit.errors import DecodeError
from brokerkit.message import Message
from brokerkit.topic import Topic

from .rig import Rig

T = Topic("t", bytes, groups=["g"])
PROBLEM = {"problem": "the package lz4 is not installed"}


async def bytes_only(body: bytes) -> None:
    raise AssertionError(f"called with {body!r}")


async def message_only(message: Message) -> None:
    raise AssertionError(f"called with {message!r}")


async def with_delivery(message: Message, delivery: Delivery) -> None:
    raise AssertionError(f"called with {message!r}")


@pytest.mark.parametrize("handler", [bytes_only, message_only, with_delivery])
async def test_a_body_that_the_driver_could_not_decode_is_a_dead_letter_at_once(handler: Any) -> None:
    async with Rig() as rig:
        rig.manager.handler(T)(handler)
        await rig.manager.start()

        await rig.manager.send(T, b"squeezed", headers=PROBLEM)
        await rig.clock.advance(1)

        (letter,) = await rig.dead()
        assert (letter.reason, letter.attempts, letter.message.body) == ("undecodable", 1, b"squeezed")
        assert "lz4 is not installed" in str(letter)


async def test_who_consumes_without_a_handler_gets_the_error_with_the_payload() -> None:
    async with Rig() as rig:
        await rig.manager.send(T, b"squeezed", headers=PROBLEM)
        async with rig.manager.consume(T, group="g") as deliveries:
            delivery = await anext(aiter(deliveries))

            with pytest.raises(DecodeError, match="lz4 is not installed"):
                delivery.payload(bytes)
            await delivery.reject("unreadable")

        assert [letter.reason for letter in await rig.dead()] == ["rejected"]
