"""`brokerkit.testing.in_memory`: applications on virtual time, tested as their authors would."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from brokerkit import (
    AsyncManager,
    BrokerUnavailable,
    Capability,
    CapabilityNotSupported,
    Closed,
    ConfigurationError,
    Delivery,
    Group,
    Manager,
    Message,
    MessageResult,
    Reject,
    RemoteError,
    ReplyTimeout,
    RetryPolicy,
    SystemClock,
    Topic,
)
from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.settings import TopicSettings
from brokerkit.testing import VirtualClock, eventually_sync, in_memory

HOUR = 3600.0
#: Nobody answers there: whatever reaches the manager's own broker fails.
NOWHERE: dict[str, Any] = {"url": "sqlite:////no/such/folder/of/anybody.db"}
#: Waits 1, 2, 4 and 8 hours.
HOURS = RetryPolicy(max_attempts=5, base_delay=HOUR, max_delay=24 * HOUR, jitter="none")

jobs = Topic("jobs", dict[str, Any], groups=["workers"])


@pytest.fixture
def manager() -> Manager:
    return Manager(**NOWHERE)


@pytest.fixture
def mq() -> AsyncManager:
    return AsyncManager(**NOWHERE)


@pytest.fixture
def client_of() -> Callable[[FastAPI], Any]:
    with warnings.catch_warnings():
        # Starlette 1 would rather have another HTTP client.
        warnings.simplefilter("ignore")
        from fastapi.testclient import TestClient

    return TestClient


def payloads(broker: Any) -> list[Any]:
    return [each.message.payload() for each in broker.handled]


def hours(broker: Any, since: float) -> list[float]:
    return [round((each.message.receive_time - since) / HOUR, 3) for each in broker.handled]


# --- time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_delay_of_an_hour_is_over_after_an_hour(manager: Manager, kind: str) -> None:
    if kind == "sync":

        @manager.handler(jobs)
        def work(job: dict[str, Any]) -> None: ...
    else:

        @manager.handler(jobs)
        async def work_async(job: dict[str, Any]) -> None: ...

    with in_memory(manager) as broker:
        began = manager.clock.time()
        manager.send(jobs, {"n": 1}, delay=HOUR)
        manager.send(jobs, {"n": 2})
        broker.advance()
        assert payloads(broker) == [{"n": 2}]
        broker.advance(HOUR - 1)
        assert payloads(broker) == [{"n": 2}]
        broker.advance(1)

        assert payloads(broker) == [{"n": 2}, {"n": 1}]
        assert hours(broker, began) == [0, 1]
        assert [message.payload() for message in broker.sent] == [{"n": 1}, {"n": 2}]
        assert {message.topic for message in broker.sent} == {"jobs"}


def test_retries_come_after_their_backoff_of_hours(manager: Manager) -> None:
    starts: list[tuple[int, float]] = []
    began = 0.0

    @manager.handler(jobs, retry=HOURS)
    def work(job: dict[str, Any], message: Message) -> None:
        starts.append((message.attempt, (manager.clock.time() - began) / HOUR))
        if message.attempt < 5:
            raise OSError(f"not yet: {message.attempt}")

    with in_memory(manager) as broker:
        began = manager.clock.time()
        manager.send(jobs, {})
        broker.advance(2 * HOUR)
        assert [attempt for attempt, _ in starts] == [1, 2]
        assert broker.handled == []
        broker.advance(20 * HOUR)

        assert starts == [(1, 0.0), (2, 1.0), (3, 3.0), (4, 7.0), (5, 15.0)]
        (handled,) = broker.handled
        assert (handled.attempt, handled.message.attempt, handled.group) == (5, 5, "workers")
        assert handled.handler is not None and handled.handler.endswith("work")
        assert [(event.kind, event.attempt, str(event.error)) for event in broker.failures] == [
            ("failed", attempt, f"not yet: {attempt}") for attempt in (1, 2, 3, 4)
        ]
        # Retries are no messages that somebody sent.
        assert len(broker.sent) == 1
        assert broker.dead == []


def test_dead_letters_are_there_until_they_are_discarded_or_redriven(manager: Manager) -> None:
    broken = True

    @manager.handler(jobs, retry=HOURS)
    def work(job: dict[str, Any]) -> None:
        if job["n"] < 0:
            raise Reject("negative")
        if broken:
            raise ValueError("broken")

    with in_memory(manager) as broker:
        for n in (1, -1):
            manager.send(jobs, {"n": n})
        broker.advance(20 * HOUR)
        assert [(letter.reason, letter.error, letter.attempts, letter.group) for letter in broker.dead] == [
            ("rejected", "negative", 1, "workers"),
            ("exhausted", "broken", 5, "workers"),
        ]
        assert sorted(event.kind for event in broker.failures) == ["dead"] * 2 + ["failed"] * 4
        broken = False
        rejected, exhausted = broker.dead
        assert manager.admin.discard(jobs, "workers", [str(rejected.message.message_id)]) == 1
        assert manager.admin.redrive(jobs, "workers", [str(exhausted.message.message_id)]) == 1
        broker.advance()

        assert broker.dead == []
        assert [(each.attempt, each.message.payload()) for each in broker.handled] == [(1, {"n": 1})]


def test_a_message_is_not_handled_after_its_ttl(manager: Manager) -> None:
    manager.configure_topic("jobs", TopicSettings(expired="dead"))
    manager.add_handler(jobs, lambda job: None)

    with in_memory(manager) as broker:
        manager.send(jobs, {"n": 1}, delay=HOUR, ttl=HOUR + 10)
        manager.send(jobs, {"n": 2}, delay=HOUR, ttl=HOUR - 10)
        broker.advance(2 * HOUR)

        assert payloads(broker) == [{"n": 1}]
        assert [(letter.reason, letter.message.payload()) for letter in broker.dead] == [("expired", {"n": 2})]


def test_a_message_that_was_dropped_after_its_ttl_is_told_and_its_id_can_come_again(manager: Manager) -> None:
    manager.add_handler(jobs, lambda job: None)

    with in_memory(manager) as broker:
        manager.send(jobs, {"n": 1}, delay=HOUR, ttl=HOUR - 10, message_id="one")
        broker.advance(2 * HOUR)
        assert not broker.handled and not broker.dead
        assert [(event.kind, event.reason) for event in broker.failures] == [("dropped", "expired")]

        manager.send(jobs, {"n": 2}, message_id="one")
        broker.advance()
        assert payloads(broker) == [{"n": 2}]


def test_a_retry_waits_all_of_its_delay_as_if_there_were_no_jitter(manager: Manager) -> None:
    starts: list[float] = []

    @manager.handler(jobs)
    async def fail(job: dict[str, int]) -> None:
        starts.append(manager.clock.time())
        raise ValueError

    with in_memory(manager, start=0.0) as broker:
        manager.send(jobs, {"n": 1})
        broker.advance(HOUR)
        assert [event.kind for event in broker.failures] == ["failed"] * 3 + ["dead"]
    # The default policy: 1, 2 and 4 seconds at most.
    assert starts == [0.0, 1.0, 3.0, 7.0]
    assert manager.aio._blueprint.retry_policy("jobs").jitter == "full"


def test_an_async_handler_is_timed_out_after_an_hour(manager: Manager) -> None:
    ended: list[str] = []

    @manager.handler(jobs, timeout=HOUR, retry=RetryPolicy(max_attempts=1))
    async def work(job: dict[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    with in_memory(manager) as broker:
        manager.send(jobs, {})
        broker.advance(HOUR - 1)
        assert (ended, broker.failures) == ([], [])
        broker.advance(0.02 * HOUR)

        assert ended == ["ended"]
        (letter,) = broker.dead
        assert letter.reason == "exhausted"
        assert isinstance(broker.failures[0].error, TimeoutError)


def test_a_handler_that_sleeps_on_the_managers_clock_wakes_at_its_instant_and_keeps_its_lease(mq: AsyncManager) -> None:
    @mq.handler(jobs)
    async def work(job: dict[str, Any]) -> None:
        await mq.clock.sleep(5 * HOUR)

    async def scenario() -> None:
        async with in_memory(mq) as broker:
            await mq.send(jobs, {})
            await broker.advance(5 * HOUR - 1)
            assert broker.handled == []
            await broker.advance(1)
            assert [each.attempt for each in broker.handled] == [1]

    asyncio.run(scenario())


def test_a_lease_that_is_not_extended_ends(manager: Manager) -> None:
    settings = {**NOWHERE, "embedded": {"lease": HOUR}}
    manager = Manager(settings=settings)
    with in_memory(manager) as broker:
        manager.send(jobs, {"n": 1})
        with manager.consume(jobs, group="workers") as deliveries:
            delivery = deliveries.receive()
            assert delivery is not None
            broker.advance(20 * HOUR)
            # The manager extends what it holds: an hour is not its end.
            assert not delivery.stale
            delivery.ack()
        broker.advance()
        (handled,) = broker.handled
        assert (handled.handler, handled.group) == (None, "workers")


def test_the_time_begins_now_or_when_asked(manager: Manager) -> None:
    with in_memory(manager) as broker:
        assert abs(manager.clock.time() - SystemClock().time()) < 60
        assert manager.clock is broker.clock
    with in_memory(manager, start=1000.0) as broker:
        broker.advance(HOUR)
        assert manager.clock.time() == 1000.0 + HOUR


def test_the_clock_says_when_its_next_timer_is_due() -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        assert clock.until_next is None
        clock.call_later(5, lambda: None).cancel()
        clock.call_later(10, lambda: None)
        assert clock.until_next == 10
        await clock.advance(4)
        assert clock.until_next == 6

    asyncio.run(scenario())


def test_an_hour_takes_no_time(manager: Manager) -> None:
    manager.add_handler(jobs, lambda job: None)

    def scenario() -> float:
        began = time.perf_counter()
        with in_memory(manager) as broker:
            manager.send(jobs, {}, delay=HOUR)
            broker.advance(HOUR)
            assert len(broker.handled) == 1
        return time.perf_counter() - began

    # About 0.03 s; the best of three, as other tests may have the processor meanwhile.
    assert min(scenario() for _ in range(3)) < 0.5


# --- what an application does -------------------------------------------------------------------------------------


def test_follow_ups_are_sent_and_handled(manager: Manager) -> None:
    mails = Topic("mails", dict[str, Any], groups=["mail"])

    @manager.handler(jobs)
    def work(job: dict[str, Any], message: Message) -> Message:
        return Message.of({"for": job["n"]}, topic="mails", parent_id=message.message_id)

    @manager.handler(mails)
    async def mail(letter: dict[str, Any]) -> None: ...

    with in_memory(manager) as broker:
        ids = [manager.send(jobs, {"n": 1})]
        broker.advance()

        assert [(message.topic, message.parent_id) for message in broker.sent] == [("jobs", None), ("mails", ids[0])]
        assert [each.handler and each.handler.rpartition(".")[2] for each in broker.handled] == ["work", "mail"]


@pytest.mark.parametrize("store", [None, "memory"], ids=["plain", "idempotent"])
def test_what_was_handled_shows_what_its_handler_returned(store: str | None) -> None:
    manager = Manager(settings={**NOWHERE, "idempotency": {"store": store}})
    mails = Topic("mails", dict[str, Any], groups=["mail"])

    @manager.handler(jobs, idempotent=store is not None)
    def work(job: dict[str, Any]) -> object:
        match job["n"]:
            case 1:
                return {"square": 1}
            case 2:
                return [Message.of({"for": 2}, topic="mails"), Message.of({"for": 3}, topic="mails")]
            case 3:
                return MessageResult(True, result="three", next_message=Message.of({"for": 4}, topic="mails"))
        return None

    with in_memory(manager) as broker:
        manager.admin.declare(mails)
        for n in range(5):
            manager.send(jobs, {"n": n})
        broker.advance()

        # In threads beside each other: which one is acknowledged first is not said.
        handled = sorted(broker.handled, key=lambda each: each.message.payload()["n"])
        found = [(each.result, [mail.payload() for mail in each.follow_ups]) for each in handled]
        assert found == [
            (None, []),
            ({"square": 1}, []),
            (None, [{"for": 2}, {"for": 3}]),
            ("three", [{"for": 4}]),
            (None, []),
        ]
        caused = [mail for each in handled for mail in each.follow_ups]
        stored = [message for message in broker.sent if message.topic == "mails"]
        assert caused == sorted(stored, key=lambda mail: mail.payload()["for"])
        assert handled[3].follow_ups[0].parent_id == handled[3].message.message_id


def test_what_was_handled_shows_what_failed_before(manager: Manager) -> None:
    broken = True

    @manager.handler(jobs, retry=RetryPolicy(max_attempts=3, base_delay=1, jitter="none"))
    def work(job: dict[str, Any], message: Message) -> str:
        if broken or message.attempt < 3:
            raise OSError(f"{job['n']}, attempt {message.attempt}, broken: {broken}")
        return "done"

    with in_memory(manager) as broker:
        manager.send(jobs, {"n": 1})
        broker.advance(HOUR)
        assert len(broker.dead) == 1
        broken = False
        manager.send(jobs, {"n": 2})
        manager.admin.redrive(jobs, "workers")
        broker.advance(HOUR)

        assert [(each.attempt, each.result, [str(error) for error in each.errors]) for each in broker.handled] == [
            (3, "done", [f"{n}, attempt {attempt}, broken: False" for attempt in (1, 2)]) for n in (2, 1)
        ]


class Modest(EmbeddedBackend):
    """Stands for a broker that offers little."""

    name = "modest"
    capabilities = frozenset({Capability.DURABLE, Capability.MULTIPROCESS, Capability.CONSUMER_GROUPS})


def test_what_the_broker_of_production_lacks_is_refused_in_memory_too(manager: Manager) -> None:
    @manager.handler(jobs, retry=RetryPolicy(exhausted="requeue"))
    def work(job: dict[str, Any]) -> int:
        return int(job["n"])

    with in_memory(manager, like=Modest()) as broker:
        manager.send(jobs, {"n": 1})
        for refused in (
            lambda: manager.send(jobs, {"n": 2}, delay=HOUR),
            lambda: manager.consume(jobs, group="others", tag="red").__enter__(),
            lambda: manager.consume(jobs, broadcast=True).__enter__(),
            lambda: manager.admin.dead_letters(jobs, "workers"),
            lambda: manager.request(jobs, {}, reply=int),
        ):
            with pytest.raises(CapabilityNotSupported):
                refused()
        broker.advance()

        assert [(each.result, each.attempt) for each in broker.handled] == [(1, 1)]
        assert manager.capabilities(jobs) <= Modest.capabilities | {
            Capability.ATOMIC_SETTLE,
            Capability.START_MARKS,
            Capability.MANAGE,
        }


def test_without_leases_a_delivery_is_its_consumers_for_ever(manager: Manager) -> None:
    with in_memory(manager, like=Modest()) as broker:
        manager.send(jobs, {"n": 1})
        with manager.consume(jobs, group="workers") as deliveries:
            delivery = deliveries.receive()
            assert delivery is not None
            broker.advance(20 * HOUR)
            assert not delivery.stale
            delivery.ack()
        broker.advance()
        assert payloads(broker) == [{"n": 1}]


def test_a_block_like_an_unknown_backend_is_refused(manager: Manager) -> None:
    with pytest.raises(ConfigurationError, match="unknown backend 'rabitmq'; did you mean 'rabbitmq'"):
        in_memory(manager, like="rabitmq")
    with in_memory(manager, like="embedded") as broker:
        manager.send(jobs, {"n": 1})
        broker.advance()
        assert len(broker.sent) == 1


def test_a_request_is_answered_while_its_caller_waits(manager: Manager) -> None:
    attempts: list[int] = []

    @manager.handler(jobs, retry=RetryPolicy(base_delay=5, max_delay=5, jitter="none"))
    def work(job: dict[str, Any], message: Message) -> int:
        attempts.append(message.attempt)
        if message.attempt == 1:
            raise OSError("the first time")
        return int(job["n"]) ** 2

    with in_memory(manager) as broker:
        began = manager.clock.time()
        assert manager.request(jobs, {"n": 7}, reply=int, timeout=HOUR) == 49
        assert attempts == [1, 2]
        assert 5 <= manager.clock.time() - began < 60
        assert len(broker.handled) == 1


def test_a_request_that_nobody_answers_times_out_by_itself(manager: Manager) -> None:
    with in_memory(manager) as broker:
        began = time.perf_counter()
        with pytest.raises(ReplyTimeout):
            manager.request("quiet", {}, reply=int, timeout=HOUR)
        assert time.perf_counter() - began < 10
        assert [message.topic for message in broker.sent] == ["quiet"]


def test_a_request_whose_handler_fails_for_good_raises(manager: Manager) -> None:
    @manager.handler(jobs, retry=HOURS)
    async def work(job: dict[str, Any]) -> None:
        raise Reject("no such customer")

    with in_memory(manager), pytest.raises(RemoteError, match="no such customer"):
        manager.request(jobs, {}, reply=int)


def test_a_message_id_is_handled_once_and_the_memory_ends_with_the_block() -> None:
    manager = Manager(settings={**NOWHERE, "idempotency": {"store": "sqlite"}})
    manager.add_handler(jobs, lambda job: None, idempotent=True)

    for _ in range(2):
        with in_memory(manager) as broker:
            for _ in range(3):
                manager.send(jobs, {}, message_id="one")
                broker.advance(HOUR)
            assert len(broker.handled) == 1
            assert manager.monitor.metrics().totals["duplicates"] == 2
    assert manager.monitor.metrics().totals["duplicates"] == 0


def test_an_idempotent_handler_without_a_store_is_refused_as_in_production(manager: Manager) -> None:
    manager.add_handler(jobs, lambda job: None, idempotent=True)

    with pytest.raises(ConfigurationError, match="store"), in_memory(manager):
        pass

    assert not manager.aio.is_connected
    assert isinstance(manager.clock, SystemClock)


def test_an_ordered_group_keeps_the_order_of_a_key_through_its_retries(manager: Manager) -> None:
    steps = Topic("steps", int, groups=[Group("one", ordered=True)], ordered=True)
    seen: list[tuple[int, int]] = []

    @manager.handler(steps, retry=RetryPolicy(base_delay=60, max_delay=60, jitter="none"))
    def step(number: int, message: Message) -> None:
        seen.append((number, message.attempt))
        if number == 1 and message.attempt < 3:
            raise OSError("stumbles")

    with in_memory(manager) as broker:
        for number in range(4):
            manager.send(steps, number, key="k")
        broker.advance(59)
        assert seen == [(0, 1), (1, 1)]
        broker.advance(HOUR)

        assert seen == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]
        assert [(each.message.payload(), each.attempt) for each in broker.handled] == [(0, 1), (1, 3), (2, 1), (3, 1)]


def test_results_and_verbs_that_say_no_are_not_handled(manager: Manager) -> None:
    @manager.handler(jobs, type="result", retry=HOURS)
    def result(job: dict[str, Any], message: Message) -> MessageResult:
        return MessageResult(success=message.attempt == 2, error="later")

    @manager.handler(jobs, type="nack")
    async def nack(job: dict[str, Any], delivery: Delivery) -> None:
        await (delivery.nack(delay=HOUR) if delivery.attempt == 1 else delivery.ack())

    with in_memory(manager) as broker:
        manager.send(jobs, {}, type="result")
        manager.send(jobs, {}, type="nack")
        broker.advance()
        assert broker.handled == []
        broker.advance(HOUR)
        assert sorted((str(each.message.type), each.attempt) for each in broker.handled) == [("nack", 2), ("result", 2)]


def test_what_a_broadcast_handler_fails_on_is_dropped_and_not_handled(manager: Manager) -> None:
    @manager.handler("news", broadcast=True, retry=RetryPolicy(max_attempts=2, base_delay=1, max_delay=1))
    def news(item: int) -> None:
        if item == 1:
            raise ValueError("fake")

    with in_memory(manager) as broker:
        for item in (1, 2):
            manager.send("news", item)
        broker.advance(HOUR)

        assert payloads(broker) == [2]
        assert [each.group for each in broker.handled] == ["broadcast"]
        assert [event.kind for event in broker.failures] == ["failed", "dropped"]


def test_a_handler_in_a_thread_is_waited_for_and_may_use_the_manager(manager: Manager) -> None:
    done = Topic("done", int, groups=["audit"])

    @manager.handler(jobs)
    def work(job: dict[str, Any]) -> None:
        # Real time: what a blocking library would take.
        threading.Event().wait(0.05)
        manager.send(done, job["n"])

    manager.add_handler(done, lambda number: None)

    with in_memory(manager) as broker:
        for n in range(3):
            manager.send(jobs, {"n": n})
        broker.advance()
        assert sorted(each.message.payload() for each in broker.handled if each.group == "audit") == [0, 1, 2]


def test_a_handler_cannot_advance_the_time(mq: AsyncManager) -> None:
    advance: list[Callable[[float], Any]] = []

    @mq.handler(jobs)
    async def work(job: dict[str, Any]) -> None:
        await advance[0](1)

    async def scenario() -> None:
        async with in_memory(mq) as broker:
            advance.append(broker.advance)
            await mq.send(jobs, {})
            await broker.advance()
            assert "cannot advance" in str(broker.failures[0].error)

    asyncio.run(scenario())


# --- before and after ---------------------------------------------------------------------------------------------


def test_after_the_block_the_manager_is_as_it_was(manager: Manager) -> None:
    told: list[str] = []
    manager.on_error(lambda event: told.append(event.kind))
    manager.add_handler(jobs, lambda job: 1 / 0, retry=RetryPolicy(max_attempts=1))
    clock, specs, threads = manager.clock, list(manager.specs), set(threading.enumerate())

    with in_memory(manager) as broker:
        manager.add_handler("more", lambda job: None, group="g")
        manager.on_error(lambda event: told.append("of the block"))
        manager.send(jobs, {})
        manager.send("more", 1)
        broker.advance(HOUR)
        assert told == ["dead", "of the block"]
        assert payloads(broker) == [1]

    assert (manager.clock, manager.specs) == (clock, specs)
    assert not manager.is_connected
    assert manager.monitor.metrics().totals["sent"] == 0
    eventually_sync(lambda: set(threading.enumerate()) <= threads, within=30)
    # What it recorded can still be read.
    assert [letter.error_type for letter in broker.dead] == ["ZeroDivisionError"]
    with pytest.raises((ConfigurationError, BrokerUnavailable), match="no/such/folder"):
        manager.send(jobs, {})
    assert "embedded" in repr(manager)


def test_a_manager_that_was_closed_stays_closed_and_a_new_one_does_not(tmp_path: Any) -> None:
    manager = Manager(f"sqlite:///{tmp_path}/own.db")
    with in_memory(manager):
        manager.send(jobs, {})
    manager.send(jobs, {})
    manager.close()
    with in_memory(manager):
        manager.send(jobs, {})

    with pytest.raises(Closed):
        manager.send(jobs, {})
    with manager:
        assert manager.monitor.lag(jobs, "workers").ready == 1


def test_each_block_begins_with_an_empty_broker(manager: Manager) -> None:
    manager.add_handler(jobs, lambda job: None)
    with in_memory(manager):
        manager.send(jobs, {}, delay=HOUR)
    with in_memory(manager) as broker:
        broker.advance(2 * HOUR)
        assert (broker.sent, broker.handled) == ([], [])


def test_a_manager_that_is_open_is_refused_and_left_alone(tmp_path: Any) -> None:
    with Manager(f"sqlite:///{tmp_path}/own.db") as manager:
        manager.send(jobs, {})
        with pytest.raises(RuntimeError, match="close it"), in_memory(manager):
            pass
        assert manager.monitor.lag(jobs, "workers").ready == 1


def test_blocks_of_the_same_manager_do_not_nest(manager: Manager) -> None:
    with in_memory(manager) as broker, pytest.raises(RuntimeError, match="close it"), in_memory(manager):
        pass
    assert broker.sent == []


def test_an_error_in_the_block_leaves_it_in_order(manager: Manager) -> None:
    with pytest.raises(KeyError), in_memory(manager):
        raise KeyError("of the test")
    with in_memory(manager) as broker:
        manager.send(jobs, {})
    assert len(broker.sent) == 1


async def test_a_session_that_is_left_open_does_not_serve_the_manager_afterwards(mq: AsyncManager) -> None:
    with pytest.raises(RuntimeError, match="still open"), mq._rehearse(EmbeddedBackend(), "memory://", VirtualClock()):
        await mq.send(jobs, {})
        left = mq._session
    assert left is not None
    await left.aclose(0)

    assert not mq.is_connected
    with pytest.raises((ConfigurationError, BrokerUnavailable), match="no/such/folder"):
        await mq.send(jobs, {})
    await mq.aclose()


def test_what_still_runs_at_the_end_is_cancelled(manager: Manager) -> None:
    ended: list[str] = []

    @manager.handler(jobs)
    async def work(job: dict[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    began = time.perf_counter()
    with in_memory(manager) as broker:
        manager.send(jobs, {})
        broker.advance(HOUR)
    assert ended == ["ended"]
    assert time.perf_counter() - began < 20


def test_a_handler_that_blocks_its_thread_does_not_hold_up_the_end(manager: Manager) -> None:
    entered, leave = threading.Event(), threading.Event()

    @manager.handler(jobs)
    def work(job: dict[str, Any]) -> None:
        entered.set()
        leave.wait(60)

    began = time.perf_counter()
    try:
        with in_memory(manager):
            manager.send(jobs, {})
            assert entered.wait(30)
        assert time.perf_counter() - began < 20
    finally:
        leave.set()


def test_the_application_may_open_and_close_its_manager_in_the_block(manager: Manager) -> None:
    manager.add_handler(jobs, lambda job: None)
    with in_memory(manager) as broker:
        with manager:
            manager.send(jobs, {"n": 1}, delay=HOUR)
        broker.advance(2 * HOUR)
        assert broker.handled == []
        with manager:
            manager.send(jobs, {"n": 2})
            broker.advance()
        assert payloads(broker) == [{"n": 1}, {"n": 2}]


def test_stop_lets_the_time_pass_that_it_waits_for(manager: Manager) -> None:
    @manager.handler(jobs)
    async def work(job: dict[str, Any]) -> None:
        await manager.clock.sleep(10)

    with in_memory(manager) as broker:
        manager.send(jobs, {})
        broker.advance()
        assert manager.stop(timeout=20)
        assert len(broker.handled) == 1


def test_a_receive_with_a_timeout_ends(manager: Manager) -> None:
    with in_memory(manager):
        began = manager.clock.time()
        manager.send(jobs, {"n": 1}, delay=60)
        with manager.consume(jobs, group="workers") as deliveries:
            assert deliveries.receive(timeout=0) is None
            delivery = deliveries.receive(timeout=HOUR)
            assert delivery is not None
            delivery.ack()
            assert 60 <= manager.clock.time() - began < HOUR
            assert deliveries.receive(timeout=HOUR) is None
            assert manager.clock.time() - began >= HOUR + 60


def test_only_a_manager_can_be_put_in_memory(mq: AsyncManager) -> None:
    with pytest.raises(TypeError, match="Manager"):
        in_memory("manager")  # type: ignore[call-overload]

    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="async with"), in_memory(mq):
            pass

    asyncio.run(scenario())


# --- async tests, fixtures, web applications ----------------------------------------------------------------------


async def test_an_async_test_awaits_the_time(mq: AsyncManager) -> None:
    before = asyncio.all_tasks()

    @mq.handler(jobs, retry=HOURS)
    async def work(job: dict[str, Any], message: Message) -> None:
        if message.attempt < 3:
            raise OSError("not yet")

    @mq.handler("sync", group="g")
    def blocking(job: Any) -> None: ...

    async with in_memory(mq) as broker:
        await mq.send(jobs, {}, delay=HOUR)
        await mq.send("sync", 1, delay=HOUR)
        await broker.advance(HOUR)
        assert [each.message.topic for each in broker.handled] == ["sync"]
        await broker.advance(3 * HOUR)
        assert [(each.message.topic, each.attempt) for each in broker.handled] == [("sync", 1), ("jobs", 3)]

    assert isinstance(mq.clock, SystemClock)
    assert asyncio.all_tasks() == before


async def test_requests_at_the_same_time_are_answered_in_an_async_test(mq: AsyncManager) -> None:
    @mq.handler(jobs)
    async def work(job: dict[str, Any]) -> int:
        await mq.clock.sleep(job["n"])
        return int(job["n"])

    async with in_memory(mq) as broker:
        asked = [mq.request(jobs, {"n": n}, reply=int, timeout=100) for n in (30, 10, 20)]
        late = asyncio.create_task(mq.request("quiet", {}, reply=int, timeout=HOUR))
        assert await asyncio.gather(*asked) == [30, 10, 20]
        with pytest.raises(ReplyTimeout):
            await late
        await broker.advance(1)


async def test_a_request_of_a_handler_waits_for_the_test(mq: AsyncManager) -> None:
    answers: list[Any] = []

    @mq.handler(jobs)
    async def work(job: dict[str, Any]) -> None:
        try:
            await mq.request("quiet", {}, reply=int, timeout=HOUR)
        except ReplyTimeout:
            answers.append("none")

    async with in_memory(mq) as broker:
        await mq.send(jobs, {})
        await broker.advance(HOUR - 1)
        assert answers == []
        await broker.advance(1)
        assert answers == ["none"]


def test_the_fixture_holds_until_the_end_of_the_test(
    manager: Manager, brokerkit_in_memory: Callable[[Manager], Any]
) -> None:
    manager.add_handler(jobs, lambda job: None)
    broker = brokerkit_in_memory(manager)
    manager.send(jobs, {}, delay=HOUR)
    broker.advance(HOUR)
    assert len(broker.handled) == 1


KEPT = AsyncManager(**NOWHERE)


async def test_the_async_fixture_holds_until_the_end_of_the_test(
    brokerkit_in_memory_async: Callable[[AsyncManager], Any],
) -> None:
    KEPT.add_handler(jobs, lambda job: None)
    broker = await brokerkit_in_memory_async(KEPT)
    await KEPT.send(jobs, {}, delay=HOUR)
    await broker.advance(HOUR)
    assert len(broker.handled) == 1


def test_after_the_async_fixture_the_manager_is_as_it_was() -> None:
    assert isinstance(KEPT.clock, SystemClock)
    assert not KEPT.is_connected


def web(mq: AsyncManager, *, starts: bool) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with mq:
            if starts:
                await mq.start()
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/jobs/{n}")
    async def create(n: int) -> str:
        return await mq.send(jobs, {"n": n}, delay=HOUR)

    @app.get("/square/{n}")
    async def square(n: int) -> int:
        return await mq.request("squares", n, reply=int)

    @mq.handler(jobs)
    def work(job: dict[str, Any]) -> None: ...

    @mq.handler("squares", group="math")
    async def squares(n: int) -> int:
        await mq.clock.sleep(1)
        return n * n

    return app


@pytest.mark.parametrize("starts", [True, False])
def test_a_web_application_is_tested_with_its_test_client(
    mq: AsyncManager, client_of: Callable[[FastAPI], Any], starts: bool
) -> None:
    app = web(mq, starts=starts)
    with in_memory(mq) as broker:
        with client_of(app) as client:
            sent = client.post("/jobs/7").json()
            broker.advance(HOUR)
            assert [(each.message.message_id, each.message.payload()) for each in broker.handled] == [(sent, {"n": 7})]
            assert client.get("/square/9").json() == 81
            client.post("/jobs/8")
        assert len(broker.sent) == 3
        broker.advance(HOUR)
        with client_of(app) as client:
            broker.advance(1)
            assert payloads(broker)[-1] == {"n": 8}
    assert isinstance(mq.clock, SystemClock)


async def test_a_web_application_is_tested_in_an_async_test(mq: AsyncManager) -> None:
    app = web(mq, starts=True)
    async with in_memory(mq) as broker, app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            await client.post("/jobs/7")
            assert (await client.get("/square/5")).json() == 25
        await broker.advance(HOUR)
        assert {"n": 7} in payloads(broker)


def test_two_managers_in_one_process_have_a_block_each(manager: Manager) -> None:
    audit = Manager(**NOWHERE, name="default")
    manager.add_handler(jobs, lambda job: audit.send("log", job))
    audit.add_handler("log", lambda entry: None, group="g")
    with in_memory(manager) as shop, in_memory(audit) as books:
        manager.send(jobs, {"n": 1})
        shop.advance()
        books.advance()
        assert payloads(books) == [{"n": 1}]
