"""Pause, drain, stop, and groups whose retries wait in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from brokerkit.errors import CapabilityNotSupported, Closed, ConfigurationError, Retry, TopicNotFound
from brokerkit.message import Message
from brokerkit.retry import RetryPolicy
from brokerkit.spi import Capability, ToDead, ToGroup
from brokerkit.topic import Group, Topic

from .rig import EXACT, Rig

T = Topic("t", bytes, groups=["g"])
ORDERED = Topic("t", bytes, groups=[Group("g", ordered=True)])


async def stop(rig: Rig, timeout: float = 30.0) -> asyncio.Task[bool]:
    """Begin to stop; return the task that does it."""
    stopping = asyncio.create_task(rig.manager.stop(timeout))
    await rig.clock.advance(0)
    return stopping


# --- ordered groups ---------------------------------------------------------------------------------------------


async def test_a_retry_in_place_keeps_the_order_of_its_key_while_other_keys_go_on() -> None:
    async with Rig() as rig:

        @rig.manager.handler(ORDERED, retry=RetryPolicy(max_attempts=2, jitter="none"))
        async def work(message: Message) -> None:
            rig.start_of(message)
            if message.body == b"a1":
                raise ValueError

        await rig.manager.start()
        for body in (b"a1", b"a2", b"b1", b"b2"):
            await rig.manager.send("t", body, key=body[:1].decode())
        await rig.clock.advance(0.5)
        assert rig.bodies == [b"a1", b"b1", b"b2"]
        await rig.clock.advance(10)
        assert rig.bodies == [b"a1", b"b1", b"b2", b"a1", b"a2"]
        (letter,) = await rig.dead()
        assert letter.last_failure is not None and letter.first_failure is not None
        assert letter.last_failure - letter.first_failure == pytest.approx(1, abs=0.1)
        assert await rig.counts() == (0, 0, 0)


async def test_a_retry_of_more_than_a_minute_is_refused_in_an_ordered_group(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig() as rig:

        @rig.manager.handler(ORDERED, retry=EXACT)
        async def work(message: Message) -> None:
            if rig.start_of(message) == 1:
                raise Retry(61)

        await rig.manager.start()
        await rig.manager.send("t", b"x")
        await rig.clock.advance(1.5)
        assert rig.attempts == [1, 2]
        assert "at most 60 s" in caplog.text
    async with Rig() as rig, rig.manager.consume(ORDERED) as deliveries:
        await rig.manager.send(ORDERED, b"x")
        found = await deliveries.receive(1)
        assert found is not None
        with pytest.raises(CapabilityNotSupported, match="60 s"):
            await found.nack(61)
        await found.ack()


async def test_a_dead_letter_that_is_refused_holds_its_lane_and_no_other() -> None:
    async with Rig() as rig:

        @rig.manager.handler(ORDERED, retry=RetryPolicy(max_attempts=1))
        async def work(message: Message) -> None:
            rig.start_of(message)
            if message.body == b"a1":
                raise ValueError

        await rig.manager.start()
        async with rig.layer.refusing(ToDead("t", "g")):
            for body in (b"a1", b"a2", b"b1"):
                await rig.manager.send("t", body, key=body[:1].decode())
            await rig.clock.advance(120)
            assert rig.bodies == [b"a1", b"b1"]
        await rig.clock.advance(60)
        assert rig.bodies == [b"a1", b"b1", b"a2"]
        assert len(await rig.dead()) == 1
        assert await rig.counts() == (0, 0, 0)


async def test_an_unhandled_type_does_not_stop_its_lane() -> None:
    async with Rig() as rig:

        @rig.manager.handler(ORDERED, type="known")
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        await rig.manager.send("t", b"1", key="k", type="unknown")
        await rig.manager.send("t", b"2", key="k", type="known")
        await rig.clock.advance(1)
        assert rig.bodies == [b"2"]


async def test_a_stale_delivery_does_not_stop_its_lane() -> None:
    async with Rig() as rig:

        @rig.manager.handler(ORDERED)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        rig.backend.stale.add("one")
        await rig.manager.send("t", b"1", key="k", message_id="one")
        await rig.manager.send("t", b"2", key="k")
        await rig.clock.advance(1)
        assert rig.bodies == [b"2"]
        assert rig.totals["stale"] == 1


async def test_a_drain_of_an_ordered_group_starts_nothing_and_gives_all_back_in_order() -> None:
    async with Rig() as rig:

        async def work(message: Message) -> None:
            number = rig.start_of(message)
            await rig.clock.sleep(5)
            if message.body == b"0" and number < 3:
                raise ValueError

        rig.manager.add_handler(ORDERED, work, retry=EXACT)
        await rig.manager.start()
        for number in range(4):
            await rig.manager.send("t", b"%d" % number, key="k")
        await rig.manager.send("t", b"other", key="o")
        await rig.clock.advance(1)
        stopping = await stop(rig)
        await rig.clock.advance(20)
        assert await stopping
        assert rig.bodies == [b"0", b"other"]
        await rig.manager.start()
        await rig.clock.advance(60)
        assert rig.bodies[2:] == [b"0", b"0", b"1", b"2", b"3"]
        assert await rig.counts() == (0, 0, 0)


# --- pause and resume -------------------------------------------------------------------------------------------


async def test_a_paused_group_gives_back_what_was_not_started_and_a_resumed_one_goes_on() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, concurrency=1)
        async def work(message: Message) -> None:
            rig.start_of(message)
            await rig.clock.sleep(5)

        await rig.manager.start()
        for number in range(3):
            await rig.manager.send(T, b"%d" % number)
        await rig.clock.advance(1)
        await rig.manager.pause("t")
        await rig.clock.advance(10)
        assert rig.bodies == [b"0"]
        assert await rig.counts() == (2, 0, 0)
        await rig.manager.resume("t")
        await rig.clock.advance(20)
        assert sorted(rig.bodies) == [b"0", b"1", b"2"]


async def test_a_paused_ordered_group_starts_nothing_and_goes_on_in_order_when_it_is_resumed() -> None:
    async with Rig() as rig:

        @rig.manager.handler(ORDERED, retry=EXACT)
        async def work(message: Message) -> None:
            first = rig.start_of(message) == 1
            await rig.clock.sleep(1)
            if message.body == b"0" and first:
                raise ValueError

        await rig.manager.start()
        for number in range(4):
            await rig.manager.send("t", b"%d" % number, key="k")
        await rig.clock.advance(0.5)
        await rig.manager.pause("t", "g")
        await rig.clock.advance(100)
        assert rig.bodies == [b"0"]
        await rig.manager.resume("t", "g")
        await rig.clock.advance(100)
        assert rig.bodies == [b"0", b"0", b"1", b"2", b"3"]
        assert rig.attempts[:2] == [1, 2]
        assert await rig.counts() == (0, 0, 0)


async def test_a_pause_in_the_middle_of_a_deferral_loses_nothing() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        async with rig.layer.refusing(ToGroup("t", "g")):
            # The early one is sent to the group again, which is refused: the intake is in the middle of that.
            await rig.manager.send(T, b"early", headers={"early": str(rig.clock.time() + 20)})
            await rig.manager.send(T, b"next")
            await rig.clock.advance(1)
            await rig.manager.pause("t")
        rig.starts.clear()
        await rig.manager.resume("t")
        await rig.clock.advance(100)
        assert b"early" in rig.bodies
        assert await rig.counts() == (0, 0, 0)


# --- broadcast and brokers that cannot delay --------------------------------------------------------------------


async def test_a_broadcast_message_is_retried_in_process_and_then_told_to_the_hooks() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, broadcast=True, retry=RetryPolicy(max_attempts=3, jitter="none"))
        async def work(message: Message) -> None:
            rig.start_of(message)
            raise ValueError

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(1.5)
        await rig.manager.pause("t")
        await rig.clock.advance(10)
        assert rig.attempts == [1, 2]
        await rig.manager.resume("t")
        await rig.clock.advance(10)
        assert rig.attempts == [1, 2, 3]
        assert [event.kind for event in rig.events] == ["failed", "failed", "dropped"]
        assert await rig.dead() == []


async def test_without_delayed_sends_a_retry_waits_in_memory_and_its_copy_is_stored_when_it_is_due() -> None:
    async with Rig(Capability.DELAYED_SEND) as rig:

        @rig.manager.handler(T, retry=RetryPolicy(max_attempts=3, base_delay=10, jitter="none"))
        async def work(message: Message) -> None:
            rig.start_of(message)
            raise ValueError

        await rig.manager.start()
        began = rig.clock.time()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(9)
        assert await rig.counts() == (0, 1, 0)
        await rig.clock.advance(60)
        assert rig.attempts == [1, 2, 3]
        (letter,) = await rig.dead()
        assert (letter.first_failure, letter.last_failure) == pytest.approx((began, began + 30), abs=0.1)
        assert await rig.counts() == (0, 0, 0)


async def test_a_retry_that_waits_in_memory_is_counted_when_the_worker_stops() -> None:
    async with Rig(Capability.DELAYED_SEND) as rig:

        @rig.manager.handler(T, retry=RetryPolicy(max_attempts=3, base_delay=10, jitter="none"))
        async def work(message: Message) -> None:
            rig.start_of(message)
            raise ValueError

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(1)
        stopping = await stop(rig)
        await rig.clock.advance(1)
        assert await stopping
        assert await rig.counts() == (1, 0, 0)
        await rig.manager.start()
        await rig.clock.advance(1)
        assert rig.attempts == [1, 2]


async def test_without_dead_letters_a_handler_must_requeue_and_a_rejected_message_is_told_and_dropped() -> None:
    async with Rig(Capability.DEAD_LETTER) as rig:
        rig.manager.add_handler(T, sink)
        with pytest.raises(CapabilityNotSupported, match="requeue"):
            await rig.manager.start()
    async with Rig(Capability.DEAD_LETTER) as rig:

        @rig.manager.handler(T, retry=RetryPolicy(exhausted="requeue"))
        async def decode(number: int) -> None: ...

        await rig.manager.start()
        await rig.manager.send(T, b"no number")
        await rig.clock.advance(1)
        assert [(event.kind, event.reason) for event in rig.events] == [("dropped", "undecodable")]
        assert await rig.counts() == (0, 0, 0)


async def sink(message: Message) -> None: ...


# --- copies that are refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", [(), (Capability.ATOMIC_SETTLE,)], ids=["atomic", "copies"])
async def test_a_retry_that_is_refused_gives_the_original_back_after_half_a_minute(lacking: Any) -> None:
    async with Rig(*lacking) as rig:

        @rig.manager.handler(T, retry=EXACT)
        async def work(message: Message) -> None:
            if rig.start_of(message) < 3:
                raise ValueError

        await rig.manager.start()
        async with rig.layer.refusing(ToGroup("t", "g")):
            await rig.manager.send(T, b"x")
            await rig.clock.advance(25)
            assert len(rig.starts) == 1
            await rig.clock.advance(10)
            assert len(rig.starts) == 2
        await rig.clock.advance(60)
        assert len(rig.starts) == 3
        assert await rig.counts() == (0, 0, 0)


async def test_a_settlement_that_a_faulty_driver_drops_with_an_error_is_tried_again() -> None:
    async with Rig(layered=False) as rig:
        rig.manager.add_handler(T, sink)
        await rig.manager.start()
        rig.backend.ack_fault = KeyError("a fault of the driver")
        await rig.manager.send(T, b"x")
        await rig.clock.advance(5)
        assert await rig.counts() == (0, 0, 0)


# --- stopping ---------------------------------------------------------------------------------------------------


async def test_a_drain_finishes_what_runs_and_another_worker_gets_the_rest_at_once() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, concurrency=1)
        async def work(message: Message) -> None:
            rig.start_of(message)
            await rig.clock.sleep(10)

        await rig.manager.start()
        for number in range(3):
            await rig.manager.send(T, b"%d" % number)
        await rig.clock.advance(1)
        stopping = await stop(rig)
        assert await rig.counts() == (2, 1, 0)
        await rig.clock.advance(10)
        assert await stopping
        assert rig.totals == {"sent": 3, "handled": 1, "released": 2}
        assert await rig.counts() == (2, 0, 0)


@pytest.mark.parametrize("hurry", [False, True])
async def test_what_does_not_finish_in_time_is_cancelled_and_goes_back(hurry: bool) -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)
            await rig.clock.sleep(1000)

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(1)
        worker = rig.manager._worker
        assert worker is not None
        stopping = await stop(rig)
        if hurry:
            worker.hurry()
        await rig.clock.advance(1 if hurry else 31)
        assert not await stopping
        assert await rig.counts() == (1, 0, 0)
        # Nothing failed: it comes again as the attempt that was cut short, however often.
        await rig.manager.start()
        await rig.clock.advance(1)
        assert rig.attempts == [1, 1]
        assert rig.events == []


async def test_a_handler_that_turns_its_cancellation_into_success_does_not_hold_up_the_stop() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)
            try:
                await rig.clock.sleep(1000)
            except asyncio.CancelledError:
                return

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(1)
        stopping = await stop(rig, 0)
        await rig.clock.advance(1)
        assert not await stopping
        assert await rig.counts() == (0, 0, 0)


async def test_a_handler_that_ignores_its_cancellation_is_left_behind() -> None:
    async with Rig() as rig:
        release = asyncio.Event()

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    pass

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(1)
        stopping = await stop(rig, 0)
        await rig.clock.advance(6)
        assert not await stopping
        assert await rig.counts() == (1, 0, 0)
        release.set()


# --- the consumer goes away -------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", [T, ORDERED], ids=["plain", "ordered"])
async def test_a_group_whose_topic_was_deleted_is_declared_again_and_goes_on(topic: Topic[bytes]) -> None:
    async with Rig(topics={"t": {"expired": "dead"}}) as rig:

        @rig.manager.handler(topic, retry=EXACT)
        async def work(message: Message) -> None:
            rig.start_of(message)
            if message.body == b"old":
                raise ValueError

        await rig.manager.start()
        await rig.manager.send("t", b"old", key="k")
        await rig.clock.advance(0)
        await rig.manager.admin.delete("t")
        await rig.clock.advance(10)
        assert [event.kind for event in rig.events if isinstance(event.error, TopicNotFound)] == ["receive"]
        await rig.manager.send("t", b"new", key="k")
        await rig.manager.send("t", b"expires", key="k", ttl=0.001, headers={"early": str(rig.clock.time() + 0.5)})
        await rig.clock.advance(10)
        assert rig.bodies == [b"old", b"new"]
        assert [letter.reason for letter in await rig.dead()] == ["expired"]


async def test_a_consumer_that_is_closed_under_its_group_is_opened_again() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        worker = rig.manager._worker
        assert worker is not None
        await worker._subscriptions["t", "g", False].consumer.driver.aclose()
        await rig.clock.advance(10)
        await rig.manager.send(T, b"x")
        await rig.clock.advance(10)
        assert rig.bodies == [b"x"]


@pytest.mark.parametrize("fault", [RuntimeError("a fault"), Closed("gone")])
async def test_a_fault_of_receive_does_not_end_a_group(fault: Exception) -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)

        rig.backend.receive_fault = fault
        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(10)
        assert rig.bodies == [b"x"]


async def test_stop_in_the_middle_of_a_reopening_leaves_no_task() -> None:
    async with Rig() as rig:
        rig.manager.add_handler(T, sink)
        await rig.manager.start()
        await rig.manager.admin.delete("t")
        # In small steps, so that the stop comes at every point of it.
        for _ in range(3):
            await asyncio.sleep(0)


async def test_pausing_what_does_not_run_is_refused() -> None:
    async with Rig() as rig:
        with pytest.raises(ConfigurationError, match="start"):
            await rig.manager.pause("t")
        rig.manager.add_handler(T, sink)
        await rig.manager.start()
        with pytest.raises(ConfigurationError, match="no handler runs"):
            await rig.manager.pause("other")
