"""Sending: again with the same id, many at once, and what cannot work."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokerkit.errors import (
    BrokerUnavailable,
    ConfigurationError,
    MessageTooLarge,
    PayloadError,
    SendRefused,
    SendTimeout,
)
from brokerkit.manager import AsyncManager
from brokerkit.message import Message
from brokerkit.spi import Outbound, ToTopic
from brokerkit.topic import Topic

from .rig import Rig, others

T = Topic("t", bytes, groups=["g"])


async def test_a_refused_send_is_tried_again_with_the_same_id_until_send_timeout() -> None:
    async with Rig(send_timeout=10.0) as rig:
        ids: list[str] = []
        refuses = rig.layer.refuses

        def noting(outbound: Outbound) -> bool:
            ids.append(outbound.message_id)
            return refuses(outbound)

        rig.layer.refuses = noting  # type: ignore[method-assign]
        async with rig.layer.refusing(ToTopic("t")):
            sending = asyncio.create_task(rig.manager.send(T, b"x"))
            await rig.clock.advance(7)
            assert not sending.done()
            await rig.clock.advance(4)
            with pytest.raises(SendRefused, match="backend embedded"):
                await sending
        assert len(ids) > 5 and len(set(ids)) == 1
        assert await rig.counts() == (0, 0, 0)
        assert rig.totals == {"send_failed": 1}


async def test_a_send_whose_outcome_is_unknown_is_tried_again_and_ends_stored_once() -> None:
    async with Rig() as rig:
        await rig.manager.send(T, b"first")
        async with rig.layer.stalling():
            sending = asyncio.create_task(rig.manager.send(T, b"x"))
            await rig.clock.advance(7)
            assert not sending.done()
        await rig.clock.advance(10)
        assert await sending
        assert await rig.counts() == (2, 0, 0)
        async with rig.layer.stalling():
            sending = asyncio.create_task(rig.manager.send(T, b"y"))
            await rig.clock.advance(60)
            with pytest.raises(SendTimeout):
                await sending


async def test_of_many_the_bad_ones_fail_alone_and_the_outcomes_keep_their_order() -> None:
    async with Rig(max_message_size=10) as rig:
        payloads = [b"%d" % number for number in range(1200)]
        payloads[3] = b"x" * 11
        payloads[700] = object()  # type: ignore[call-overload]
        outcomes = await rig.manager.send_many(T, payloads)
        assert len(outcomes) == 1200
        errors = {index: type(outcome.error) for index, outcome in enumerate(outcomes) if outcome.error is not None}
        assert errors == {3: MessageTooLarge, 700: PayloadError}
        assert len({outcome.message_id for outcome in outcomes}) == 1200
        assert await rig.counts() == (1198, 0, 0)
        assert rig.totals == {"sent": 1198, "send_failed": 2}


@pytest.mark.parametrize("count", [0, 100, 600, 1100, 1700])
async def test_payloads_that_raise_leave_no_task_behind(count: int) -> None:
    def payloads() -> Iterator[bytes]:
        for number in range(count):
            yield b"%d" % number
        raise LookupError("no more")

    async with Rig() as rig:
        await rig.manager.send(T, b"first")
        before = asyncio.all_tasks()
        async with rig.layer.stalling():
            sending = asyncio.create_task(rig.manager.send_many(T, payloads()))
            for _ in range(20):
                await rig.clock.advance(5)
            with pytest.raises(LookupError):
                await sending
            assert not others(before)


async def test_a_cancelled_send_many_leaves_no_task_behind() -> None:
    async with Rig() as rig:
        await rig.manager.send(T, b"first")
        before = asyncio.all_tasks()
        async with rig.layer.stalling():
            sending = asyncio.create_task(rig.manager.send_many(T, [b"x"] * 2000))
            await rig.clock.advance(1)
            sending.cancel()
            await asyncio.wait((sending,))
            assert sending.cancelled()
            assert not others(before)


async def test_what_cannot_be_sent_is_refused_before_any_io() -> None:
    rig = Rig()
    for options in (
        {"delay": -1},
        {"ttl": 0},
        {"priority": 10},
        {"headers": {"bk-attempt": "7"}},
        {"delay": float("nan")},
    ):
        with pytest.raises(PayloadError):
            await rig.manager.send(T, b"x", **options)
    with pytest.raises(ConfigurationError):
        await rig.manager.send("no such/name", b"x")
    with pytest.raises(PayloadError, match="message_id"):
        await rig.manager.send_many(T, [b"x"], message_id="one")
    assert rig.layer.calls["connect"] == 0
    await rig.manager.aclose()


async def test_the_options_of_a_call_win_over_those_of_its_message() -> None:
    async with Rig() as rig, rig.manager.consume(T) as deliveries:
        message = Message(body=b"x", message_id="mine", key="k", headers={"a": "1"}, ttl=60, content_type="text/x")
        assert await rig.manager.send(T, message, key="other") == "mine"
        found = await deliveries.receive(1)
        assert found is not None
        got = found.message
        assert (got.message_id, got.key, got.headers, got.ttl, got.content_type) == (
            "mine",
            "other",
            {"a": "1"},
            60,
            "text/x",
        )


async def refuse_once(rig: Rig, *bodies: bytes) -> None:
    """Let the broker refuse each of ``bodies`` the first time."""
    left = list(bodies)

    def refuses(outbound: Outbound) -> bool:
        return outbound.body in left

    def refusal(outbound: Outbound) -> SendRefused:
        left.remove(outbound.body)
        return SendRefused("not now")

    rig.layer.refuses = refuses  # type: ignore[method-assign]
    rig.layer.refusal = refusal  # type: ignore[method-assign]


async def test_concurrent_sends_to_an_ordered_topic_keep_their_order_through_retries() -> None:
    topic = Topic("t", bytes, groups=["g"], ordered=True)
    async with Rig() as rig:
        bodies: list[bytes] = []

        @rig.manager.handler(topic)
        async def work(message: Message) -> None:
            bodies.append(message.body)

        await rig.manager.start()
        await refuse_once(rig, b"0", b"2")
        sends = [asyncio.create_task(rig.manager.send(topic, b"%d" % number, key="k")) for number in range(5)]
        await rig.clock.advance(10)
        await asyncio.gather(*sends)
        assert bodies == [b"0", b"1", b"2", b"3", b"4"]


async def test_of_many_to_an_ordered_topic_what_followed_a_refused_one_is_sent_again_behind_it() -> None:
    topic = Topic("t", bytes, groups=["g"], ordered=True)
    async with Rig() as rig:
        bodies: list[bytes] = []

        @rig.manager.handler(topic)
        async def work(message: Message) -> None:
            bodies.append(message.body)

        await rig.manager.start()
        await refuse_once(rig, b"400")
        sending = asyncio.create_task(rig.manager.send_many(topic, [b"%d" % n for n in range(600)], key="k"))
        await rig.clock.advance(10)
        assert all(outcome.error is None for outcome in await sending)
        await rig.clock.advance(1)
        first = bodies.index(b"400")
        assert bodies[first:] == [b"%d" % number for number in range(400, 600)]


async def test_the_first_send_waits_for_a_broker_that_comes_back_in_time() -> None:
    rig = Rig()
    await rig.layer.stop()
    sending = asyncio.create_task(rig.manager.send(T, b"x"))
    await rig.clock.advance(10)
    assert not sending.done()
    await rig.layer.start()
    await rig.clock.advance(10)
    assert await sending
    await rig.manager.aclose()


@pytest.mark.parametrize(("send_timeout", "attempt_timeout"), [(2.0, 5.0), (7.0, 5.0), (5.0, 5.0), (12.0, 0.5)])
async def test_a_send_without_an_answer_ends_with_send_timeout_whatever_an_attempt_may_take(
    send_timeout: float, attempt_timeout: float
) -> None:
    async with Rig(send_timeout=send_timeout, attempt_timeout=attempt_timeout) as rig:
        await rig.manager.send(T, b"first")
        async with rig.layer.stalling():
            began = rig.clock.monotonic()
            ended: list[float] = []
            sending = asyncio.create_task(rig.manager.send(T, b"x"))
            many = asyncio.create_task(rig.manager.send_many(T, [b"y", b"z"]))
            for task in (sending, many):
                task.add_done_callback(lambda _: ended.append(rig.clock.monotonic() - began))
            await rig.clock.advance(60)
            with pytest.raises(SendTimeout):
                await sending
            assert [type(outcome.error) for outcome in await many] == [SendTimeout, SendTimeout]
        assert all(0.7 * send_timeout < seconds <= send_timeout for seconds in ended), ended


async def test_a_last_attempt_that_is_cut_short_says_what_the_one_before_met() -> None:
    async with Rig(send_timeout=8.0, attempt_timeout=5.0) as rig:
        await rig.manager.send(T, b"first")
        async with rig.layer.stalling():
            sending = asyncio.create_task(rig.manager.send(T, b"x"))
            await rig.clock.advance(60)
            with pytest.raises(SendTimeout, match="unknown; the attempt before it: no answer came in time") as raised:
                await sending
        assert (raised.value.topic, raised.value.backend) == ("t", "embedded")


async def test_a_first_send_ends_in_time_when_the_broker_does_not_let_it_connect(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    sqlite3.connect(path).close()
    rival = sqlite3.connect(path, isolation_level=None)
    rival.execute("PRAGMA journal_mode = WAL")
    async with AsyncManager(f"sqlite:///{path}") as manager:
        await manager.send(T, b"makes the file")
    manager = AsyncManager(f"sqlite:///{path}", send_timeout=0.5)
    rival.execute("BEGIN EXCLUSIVE")
    try:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                await manager.send(T, b"x")
            # One attempt alone could take 5 s, and the library made two.
            assert time.monotonic() - began < 4.5
    finally:
        rival.close()
        await manager.aclose()


@pytest.mark.parametrize("call", ["send", "request"])
async def test_who_waits_for_a_locked_file_gets_an_answer_in_the_time_it_gave(tmp_path: Path, call: str) -> None:
    path = tmp_path / "b.db"
    timeout = {"send": 0.5, "request": 30.0}[call]
    async with AsyncManager(f"sqlite:///{path}", send_timeout=timeout) as manager:
        await manager.send(T, b"before")
        rival = sqlite3.connect(path, isolation_level=None)
        rival.execute("BEGIN IMMEDIATE")
        try:
            began = time.monotonic()
            with pytest.raises((BrokerUnavailable, SendTimeout)):
                if call == "send":
                    await manager.send(T, b"x")
                else:
                    await manager.request(T, b"x", reply=int, timeout=0.5)
            assert time.monotonic() - began < 4.5
            health = await manager.monitor.health(timeout=1.0)
            assert (health.status, health.healthy) == ("down", False)
            assert "locked" in health.problems[0]
        finally:
            rival.close()
        assert (await manager.monitor.health(timeout=30.0)).status == "up"
        await manager.send(T, b"after")
