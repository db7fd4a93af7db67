"""What the worker makes of handlers: their failures, their tricks, and the ends of their runs."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from typing import Any

import pytest

from brokerkit.blocking_delivery import BlockingDelivery
from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, PayloadError, Reject, RemoteError, Retry, SendRefused
from brokerkit.manager import AsyncManager
from brokerkit.message import Message
from brokerkit.results import ConsumeResult, MessageResult
from brokerkit.retry import RetryPolicy
from brokerkit.spi import Capability, ToDead
from brokerkit.testing.deadlines import eventually
from brokerkit.topic import Group, Topic
from tests.planted import PLANTED

from .rig import EXACT, PLAIN, Rig

T = Topic("t", bytes, groups=["g"])
TWICE = RetryPolicy(max_attempts=2, jitter="none")


# --- attempts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", [(), tuple(PLAIN)], ids=["atomic", "copies"])
async def test_a_failing_handler_is_started_exactly_max_attempts_times_at_the_delays_of_its_policy(
    lacking: tuple[Capability, ...],
) -> None:
    async with Rig(*lacking) as rig:
        times: list[float] = []

        @rig.manager.handler(T, retry=RetryPolicy(max_attempts=3, jitter="none"))
        async def work(message: Message) -> None:
            rig.start_of(message)
            times.append(rig.clock.time())
            raise ValueError("closed \udcff" + "x" * 5000)

        await rig.manager.start()
        began = rig.clock.time()
        await rig.manager.send(T, b"x", headers={"shop": "42"})
        await rig.clock.advance(3600)
        assert rig.attempts == [1, 2, 3]
        assert [time - began for time in times] == pytest.approx([0, 1, 3], abs=0.01)
        (letter,) = await rig.dead()
        assert (letter.reason, letter.error_type, letter.attempts) == ("exhausted", "ValueError", 3)
        assert letter.message.headers == {"shop": "42"}
        assert letter.error is not None and letter.error.startswith("closed ?x") and len(letter.error) <= 1000
        assert letter.traceback is not None and "in work" in letter.traceback and len(letter.traceback) <= 4000
        assert letter.first_failure == pytest.approx(times[0], abs=0.01)
        assert letter.last_failure == pytest.approx(times[2], abs=0.01)
        assert letter.host
        assert await rig.counts() == (0, 0, 0)
        assert [event.kind for event in rig.events] == ["failed", "failed", "dead"]
        assert rig.totals == {"sent": 1, "failed": 3, "retried": 2, "dead": 1}


async def test_the_reason_of_a_dead_letter_says_which_failure_it_was() -> None:
    class Order:
        pass

    async with Rig() as rig:

        @rig.manager.handler(T, type="fatal", retry=RetryPolicy(fatal=(KeyError,)))
        async def fatal(message: Message) -> None:
            raise KeyError("x")

        @rig.manager.handler(T, type="reject")
        async def reject(message: Message) -> None:
            raise Reject("negative")

        @rig.manager.handler(T, type="int")
        async def decode(number: int) -> None:
            raise AssertionError("cannot be called")

        await rig.manager.start()
        for kind in ("fatal", "reject", "int", "unknown"):
            await rig.manager.send(T, b"x", type=kind)
        await rig.clock.advance(1)
        reasons = {letter.message.type: letter.reason for letter in await rig.dead()}
        assert reasons == {
            "fatal": "not-retryable",
            "reject": "rejected",
            "int": "undecodable",
            "unknown": "no-handler",
        }
        assert all(letter.attempts == 1 for letter in await rig.dead())


async def test_retry_takes_its_own_delay_and_a_result_without_success_is_a_failure() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, retry=RetryPolicy(max_attempts=4, jitter="none"))
        async def work(message: Message) -> Any:
            number = rig.start_of(message)
            if number == 1:
                raise Retry(100)
            if number == 2:
                return MessageResult(success=False, error="not now")
            if number == 3:
                return ConsumeResult(success=False, task_id="7", error_message="no space")
            return None

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(99)
        assert rig.attempts == [1]
        await rig.clock.advance(20)
        assert rig.attempts == [1, 2, 3, 4]
        assert [event.reason for event in rig.events] == ["100", "not now", "no space"]


# --- what a handler may do to the task that runs it -------------------------------------------------------------


async def test_a_handler_that_outlives_its_timeout_is_cancelled_and_tried_again() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, timeout=5, retry=TWICE)
        async def work(message: Message) -> None:
            if rig.start_of(message) == 1:
                await rig.clock.sleep(100)

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(20)
        assert rig.attempts == [1, 2]
        assert "timeout of 5 s" in rig.events[0].reason
        assert await rig.counts() == (0, 0, 0)


async def test_a_handler_that_turns_its_timeout_into_an_error_leaves_its_slot_as_it_was() -> None:
    async with Rig() as rig:
        cancelling: list[int] = []

        @rig.manager.handler(T, timeout=5, retry=TWICE, concurrency=1)
        async def work(message: Message) -> None:
            task = asyncio.current_task()
            assert task is not None
            cancelling.append(task.cancelling())
            if rig.start_of(message) == 1:
                try:
                    await rig.clock.sleep(100)
                except asyncio.CancelledError:
                    raise ValueError("interrupted") from None

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(20)
        await rig.manager.send(T, b"y")
        await rig.clock.advance(20)
        assert cancelling == [0, 0, 0, 0]
        assert [event.reason for event in rig.events] == ["interrupted", "interrupted"]
        assert await rig.counts() == (0, 0, 0)


async def test_a_handler_that_swallows_its_timeout_and_finishes_has_succeeded() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, timeout=5)
        async def work(message: Message) -> None:
            rig.start_of(message)
            try:
                await rig.clock.sleep(100)
            except asyncio.CancelledError:
                return

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(60)
        assert rig.attempts == [1]
        assert rig.totals["handled"] == 1


@pytest.mark.parametrize("timeout", [None, 30.0])
async def test_a_handler_that_cancels_its_own_task_fails_and_is_tried_again(timeout: float | None) -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, retry=TWICE, concurrency=1, timeout=timeout)
        async def work(message: Message) -> None:
            if rig.start_of(message) == 1:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await rig.clock.sleep(1)

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.manager.send(T, b"y")
        await rig.clock.advance(20)
        assert sorted(rig.attempts) == [1, 1, 2, 2]
        assert await rig.counts() == (0, 0, 0)
        assert rig.totals["handled"] == 2


async def test_a_handler_that_raises_cancelled_error_fails_and_is_tried_again() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, retry=TWICE)
        async def work(message: Message) -> None:
            rig.start_of(message)
            raise asyncio.CancelledError

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(20)
        assert rig.attempts == [1, 2]
        assert [letter.reason for letter in await rig.dead()] == ["exhausted"]


async def test_a_handler_that_cancels_its_task_on_the_way_out_does_no_harm_to_later_messages() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, concurrency=1, retry=TWICE)
        async def work(message: Message) -> None:
            rig.start_of(message)
            task = asyncio.current_task()
            assert task is not None
            if message.body == b"0":
                task.cancel()

        await rig.manager.start()
        for number in range(5):
            await rig.manager.send(T, b"%d" % number)
            await rig.clock.advance(5)
        assert set(rig.bodies) == {b"0", b"1", b"2", b"3", b"4"}
        assert await rig.counts() == (0, 0, 0)


class Bail(BaseException):
    """No Exception, as pytest's own are not."""


@pytest.mark.parametrize("error", [SystemExit(3), Bail("out"), KeyboardInterrupt()], ids=["exit", "base", "interrupt"])
@pytest.mark.parametrize("sync", [False, True])
async def test_exits_in_a_handler_end_its_attempt_and_nothing_else(error: BaseException, sync: bool) -> None:
    if isinstance(error, KeyboardInterrupt) and not sync:
        pytest.skip("in the loop's thread that is Ctrl-C, and ends the program")
    async with Rig() as rig:

        def work_sync(message: Message) -> None:
            rig.start_of(message)
            if message.body == b"x":
                raise error

        async def work(message: Message) -> None:
            work_sync(message)

        rig.manager.add_handler(T, work_sync if sync else work, retry=RetryPolicy(max_attempts=1), concurrency=1)
        await rig.manager.start()
        rig.clock.watch(lambda: rig.manager._worker is not None and rig.manager._worker.in_flight > 0)
        await rig.manager.send(T, b"x")
        await rig.manager.send(T, b"y")
        await rig.clock.advance(1)
        assert rig.bodies == [b"x", b"y"]
        assert len(await rig.dead()) == 1
        assert await rig.counts() == (0, 0, 0)


async def test_a_sync_handler_that_returns_a_coroutine_has_failed() -> None:
    async with Rig() as rig:

        async def inner(message: Message) -> None:
            raise AssertionError("never awaited")

        def work(message: Message) -> Any:
            return inner(message)

        rig.manager.add_handler(T, work, retry=RetryPolicy(max_attempts=1))
        await rig.manager.start()
        rig.clock.watch(lambda: rig.manager._worker is not None and rig.manager._worker.in_flight > 0)
        await rig.manager.send(T, b"x")
        await rig.clock.advance(1)
        (letter,) = await rig.dead()
        assert "async def" in (letter.error or "")


async def test_a_thread_that_outlives_its_timeout_is_told_keeps_its_slot_and_counts_as_failed() -> None:
    async with Rig() as rig:
        go, told = threading.Event(), threading.Event()
        deliveries: list[Delivery] = []

        @rig.manager.handler(T, timeout=5, retry=RetryPolicy(max_attempts=1), concurrency=1)
        def work(message: Message, delivery: Delivery) -> None:
            rig.start_of(message)
            deliveries.append(delivery)
            told.set()
            go.wait(30)

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.manager.send(T, b"y")
        await rig.clock.advance(0)
        await asyncio.to_thread(told.wait, 30)
        await rig.clock.advance(7)
        assert deliveries[0].cancelled
        assert len(rig.starts) == 1
        health = await rig.manager.monitor.health()
        assert (health.healthy, health.status) == (False, "degraded")
        assert list(health.stuck.values()) == pytest.approx([2.0], abs=0.2)
        rig.clock.watch(lambda: rig.manager._worker is not None and rig.manager._worker.in_flight > 0)
        go.set()
        await rig.clock.advance(0)
        assert rig.bodies == [b"x", b"y"]
        (letter,) = await rig.dead()
        assert "timeout of 5 s" in (letter.error or "")
        assert (await rig.manager.monitor.health()).healthy


# --- verbs of a Delivery in a handler ---------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["ack", "nack", "reject"])
@pytest.mark.parametrize("ordered", [False, True])
async def test_an_error_after_a_verb_does_not_settle_a_second_time(verb: str, ordered: bool) -> None:
    async with Rig() as rig:

        @rig.manager.handler(Topic("t", bytes, groups=[Group("g", ordered=ordered)]), retry=EXACT)
        async def work(message: Message, delivery: Delivery) -> None:
            if rig.start_of(message) == 1:
                await getattr(delivery, verb)()
                raise ValueError("too late")

        await rig.manager.start()
        await rig.manager.send("t", b"x")
        await rig.clock.advance(60)
        assert rig.attempts == ([1, 2] if verb == "nack" else [1])
        assert len(await rig.dead()) == (1 if verb == "reject" else 0)
        assert await rig.counts() == (0, 0, 0)


async def test_a_nack_in_an_ordered_group_waits_for_the_end_of_the_run() -> None:
    async with Rig() as rig:
        running = 0

        @rig.manager.handler(Topic("t", bytes, groups=[Group("g", ordered=True)]), retry=EXACT)
        async def work(message: Message, delivery: Delivery) -> None:
            nonlocal running
            assert running == 0, "two runs of one key at once"
            running += 1
            try:
                if rig.start_of(message) == 1 and message.body == b"a":
                    await delivery.nack(1)
                await rig.clock.sleep(10)
            finally:
                running -= 1

        await rig.manager.start()
        for body in (b"a", b"b"):
            await rig.manager.send("t", body, key="k")
        await rig.clock.advance(100)
        assert rig.bodies == [b"a", b"a", b"b"]
        assert rig.attempts == [1, 2, 1]
        assert await rig.counts() == (0, 0, 0)


# --- follow-ups and replies -------------------------------------------------------------------------------------


async def test_follow_ups_know_their_parent_and_their_topic_is_declared() -> None:
    async with Rig() as rig:
        rig.manager.topology.add_group("next", "h")

        @rig.manager.handler(T)
        async def work(message: Message) -> list[Message]:
            return [Message.of({"n": 1}, topic="next"), Message.of({"n": 2}, topic="next", key="k")]

        await rig.manager.start()
        sent = await rig.manager.send(T, b"x")
        await rig.clock.advance(1)
        async with rig.manager.consume("next", group="h") as deliveries:
            for _ in range(2):
                receiving = asyncio.create_task(deliveries.receive(1))
                await rig.clock.advance(0)
                found = await receiving
                assert found is not None
                assert found.message.parent_id == sent
                await found.ack()


@pytest.mark.parametrize("lacking", [(), tuple(PLAIN)], ids=["atomic", "copies"])
async def test_a_follow_up_that_can_never_be_stored_is_a_failure_of_the_handler(
    lacking: tuple[Capability, ...],
) -> None:
    async with Rig(*lacking, embedded={"max_message_size": 1000}) as rig:

        @rig.manager.handler(T, retry=TWICE)
        async def work(message: Message) -> Message:
            rig.start_of(message)
            assert len(rig.starts) < 10, "an endless loop"
            return Message(topic="next", body=b"x" * 2000)

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(60)
        assert rig.attempts == [1, 2]
        (letter,) = await rig.dead()
        assert "2000 bytes" in (letter.error or "")


async def test_an_unexpected_value_warns_once_and_a_result_never(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, type="value")
        async def value(message: Message) -> int:
            return 7

        @rig.manager.handler(T, type="result")
        async def result(message: Message) -> ConsumeResult:
            return ConsumeResult(success=True, task_id="7")

        await rig.manager.start()
        for _ in range(3):
            await rig.manager.send(T, b"x", type="value")
            await rig.manager.send(T, b"x", type="result")
        with caplog.at_level(logging.WARNING):
            await rig.clock.advance(1)
        assert [record.args for record in caplog.records if "without reply_to" in record.getMessage()] == [
            (next(spec.name for spec in rig.manager.specs if spec.type == "value"),)
        ]
        assert rig.totals["handled"] == 6


async def test_an_error_hook_that_raises_hurts_nobody() -> None:
    async with Rig() as rig:

        def hook(event: object) -> None:
            raise RuntimeError("hook")

        rig.manager.on_error(hook)

        @rig.manager.handler(T, retry=TWICE)
        async def work(message: Message) -> None:
            rig.start_of(message)
            raise ValueError

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(10)
        assert rig.attempts == [1, 2]
        assert len(await rig.dead()) == 1


# --- prefetch, leases, ttl --------------------------------------------------------------------------------------


async def test_no_more_than_prefetch_is_unsettled_and_an_hour_of_handling_is_one_delivery() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, concurrency=2, prefetch=4)
        async def work(message: Message) -> None:
            rig.start_of(message)
            await rig.clock.sleep(3600)

        await rig.manager.start()
        for number in range(8):
            await rig.manager.send(T, b"%d" % number)
        await rig.clock.advance(3 * 3600 + 1800)
        assert len(rig.starts) == 8
        assert rig.backend.most_unsettled == 4
        await rig.clock.advance(3600)
        assert len(rig.starts) == 8
        assert await rig.counts() == (0, 0, 0)


@pytest.mark.parametrize("expired", ["drop", "dead"])
async def test_a_message_that_expires_in_the_queue_of_the_worker_is_not_handled(expired: str) -> None:
    async with Rig(topics={"t": {"expired": expired}}) as rig:

        @rig.manager.handler(T, concurrency=1)
        async def work(message: Message) -> None:
            rig.start_of(message)
            await rig.clock.sleep(10)

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.manager.send(T, b"y", ttl=5)
        await rig.clock.advance(60)
        assert rig.bodies == [b"x"]
        assert rig.totals["expired"] == 1
        assert [letter.reason for letter in await rig.dead()] == (["expired"] if expired == "dead" else [])
        kind = "dead" if expired == "dead" else "dropped"
        assert [(event.kind, event.reason, event.attempt) for event in rig.events] == [(kind, "expired", 1)]
        assert await rig.counts() == (0, 0, 0)


# --- adding -----------------------------------------------------------------------------------------------------


async def test_handlers_added_after_start_run_in_new_groups_and_in_running_ones() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, type="a")
        async def first(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()

        @rig.manager.handler(T, type="b")
        async def second(message: Message) -> None:
            rig.start_of(message)

        @rig.manager.handler(Topic("u", bytes, groups=["h"]))
        async def third(message: Message) -> None:
            rig.start_of(message)

        await rig.clock.advance(0)
        await rig.manager.send(T, b"a", type="a")
        await rig.manager.send(T, b"b", type="b")
        await rig.manager.send("u", b"c")
        await rig.clock.advance(1)
        assert sorted(rig.bodies) == [b"a", b"b", b"c"]


async def test_a_handler_added_to_a_running_group_is_checked_as_at_start() -> None:
    async with Rig() as rig:
        topic = Topic("t", bytes, groups=[Group("g", ordered=True)])

        @rig.manager.handler(topic, type="a")
        async def first(message: Message) -> None: ...

        await rig.manager.start()

        @rig.manager.handler(topic, type="b", retry=RetryPolicy(max_delay=61))
        async def second(message: Message) -> None: ...

        @rig.manager.handler(topic, type="c", idempotent=True)
        async def third(message: Message) -> None: ...

        await rig.clock.advance(0)
        assert [event.kind for event in rig.events] == ["receive", "receive"]
        assert "60 s" in rig.events[0].reason
        assert "no store" in rig.events[1].reason
        await rig.manager.send("t", b"x", type="b")
        await rig.clock.advance(0)
        assert [letter.reason for letter in await rig.dead()] == ["no-handler"]


async def test_start_refuses_what_cannot_work_and_leaves_nothing_open() -> None:
    async with Rig() as rig:

        @rig.manager.handler(Topic("t", bytes, groups=[Group("g", ordered=True)]), retry=RetryPolicy(max_delay=61))
        async def work(message: Message) -> None: ...

        with pytest.raises(ConfigurationError, match="60 s"):
            await rig.manager.start()
        await rig.clock.advance(0)
        assert not [thread for thread in threading.enumerate() if thread.name == "brokerkit-watchdog"]


async def test_a_handler_added_to_a_running_group_shares_its_prefetch_until_the_consumer_is_opened_again() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, type="a", prefetch=1, concurrency=1)
        async def first(message: Message) -> None: ...

        await rig.manager.start()

        @rig.manager.handler(T, type="b", prefetch=4)
        async def second(message: Message) -> None: ...

        await rig.clock.advance(0)
        worker = rig.manager._worker
        assert worker is not None
        subscription = worker._subscriptions["t", "g", False]
        assert subscription.consumer.options.prefetch == 1
        await subscription.consumer.driver.aclose()
        await rig.clock.advance(5)
        assert subscription.consumer.options.prefetch == 5


# --- a Delivery in a thread -------------------------------------------------------------------------------------


def handle_with_delivery(delivery: Delivery) -> None:
    # A blocking delivery is what comes here.
    delivery.reject("bad")  # type: ignore[unused-coroutine]


def handle_with_blocking_delivery(delivery: BlockingDelivery) -> None:
    delivery.reject("bad")


@pytest.mark.parametrize("work", [handle_with_delivery, handle_with_blocking_delivery])
async def test_a_verb_in_a_sync_handler_settles_the_message(work: Any) -> None:
    async with Rig() as rig:
        rig.manager.add_handler(T, work)
        await rig.manager.start()
        rig.clock.watch(lambda: rig.manager._worker is not None and rig.manager._worker.in_flight > 0)
        await rig.manager.send(T, b"x")
        await rig.clock.advance(1)
        (letter,) = await rig.dead()
        assert (letter.reason, letter.error) == ("rejected", "bad")
        assert "handled" not in rig.totals


async def test_an_async_handler_cannot_have_a_blocking_delivery() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(delivery: BlockingDelivery) -> None: ...

        with pytest.raises(ConfigurationError, match="annotate Delivery"):
            await rig.manager.start()


async def test_a_reject_that_cannot_be_stored_raises_and_leaves_the_delivery_for_another_verb() -> None:
    async with Rig() as rig:
        errors: list[Exception] = []

        @rig.manager.handler(T)
        async def work(message: Message, delivery: Delivery) -> None:
            try:
                await delivery.reject("bad")
            except SendRefused as error:
                errors.append(error)
                assert not delivery.settled
                await delivery.ack()

        await rig.manager.start()
        async with rig.layer.refusing(ToDead("t", "g")):
            await rig.manager.send(T, b"x")
            await rig.clock.advance(60)
        assert len(errors) == 1
        assert await rig.dead() == []
        assert await rig.counts() == (0, 0, 0)


@pytest.mark.parametrize("delay", [math.inf, math.nan, -1, True, "5"])
async def test_a_delay_that_is_no_time_is_refused_and_changes_nothing(delay: Any) -> None:
    with pytest.raises(PayloadError, match="delay"):
        Retry(delay)
    async with Rig() as rig, rig.manager.consume(T) as deliveries:
        await rig.manager.send(T, b"x")
        delivery = await deliveries.receive(1)
        assert delivery is not None
        with pytest.raises(PayloadError, match="delay"):
            await delivery.nack(delay)
        assert not delivery.settled
        await delivery.ack()


async def test_a_raised_reject_is_a_dead_letter_that_names_its_type() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            raise Reject("negative")

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(1)
        (letter,) = await rig.dead()
        assert (letter.reason, letter.error_type, letter.error) == ("rejected", "Reject", "negative")


async def test_no_password_of_an_error_is_kept_logged_or_answered(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, retry=TWICE)
        async def work(message: Message) -> None:
            raise ConnectionError(f"amqp://user:{PLANTED}@host/ is down")

        await rig.manager.start()
        with caplog.at_level(logging.DEBUG):
            asking = asyncio.create_task(rig.manager.request(T, b"x", reply=int))
            await rig.clock.advance(10)
            with pytest.raises(RemoteError) as failure:
                await asking
        (letter,) = await rig.dead()
        assert "host/ is down" in (letter.error or "") and "host/ is down" in (letter.traceback or "")
        shown = repr(letter) + caplog.text + str(failure.value) + "".join(event.reason for event in rig.events)
        assert PLANTED not in shown


async def test_a_message_that_expired_into_a_dead_letter_is_counted_logged_and_told() -> None:
    async with Rig(topics={"t": {"expired": "dead"}}) as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.send(T, b"x", ttl=5)
        await rig.clock.advance(6)
        await rig.manager.start()
        await rig.clock.advance(1)
        assert rig.starts == []
        assert rig.totals == {"sent": 1, "expired": 1, "dead": 1}
        assert [(event.kind, event.reason) for event in rig.events] == [("dead", "expired")]


async def test_a_delayed_follow_up_without_delayed_sends_is_the_failure_of_its_handler() -> None:
    async with Rig(Capability.DELAYED_SEND) as rig:

        @rig.manager.handler(T, retry=RetryPolicy(max_attempts=1))
        async def work(message: Message) -> Message:
            return Message(topic="next", body=b"", due=rig.clock.time() + 5)

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(10)
        (letter,) = await rig.dead()
        assert letter.error_type == "CapabilityNotSupported"


# --- broadcast --------------------------------------------------------------------------------------------------


async def test_a_broadcast_has_its_own_tag_filter_and_stands_beside_a_handler_of_the_group() -> None:
    async with Rig() as rig:
        heard: list[bytes] = []

        @rig.manager.handler(T, broadcast=True, tag="a")
        async def hear(message: Message) -> None:
            heard.append(message.body)

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        for tag in ("a", "b"):
            await rig.manager.send(T, tag.encode(), tag=tag)
        await rig.clock.advance(1)
        assert heard == [b"a"]
        assert sorted(rig.bodies) == [b"a", b"b"]


# --- processes --------------------------------------------------------------------------------------------------


def hang(body: bytes) -> None:
    threading.Event().wait(600)


def die(body: bytes) -> None:
    os._exit(7)


def return_a_lock(body: bytes) -> Any:
    return threading.Lock()


@pytest.mark.parametrize(
    ("work", "timeout", "reason", "text"),
    [(hang, 1, "exhausted", "its process was killed"), (die, 60, "worker-crash", "exit code 7")],
)
async def test_a_process_that_hangs_or_dies_is_a_failed_attempt(
    work: Any, timeout: float, reason: str, text: str
) -> None:
    manager = AsyncManager(settings={"url": "memory://"})
    manager.add_handler(T, work, executor="process", timeout=timeout, retry=RetryPolicy(max_attempts=2, base_delay=0))
    async with manager:
        await manager.start()
        await manager.send(T, b"x")
        await eventually(lambda: manager.monitor.metrics().totals["dead"] == 1, within=60)
        (letter,) = await manager.admin.dead_letters("t", "g")
        assert (letter.reason, letter.attempts) == (reason, 2)
        assert text in (letter.error or "")


async def test_a_result_of_a_process_that_cannot_be_pickled_is_a_failure() -> None:
    manager = AsyncManager(settings={"url": "memory://"})
    manager.add_handler(T, return_a_lock, executor="process", retry=RetryPolicy(max_attempts=1))
    async with manager:
        await manager.start()
        await manager.send(T, b"x")
        await eventually(lambda: manager.monitor.metrics().totals["dead"] == 1, within=60)
        (letter,) = await manager.admin.dead_letters("t", "g")
        assert "pickle" in (letter.error or "")
