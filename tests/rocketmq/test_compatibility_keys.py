"""Each key of the document export service has the effect that docs/rocketmq.md says, on a real broker."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from typing import Any

import pytest

from brokerkit import ConsumeResult, ExportTask
from brokerkit.clock import SystemClock
from brokerkit.errors import AccessRefused, BrokerUnavailable, ConfigurationError, MessageTooLarge, SendTimeout
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.services.ports import free_port
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from tests.planted import PLANTED
from tests.rocketmq.clients import a_name
from tests.rocketmq.exporting import (
    AT_ONCE,
    LONG,
    Desk,
    Section,
    exporting,
    send_as_a_stranger,
    the_section,
    without_lag,
)
from tests.rocketmq.overhearing import overheard
from tests.rocketmq.servers import WORKER

_SENDS = frozenset({RequestCode.SEND_MESSAGE, RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE})


@pytest.fixture
def section(rocketmq_old: RocketMQControl) -> Section:
    return the_section(rocketmq_old)


def one_queue(section: Section, **topic: Any) -> dict[str, Any]:
    """Return settings for a topic with a single queue."""
    return {"topics": {section["topic"]: {"rocketmq": {"queues": 1}, **topic}}}


# --- where, and whether at all ------------------------------------------------------------------------------------


def test_enabled_false_makes_no_connection_and_refuses_every_call(rocketmq_old: RocketMQControl) -> None:
    host, _, port = rocketmq_old.address.name_servers[0].rpartition(":")
    with FaultProxy(host, int(port)) as proxy:
        section = the_section(rocketmq_old, name_server=f"{proxy.host}:{proxy.port}")
        with exporting({**section, "enabled": False}) as manager:
            for call in (manager.connect, manager.start, lambda: manager.send_export_task("invoice", {}, "pdf")):
                with pytest.raises(ConfigurationError, match=r"rocketmq\.enabled is false"):
                    call()
            assert manager.get_health_status()["connection_status"] == "disabled"
        assert proxy.counters.connections == 0

        with exporting(section) as manager:
            manager.connect()
        assert proxy.counters.connections > 0


@pytest.mark.parametrize("separator", [";", ",", " ; "])
def test_name_server_is_a_list_of_which_one_that_answers_is_enough(
    rocketmq_old: RocketMQControl, section: Section, separator: str
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    listed = separator.join([nobody, rocketmq_old.address.name_servers[0]])

    with exporting({**section, "name_server": listed}) as manager:
        manager.send_export_task("invoice", {}, "pdf")
        assert manager.get_queue_status()["connection"] == {"name_server": listed, "connected": True}
    with exporting({**section, "name_server": nobody}) as manager, pytest.raises(BrokerUnavailable, match=nobody):
        manager.connect()


# --- names --------------------------------------------------------------------------------------------------------


def test_producer_group_is_the_one_that_the_broker_shows(rocketmq_old: RocketMQControl, section: Section) -> None:
    group = a_name("export_producer_group_")

    with exporting({**section, "producer_group": group}) as manager:
        manager.connect()
        answer = rocketmq_old.ask(RequestCode.GET_PRODUCER_CONNECTION_LIST, {"producerGroup": group})

    assert answer.code == ResponseCode.SUCCESS, answer.remark
    assert len(json.loads(answer.body)["connectionSet"]) == 1


def test_consumer_group_is_the_native_group_of_the_topic_as_it_stands(
    rocketmq_old: RocketMQControl, section: Section
) -> None:
    group = {"consumerGroup": section["consumer_group"]}
    desk = Desk()

    with exporting(section) as manager:
        manager.set_message_handler(desk)
        manager.start()
        manager.send_export_task("invoice", {}, "pdf")
        desk.wait_for(1)
        members = rocketmq_old.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, group)

    assert members.code == ResponseCode.SUCCESS, members.remark
    found = json.loads(members.body)
    assert len(found["connectionSet"]) == 1
    assert section["topic"] in found["subscriptionTable"]
    left = rocketmq_old.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, group)
    assert left.code == ResponseCode.CONSUMER_NOT_ONLINE


def test_topic_is_where_the_tasks_are_stored(rocketmq_old: RocketMQControl, section: Section) -> None:
    with exporting(section, **one_queue(section)) as manager:
        manager.send_batch_export_tasks("invoice", [{}, {}], "pdf")

    stored(rocketmq_old, section["topic"], 2)


def stored(server: RocketMQControl, topic: str, count: int) -> None:
    """Return once the first queue of a topic has ``count`` messages."""

    def is_stored() -> bool:
        answer = server.ask(RequestCode.GET_MAX_OFFSET, {"topic": topic, "queueId": "0"})
        assert answer.code == ResponseCode.SUCCESS, answer.remark
        # A message has its place in its queue a moment after it is stored.
        return int(answer.fields["offset"]) == count

    eventually_sync(is_stored, within=LONG, what=f"{count} messages in {topic}")


def test_namespace_stands_before_the_topic_and_the_group(rocketmq_old: RocketMQControl, section: Section) -> None:
    namespace, desk = a_name("ns"), Desk()

    with exporting({**section, "namespace": namespace}) as manager:
        manager.set_message_handler(desk)
        manager.start()
        manager.send_export_task("invoice", {}, "pdf")
        desk.wait_for(1)
        group = {"consumerGroup": f"{namespace}%{section['consumer_group']}"}
        assert rocketmq_old.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, group).code == ResponseCode.SUCCESS

    assert rocketmq_old.brokers_of(f"{namespace}%{section['topic']}")
    assert not rocketmq_old.brokers_of(section["topic"])


def test_tag_says_which_tasks_are_handled_and_how_ours_are_sent(
    rocketmq_old: RocketMQControl, section: Section
) -> None:
    desk = Desk()
    task = {"template_id": "invoice", "data": {}, "output_format": "pdf"}

    with exporting({**section, "tag": "documents || letters"}) as manager:
        manager.set_message_handler(desk)
        manager.start()
        send_as_a_stranger(rocketmq_old, section["topic"], {**task, "task_id": "other"}, tag="pictures")
        send_as_a_stranger(rocketmq_old, section["topic"], {**task, "task_id": "none"})
        send_as_a_stranger(rocketmq_old, section["topic"], {**task, "task_id": "letter"}, tag="letters")
        ours = manager.send_export_task("invoice", {}, "pdf")
        desk.wait_for(2)
        without_lag(manager)

    assert {one.task_id for one in desk.tasks} == {"letter", ours}


# --- sending ------------------------------------------------------------------------------------------------------


def test_max_message_size_refuses_a_larger_task_before_anything_is_sent(
    rocketmq_old: RocketMQControl, section: Section
) -> None:
    with overheard(rocketmq_old) as wire:
        with exporting({**section, "max_message_size": 1000, "address_map": wire.address_map}) as manager:
            manager.send_export_task("invoice", {"text": "x" * 500}, "pdf")
            with pytest.raises(MessageTooLarge, match="1000"):
                manager.send_export_task("invoice", {"text": "x" * 1000}, "pdf")
        assert len(wire.of(*_SENDS)) == 1


@pytest.mark.parametrize("retries", [0, 2])
def test_send_timeout_and_retry_times_are_how_long_and_how_often_a_silent_broker_is_asked(
    rocketmq_old: RocketMQControl, section: Section, retries: int
) -> None:
    seconds = 2.0
    with exporting(section) as manager:
        manager.send_export_task("invoice", {}, "pdf")  # declares

    with overheard(rocketmq_old) as wire:
        keys = {"send_timeout": int(seconds * 1000), "retry_times": retries, "address_map": wire.address_map}
        with exporting({**section, **keys}, topics={section["topic"]: {"declare": "never"}}) as manager:
            manager.connect()
            wire.swallowed = _SENDS
            began = SystemClock().monotonic()
            with pytest.raises(SendTimeout):
                manager.send_export_task("invoice", {}, "pdf")
            took = SystemClock().monotonic() - began

        assert len(wire.of(*_SENDS)) == retries + 1
        assert seconds * (retries + 1) - 0.5 < took < seconds * (retries + 1) + LONG


# --- handling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [1, 4])
def test_consumer_thread_max_tasks_are_handled_at_once_whatever_consumer_thread_min_is(
    section: Section, least: int
) -> None:
    desk = Desk(closed=True)
    with exporting({**section, "consumer_thread_min": least, "consumer_thread_max": 3}) as manager:
        manager.set_message_handler(desk)
        manager.start()
        try:
            manager.send_batch_export_tasks("invoice", [{}] * 8, "pdf")
            eventually_sync(lambda: desk.inside == 3, within=LONG, what="three tasks at once")
            # All of them are in the queues, so a fourth one could begin.
            eventually_sync(lambda: manager.get_consumer_lag()["total_lag"] == 8, within=LONG)
        finally:
            desk.open()
        desk.wait_for(8)
        without_lag(manager)

    assert desk.most == 3


def test_a_handler_gets_its_tasks_one_by_one_whatever_consume_message_batch_max_size_is(section: Section) -> None:
    desk = Desk()
    with exporting({**section, "consume_message_batch_max_size": 4}, **one_queue(section)) as manager:
        ids = manager.send_batch_export_tasks("invoice", [{"n": n} for n in range(8)], "pdf")
        manager.set_message_handler(desk)
        manager.start()
        desk.wait_for(8)
        without_lag(manager)

    assert all(isinstance(task, ExportTask) for task in desk.tasks)
    assert sorted(task.task_id for task in desk.tasks) == sorted(ids)


def test_pull_batch_size_is_how_many_messages_a_pull_asks_for(rocketmq_old: RocketMQControl, section: Section) -> None:
    desk = Desk()
    with overheard(rocketmq_old) as wire:
        with exporting({**section, "pull_batch_size": 7, "address_map": wire.address_map}) as manager:
            manager.set_message_handler(desk)
            manager.start()
            manager.send_batch_export_tasks("invoice", [{}] * 20, "pdf")
            desk.wait_for(20)
        pulls = wire.of(RequestCode.PULL_MESSAGE, consumerGroup=section["consumer_group"])

    assert {pull.frame.fields["maxMsgNums"] for pull in pulls} == {"7"}


def test_pull_interval_is_the_pause_between_the_pulls_of_a_queue(
    rocketmq_old: RocketMQControl, section: Section
) -> None:
    tasks, interval = 6, 0.3
    desk = Desk()
    with overheard(rocketmq_old) as wire:
        keys = {"pull_interval": int(interval * 1000), "pull_batch_size": 1, "address_map": wire.address_map}
        with exporting({**section, **keys}, **one_queue(section)) as manager:
            manager.send_batch_export_tasks("invoice", [{}] * tasks, "pdf")
            manager.set_message_handler(desk)
            manager.start()
            desk.wait_for(tasks)
        pulls = wire.of(RequestCode.PULL_MESSAGE, topic=section["topic"])

    # One message came with each: only the pause is between them.
    assert pulls[tasks - 1].at - pulls[0].at > interval * (tasks - 1) - interval / 2


def test_consume_timeout_ends_an_attempt_and_another_one_follows(section: Section) -> None:
    ended: list[str] = []
    begun = threading.Semaphore(0)

    async def handle(task: ExportTask) -> ConsumeResult:
        begun.release()
        if not ended:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(task.task_id)
        return ConsumeResult(True, task.task_id)

    with exporting({**section, "consume_timeout": 0.02}, retry=AT_ONCE) as manager:
        manager.set_message_handler(handle)
        manager.start()
        task_id = manager.send_export_task("invoice", {}, "pdf")
        assert begun.acquire(timeout=LONG) and begun.acquire(timeout=LONG)
        without_lag(manager)

    assert ended == [task_id]


def test_max_reconsume_times_n_means_n_plus_1_attempts_and_then_a_dead_letter(
    rocketmq_old: RocketMQControl, section: Section
) -> None:
    desk = Desk(success=False)
    with exporting({**section, "max_reconsume_times": 2}, retry=AT_ONCE) as manager:
        manager.set_message_handler(desk)
        manager.start()
        task_id = manager.send_export_task("invoice", {}, "pdf")

        def dead() -> Any:
            return manager.admin.dead_letters(section["topic"], section["consumer_group"])

        (letter,) = eventually_sync(dead, within=LONG, what="a dead letter")

    assert [task.task_id for task in desk.tasks] == [task_id] * 3
    assert (letter.message.message_id, letter.attempts, letter.reason) == (task_id, 3, "exhausted")
    stored(rocketmq_old, f"%DLQ%{section['consumer_group']}", 1)


@pytest.mark.parametrize(("milliseconds", "least", "most"), [(100, 0.0, 0.5), (3000, 2.5, None)])
def test_suspend_current_queue_time_is_the_longest_pause_until_a_locked_queue_is_tried_again(
    rocketmq_old: RocketMQControl, section: Section, milliseconds: int, least: float, most: float | None
) -> None:
    settings = one_queue(section, ordered=True)
    with exporting(section, **settings) as manager:
        manager.send_export_task("invoice", {}, "pdf")
    lock(rocketmq_old, RequestCode.LOCK_BATCH_MQ, section)
    desk = Desk()

    with overheard(rocketmq_old) as wire:
        keys = {"suspend_current_queue_time": milliseconds, "address_map": wire.address_map}
        with exporting({**section, **keys}, **settings) as manager:
            manager.set_message_handler(desk)
            manager.start()

            def pauses() -> list[float]:
                tries = [
                    each.at
                    for each in wire.of(RequestCode.LOCK_BATCH_MQ)
                    if section["topic"].encode() in each.frame.body
                ]
                return [later - earlier for earlier, later in itertools.pairwise(tries)]

            eventually_sync(lambda: len(pauses()) >= 10, within=LONG, what="ten tries to lock")
            found = sorted(pauses())
            assert desk.tasks == []
            lock(rocketmq_old, RequestCode.UNLOCK_BATCH_MQ, section)
            desk.wait_for(1)

    assert found[-1] >= least
    # Not the longest: this machine has pauses, too.
    assert most is None or found[len(found) // 2] < most


def lock(server: RocketMQControl, code: int, section: Section) -> None:
    """Lock or unlock the first queue of the topic for a member that is nobody here."""
    queue = {"topic": section["topic"], "brokerName": server.address.masters[0].name, "queueId": 0}
    request = {"consumerGroup": section["consumer_group"], "clientId": "10.0.0.1@somebody", "mqSet": [queue]}
    answer = server.ask(code, {}, json.dumps(request).encode())
    assert answer.code == ResponseCode.SUCCESS, answer.remark


# --- credentials --------------------------------------------------------------------------------------------------


def test_access_key_and_secret_key_log_in_where_the_acl_is_on(guarded_pair: RocketMQControl) -> None:
    section, admin = the_section(guarded_pair), guarded_pair.address.admin
    assert admin is not None

    with exporting({**section, "access_key": admin.access_key, "secret_key": admin.secret_key}) as manager:
        assert manager.send_export_task("invoice", {}, "pdf")
    for keys in ({}, {"access_key": WORKER.access_key, "secret_key": PLANTED}):
        with exporting({**section, **keys}) as manager, pytest.raises(AccessRefused) as caught:
            manager.connect()
        assert PLANTED not in str(caught.value)


def test_security_token_goes_with_every_signed_request(guarded_pair: RocketMQControl) -> None:
    admin = guarded_pair.address.admin
    assert admin is not None
    login = {"access_key": admin.access_key, "secret_key": admin.secret_key, "security_token": "a-token"}

    with overheard(guarded_pair) as wire:
        section = the_section(guarded_pair, **login, address_map=wire.address_map)
        with exporting(section) as manager:
            # The signature is over the token too, so the broker takes it only together with it.
            assert manager.send_export_task("invoice", {}, "pdf")
        signed = [request for request in wire.requests if "Signature" in request.frame.fields]

    assert signed
    assert {request.frame.fields.get("SecurityToken") for request in signed} == {"a-token"}
