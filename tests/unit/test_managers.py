"""The managers that a process keeps by name."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import brokerkit.managers
from brokerkit import (
    AsyncManager,
    ConfigurationError,
    ConsumeResult,
    ExportManager,
    ExportTask,
    get_async_manager,
    get_manager,
    initialize,
)
from brokerkit.managers import _Kept
from brokerkit.settings import Settings
from brokerkit.testing import eventually, eventually_sync


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[_Kept]:
    """Nothing is kept, and no configuration is found."""
    kept = _Kept()
    monkeypatch.setattr(brokerkit.managers, "_KEPT", kept)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("BROKERKIT_", "RABBITMQ_"))]:
        monkeypatch.delenv(name)
    yield kept
    for entry in kept._entries.values():
        if entry.blocking is not None:
            entry.blocking.close()


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


def test_the_same_name_gives_the_same_manager_in_every_thread() -> None:
    begin = threading.Barrier(8)

    def get(_: int) -> ExportManager:
        begin.wait(30)
        return get_manager()

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(get, range(8)))

    assert found == {get_manager("default")}
    assert get_manager("other") is not get_manager()


def test_getting_a_manager_reads_no_configuration() -> None:
    Path("brokerkit.yaml").write_text("nonsense: 1")

    manager = get_manager()

    with pytest.raises(ConfigurationError, match="nonsense"):
        _ = manager.settings


def test_the_shortest_form_stores_a_task_in_the_file_of_the_working_directory() -> None:
    task_id = get_manager().send_export_task("invoice", {"number": 7}, output_format="pdf")

    assert Path("brokerkit.db").is_file()
    done: list[str] = []

    @get_manager().set_message_handler
    def handle(task: ExportTask) -> ConsumeResult:
        done.append(task.task_id)
        return ConsumeResult(True, task.task_id)

    get_manager().start()
    eventually_sync(lambda: done == [task_id], what="the task")


def test_a_path_a_mapping_and_a_settings_object_initialize_a_manager(tmp_path: Path, url: str) -> None:
    path = tmp_path / "elsewhere" / "config.dev.yaml"
    path.parent.mkdir()
    path.write_text("topic: from_file\nembedded: {path: data.db}\n")

    by_path = initialize(path)
    assert (by_path.topic, by_path.settings.embedded_path()) == ("from_file", path.parent / "data.db")
    path.write_text("managers: {b: {topic: named, backend: embedded}}\n")
    assert initialize(os.fspath(path), "b").topic == "named"
    assert initialize({"topic": "from_mapping", "url": url}, "c").topic == "from_mapping"
    assert initialize(Settings(topic="from_settings", url=url), "d").topic == "from_settings"
    assert get_manager() is by_path
    assert get_manager("d").topic == "from_settings"


def test_without_settings_the_configuration_is_that_of_the_process(url: str) -> None:
    Path("brokerkit.yaml").write_text(f"topic: configured\nurl: {url}\n")

    assert initialize().topic == "configured"


def test_two_named_managers_have_brokers_of_their_own(url: str) -> None:
    Path("brokerkit.yaml").write_text(f"url: {url}\nmanagers: {{audit: {{url: '{url}x', topic: audits}}}}\n")
    default, audit = initialize(), get_manager("audit")
    seen: dict[str, list[str]] = {"default": [], "audit": []}

    @default.set_message_handler
    def by_default(task: ExportTask) -> None:
        seen["default"].append(task.task_id)

    @audit.set_message_handler
    def by_audit(task: ExportTask) -> None:
        seen["audit"].append(task.task_id)

    default.start()
    audit.start()
    sent = {
        "default": [get_manager().send_export_task("invoice", {}, "pdf")],
        "audit": [get_manager("audit").send_export_task("trail", {}, "csv")],
    }

    eventually_sync(lambda: seen == sent, what="each task at its own handler")
    assert audit.get_queue_status()["topic"] == "audits"


def test_initialize_replaces_and_closes_the_manager_of_the_name(url: str) -> None:
    old, other = initialize({"url": url}), initialize({"url": url}, "other")
    old.start()
    other.connect()

    new = initialize({"url": url})

    assert get_manager() is new is not old
    assert not old.is_connected
    assert other.is_connected


def test_settings_that_are_wrong_leave_the_old_manager_as_it_is(url: str) -> None:
    old = initialize({"url": url})
    old.connect()

    with pytest.raises(ConfigurationError, match="nonsense"):
        initialize({"nonsense": 1})
    with pytest.raises(ConfigurationError, match="does not exist"):
        initialize("missing.yaml")
    with pytest.raises(ConfigurationError, match="path of a YAML file, not int"):
        initialize(7)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="a str, not int"):
        get_manager(7)  # type: ignore[arg-type]

    assert get_manager() is old
    assert old.is_connected


def test_a_name_that_is_not_configured_is_refused_on_first_use() -> None:
    with pytest.raises(ConfigurationError, match="no manager 'audit' is configured"):
        get_manager("audit").send_export_task("invoice", {}, "pdf")


def test_a_manager_is_not_replaced_from_its_own_event_loop(url: str) -> None:
    manager = initialize({"url": url})
    found: list[BaseException] = []

    @manager.set_message_handler
    async def handle(task: ExportTask) -> None:
        try:
            initialize({"url": url})
        except RuntimeError as error:
            found.append(error)

    manager.start()
    manager.send_export_task("invoice", {}, "pdf")

    eventually_sync(lambda: found, what="the error")
    assert get_manager() is manager


async def test_the_async_manager_has_the_same_settings_and_is_closed_when_it_is_replaced(url: str) -> None:
    await asyncio.to_thread(initialize, {"url": url, "topic": "documents"})
    manager = get_async_manager()
    assert isinstance(manager, AsyncManager)
    assert get_async_manager() is manager
    await manager.connect()
    assert manager.settings.topic == "documents"

    await asyncio.to_thread(initialize, {"url": url})

    await eventually(lambda: not manager.is_connected, what="the old manager is closed")
    assert get_async_manager() is not manager
    await get_async_manager().connect()
    await get_async_manager().aclose()


def test_a_forked_child_gets_managers_while_another_thread_held_the_lock(kept: _Kept, url: str) -> None:
    initialize({"url": url})
    with kept._lock():
        child = os.fork()
        if child == 0:
            os._exit(0 if get_manager().topic == "export_tasks" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
