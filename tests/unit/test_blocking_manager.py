"""`Manager`, the blocking twin of `AsyncManager`."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest

from brokerkit import (
    Admin,
    AlreadySettled,
    AsyncManager,
    BlockingAdmin,
    BlockingDeliveries,
    BlockingDelivery,
    BlockingMonitor,
    Closed,
    Deliveries,
    Delivery,
    Manager,
    Monitor,
    PayloadError,
    Retry,
    Topic,
)
from brokerkit.metrics import Metrics, MetricsSnapshot
from brokerkit.testing import eventually_sync


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(f"memory://{uuid.uuid4().hex}")
    yield manager
    manager.close()


@pytest.fixture
def jobs() -> Topic[dict[str, int]]:
    return Topic("jobs", dict[str, int], groups=["workers"])


NewThreads = Callable[[], list[str]]


@pytest.fixture
def new_threads() -> NewThreads:
    """Names brokerkit's threads that the test has started and that have not ended."""
    before = set(threading.enumerate())

    def names() -> list[str]:
        return [one.name for one in set(threading.enumerate()) - before if one.name.startswith("brokerkit-")]

    return names


# --- the twins have one surface ---

RENAMED = {"aclose": "close"}
TWINS = [(AsyncManager, Manager), (Admin, BlockingAdmin), (Monitor, BlockingMonitor)]
TWINS += [(Deliveries, BlockingDeliveries), (Delivery, BlockingDelivery)]


def public(cls: type) -> dict[str, object]:
    return {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}


def shape(member: object) -> object:
    """What a caller sees of a method; the annotations are strings, so they are compared as they are written."""
    if not callable(member):
        return type(member).__name__
    signature = inspect.signature(member)
    returns = str(signature.return_annotation).replace("Blocking", "")
    return [str(parameter) for parameter in signature.parameters.values()], returns


#: Needs the loop: a blocking application reaches it by ``manager.aio``.
ASYNC_ONLY = {"connection"}
#: Carries out the verbs for a `Delivery`; the blocking twin hands them to the same object.
SETTLER = {"settle_ack", "settle_nack", "settle_reject", "is_live", "extend"}
#: Plain attributes of the one, properties of the other.
ATTRIBUTES = {"attempt", "cancelled"}


@pytest.mark.parametrize(("twin", "blocking"), TWINS, ids=lambda cls: cls.__name__)
def test_both_twins_have_the_same_methods_with_the_same_signatures(twin: type, blocking: type) -> None:
    ours, theirs = public(blocking), public(twin)
    without = SETTLER if twin is Deliveries else ASYNC_ONLY
    theirs = {name: member for name, member in theirs.items() if name not in without}
    for old, new in RENAMED.items():
        if old in theirs:
            theirs[new] = theirs.pop(old)

    assert set(ours) == set(theirs)
    for name, member in theirs.items():
        if name not in ATTRIBUTES and not (twin is Monitor and name == "health"):
            assert shape(ours[name]) == shape(member), name
        assert not inspect.iscoroutinefunction(ours[name]), name


def test_both_managers_are_made_with_the_same_arguments() -> None:
    assert str(inspect.signature(AsyncManager)) == str(inspect.signature(Manager))


def test_methods_that_do_io_are_coroutines_in_one_twin_and_registration_is_plain_in_both() -> None:
    plain = {name for name, member in public(AsyncManager).items() if inspect.isfunction(member)}
    coroutines = {name for name in plain if inspect.iscoroutinefunction(getattr(AsyncManager, name))}

    assert coroutines - ASYNC_ONLY == {
        "connect", "aclose", "send", "send_many", "request", "start", "stop", "run", "pause", "resume",
    }  # fmt: skip
    assert plain - coroutines == {
        "handler", "add_handler", "include", "consume", "configure_topic", "on_error", "capabilities",
    }  # fmt: skip


def test_health_waits_as_long_in_both_twins() -> None:
    timeouts = [inspect.signature(cls.health).parameters["timeout"].default for cls in (Monitor, BlockingMonitor)]
    assert timeouts[0] == timeouts[1]


# --- sending, receiving, asking ---


def test_what_is_sent_is_received_and_acknowledged(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    manager.admin.declare(jobs)
    message_id = manager.send(jobs, {"n": 1}, key="k", headers={"a": "b"})

    with manager.consume(jobs) as deliveries:
        delivery = deliveries.receive(10)
        assert delivery is not None
        with delivery:
            assert delivery.message.message_id == message_id
            assert (delivery.message.key, delivery.message.headers["a"]) == ("k", "b")
            assert delivery.payload(dict[str, int]) == {"n": 1}
            assert (delivery.attempt, delivery.stale, delivery.settled) == (1, False, False)
        assert delivery.settled
        assert deliveries.receive(0.05) is None

    assert manager.monitor.stats(jobs, "workers").ready == 0


def test_the_deliveries_are_an_iterator(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    manager.send_many(jobs, ({"n": n} for n in range(5)))
    seen = []
    with manager.consume(jobs) as deliveries:
        for delivery in deliveries:
            with delivery:
                seen.append(delivery.payload()["n"])
            if len(seen) == 5:
                break
    assert seen == [0, 1, 2, 3, 4]


def test_an_error_inside_of_a_delivery_gives_it_back(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    manager.send(jobs, {"n": 1})
    with manager.consume(jobs) as deliveries:
        first = deliveries.receive(10)
        assert first is not None
        first.nack()
        with pytest.raises(AlreadySettled):
            first.ack()
        second = deliveries.receive(10)
        assert second is not None and second.attempt == 2
        second.extend(30)
        second.reject("no use")

    assert [dead.error for dead in manager.admin.dead_letters(jobs, "workers")] == ["no use"]
    assert manager.admin.redrive(jobs, "workers") == 1
    assert manager.admin.purge(jobs, "workers") == 1


def test_deliveries_may_be_closed_after_the_manager(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    with manager.consume(jobs) as deliveries:
        manager.close()
        with pytest.raises(Closed):
            deliveries.receive(0)


def test_a_delivery_settled_after_close_is_stale_and_comes_again(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    manager.send_many(jobs, [{"n": 1}, {"n": 2}])
    deliveries = manager.consume(jobs)
    first, second = deliveries.receive(10), deliveries.receive(10)
    assert first is not None and second is not None
    manager.close()

    assert first.stale
    first.ack()
    with second:
        pass

    with manager:
        assert manager.monitor.stats(jobs, "workers").ready == 2


def test_send_many_reports_each_message(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    outcomes = manager.send_many("jobs", [{"n": 1}, object(), {"n": 3}])

    assert [type(outcome.error) for outcome in outcomes] == [type(None), PayloadError, type(None)]
    assert manager.send_many(jobs, []) == []


def test_send_many_takes_more_than_it_hands_over_at_once(manager: Manager) -> None:
    assert len(manager.send_many("numbers", range(12_001))) == 12_001
    assert len(manager.send_many("numbers", range(5_000))) == 5_000


def test_request_returns_the_decoded_reply(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    @manager.handler(jobs)
    def double(job: dict[str, int]) -> int:
        return job["n"] * 2

    manager.start()

    assert manager.request(jobs, {"n": 21}, reply=int, timeout=20) == 42


def test_an_error_of_a_call_is_raised_where_it_was_called(manager: Manager) -> None:
    with pytest.raises(PayloadError):
        manager.send("jobs", object())
    with pytest.raises(PayloadError, match="dealy"):
        manager.send("jobs", b"", dealy=3)  # type: ignore[call-overload]


def test_sync_and_async_handlers_send_on_by_their_own_twin(manager: Manager) -> None:
    done: list[int] = []

    @manager.handler("first", group="g")
    def first(n: int) -> None:
        manager.send("second", n + 1)

    @manager.handler("second", group="g")
    async def second(n: int) -> None:
        await manager.aio.send("third", n + 1)

    @manager.handler("third", group="g")
    def third(n: int) -> None:
        done.append(n)

    manager.start()
    manager.send("first", 1)

    eventually_sync(lambda: done == [3], what="the message went through all three handlers")


def test_handlers_added_after_start_start_at_once(manager: Manager) -> None:
    manager.start()
    seen: list[int] = []
    manager.add_handler("late", lambda n: seen.append(n), group="g")
    eventually_sync(lambda: "late" in manager.topology and manager.topology["late"].groups)
    manager.admin.declare("late")
    manager.send("late", 1)
    eventually_sync(lambda: seen == [1])


def test_pause_and_resume(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    seen: list[int] = []
    manager.add_handler(jobs, lambda job: seen.append(job["n"]))
    manager.start()
    manager.pause(jobs)
    manager.send(jobs, {"n": 1})
    eventually_sync(lambda: manager.monitor.stats(jobs, "workers").ready == 1)
    assert seen == []

    manager.resume(jobs)

    eventually_sync(lambda: seen == [1])


def test_blocking_manager_from_8_threads(manager: Manager) -> None:
    topic = Topic("numbers", int, groups=["g"])

    def work(base: int) -> list[str]:
        return [manager.send(topic, base * 1000 + n) for n in range(100)]

    with ThreadPoolExecutor(8) as pool:
        ids = [message_id for part in pool.map(work, range(8)) for message_id in part]

    assert len(set(ids)) == 800
    received: set[int] = set()
    with manager.consume(topic, prefetch=100) as deliveries:
        while (delivery := deliveries.receive(1 if len(received) == 800 else 20)) is not None:
            with delivery:
                received.add(delivery.payload(int))
    assert received == {base * 1000 + n for base in range(8) for n in range(100)}


# --- lifecycle ---


def test_making_and_registering_starts_no_thread_and_does_no_io(new_threads: NewThreads) -> None:
    manager = Manager("sqlite:////nowhere/at/all.db")

    @manager.handler("jobs", group="g")
    def handle(job: bytes) -> None: ...

    assert new_threads() == []
    assert not manager.is_connected
    manager.close()


def test_with_connects_and_closes_and_leaves_no_thread(manager: Manager, new_threads: NewThreads) -> None:
    with manager as entered:
        assert entered is manager and manager.is_connected
        assert new_threads() == ["brokerkit-default"]
    assert not manager.is_connected
    assert new_threads() == []
    manager.close()


def test_with_leaves_no_thread_when_it_cannot_connect(new_threads: NewThreads) -> None:
    with pytest.raises(Exception, match="nowhere"), Manager("sqlite:////nowhere/at/all.db"):
        pass
    assert new_threads() == []


def test_a_closed_manager_refuses_calls_until_it_connects_again(manager: Manager, new_threads: NewThreads) -> None:
    with manager:
        manager.send("jobs", b"1")
    with pytest.raises(Closed, match="connect"):
        manager.send("jobs", b"2")
    health = manager.monitor.health()
    assert (health.status, health.healthy) == ("closed", False)
    assert new_threads() == []

    with manager:
        manager.send("jobs", b"3")
        assert manager.monitor.health().status == "up"


def test_close_while_another_thread_waits(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    errors: list[BaseException] = []
    waiting = threading.Event()

    def consume() -> None:
        with manager.consume(jobs) as deliveries:
            waiting.set()
            try:
                deliveries.receive()
            except BaseException as error:
                errors.append(error)

    def ask() -> None:
        waiting.wait(10)
        try:
            manager.request("nobody-answers", b"", reply=int, timeout=600)
        except BaseException as error:
            errors.append(error)

    manager.connect()
    threads = [threading.Thread(target=consume), threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    assert waiting.wait(10)
    eventually_sync(lambda: "nobody-answers" in manager.topology)

    manager.close()
    for thread in threads:
        thread.join(10)

    assert [type(error) for error in errors] == [Closed, Closed]


def test_blocking_call_in_an_async_handler(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    @manager.handler(jobs, timeout=60)
    async def blocks(job: dict[str, int]) -> None:
        try:
            manager.send("elsewhere", job)
        except RuntimeError as error:
            errors.append(str(error))
            for call in (manager.close, manager.stop, manager.monitor.health, manager.run):
                with pytest.raises(RuntimeError, match=r"manager\.aio"):
                    call()
            errors.append("all refused")

    errors: list[str] = []
    manager.start()
    manager.send(jobs, {"n": 1})

    eventually_sync(lambda: len(errors) == 2, what="the handler was refused its blocking calls")
    assert "manager.aio" in errors[0] and errors[1] == "all refused"
    assert manager.monitor.health().healthy


def test_the_async_twin_refuses_another_loop_while_it_works(manager: Manager) -> None:
    import asyncio

    manager.connect()

    async def elsewhere() -> None:
        await manager.aio.send("jobs", b"")

    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(elsewhere())


# --- run ---


def test_run_in_another_thread_ends_with_stop_and_handles_no_signals(manager: Manager, new_threads: NewThreads) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    seen: list[bytes] = []
    manager.add_handler("jobs", lambda body: seen.append(body), group="g")
    thread = threading.Thread(target=manager.run)
    thread.start()
    eventually_sync(lambda: manager.is_connected and manager.aio._worker is not None)
    manager.send("jobs", 1)
    eventually_sync(lambda: len(seen) == 1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before

    assert manager.stop()
    thread.join(10)

    assert not thread.is_alive() and not manager.is_connected
    eventually_sync(lambda: new_threads() == [], what="all threads ended")


def test_run_in_another_thread_ends_with_close(manager: Manager) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            manager.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    eventually_sync(lambda: manager.aio._worker is not None)

    manager.close()
    thread.join(10)

    assert not thread.is_alive() and failures == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_in_the_main_thread_drains_on_a_signal_and_restores_the_handlers(
    manager: Manager, number: signal.Signals, new_threads: NewThreads
) -> None:
    steps: list[str] = []

    @manager.handler("jobs", group="g")
    def slow(body: bytes) -> None:
        steps.append("began")
        os.kill(os.getpid(), number)
        eventually_sync(lambda: manager.aio._closed, what="the drain began")
        steps.append("finished")

    def mine(number: int, frame: FrameType | None) -> None:
        steps.append("the handler from before")

    before = [signal.signal(each, mine) for each in (signal.SIGTERM, signal.SIGINT)]
    try:
        manager.admin.declare("jobs", "g")
        manager.send("jobs", b"")
        manager.run()
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == [mine, mine]
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])

    assert steps == ["began", "finished"]
    eventually_sync(lambda: new_threads() == [], what="all threads ended")


def test_the_second_signal_stops_without_waiting(manager: Manager) -> None:
    release, began = threading.Event(), threading.Event()

    @manager.handler("jobs", group="g")
    def stuck(body: bytes) -> None:
        began.set()
        release.wait(60)

    def send_signals() -> None:
        began.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)
        eventually_sync(lambda: manager.aio._closed, what="the drain began")
        os.kill(os.getpid(), signal.SIGTERM)

    manager.admin.declare("jobs", "g")
    manager.send("jobs", b"")
    thread = threading.Thread(target=send_signals)
    thread.start()
    try:
        manager.run()
        assert not release.is_set()
    finally:
        release.set()
        thread.join(10)

    with manager:
        assert manager.monitor.stats("jobs", "g").ready == 1


def test_interpreter_exit_with_an_unclosed_manager(tmp_path: object) -> None:
    script = f"""
import threading
from brokerkit import Manager
manager = Manager("sqlite:///{tmp_path}/exit.db")
@manager.handler("jobs", group="g")
async def handle(body: bytes) -> None: ...
manager.start()
manager.send("jobs", b"")
deliveries = manager.consume("other", group="g").__enter__()
threading.Thread(target=deliveries.receive, daemon=True).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_retry_asked_for_by_a_sync_handler_comes_again(manager: Manager) -> None:
    attempts: list[int] = []

    @manager.handler("jobs", group="g")
    def twice(body: bytes, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt == 1:
            raise Retry(0)

    manager.start()
    manager.send("jobs", b"")
    eventually_sync(lambda: attempts == [1, 2])


def test_metrics_are_read_by_the_thread_that_counts(manager: Manager, jobs: Topic[dict[str, int]]) -> None:
    readers: list[str] = []

    class Noting(Metrics):
        def snapshot(self) -> MetricsSnapshot:
            readers.append(threading.current_thread().name)
            return super().snapshot()

    manager.aio._metrics = Noting(manager.clock)
    manager.send(jobs, {"n": 1})

    assert manager.monitor.metrics().totals["sent"] == 1
    manager.close()
    assert manager.monitor.metrics().totals["sent"] == 1
    assert readers == ["brokerkit-default", threading.current_thread().name]
