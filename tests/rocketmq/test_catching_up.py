"""Waiting until queues hold what the log holds: many ask, and brokers are asked as seldom as can be."""

from __future__ import annotations

import asyncio

import pytest

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerUnavailable
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.remoting.codes import RequestCode
from tests.rocketmq.administration import LONG, administering
from tests.rocketmq.overhearing import overheard

LOOK = RequestCode.GET_BROKER_RUNTIME_INFO


async def test_who_asks_at_the_same_time_shares_a_look(rocketmq: RocketMQControl) -> None:
    with overheard(rocketmq) as wire:
        async with administering(rocketmq, address_map=wire.address_map) as scene:
            asking = scene.making.asking
            await asyncio.gather(*(asking.caught_up(["broker-a"]) for _ in range(100)))
    # More than one where others keep the broker's queues behind its log.
    assert 1 <= len(wire.of(LOOK)) < 100


async def test_who_asks_after_the_question_gets_a_look_that_begins_later(rocketmq: RocketMQControl) -> None:
    with overheard(rocketmq) as wire:
        async with administering(rocketmq, address_map=wire.address_map) as scene:
            asking = scene.making.asking
            first = asyncio.ensure_future(asking.caught_up(["broker-a"]))
            await eventually(lambda: wire.of(LOOK), LONG, "the first question")
            asked = SystemClock().monotonic()
            await asking.caught_up(["broker-a"])
            assert first.done()
            await first
    assert wire.of(LOOK)[-1].at >= asked


async def test_a_look_that_is_not_answered_fails_for_each_who_asked_and_not_for_the_next(
    rocketmq_old: RocketMQControl,
) -> None:
    with overheard(rocketmq_old) as wire:
        async with administering(rocketmq_old, timeout=3.0, address_map=wire.address_map) as scene:
            asking = scene.making.asking
            await asking.caught_up(["broker-a"])
            wire.swallowed = frozenset({LOOK})
            gone = asyncio.ensure_future(asking.caught_up(["broker-a"]))
            errors = asyncio.gather(*(asking.caught_up(["broker-a"]) for _ in range(3)), return_exceptions=True)
            await asyncio.sleep(0)
            gone.cancel()
            found = await errors
            assert [type(error) for error in found] == [BrokerUnavailable] * 3
            assert len(set(map(id, found))) == 3
            wire.swallowed = frozenset()

            async def works_again() -> bool:
                try:
                    await asking.caught_up(["broker-a"])
                except BrokerUnavailable:
                    return False
                return True

            await eventually(works_again, LONG, "an answer")
    with pytest.raises(asyncio.CancelledError):
        await gone
