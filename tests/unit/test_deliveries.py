"""`manager.consume`: receiving one by one, and the three verbs."""

from __future__ import annotations

import asyncio

import pytest

from brokerkit.errors import AlreadySettled, Closed
from brokerkit.spi import ToDead
from brokerkit.topic import Group, Topic

from .rig import Rig, others

T = Topic("t", bytes, groups=["g"])
ORDERED = Topic("t", bytes, groups=[Group("g", ordered=True)])


async def test_several_tasks_may_receive_at_once_and_each_message_goes_to_one() -> None:
    async with Rig() as rig, rig.manager.consume(T) as deliveries:
        tasks = [asyncio.create_task(deliveries.receive()) for _ in range(5)]
        await rig.clock.advance(1)
        for number in range(5):
            await rig.manager.send(T, b"%d" % number)
            await rig.clock.advance(0)
        await rig.clock.advance(2)
        assert all(task.done() for task in tasks)
        found = [task.result() for task in tasks]
        assert sorted(one.message.body for one in found if one is not None) == [b"%d" % n for n in range(5)]


async def test_two_first_receives_open_one_consumer() -> None:
    async with Rig() as rig:
        deliveries = rig.manager.consume(T)
        tasks = [asyncio.create_task(deliveries.receive(1)) for _ in range(3)]
        await rig.clock.advance(2)
        assert await asyncio.gather(*tasks) == [None, None, None]
        assert rig.layer.calls["open_consumer"] == 1


@pytest.mark.parametrize("steps", range(8))
async def test_a_receive_that_is_cancelled_at_any_point_loses_nothing(steps: int) -> None:
    async with Rig() as rig, rig.manager.consume(T) as deliveries:
        await rig.manager.send(T, b"x")
        task = asyncio.create_task(deliveries.receive())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        if task.cancelled():
            receiving = asyncio.create_task(deliveries.receive())
            await rig.clock.advance(2)
            found = await receiving
        else:
            found = task.result()
        assert found is not None
        await found.ack()


@pytest.mark.parametrize("steps", range(6))
async def test_closing_wakes_who_waits_and_leaves_no_task(steps: int) -> None:
    async with Rig() as rig:
        before = asyncio.all_tasks()
        deliveries = rig.manager.consume(T)
        waiting = [asyncio.create_task(deliveries.receive()) for _ in range(2)]
        for _ in range(steps):
            await asyncio.sleep(0)
        await deliveries.aclose()
        for task in waiting:
            with pytest.raises(Closed):
                await task
        await rig.clock.advance(0)
        assert not others(before)


async def test_a_verb_twice_is_a_no_op_another_one_raises_and_a_late_one_is_stale() -> None:
    async with Rig() as rig, rig.manager.consume(T) as deliveries:
        await rig.manager.send(T, b"1", message_id="one")
        await rig.manager.send(T, b"2", message_id="two")
        first, second = await deliveries.receive(1), await deliveries.receive(1)
        assert first is not None and second is not None
        await first.ack()
        await first.ack()
        with pytest.raises(AlreadySettled, match="ack"):
            await first.reject()
        rig.backend.stale = {"one", "two"}
        assert not first.stale
        assert second.stale
        await second.ack()
        assert second.stale


async def test_a_reject_that_was_cancelled_may_be_followed_by_another_verb_and_its_lane_goes_on() -> None:
    async with Rig() as rig, rig.manager.consume(ORDERED) as deliveries:
        await rig.manager.send(ORDERED, b"1", key="k")
        await rig.manager.send(ORDERED, b"2", key="k")
        first = await deliveries.receive(1)
        assert first is not None
        async with rig.layer.refusing(ToDead("t", "g")):
            rejecting = asyncio.create_task(first.reject())
            await rig.clock.advance(1)
            rejecting.cancel()
            await asyncio.wait((rejecting,))
        await first.ack()
        receiving = asyncio.create_task(deliveries.receive())
        await rig.clock.advance(1)
        second = await receiving
        assert second is not None and second.message.body == b"2"
        await second.ack()


async def test_a_message_that_expires_while_it_waits_for_the_application_is_not_handed_out() -> None:
    async with Rig() as rig, rig.manager.consume(T) as deliveries:
        await rig.manager.send(T, b"1")
        await rig.manager.send(T, b"2", ttl=5)
        await rig.manager.send(T, b"3")
        first = await deliveries.receive(1)
        assert first is not None
        await rig.clock.advance(6)
        third = await deliveries.receive(1)
        assert third is not None and third.message.body == b"3"
        await first.ack()
        await third.ack()
        await rig.clock.advance(0)
        assert rig.totals["expired"] == 1
        assert await rig.counts() == (0, 0, 0)


async def test_an_ordered_group_hands_out_the_next_of_a_key_when_the_one_before_is_settled() -> None:
    async with Rig() as rig, rig.manager.consume(ORDERED) as deliveries:
        for body in (b"a1", b"a2", b"b1"):
            await rig.manager.send(ORDERED, body, key=body[:1].decode())
        bodies: list[tuple[bytes, int]] = []
        nacked = False
        while len(bodies) < 4:
            receiving = asyncio.create_task(deliveries.receive())
            await rig.clock.advance(10)
            found = await receiving
            assert found is not None
            bodies.append((found.message.body, found.attempt))
            if found.message.body == b"a1" and not nacked:
                nacked = True
                await found.nack(5)
            else:
                await found.ack()
        assert bodies == [(b"a1", 1), (b"b1", 1), (b"a1", 2), (b"a2", 1)]
        await rig.clock.advance(0)
        assert await rig.counts() == (0, 0, 0)


async def test_async_with_nacks_on_an_error_and_prefetch_bounds_what_is_unsettled() -> None:
    async with Rig() as rig, rig.manager.consume(T, prefetch=2) as deliveries:
        for number in range(4):
            await rig.manager.send(T, b"%d" % number)
        first = await deliveries.receive(1)
        assert first is not None
        with pytest.raises(ValueError):
            async with first:
                raise ValueError
        await rig.clock.advance(0)
        assert rig.backend.most_unsettled == 2
        seen: dict[bytes, int] = {}
        while len(seen) < 4:
            receiving = asyncio.create_task(deliveries.receive())
            await rig.clock.advance(31)
            found = await receiving
            assert found is not None
            seen[found.message.body] = found.attempt
            await found.ack()
        assert seen == {b"0": 2, b"1": 1, b"2": 1, b"3": 1}
        assert rig.backend.most_unsettled == 2
