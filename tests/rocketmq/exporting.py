"""What the tests of the export service share: managers that a section of its configuration makes, and desks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from brokerkit import ConsumeResult, ExportManager, ExportTask, Settings
from brokerkit.clock import SystemClock
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from tests.rocketmq.clients import a_name

__all__ = ["AT_ONCE", "LONG", "Desk", "Section", "exporting", "send_as_a_stranger", "the_section", "without_lag"]

#: Seconds; a machine that runs other tests too is slow.
LONG = 60.0
#: No waiting between the attempts.
AT_ONCE = {"base_delay": 0, "max_delay": 0}

Section = dict[str, Any]


def the_section(server: RocketMQControl, **keys: Any) -> Section:
    """Return a section ``rocketmq`` for a topic and a group that nobody else has."""
    return {
        "enabled": True,
        "name_server": ";".join(server.address.name_servers),
        "topic": a_name("export_tasks_"),
        "consumer_group": a_name("export_group_"),
        **keys,
    }


@contextmanager
def exporting(section: Section, **settings: Any) -> Iterator[ExportManager]:
    """Make a manager that is configured by this section and nothing else, and close it at the end."""
    manager = ExportManager(settings=Settings.model_validate({"rocketmq": section, **settings}))
    try:
        yield manager
    finally:
        manager.close()


class Desk:
    """A handler that keeps the tasks it gets and how many it had at once; closed, it keeps them until it is opened."""

    def __init__(self, *, success: bool = True, closed: bool = False) -> None:
        self.tasks: list[ExportTask] = []
        self.inside = self.most = 0
        self._success = success
        self._lock = threading.Lock()
        self._opened = threading.Event()
        if not closed:
            self.open()

    def open(self) -> None:
        """Finish the tasks, from now on at once."""
        self._opened.set()

    def __call__(self, task: ExportTask) -> ConsumeResult:
        with self._lock:
            self.tasks.append(task)
            self.inside += 1
            self.most = max(self.most, self.inside)
        self._opened.wait(LONG)
        with self._lock:
            self.inside -= 1
        return ConsumeResult(self._success, task.task_id, None if self._success else "no such template")

    def wait_for(self, count: int) -> list[ExportTask]:
        """Return all tasks once there are ``count``."""
        eventually_sync(lambda: len(self.tasks) >= count, within=LONG, what=f"{count} tasks")
        return list(self.tasks)


def without_lag(manager: ExportManager) -> None:
    """Return once the group has finished everything."""
    eventually_sync(lambda: manager.get_consumer_lag()["total_lag"] == 0, within=LONG, what="everything finished")


def send_as_a_stranger(server: RocketMQControl, topic: str, task: dict[str, Any], *, tag: str = "") -> None:
    """Store a task as another client would: a body, and a tag where one is given."""
    fields = {
        "a": "export_producer_group", "b": topic, "c": "", "d": "4", "e": "0", "f": "0",
        "g": str(int(SystemClock().time() * 1000)), "h": "0", "i": f"TAGS\x01{tag}" if tag else "", "j": "0",
        "k": "false", "l": "16", "m": "false",
    }  # fmt: skip
    body = json.dumps(task).encode()

    def is_stored() -> bool:
        answer = server.ask(RequestCode.SEND_MESSAGE_V2, fields, body)
        # A busy broker refuses some.
        assert answer.code in (ResponseCode.SUCCESS, ResponseCode.SYSTEM_BUSY), (answer.code, answer.remark)
        return answer.code == ResponseCode.SUCCESS

    eventually_sync(is_stored, within=LONG, what="a stored task")
