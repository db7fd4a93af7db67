"""What ``import brokerkit`` gives, what it costs, and what it leaves alone."""

from __future__ import annotations

import importlib
import importlib.resources
import json
import subprocess
import sys

import pytest

import brokerkit

#: Written out on purpose: a name comes or goes only by a change here.
NAMES = [
    "AsyncManager",
    "Manager",
    "ExportManager",
    "get_manager",
    "get_async_manager",
    "initialize",
    "Router",
    "Topic",
    "Group",
    "RetryPolicy",
    "Settings",
    "TopicSettings",
    "Message",
    "Delivery",
    "Deliveries",
    "BlockingDelivery",
    "BlockingDeliveries",
    "SendOptions",
    "SendOutcome",
    "MessageResult",
    "ConsumeResult",
    "ExportTask",
    "Reject",
    "Retry",
    "Admin",
    "DeadLetter",
    "Monitor",
    "BlockingAdmin",
    "BlockingMonitor",
    "Health",
    "Lag",
    "QueueStatus",
    "GroupStats",
    "MetricsSnapshot",
    "LatencySummary",
    "Capability",
    "ErrorEvent",
    "Clock",
    "SystemClock",
    "BrokerError",
    "BrokerUnavailable",
    "AccessRefused",
    "TopicNotFound",
    "TopologyConflict",
    "SendRefused",
    "SendTimeout",
    "MessageTooLarge",
    "Unroutable",
    "CapabilityNotSupported",
    "Closed",
    "AlreadySettled",
    "ConfigurationError",
    "PayloadError",
    "DecodeError",
    "ReplyTimeout",
    "RemoteError",
]

#: Client libraries and whatever else only some applications need.
NOT_IMPORTED = [
    "pika",
    "lz4",
    "zstandard",
    "redis",
    "sqlite3",
    "typer",
    "rich",
    "fastapi",
    "uvicorn",
    "starlette",
    "httpx",
    "prometheus_client",
    "opentelemetry",
    "yaml",
    "dotenv",
    "pydantic_settings",
    "multiprocessing.managers",
    "importlib.metadata",
    "brokerkit.embedded",
    "brokerkit.testing",
    "brokerkit.cli",
    "brokerkit_rabbitmq",
    "brokerkit_rocketmq",
    "pytest",
    "hypothesis",
]

IMPORT = """
import json, sys, threading, time
began = time.process_time()  # what the import costs, whatever else keeps the machine busy
import brokerkit
seconds = time.process_time() - began
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules), "threads": threading.active_count()}))
"""


def fresh_import() -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_all_is_exactly_the_list_of_the_design() -> None:
    assert sorted(brokerkit.__all__) == sorted(NAMES)
    assert len(set(brokerkit.__all__)) == len(brokerkit.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_can_be_imported_and_has_a_docstring(name: str) -> None:
    found = getattr(importlib.import_module("brokerkit"), name)
    assert found.__doc__
    assert found.__module__.startswith("brokerkit.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Exporttask'"):
        getattr(brokerkit, "Exporttask")  # noqa: B009


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files("brokerkit").joinpath("py.typed").is_file()


def test_import_brings_in_no_client_library_and_nothing_that_only_some_need() -> None:
    modules = fresh_import()["modules"]
    assert isinstance(modules, list)
    assert [name for name in NOT_IMPORTED if name in modules] == []


def test_import_starts_no_thread() -> None:
    assert fresh_import()["threads"] == 1
