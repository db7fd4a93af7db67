"""Messages that were under way when a process crashed: one at a time, counted, and never a lane for ever."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerUnavailable
from brokerkit.message import Message
from brokerkit.retry import RetryPolicy
from brokerkit.settlement import Settlement
from brokerkit.spi import Capability, Inbound, ToDead, ToGroup
from brokerkit.suspects import Suspects
from brokerkit.topic import Topic

from .rig import EXACT, Rig

T = Topic("t", bytes, groups=["g"])
#: A broker that only says "redelivered".
COARSE = (Capability.START_MARKS, Capability.ATOMIC_SETTLE)


class Suspected(Rig):
    """A rig whose handlers note when they begin and end."""

    def __init__(self, *lacking: Capability, suspects: int, **settings: object) -> None:
        super().__init__(*COARSE, *lacking, **settings)
        self.suspected = [f"s{number}" for number in range(suspects)]
        self.backend.suspects = list(self.suspected)
        self.running = 0
        self.most = 0
        self.times: list[float] = []

    async def send(self) -> None:
        for name in self.suspected:
            await self.manager.send(T, name.encode(), message_id=name)

    async def begin(self, message: Message, seconds: float) -> None:
        self.start_of(message)
        self.times.append(self.clock.time())
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.clock.sleep(seconds)
        finally:
            self.running -= 1


async def test_suspects_run_as_stamped_copies_one_at_a_time_and_others_go_on_meanwhile() -> None:
    async with Suspected(suspects=3) as rig:
        others: list[bytes] = []

        @rig.manager.handler(T, retry=EXACT)
        async def work(message: Message) -> None:
            if message.message_id not in rig.suspected:
                others.append(message.body)
                return
            await rig.begin(message, 20)

        await rig.manager.start()
        await rig.send()
        await rig.manager.send(T, b"innocent")
        await rig.clock.advance(1)
        assert others == [b"innocent"]
        await rig.clock.advance(100)
        assert rig.bodies == [b"s0", b"s1", b"s2"]
        assert rig.attempts == [2, 2, 2]
        assert rig.most == 1
        assert await rig.counts() == (0, 0, 0)


async def test_a_copy_that_does_not_come_back_here_holds_up_the_next_one_for_5_seconds() -> None:
    async with Suspected(suspects=2) as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            await rig.begin(message, 0)

        await rig.manager.start()
        # The copy expires on its way, so it never arrives.
        await rig.manager.send(T, b"s0", message_id="s0", ttl=0.5)
        await rig.manager.send(T, b"s1", message_id="s1")
        async with rig.layer.refusing(ToGroup("t", "g")):
            await rig.clock.advance(1)
        began = rig.clock.time()
        await rig.clock.advance(30)
        assert rig.bodies == [b"s1"]
        assert rig.times[0] - began <= 6


async def test_a_copy_that_is_refused_does_not_stop_the_suspects_for_ever() -> None:
    async with Suspected(suspects=2) as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            await rig.begin(message, 0)

        await rig.manager.start()
        await rig.send()
        async with rig.layer.refusing(ToGroup("t", "g")):
            await rig.clock.advance(100)
            assert rig.starts == []
        await rig.clock.advance(100)
        assert sorted(rig.bodies) == [b"s0", b"s1"]
        assert await rig.counts() == (0, 0, 0)


async def test_a_suspect_whose_run_fails_ends_its_turn_also_where_its_retry_waits_in_memory() -> None:
    async with Suspected(Capability.DELAYED_SEND, suspects=2) as rig:

        @rig.manager.handler(T, retry=EXACT)
        async def work(message: Message) -> None:
            await rig.begin(message, 0)
            if message.attempt < 3:
                raise ValueError

        await rig.manager.start()
        await rig.send()
        await rig.clock.advance(100)
        assert sorted(zip(rig.bodies, rig.attempts, strict=True)) == [
            (b"s0", 2),
            (b"s0", 3),
            (b"s1", 2),
            (b"s1", 3),
        ]
        assert rig.totals["handled"] == 2


async def test_a_stamped_message_at_its_last_attempt_is_a_worker_crash_and_a_refused_letter_is_tried_again() -> None:
    async with Suspected(suspects=1) as rig:
        # The copy was under way in another crash.
        rig.backend.suspects *= 2

        @rig.manager.handler(T, retry=RetryPolicy(max_attempts=1))
        async def work(message: Message) -> None:
            await rig.begin(message, 0)

        await rig.manager.start()
        async with rig.layer.refusing(ToDead("t", "g")):
            await rig.send()
            await rig.clock.advance(50)
        await rig.clock.advance(50)
        assert rig.starts == []
        assert [letter.reason for letter in await rig.dead()] == ["worker-crash"]
        assert await rig.counts() == (0, 0, 0)


@pytest.mark.parametrize(("kind", "deliveries"), [("copied", 1), ("tried", 1), ("tried", 2)])
async def test_a_suspect_is_started_once_more_even_after_its_last_attempt(kind: str, deliveries: int) -> None:
    """Mostly it was merely prefetched; nobody would know that it never ran.

    ``deliveries``: the broker's own count; a Java member that asks for a retry leaves it, and no process died of that.
    """
    async with Suspected(suspects=2, layered=False) as rig:
        rig.backend.deliveries = deliveries
        if kind == "tried":
            rig.backend.trials = []

        @rig.manager.handler(T, retry=RetryPolicy(max_attempts=deliveries))
        async def work(message: Message) -> None:
            await rig.begin(message, 1)

        await rig.manager.start()
        await rig.send()
        await rig.clock.advance(50)
        attempt = deliveries + 1
        assert sorted(zip(rig.bodies, rig.attempts, strict=True)) == [(b"s0", attempt), (b"s1", attempt)]
        assert await rig.dead() == []


async def test_a_stamped_copy_that_nobody_started_is_charged_for_nothing() -> None:
    """Workers that come and go prefetch it behind a long job, one after the other."""
    async with Suspected(suspects=1) as rig:

        @rig.manager.handler(T, concurrency=1, prefetch=10, retry=RetryPolicy(max_attempts=2))
        async def work(message: Message) -> None:
            await rig.begin(message, 20)

        async def restart() -> None:
            rig.backend.suspects = ["s0"]
            await rig.manager.start()
            await rig.clock.advance(1)
            stopping = asyncio.create_task(rig.manager.stop())
            await rig.clock.advance(30)
            await stopping

        for number in range(6):
            await rig.manager.send(T, b"long", message_id=f"long{number}")
        await rig.send()
        for _ in range(6):
            await restart()
        assert rig.bodies == [b"long"] * 6
        await restart()
        assert (rig.bodies[6:], rig.attempts[6:]) == ([b"s0"], [2])
        assert await rig.dead() == []
        assert await rig.counts() == (0, 0, 0)


async def test_a_suspect_that_is_tried_is_recorded_just_before_its_start_and_runs_alone() -> None:
    async with Suspected(suspects=3, layered=False) as rig:
        trials = rig.backend.trials = []

        @rig.manager.handler(T, concurrency=2, prefetch=20)
        async def work(message: Message) -> None:
            if message.message_id in rig.suspected:
                assert trials[-1] == message.message_id
                await rig.begin(message, 10)
            else:
                rig.start_of(message)
                await rig.clock.sleep(30)

        await rig.manager.start()
        for number in range(2):
            await rig.manager.send(T, b"%d" % number)
        await rig.clock.advance(1)
        await rig.send()
        await rig.clock.advance(20)
        assert trials == [], "no slot is free"
        await rig.clock.advance(15)
        assert trials == ["s0"]
        await rig.clock.advance(100)
        assert trials == ["s0", "s1", "s2"]
        assert rig.most == 1
        assert await rig.counts() == (0, 0, 0)


async def test_a_suspect_whose_trial_cannot_be_recorded_is_not_started_and_not_asked_for_all_the_time() -> None:
    async with Suspected(suspects=2, layered=False) as rig:
        trials = rig.backend.trials = []
        rig.backend.trial_fault = BrokerUnavailable("not now")

        @rig.manager.handler(T, retry=EXACT)
        async def work(message: Message) -> None:
            await rig.begin(message, 0)

        await rig.manager.start()
        await rig.send()
        await rig.clock.advance(10)
        assert rig.starts == []
        assert 5 <= len(trials) <= 15
        rig.backend.trial_fault = None
        await rig.clock.advance(10)
        assert sorted(rig.bodies) == [b"s0", b"s1"]


async def test_a_suspect_that_hangs_does_not_keep_the_others_from_being_tried_for_ever() -> None:
    async with Suspected(suspects=3, layered=False) as rig:
        rig.backend.trials = []

        @rig.manager.handler(T, concurrency=5)
        async def work(message: Message) -> None:
            await rig.begin(message, 1_000_000 if message.message_id == "s0" else 1)

        await rig.manager.start()
        await rig.send()
        await rig.clock.advance(30)
        assert rig.bodies == [b"s0"]
        await rig.clock.advance(100)
        assert rig.bodies == [b"s0", b"s1", b"s2"]


async def test_a_pause_does_not_let_another_suspect_run_beside_the_one_that_runs() -> None:
    async with Suspected(suspects=2, layered=False) as rig:
        rig.backend.trials = []

        @rig.manager.handler(T, concurrency=5)
        async def work(message: Message) -> None:
            await rig.begin(message, 20)

        await rig.manager.start()
        await rig.send()
        await rig.clock.advance(5)
        await rig.manager.pause("t")
        await rig.manager.resume("t")
        await rig.clock.advance(100)
        assert rig.bodies == [b"s0", b"s1"]
        assert rig.most == 1


async def test_a_stale_copy_ends_its_turn() -> None:
    async with Suspected(suspects=2) as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            await rig.begin(message, 0)
            if message.message_id == "s0":
                rig.backend.stale.add("s0")

        await rig.manager.start()
        await rig.send()
        await rig.clock.advance(20)
        assert rig.bodies == [b"s0", b"s1"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_suspects_survive_a_pause(when: str) -> None:
    async with Suspected(suspects=3) as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None:
            await rig.begin(message, 10)

        await rig.manager.start()
        await rig.send()
        await rig.clock.advance(0 if when == "before" else 1)
        await rig.manager.pause("t")
        await rig.clock.advance(30)
        await rig.manager.resume("t")
        await rig.clock.advance(100)
        assert sorted(set(rig.bodies)) == [b"s0", b"s1", b"s2"]
        assert await rig.counts() == (0, 0, 0)


async def test_a_copy_that_comes_before_its_original_is_settled_waits_for_that() -> None:
    # A broker may deliver before it confirms; a crash in between would bring back both.
    ran: list[Inbound] = []
    settled = asyncio.get_running_loop().create_future()
    tasks: list[asyncio.Task[None]] = []

    async def stamp(inbound: Inbound) -> bool:
        await settled
        return True

    suspects = Suspects(
        SystemClock(), ran.append, stamp, lambda work: tasks.append(asyncio.get_running_loop().create_task(work))
    )
    original = Inbound(topic="t", group="g", body=b"x", message_id="m", redelivered=True)
    copy = Inbound(topic="t", group="g", body=b"x", message_id="m", redelivered=False)

    suspects.admit(original)
    await asyncio.sleep(0)
    assert not suspects.arrived(copy)
    assert not ran
    settled.set_result(None)
    await asyncio.gather(*tasks)
    assert ran == [copy]
    assert suspects.running is copy


async def test_a_copy_that_waits_for_its_original_goes_back_with_the_others() -> None:
    never = asyncio.get_running_loop().create_future()
    tasks: list[asyncio.Task[None]] = []

    async def stamp(inbound: Inbound) -> bool:
        return bool(await never)

    suspects = Suspects(
        SystemClock(),
        lambda inbound: pytest.fail("nothing may run"),
        stamp,
        lambda work: tasks.append(asyncio.get_running_loop().create_task(work)),
    )
    copy = Inbound(topic="t", group="g", body=b"x", message_id="m", redelivered=False)
    suspects.admit(Inbound(topic="t", group="g", body=b"x", message_id="m", redelivered=True))
    await asyncio.sleep(0)
    assert not suspects.arrived(copy)

    assert suspects.take_back() == [copy]
    never.set_result(False)
    await asyncio.gather(*tasks)


def test_a_deferral_keeps_what_the_backend_counted() -> None:
    # It needs nothing of what it settles with.
    settlement = Settlement(cast(Any, None), cast(Any, None), SystemClock(), lambda: "id")
    tried = Inbound("t", "g", b"x", "m", {"bk-attempt": "2"}, started=True, crashes=2)
    assert settlement.deferral(tried, due=None).headers == {"bk-attempt": "4"}
    first = Inbound("t", "g", b"x", "m", {"a": "b"}, started=False)
    assert settlement.deferral(first, due=None).headers == {"a": "b"}
