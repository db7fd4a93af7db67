"""The calls of the document export service, on the embedded broker in memory."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from brokerkit import (
    AsyncManager,
    Closed,
    ConfigurationError,
    ConsumeResult,
    DeadLetter,
    ExportManager,
    ExportTask,
    Manager,
    Message,
    PayloadError,
    RetryPolicy,
)
from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.spi import ToTopic
from brokerkit.testing import eventually, eventually_sync
from brokerkit.testing.interposed import InterposedBackend

TOPIC, GROUP = "export_tasks", "export_consumer_group"
#: No waiting between the attempts.
AT_ONCE = RetryPolicy(max_attempts=3, base_delay=0, max_delay=0)

Make = Callable[..., ExportManager]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[ExportManager] = []

    def make(url: str | None = None, **options: Any) -> ExportManager:
        made.append(ExportManager(url or f"memory://{uuid.uuid4().hex}", **options))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


@pytest.fixture
def manager(make: Make) -> ExportManager:
    return make()


class Desk:
    """A handler that keeps the tasks it gets, and says of each what ``verdict`` says."""

    def __init__(self, verdict: Callable[[ExportTask], ConsumeResult | None] | None = None) -> None:
        self.tasks: list[ExportTask] = []
        self._verdict = verdict or (lambda task: ConsumeResult(True, task.task_id))

    def __call__(self, task: ExportTask) -> ConsumeResult | None:
        self.tasks.append(task)
        return self._verdict(task)

    def wait_for(self, count: int) -> list[ExportTask]:
        eventually_sync(lambda: len(self.tasks) >= count, what=f"{count} tasks")
        return list(self.tasks)


def dead(manager: Manager, count: int = 1) -> list[DeadLetter]:
    def found() -> list[DeadLetter] | None:
        letters = manager.admin.dead_letters(TOPIC, GROUP)
        return letters if len(letters) >= count else None

    return eventually_sync(found, what=f"{count} dead letters")


# --- the shapes ---

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def normalised(value: Any) -> Any:
    """Return the value with every number 0 and every instant the same; what is no number keeps its value."""
    if isinstance(value, dict):
        return {key: normalised(item) for key, item in value.items()}
    if isinstance(value, str):
        return INSTANT.sub("2024-12-19T14:30:00.000Z", value)
    return 0 if isinstance(value, int | float) and not isinstance(value, bool) else value


def golden(name: str) -> Any:
    return json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())


def settled(manager: ExportManager) -> None:
    eventually_sync(lambda: manager.get_consumer_lag()["total_lag"] == 0, what="everything settled")


@pytest.fixture
def busy(make: Make) -> ExportManager:
    """A manager that handled two tasks and consumes."""
    manager = make("memory://golden")
    desk = Desk()
    manager.set_message_handler(desk)
    manager.start()
    manager.send_batch_export_tasks("invoice", [{}, {}], "csv")
    desk.wait_for(2)
    settled(manager)
    return manager


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("queue_status", ExportManager.get_queue_status),
        ("health_status", ExportManager.get_health_status),
        ("performance_metrics", ExportManager.get_performance_metrics),
        ("connection_info", ExportManager.get_connection_info),
        ("restart_consumer", ExportManager.restart_consumer),
        ("restart_producer", ExportManager.restart_producer),
    ],
)
def test_each_answer_has_the_shape_of_its_golden_file(
    busy: ExportManager, name: str, call: Callable[[ExportManager], dict[str, Any]]
) -> None:
    answer = call(busy)

    assert normalised(answer) == golden(name)
    assert json.loads(json.dumps(answer)) == answer


def test_the_lag_has_the_shape_of_its_golden_file_and_counts_what_waits(busy: ExportManager) -> None:
    busy.stop_consuming()
    busy.send_batch_export_tasks("invoice", [{}, {}, {}], "csv")

    answer = busy.get_consumer_lag()

    assert normalised(answer) == golden("consumer_lag")
    assert answer["consumer_lag"] == {"0": 3}
    assert busy.get_queue_status()["metrics"]["total_messages"] == 3
    assert busy.get_health_status()["total_lag"] == 3


def test_a_task_travels_as_flat_json(manager: ExportManager) -> None:
    seen: list[Message] = []
    manager.add_handler(TOPIC, _keep(seen), group="audit")
    manager.start()

    task_id = manager.send_export_task("invoice", {"number": 7}, "pdf", priority=6)

    eventually_sync(lambda: seen, what="the message")
    body = json.loads(seen[0].body)
    assert normalised({**body, "task_id": "6f1c2b0a"}) == golden("export_task")
    assert (body["task_id"], seen[0].message_id, seen[0].priority, body["priority"]) == (task_id, task_id, 6, 6)


def _keep(seen: list[Message]) -> Callable[[Message], None]:
    def keep(message: Message) -> None:
        seen.append(message)

    return keep


def test_figures_are_none_while_nothing_exists_and_asking_creates_nothing(manager: ExportManager) -> None:
    for _ in range(2):
        status = manager.get_queue_status()
        assert status["health"] == {"healthy": True, "connection_status": "connected", "total_lag": None}
        assert status["metrics"] == {
            "total_messages": None,
            "active_queues": None,
            "consumer_lag": {"0": None},
            "total_lag": None,
        }
        assert status["components"] == {
            "producer_started": True,
            "consumer_started": False,
            "consumer_consuming": False,
        }
    assert manager.get_performance_metrics()["error_rate"] == {"send_error_rate": None, "consume_error_rate": None}


def test_a_disconnected_manager_says_so_and_raises_nothing(busy: ExportManager) -> None:
    busy.disconnect()

    assert busy.get_health_status()["connection_status"] == "disconnected"
    assert busy.get_queue_status()["connection"]["connected"] is False
    assert busy.get_consumer_lag()["total_lag"] is None
    assert busy.is_healthy() is False
    assert busy.get_performance_metrics()["message_throughput"]["produced_per_second"] > 0


async def test_a_broker_that_is_down_is_reported_and_nothing_is_raised() -> None:
    layer = InterposedBackend(EmbeddedBackend())
    manager = ExportManager("memory://", backend=layer)
    await asyncio.to_thread(manager.send_export_task, "invoice", {}, "pdf")
    async with layer.stopped():
        status = await asyncio.to_thread(manager.get_queue_status)
        healthy = await asyncio.to_thread(manager.is_healthy)
    await asyncio.to_thread(manager.close)

    assert status["health"] == {"healthy": False, "connection_status": "disconnected", "total_lag": None}
    assert status["components"]["producer_started"] is False
    assert healthy is False


def test_is_connected_is_a_value_and_a_call(manager: ExportManager) -> None:
    assert not manager.is_connected
    assert manager.is_connected() is False
    manager.connect()
    assert manager.is_connected
    assert manager.is_connected() is True
    assert repr(manager.is_connected) == str(manager.is_connected) == "True"
    manager.disconnect()
    assert not manager.is_connected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"url": "amqp://user:p@ss@h1,h2:5673/v"}, "h1,h2:5673"),
        ({"url": "rocketmq://ns1:9876;ns2:9876"}, "ns1:9876,ns2:9876"),
        ({"backend": "rocketmq"}, "localhost:9876"),
        ({"rocketmq": {"name_server": "ns:1", "secret_key": "s"}}, "ns:1"),
        ({"rabbitmq": {"host": "rabbit", "port": "5673", "user": "u", "password": "s"}}, "rabbit:5673"),
        ({"embedded": {"path": "/tmp/x.db"}}, "/tmp/x.db"),
        ({"url": "memory://m"}, "memory://m"),
    ],
)
def test_the_address_is_shown_without_a_login(settings: dict[str, Any], expected: str) -> None:
    assert ExportManager(settings=settings).get_connection_info()["name_server"] == expected


# --- configuration ---


def test_topic_and_group_come_from_the_settings(make: Make) -> None:
    manager = make(topic="documents", consumer_group="printers")
    desk = Desk()
    manager.set_message_handler(desk)
    manager.start()

    manager.send_export_task("invoice", {}, "pdf")

    desk.wait_for(1)
    assert manager.admin.dead_letters("documents", "printers") == []
    assert manager.get_queue_status()["topic"] == "documents"


def test_the_keys_of_the_service_take_effect_with_its_backend() -> None:
    keys = {"topic": "t", "consumer_group": "g", "tag": "a || b", "consumer_thread_max": "3"}
    manager = ExportManager(settings={"rocketmq": keys})

    manager.set_message_handler(Desk())

    (spec,) = manager.specs
    assert (spec.topic, spec.group, spec.concurrency) == ("t", "g", 3)
    assert manager.get_connection_info()["tag"] == "a || b"
    assert manager._message(ExportTask(template_id="x", output_format="pdf")).tag == "a"


def test_a_manager_that_is_switched_off_refuses_by_name_of_the_key_and_reports_it() -> None:
    manager = ExportManager(settings={"rocketmq": {"enabled": False}})

    for call in (
        lambda: manager.send_export_task("invoice", {}, "pdf"),
        lambda: manager.send_batch_export_tasks("invoice", [{}], "pdf"),
        lambda: manager.send_async("invoice", {}, "pdf"),
        manager.connect,
        manager.start,
        manager.start_consuming,
        manager.restart_producer,
    ):
        with pytest.raises(ConfigurationError, match=r"switched off: rocketmq\.enabled is false"):
            call()
    assert manager.get_health_status()["connection_status"] == "disabled"
    assert manager.is_healthy() is False
    assert manager.get_queue_status()["connection"] == {"name_server": "localhost:9876", "connected": False}
    assert manager.get_consumer_lag()["total_lag"] is None
    manager.stop_consuming()
    assert manager.stop() is True
    manager.disconnect()


# --- what is understood ---


def send_raw(manager: ExportManager, body: object) -> str:
    return manager.send(manager._declared(), body)


@pytest.mark.parametrize(
    "extra", [{}, {"version": None}, {"version": 2}, {"version": "9.1", "colour": "red", "nested": {"a": [1]}}]
)
def test_a_task_without_version_or_with_unknown_fields_is_handled(
    manager: ExportManager, extra: dict[str, Any]
) -> None:
    desk = Desk()
    manager.set_message_handler(desk)
    manager.start()

    send_raw(manager, {"task_id": "t1", "template_id": "invoice", "data": {"n": 1}, "output_format": "pdf", **extra})

    (task,) = desk.wait_for(1)
    assert (task.task_id, task.template_id, task.data, task.output_format) == ("t1", "invoice", {"n": 1}, "pdf")
    assert task.version == str(extra.get("version") or "1.0")


def test_a_task_without_an_id_has_that_of_its_message_in_every_attempt(manager: ExportManager) -> None:
    desk = Desk(lambda task: ConsumeResult(len(desk.tasks) > 1, task.task_id))
    manager.set_message_handler(desk, retry=AT_ONCE)
    manager.start()

    message_id = send_raw(manager, {"template_id": "invoice", "output_format": "pdf"})

    assert [task.task_id for task in desk.wait_for(2)] == [message_id, message_id]


@pytest.mark.parametrize("body", [b"not JSON {", b"[]", b'{"template_id": "x"}', b"\xff\xfe"])
def test_what_is_no_task_is_a_dead_letter_at_once(manager: ExportManager, body: bytes) -> None:
    desk = Desk()
    manager.set_message_handler(desk)
    manager.start()

    message_id = send_raw(manager, body)

    (letter,) = dead(manager)
    assert (letter.message.message_id, letter.reason, letter.attempts) == (message_id, "undecodable", 1)
    assert desk.tasks == []


# --- handlers ---


def test_a_failing_task_is_tried_again_and_becomes_a_dead_letter_that_says_why(manager: ExportManager) -> None:
    desk = Desk(lambda task: ConsumeResult(False, task.task_id, "no such template"))
    manager.set_message_handler(desk, retry=AT_ONCE)
    manager.start()

    task_id = manager.send_export_task("invoice", {}, "pdf", priority=3)

    (letter,) = dead(manager)
    assert [task.task_id for task in desk.tasks] == [task_id] * 3
    assert (letter.message.message_id, letter.reason, letter.attempts) == (task_id, "exhausted", 3)
    assert "no such template" in (letter.error or "")
    assert letter.message.priority == 3


def test_an_async_handler_that_raises_once_finishes_the_task(manager: ExportManager) -> None:
    tasks: list[ExportTask] = []

    @manager.set_message_handler
    async def make_document(task: ExportTask) -> ConsumeResult:
        tasks.append(task)
        if len(tasks) == 1:
            raise OSError("the disk is busy")
        return ConsumeResult(True, task.task_id)

    manager.configure_topic(TOPIC, fast_retries())
    manager.start()
    manager.send_export_task("invoice", {}, "pdf")

    eventually_sync(lambda: len(tasks) == 2, what="the second attempt")
    settled(manager)
    assert manager.admin.dead_letters(TOPIC, GROUP) == []


def fast_retries() -> Any:
    from brokerkit.settings import RetrySettings, TopicSettings

    return TopicSettings(retry=RetrySettings(base_delay=0, max_delay=0))


def test_a_handler_without_annotations_gets_a_task(manager: ExportManager) -> None:
    kinds: list[type] = []

    def handle(task):  # type: ignore[no-untyped-def]
        kinds.append(type(task))

    manager.set_message_handler(handle)
    manager.start()
    manager.send_export_task("invoice", {}, "pdf")

    eventually_sync(lambda: kinds == [ExportTask], what="the task")


def in_a_child(task: ExportTask) -> ConsumeResult:
    return ConsumeResult(task.data == {"n": 1}, task.task_id, f"the data is {task.data}")


def test_a_handler_may_run_in_a_process(manager: ExportManager) -> None:
    manager.set_message_handler(in_a_child, executor="process", retry=RetryPolicy(max_attempts=1))
    manager.start()
    manager.send_export_task("invoice", {"n": 1}, "pdf")
    manager.send_export_task("invoice", {"n": 2}, "pdf")

    (letter,) = dead(manager)
    assert "the data is {'n': 2}" in (letter.error or "")
    settled(manager)


def test_a_handler_that_asks_for_more_than_the_task_is_refused(manager: ExportManager) -> None:
    def greedy(task: ExportTask, message: Message) -> None: ...

    with pytest.raises(ConfigurationError, match=r"greedy asks for the Message"):
        manager.set_message_handler(greedy)  # type: ignore[type-var]
    with pytest.raises(ConfigurationError, match=r"takes an ExportTask, not 7"):
        manager.set_message_handler(7)  # type: ignore[type-var]


def test_a_handler_is_replaced_while_it_does_not_run_and_refused_while_it_does(manager: ExportManager) -> None:
    first, second, third = Desk(), Desk(), Desk()
    manager.set_message_handler(first)
    manager.set_message_handler(second)
    manager.set_message_handler(second)
    manager.start()

    with pytest.raises(ConfigurationError, match="another message handler is running"):
        manager.set_message_handler(third)
    manager.send_export_task("invoice", {}, "pdf")

    second.wait_for(1)
    assert first.tasks == third.tasks == []


# --- starting, stopping, restarting ---


def test_consuming_may_be_started_before_there_is_a_handler(manager: ExportManager) -> None:
    manager.start_consuming()
    assert manager.get_queue_status()["components"] == {
        "producer_started": True,
        "consumer_started": True,
        "consumer_consuming": False,
    }
    manager.send_export_task("invoice", {}, "pdf")
    desk = Desk()

    manager.set_message_handler(desk)

    desk.wait_for(1)
    assert manager.get_queue_status()["components"]["consumer_consuming"] is True


def test_a_stopped_consumer_takes_nothing_and_the_manager_still_sends(manager: ExportManager) -> None:
    desk = Desk()
    manager.set_message_handler(desk)
    manager.start()
    manager.send_export_task("first", {}, "pdf")
    desk.wait_for(1)

    manager.stop_consuming()
    manager.send_export_task("second", {}, "pdf")
    assert manager.get_queue_status()["components"]["consumer_consuming"] is False
    assert manager.get_consumer_lag()["total_lag"] == 1
    manager.start_consuming()

    assert [task.template_id for task in desk.wait_for(2)] == ["first", "second"]


def test_a_restart_of_the_consumer_lets_running_tasks_finish_and_runs_nothing_twice(manager: ExportManager) -> None:
    go, entered = threading.Event(), threading.Event()
    started: list[str] = []

    async def handle(task: ExportTask) -> None:
        started.append(task.task_id)
        entered.set()
        # A coroutine, which a consumer that closes without draining would cancel.
        await asyncio.to_thread(go.wait, 30)

    manager.set_message_handler(handle, concurrency=1)
    other = Desk()
    manager.add_handler("others", _payload_of(other), group="g")
    manager.start()
    ids = manager.send_batch_export_tasks("invoice", [{"n": n} for n in range(5)], "pdf")
    assert entered.wait(30)

    with ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(manager.restart_consumer)
        # The other handlers go on meanwhile.
        manager.send("others", ExportTask(template_id="x", output_format="pdf"))
        other.wait_for(1)
        eventually_sync(lambda: not manager._is_consuming, what="the drain has begun")
        assert not restarting.done()
        go.set()
        assert restarting.result(30)["restarted"] is True

    eventually_sync(lambda: len(started) >= 5, what="all tasks")
    settled(manager)
    assert sorted(started) == sorted(ids)


def _payload_of(desk: Desk) -> Callable[[ExportTask], None]:
    def handle(task: ExportTask) -> None:
        desk(task)

    return handle


def test_a_restart_does_not_end_run(manager: ExportManager) -> None:
    desk = Desk()
    manager.set_message_handler(desk)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(manager.run)
        manager.send_export_task("first", {}, "pdf")
        desk.wait_for(1)

        assert manager.restart_consumer()["restarted"] is True
        manager.send_export_task("second", {}, "pdf")
        desk.wait_for(2)

        assert not running.done()
        manager.close()
        running.result(30)


def test_a_restart_begins_consuming_again_and_says_when_there_is_nothing_to_restart(manager: ExportManager) -> None:
    assert manager.restart_consumer() == {"component": "consumer", "restarted": False, "consumer_consuming": False}
    desk = Desk()
    manager.set_message_handler(desk)
    manager.stop_consuming()
    manager.send_export_task("invoice", {}, "pdf")

    assert manager.restart_consumer()["consumer_consuming"] is True

    desk.wait_for(1)


def test_restarts_of_the_producer_lose_nothing_that_is_being_sent(manager: ExportManager) -> None:
    manager.start()
    with ThreadPoolExecutor(3) as pool:
        sending = [pool.submit(_send_some, manager, 40) for _ in range(2)]
        batch = pool.submit(manager.send_batch_export_tasks, "batch", [{}] * 3000, "csv")
        while not all(one.done() for one in (*sending, batch)):
            assert manager.restart_producer()["restarted"] is True

    sent = {*batch.result()}.union(*(one.result() for one in sending))
    assert len(sent) == 3080
    assert manager.get_consumer_lag()["total_lag"] == 3080


async def test_a_batch_that_is_under_way_goes_on_through_the_new_producer() -> None:
    async with AsyncManager(f"memory://{uuid.uuid4().hex}") as manager:
        restarts: list[asyncio.Task[None]] = []

        def payloads() -> Iterator[int]:
            for number in range(4000):
                if number % 500 == 250:
                    restarts.append(asyncio.create_task(manager._use().producer.restart()))
                yield number

        outcomes = await manager.send_many("t", payloads())
        await asyncio.gather(*restarts)

        assert [outcome.error for outcome in outcomes if outcome.error is not None] == []
        assert len(outcomes) == 4000
        assert len(restarts) == 8


def _send_some(manager: ExportManager, count: int) -> list[str]:
    return [manager.send_export_task("invoice", {"n": n}, "pdf") for n in range(count)]


# --- sending ---


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("", {}, "pdf"), "template_id"),
        (("invoice", "data", "pdf"), "data: should be a mapping, not str"),
        (("invoice", {}, ""), "output_format"),
        (("invoice", {}, "pdf", 10), "priority"),
        (("invoice", {"x": object()}, "pdf"), "cannot be encoded"),
    ],
)
def test_wrong_arguments_are_refused_before_any_io(
    manager: ExportManager, arguments: tuple[Any, ...], problem: str
) -> None:
    for call in (manager.send_export_task, manager.send_async):
        with pytest.raises(PayloadError, match=problem) as caught:
            call(*arguments)
        assert caught.value.__context__ is None or "cannot be encoded" in problem
    assert not manager.is_connected


def test_a_batch_is_sent_in_order_and_its_ids_are_those_of_the_tasks(manager: ExportManager) -> None:
    desk = Desk()
    manager.set_message_handler(desk, concurrency=1)
    manager.start()

    ids = manager.send_batch_export_tasks("invoice", ({"n": n} for n in range(50)), "pdf")

    assert [task.task_id for task in desk.wait_for(50)] == ids
    assert [task.data["n"] for task in desk.tasks] == list(range(50))
    assert manager.send_batch_export_tasks("invoice", [], "pdf") == []


def test_a_batch_with_a_bad_item_sends_nothing_and_names_the_item(manager: ExportManager) -> None:
    manager.connect()

    with pytest.raises(PayloadError) as caught:
        manager.send_batch_export_tasks("invoice", [{}, "no", {}], "pdf")  # type: ignore[list-item]

    assert caught.value.__notes__ == ["it is item 1 of data_list; nothing was sent"]
    assert manager.get_performance_metrics()["message_throughput"]["produced_per_second"] == 0


def test_a_batch_that_was_stored_in_part_says_which_tasks_were_stored(make: Make) -> None:
    manager = make(max_message_size=500)
    desk = Desk()
    manager.set_message_handler(desk)
    manager.start()

    with pytest.raises(Exception, match="max_message_size is 500") as caught:
        manager.send_batch_export_tasks("invoice", [{}, {"x": "y" * 1000}, {}], "pdf")

    (note,) = caught.value.__notes__
    ids = {task.task_id for task in desk.wait_for(2)}
    assert note.startswith("2 of 3 export tasks were stored: ")
    assert set(note.partition(": ")[2].split(", ")) == ids


def test_sends_in_the_background_end_with_the_ids(manager: ExportManager) -> None:
    desk = Desk()
    manager.set_message_handler(desk)
    manager.start()

    futures = [manager.send_async("invoice", {"n": n}, "pdf", 2) for n in range(100)]

    assert {task.task_id for task in desk.wait_for(100)} == {future.result(30) for future in futures}
    assert {task.priority for task in desk.tasks} == {2}


async def test_close_waits_for_sends_in_the_background_that_the_broker_refuses_for_now() -> None:
    layer = InterposedBackend(EmbeddedBackend())
    sender = ExportManager("memory://", backend=layer)
    async with layer.refusing(ToTopic(TOPIC)):
        future = await asyncio.to_thread(sender.send_async, "invoice", {}, "pdf")
        closing = asyncio.create_task(asyncio.to_thread(sender.close))
        tries = layer.calls["send"]
        await eventually(lambda: layer.calls["send"] > tries + 2, what="some more tries")
        assert not closing.done()

    await closing

    assert future.result(0)


def test_what_goes_wrong_in_the_background_is_the_futures_error(make: Make) -> None:
    manager = make(max_message_size=10)

    future = manager.send_async("invoice", {}, "pdf")

    assert future.cancel() is False
    assert "max_message_size" in str(future.exception(30))


def test_a_closed_manager_refuses_and_connects_again(manager: ExportManager) -> None:
    manager.connect()
    manager.close()
    with pytest.raises(Closed):
        manager.send_export_task("invoice", {}, "pdf")
    manager.connect()
    assert manager.send_export_task("invoice", {}, "pdf")


def test_threads_share_one_manager(manager: ExportManager) -> None:
    desk = Desk()
    manager.set_message_handler(desk)
    begin = threading.Barrier(6)

    def work(_: int) -> list[str]:
        begin.wait(30)
        ids = [manager.send_export_task("one", {"n": n}, "pdf") for n in range(20)]
        ids += manager.send_batch_export_tasks("batch", [{"n": n} for n in range(20)], "pdf")
        futures: list[Future[str]] = [manager.send_async("async", {"n": n}, "pdf") for n in range(20)]
        manager.start_consuming()
        assert manager.get_queue_status()["connection"]["connected"] is True
        assert manager.get_performance_metrics()["message_throughput"]["produced_per_second"] > 0
        return ids + [future.result(30) for future in futures]

    with ThreadPoolExecutor(6) as pool:
        sent = [task_id for ids in pool.map(work, range(6)) for task_id in ids]

    assert len(set(sent)) == 6 * 60
    desk.wait_for(6 * 60)
    settled(manager)
    assert sorted(task.task_id for task in desk.tasks) == sorted(sent)
