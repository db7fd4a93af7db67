"""The portable consumer: what came early, what does not match, what cannot be stored."""

from __future__ import annotations

import asyncio

import pytest

from brokerkit.errors import BrokerUnavailable
from brokerkit.message import Message
from brokerkit.spi import Capability, ToGroup
from brokerkit.topic import Group, Topic

from .rig import Rig

T = Topic("t", bytes, groups=["g"])


@pytest.mark.parametrize("prefetch", [1, 20])
async def test_what_comes_less_than_a_second_early_is_held_and_does_not_stop_the_intake(prefetch: int) -> None:
    async with Rig() as rig:
        times: list[float] = []

        @rig.manager.handler(T, prefetch=prefetch, concurrency=1)
        async def work(message: Message) -> None:
            rig.start_of(message)
            times.append(rig.clock.time())

        await rig.manager.start()
        due = rig.clock.time() + 0.75
        await rig.manager.send(T, b"early", headers={"early": str(due)})
        await rig.clock.advance(0.5)
        assert rig.starts == []
        await rig.manager.send(T, b"later")
        await rig.clock.advance(5)
        assert sorted(rig.bodies) == [b"early", b"later"]
        assert times[rig.bodies.index(b"early")] == pytest.approx(due, abs=0.05)
        assert rig.totals.get("deferred") is None


async def test_what_comes_earlier_than_that_is_deferred_with_the_same_attempt() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        await rig.manager.send(T, b"early", headers={"early": str(rig.clock.time() + 100)})
        await rig.clock.advance(99)
        assert rig.starts == []
        await rig.clock.advance(2)
        assert rig.attempts == [1]
        assert rig.totals["deferred"] == 1
        assert await rig.counts() == (0, 0, 0)


@pytest.mark.parametrize("prefetch", [1, 20])
async def test_deliveries_come_when_they_are_due_and_not_before(prefetch: int) -> None:
    async with Rig() as rig, rig.manager.consume(T, prefetch=prefetch) as deliveries:
        await rig.manager.send(T, b"early", headers={"early": str(rig.clock.time() + 0.75)})
        receiving = asyncio.create_task(deliveries.receive())
        await rig.clock.advance(0.7)
        assert not receiving.done()
        await rig.clock.advance(0.5)
        found = await receiving
        assert found is not None and found.message.body == b"early"


async def test_what_is_held_back_goes_back_with_a_drain_and_does_not_wait_for_its_end() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)
            await rig.clock.sleep(10)

        await rig.manager.start()
        await rig.manager.send(T, b"runs")
        await rig.manager.send(T, b"early", headers={"early": str(rig.clock.time() + 0.9)})
        await rig.clock.advance(0.1)
        stopping = asyncio.create_task(rig.manager.stop())
        await rig.clock.advance(0.1)
        assert await rig.counts() == (1, 1, 0)
        await rig.clock.advance(20)
        assert await stopping
        assert rig.bodies == [b"runs"]


async def test_a_tag_that_the_broker_let_through_is_filtered_again() -> None:
    async with Rig() as rig:
        topic = Topic("t", bytes, groups=[Group("g", tag="a||b")])

        @rig.manager.handler(topic)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        worker = rig.manager._worker
        assert worker is not None
        store = worker.link._connection.inner.store  # type: ignore[union-attr]
        store._topics["t"].groups["g"].tags = None
        for tag in ("a", "b", "c", None):
            await rig.manager.send("t", (tag or "none").encode(), tag=tag)
        await rig.clock.advance(1)
        assert sorted(rig.bodies) == [b"a", b"b"]
        assert rig.totals["filtered"] == 2
        assert await rig.counts() == (0, 0, 0)


async def test_a_message_that_expired_before_it_came_is_dropped() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.send(T, b"x", ttl=5)
        await rig.clock.advance(5)
        await rig.manager.start()
        await rig.clock.advance(1)
        assert rig.starts == []
        assert rig.totals["expired"] == 1


async def test_a_receive_that_is_cancelled_while_it_defers_gives_back_all_that_it_took() -> None:
    async with Rig() as rig, rig.manager.consume(T) as deliveries:
        consumer, _ = await deliveries._start()
        async with rig.layer.refusing(ToGroup("t", "g")):
            await rig.manager.send(T, b"first")
            await rig.manager.send(T, b"early", headers={"early": str(rig.clock.time() + 50)})
            await rig.manager.send(T, b"last")
            receiving = asyncio.create_task(consumer.receive(10, 1.0))
            await rig.clock.advance(1)
            assert not receiving.done()
            receiving.cancel()
            await asyncio.wait((receiving,))
        await rig.clock.advance(1)
        assert consumer.pending == 0
        assert await rig.counts() == (3, 0, 0)


@pytest.mark.parametrize("lacking", [(), (Capability.ATOMIC_SETTLE,)], ids=["atomic", "copies"])
async def test_a_link_that_is_down_while_a_retry_is_stored_loses_nothing(lacking: tuple[Capability, ...]) -> None:
    async with Rig(*lacking) as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)
            if len(rig.starts) == 1:
                await rig.layer.stop()
                raise ValueError

        await rig.manager.start()
        sent = await rig.manager.send(T, b"x")
        await rig.clock.advance(5)
        assert rig.totals.get("sent") == 1 and sent


async def test_retryable_trouble_with_settling_is_tried_again_until_it_works() -> None:
    async with Rig(layered=False) as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        rig.backend.ack_fault = BrokerUnavailable("down")
        await rig.manager.send(T, b"x")
        await rig.clock.advance(1)
        assert rig.attempts == [1]
        assert len(rig.backend.acked) == 1
        assert await rig.counts() == (0, 0, 0)


async def test_without_delays_what_comes_early_is_held_as_long_as_it_takes_while_others_are_handled() -> None:
    async with Rig(Capability.DELAYED_SEND) as rig:

        @rig.manager.handler(T, prefetch=4, concurrency=1)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        for number in range(3):
            await rig.manager.send(T, b"early", headers={"early": str(rig.clock.time() + 600 + number)})
        await rig.manager.send(T, b"now")
        await rig.clock.advance(590)
        assert rig.bodies == [b"now"]
        await rig.clock.advance(20)
        assert rig.attempts == [1, 1, 1, 1]
        assert await rig.counts() == (0, 0, 0)
