"""The calls of the document export service on RocketMQ, configured by its own file, beside a peer of before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from brokerkit import ExportManager, initialize
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.rocketmq import RocketMQControl
from tests.rocketmq.clients import a_name
from tests.rocketmq.exporting import LONG, Desk, exporting, send_as_a_stranger, the_section, without_lag

#: ``config.dev.yaml`` with a section of another part of that application.
FILE = """
server:
  port: 8080
rocketmq:
  enabled: true
  name_server: "{name_server}"
  producer_group: "export_producer_group"
  consumer_group: "{group}"
  topic: "{topic}"
  tag: "*"
  max_message_size: 4194304
  send_timeout: 3000
  retry_times: 3
  consumer_thread_min: 1
  consumer_thread_max: 5
  consume_message_batch_max_size: 1
  pull_batch_size: 32
  pull_interval: 0
  consume_timeout: 15
  max_reconsume_times: 16
  suspend_current_queue_time: 1000
  access_key: null
  secret_key: null
  security_token: null
  namespace: null
"""


@pytest.fixture
def configuration(rocketmq_old: RocketMQControl, tmp_path: Path) -> dict[str, Any]:
    """What that application reads from its file; its topic is there already, with 4 queues."""
    topic, group = a_name("export_tasks_"), a_name("export_consumer_group_")
    rocketmq_old.create_topic(topic, queues=4)
    path = tmp_path / "config.dev.yaml"
    path.write_text(
        FILE.format(name_server=rocketmq_old.address.name_servers[0], topic=topic, group=group), encoding="utf-8"
    )
    read: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return read


@pytest.fixture
def manager(configuration: dict[str, Any]) -> Iterator[ExportManager]:
    # A machine that runs other tests too is slow.
    section = {**configuration["rocketmq"], "retry_times": 15}
    made = initialize({"rocketmq": section}, name="export")
    yield made
    made.close()


def test_the_file_of_the_service_is_enough(manager: ExportManager, configuration: dict[str, Any]) -> None:
    section, desk = configuration["rocketmq"], Desk()
    manager.start()  # before there is a handler
    manager.set_message_handler(desk)
    manager.start_consuming()

    one = manager.send_export_task("invoice", {"number": 1}, "pdf", priority=3)
    more = manager.send_batch_export_tasks("letter", [{"number": 2}, {"number": 3}], "docx")
    later = manager.send_async("report", {}, "xlsx").result(LONG)

    desk.wait_for(4)
    without_lag(manager)
    assert {task.task_id for task in desk.tasks} == {one, *more, later}
    assert manager.is_connected() and manager.is_healthy()
    assert manager.get_queue_status() == {
        "topic": section["topic"],
        "consumer_group": section["consumer_group"],
        "health": {"healthy": True, "connection_status": "connected", "total_lag": 0},
        "metrics": {
            "total_messages": 0,
            "active_queues": 4,
            "consumer_lag": {"0": 0, "1": 0, "2": 0, "3": 0},
            "total_lag": 0,
        },
        "connection": {"name_server": section["name_server"], "connected": True},
        "components": {"producer_started": True, "consumer_started": True, "consumer_consuming": True},
    }
    assert manager.get_performance_metrics()["error_rate"] == {"send_error_rate": 0, "consume_error_rate": 0}
    assert manager.get_connection_info()["name_server"] == section["name_server"]
    assert manager.restart_consumer()["restarted"] and manager.restart_producer()["restarted"]
    manager.stop_consuming()
    assert manager.get_queue_status()["components"]["consumer_consuming"] is False
    manager.disconnect()
    assert manager.get_health_status()["connection_status"] == "disconnected"


def test_the_lag_counts_by_queue(manager: ExportManager, rocketmq_old: RocketMQControl) -> None:
    task = {"task_id": "t", "template_id": "invoice", "data": {}, "output_format": "pdf"}
    manager.set_message_handler(Desk())
    manager.start()
    manager.stop_consuming()

    for _ in range(3):  # into its first queue
        send_as_a_stranger(rocketmq_old, manager.topic, task)
    manager.send_batch_export_tasks("invoice", [{}] * 9, "pdf")

    def lag() -> dict[str, Any] | None:
        found = manager.get_consumer_lag()
        return found if found["total_lag"] == 12 else None

    found = eventually_sync(lag, within=LONG, what="a lag of 12")
    assert list(found["consumer_lag"]) == ["0", "1", "2", "3"]
    assert sum(found["consumer_lag"].values()) == 12 and found["consumer_lag"]["0"] >= 3
    assert found["delay_seconds"] >= 0
    assert manager.get_queue_status()["metrics"]["consumer_lag"] == found["consumer_lag"]
    assert manager.get_health_status()["total_lag"] == 12
    assert json.loads(json.dumps(found)) == found


def test_a_task_without_version_as_the_service_sends_it_is_handled(
    manager: ExportManager, rocketmq_old: RocketMQControl
) -> None:
    desk = Desk()
    manager.set_message_handler(desk)
    manager.start()
    task = {
        "task_id": "7c9e6679",
        "template_id": "合同",
        "data": {"甲方": "公司"},
        "output_format": "docx",
        "priority": 2,
        "created_by": "a field of theirs",
    }

    send_as_a_stranger(rocketmq_old, manager.topic, task, tag="export")

    (found,) = desk.wait_for(1)
    assert (found.task_id, found.template_id, found.data) == ("7c9e6679", "合同", {"甲方": "公司"})
    assert (found.output_format, found.priority, found.version) == ("docx", 2, "1.0")
    without_lag(manager)


def test_with_several_brokers_the_lag_counts_by_broker_and_queue(guarded_pair: RocketMQControl) -> None:
    admin = guarded_pair.address.admin
    assert admin is not None
    section = the_section(guarded_pair, access_key=admin.access_key, secret_key=admin.secret_key, queues=2)

    with exporting(section) as manager:
        manager.send_batch_export_tasks("invoice", [{}] * 8, "pdf")
        found = eventually_sync(
            lambda: lag if (lag := manager.get_consumer_lag())["total_lag"] == 8 else None,
            within=LONG,
            what="a lag of 8",
        )

    brokers = sorted(broker.name for broker in guarded_pair.address.masters)
    assert sorted(found["consumer_lag"]) == [f"{broker}:{queue}" for broker in brokers for queue in (0, 1)]
    assert sum(found["consumer_lag"].values()) == 8
