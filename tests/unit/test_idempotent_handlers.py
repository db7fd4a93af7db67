"""Effectively once: claims, duplicates, follow-ups, redrive."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerUnavailable, ReplyTimeout
from brokerkit.idempotency import Busy, Claimed, Done, MemoryIdempotencyStore
from brokerkit.message import Message
from brokerkit.results import MessageResult
from brokerkit.retry import RetryPolicy
from brokerkit.spi import Inboxes, ToTopic
from brokerkit.testing.clock import VirtualClock
from brokerkit.topic import Group, Topic

from .rig import EXACT, Rig

T = Topic("t", bytes, groups=["g"])


class Store(MemoryIdempotencyStore):
    """The store in memory, which can be unreachable."""

    def __init__(self) -> None:
        super().__init__(VirtualClock())
        #: Calls that fail, by name.
        self.broken: set[str] = set()
        self.calls: list[str] = []

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise BrokerUnavailable("the store is down")

    async def claim(self, key: str, owner: str, lease: float, attempt: int | None) -> Claimed | Done | Busy:
        self._note("claim")
        return await super().claim(key, owner, lease, attempt)

    async def complete(self, key: str, owner: str, result: bytes | None, follow_ups: bytes | None) -> bool:
        self._note("complete")
        return await super().complete(key, owner, result, follow_ups)

    async def abandon(self, key: str, owner: str, *, uncount: bool = False) -> None:
        self._note("abandon")
        await super().abandon(key, owner, uncount=uncount)

    async def mark_sent(self, key: str, owner: str) -> None:
        self._note("mark_sent")
        await super().mark_sent(key, owner)


class Once(Rig):
    """A rig with an idempotency store."""

    def __init__(self, **settings: Any) -> None:
        self.store = Store()
        super().__init__(idempotency=self.store, **settings)
        self.store._clock = self.clock


KEY = "t\x1fg\x1fone"


async def test_a_duplicate_is_not_run_and_an_hour_of_handling_keeps_its_claim() -> None:
    async with Once() as rig:

        @rig.manager.handler(T, idempotent=True)
        async def work(message: Message) -> None:
            rig.start_of(message)
            await rig.clock.sleep(3600)

        await rig.manager.start()
        await rig.manager.send(T, b"x", message_id="one")
        await rig.clock.advance(1800)
        await rig.manager.send(T, b"x", message_id="one")
        await rig.clock.advance(2000)
        assert rig.attempts == [1]
        assert rig.totals["duplicates"] == 1
        assert await rig.counts() == (0, 0, 0)


async def test_a_failed_attempt_is_no_duplicate_and_its_retry_does_not_find_the_claim_busy() -> None:
    async with Once() as rig:

        @rig.manager.handler(T, idempotent=True, retry=RetryPolicy(max_attempts=3, base_delay=0))
        async def work(message: Message) -> MessageResult:
            return MessageResult(success=rig.start_of(message) == 3)

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.clock.advance(0)
        assert rig.attempts == [1, 2, 3]
        assert "deferred" not in rig.totals
        assert rig.totals["handled"] == 1


@pytest.mark.parametrize("how", ["raise", "result", "reject"])
async def test_a_redriven_message_begins_again_with_attempt_1(how: str) -> None:
    async with Once() as rig:
        broken = True

        @rig.manager.handler(T, idempotent=True, retry=RetryPolicy(max_attempts=1))
        async def work(message: Message, delivery: Delivery) -> Any:
            rig.start_of(message)
            if broken and how == "raise":
                raise ValueError
            if broken and how == "reject":
                await delivery.reject("no")
            return MessageResult(success=not broken)

        await rig.manager.start()
        await rig.manager.send(T, b"x", ttl=5)
        await rig.clock.advance(10)
        assert len(await rig.dead()) == 1
        broken = False
        redriving = asyncio.create_task(rig.manager.admin.redrive("t", "g"))
        await rig.clock.advance(5)
        assert await redriving == 1
        assert rig.attempts == [1, 1]
        assert await rig.dead() == []
        assert await rig.counts() == (0, 0, 0)


async def test_a_message_that_its_handler_acknowledged_is_done() -> None:
    async with Once() as rig:

        @rig.manager.handler(T, idempotent=True)
        async def work(message: Message, delivery: Delivery) -> None:
            rig.start_of(message)
            await delivery.ack()

        await rig.manager.start()
        for _ in range(2):
            await rig.manager.send(T, b"x", message_id="one")
            await rig.clock.advance(1)
        assert rig.attempts == [1]


async def test_follow_ups_of_a_completed_message_that_were_not_sent_are_sent_without_a_run() -> None:
    async with Once() as rig:
        rig.manager.topology.add_group("next", "h")

        @rig.manager.handler(T, idempotent=True)
        async def work(message: Message) -> Message:
            rig.start_of(message)
            return Message(topic="next", body=b"follow")

        await rig.manager.start()
        async with rig.layer.refusing(ToTopic("next")):
            await rig.manager.send(T, b"x")
            await rig.clock.advance(40)
            assert await rig.counts("next", "h") == (0, 0, 0)
        await rig.clock.advance(40)
        assert rig.attempts == [1]
        assert await rig.counts("next", "h") == (1, 0, 0)
        assert await rig.counts() == (0, 0, 0)


async def test_dedup_key_chooses_what_is_the_same_and_its_errors_are_failures() -> None:
    async with Once() as rig:

        def key(message: Message) -> str:
            return {b"a1": "a", b"a2": "a", b"b": "b"}[message.body]

        @rig.manager.handler(T, idempotent=True, dedup_key=key, retry=RetryPolicy(max_attempts=2, jitter="none"))
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        for body in (b"a1", b"a2", b"b", b"c"):
            await rig.manager.send(T, body)
        await rig.clock.advance(10)
        assert sorted(rig.bodies) == [b"a1", b"b"]
        (letter,) = await rig.dead()
        assert (letter.message.body, letter.error_type, letter.attempts) == (b"c", "KeyError", 2)


async def test_a_message_without_an_id_is_run_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async with Once() as rig:

        @rig.manager.handler(T, idempotent=True, dedup_key=lambda message: None)
        async def work(message: Message) -> None:
            rig.start_of(message)

        await rig.manager.start()
        await rig.manager.send(T, b"x")
        await rig.manager.send(T, b"y")
        await rig.clock.advance(1)
        assert len(rig.starts) == 2
        assert caplog.text.count("give dedup_key=") == 1


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("broken", ["claim", "complete", "abandon", "mark_sent"])
async def test_a_store_that_is_down_loses_nothing_reorders_nothing_and_is_not_hammered(
    broken: str, ordered: bool
) -> None:
    async with Once() as rig:
        rig.manager.topology.add_group("next", "h")
        topic = Topic("t", bytes, groups=[Group("g", ordered=ordered)])

        @rig.manager.handler(topic, idempotent=True, retry=EXACT)
        async def work(message: Message) -> Message:
            if rig.start_of(message) == 1 and broken == "abandon":
                raise ValueError
            return Message(topic="next", body=b"follow")

        await rig.manager.start()
        rig.store.broken.add(broken)
        await rig.manager.send("t", b"1", key="k")
        await rig.manager.send("t", b"2", key="k")
        await rig.clock.advance(20)
        assert len(rig.store.calls) < 200
        rig.store.broken.clear()
        await rig.clock.advance(100)
        handled = rig.totals["handled"]
        assert handled == 2
        assert await rig.counts() == (0, 0, 0)
        if ordered:
            assert rig.bodies == sorted(rig.bodies)


async def test_who_lost_its_claim_while_it_ran_does_not_settle() -> None:
    async with Once() as rig:

        @rig.manager.handler(T, idempotent=True)
        async def work(message: Message) -> None:
            rig.start_of(message)
            await rig.store.forget(KEY)
            await rig.store.claim(KEY, "another", 3.0, 1)

        await rig.manager.start()
        await rig.manager.send(T, b"x", message_id="one")
        await rig.clock.advance(0.05)
        assert rig.totals.get("handled") is None
        await rig.store.complete(KEY, "another", None, None)
        await rig.clock.advance(10)
        assert rig.attempts == [1]
        assert rig.totals["duplicates"] == 1
        assert await rig.counts() == (0, 0, 0)


async def test_follow_ups_that_are_refused_for_good_make_a_dead_letter_and_a_redrive_sends_them() -> None:
    async with Once() as rig:
        rig.manager.topology.add_group("next", "h")

        @rig.manager.handler(T, idempotent=True)
        async def work(message: Message) -> Message:
            rig.start_of(message)
            await rig.manager.admin.declare("next")
            await rig.manager.admin.delete("next")
            return Message(topic="next", body=b"follow")

        await rig.manager.start()
        await rig.manager.send("next", b"first: declares the topic")
        await rig.manager.send(T, b"x")
        await rig.clock.advance(1)
        (letter,) = await rig.dead()
        assert (letter.reason, letter.error_type) == ("not-retryable", "TopicNotFound")
        await rig.manager.admin.declare("next", "h")
        redriving = asyncio.create_task(rig.manager.admin.redrive("t", "g"))
        await rig.clock.advance(5)
        assert await redriving == 1
        assert len(rig.starts) == 1
        assert await rig.counts("next", "h") == (1, 0, 0)


async def test_a_run_that_a_stop_cancelled_counts_as_no_start() -> None:
    async with Once() as rig:

        @rig.manager.handler(T, idempotent=True, retry=RetryPolicy(max_attempts=1))
        async def work(message: Message) -> None:
            rig.start_of(message)
            await rig.clock.sleep(100)

        await rig.manager.start()
        await rig.manager.send(T, b"x", message_id="one")
        await rig.clock.advance(1)
        stopping = asyncio.create_task(rig.manager.stop(timeout=0))
        await rig.clock.advance(1)
        await stopping
        await rig.store.open()
        assert await rig.store.starts(KEY) == 0


async def test_the_claim_of_a_thread_that_outlives_a_stop_stays() -> None:
    async with Once() as rig:
        go, began = threading.Event(), threading.Event()

        @rig.manager.handler(T, idempotent=True)
        def work(message: Message) -> None:
            began.set()
            go.wait(30)

        await rig.manager.start()
        await rig.manager.send(T, b"x", message_id="one")
        await rig.clock.advance(0)
        await asyncio.to_thread(began.wait, 30)
        stopping = asyncio.create_task(rig.manager.stop(timeout=0))
        await rig.clock.advance(1)
        await stopping
        try:
            assert isinstance(await rig.store.claim(KEY, "another", 3.0, 1), Busy)
        finally:
            go.set()


@pytest.mark.parametrize("answered_before", [True, False])
async def test_a_request_that_is_repeated_with_its_id_gets_the_reply_of_the_one_run(answered_before: bool) -> None:
    async with Once() as rig:

        @rig.manager.handler(T, idempotent=True)
        async def work(message: Message) -> Any:
            rig.start_of(message)
            await rig.clock.sleep(10)
            return {"run": len(rig.starts)}

        await rig.manager.start()

        def ask(timeout: float) -> asyncio.Task[Any]:
            return asyncio.create_task(
                rig.manager.request(T, b"x", reply=dict, timeout=timeout, message_id="one", ttl=1000)
            )

        first = ask(60 if answered_before else 2)
        await rig.clock.advance(5)
        if not answered_before:
            with pytest.raises(ReplyTimeout):
                await first
        # The second one comes while the first one runs, the third one when all is long over.
        second = ask(60)
        await rig.clock.advance(30)
        third = ask(60)
        await rig.clock.advance(30)
        answers = await asyncio.gather(*([first] if answered_before else []), second, third)
        assert answers == [{"run": 1}] * len(answers)
        assert rig.attempts == [1]
        assert await rig.counts() == (0, 0, 0)


async def test_a_request_whose_acknowledgement_was_lost_is_not_answered_twice() -> None:
    async with Once() as rig:

        @rig.manager.handler(T, idempotent=True)
        async def work(message: Message) -> int:
            return rig.start_of(message)

        await rig.manager.start()
        connection = await rig.manager.connection()
        assert isinstance(connection, Inboxes)
        inbox = await connection.open_inbox()

        async def answers(**options: Any) -> int:
            await rig.manager.send(T, b"x", message_id="one", reply_to=inbox.address, **options)
            receiving = asyncio.create_task(inbox.receive(10, 5))
            await rig.clock.advance(6)
            found = await receiving
            await inbox.ack(found)
            return len(found)

        assert await answers(correlation_id="a") == 1
        assert await answers(correlation_id="a") == 0
        assert await answers(correlation_id="b") == 1
        assert rig.attempts == [1]
        await inbox.aclose()


async def test_a_request_that_repeats_a_plain_message_gets_no_reply() -> None:
    async with Once() as rig:

        @rig.manager.handler(T, idempotent=True)
        async def work(message: Message) -> int:
            return rig.start_of(message)

        await rig.manager.start()
        await rig.manager.send(T, b"x", message_id="one")
        await rig.clock.advance(1)
        asking = asyncio.create_task(rig.manager.request(T, b"x", reply=int, timeout=5, message_id="one"))
        await rig.clock.advance(6)
        with pytest.raises(ReplyTimeout):
            await asking
