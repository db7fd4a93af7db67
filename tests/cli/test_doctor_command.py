"""``doctor``: each thing that is wrong is found, and is told with what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from brokerkit import Manager
from tests.cli.conftest import Shell
from tests.planted import PLANTED


def findings(shell: Shell, *arguments: str, **variables: str) -> tuple[int, list[dict[str, Any]]]:
    result = shell.run("doctor", *arguments, "--json", **variables)
    return result.returncode, json.loads(result.stdout)["findings"]


def texts(found: list[dict[str, Any]], level: str) -> str:
    assert all(one["cure"] for one in found if one["level"] != "ok")
    return "\n".join(one["text"] for one in found if one["level"] == level)


def test_a_healthy_set_up_is_exit_code_0(app: Shell) -> None:
    with Manager(app.url) as manager:
        manager.admin.declare("jobs", "crew")
    code, found = findings(app, "app")
    assert code == 0
    assert texts(found, "wrong") == ""
    assert "jobs / crew exists as declared" in texts(found, "ok")
    assert "brokerkit-doctor" not in texts(found, "ok"), "what doctor tries is no topic of the application"
    assert "BROKERKIT_URL of the environment" in texts(found, "ok")
    assert "nothing is wrong" in app.ok("doctor", "app")


def test_memory_is_wrong_and_a_missing_folder_too(shell: Shell) -> None:
    code, found = findings(shell, BROKERKIT_URL="memory://here")
    assert code == 1
    assert "lives inside one process" in texts(found, "wrong")
    code, found = findings(shell, BROKERKIT_URL=f"sqlite:///{shell.folder}/missing/x.db")
    assert code == 1
    assert "does not exist" in texts(found, "wrong")


HANDLERS = """
from brokerkit import Manager, RetryPolicy, Topic
manager = Manager()

@manager.handler("a", group="g", idempotent=True, timeout=5)
def once(payload: str) -> None: ...

@manager.handler("b", group="g", retry=RetryPolicy(exhausted="requeue"), timeout=5)
def always(payload: str) -> None: ...

@manager.handler("c", group="g")
def endless(payload: str) -> None: ...

@manager.handler("d")
def nowhere(payload: str) -> None: ...
"""


def test_what_handlers_ask_for_in_vain_is_found(shell: Shell) -> None:
    shell.write("app.py", HANDLERS)
    code, found = findings(shell, "app")
    assert code == 1
    wrong, advice = texts(found, "wrong"), texts(found, "advice")
    assert "app.once: idempotent=True, and no store is configured" in wrong
    assert "app.nowhere" in wrong and "which group?" in wrong
    assert 'app.always: exhausted="requeue"' in advice
    assert "app.endless: no timeout" in advice


def test_a_limit_above_that_of_the_broker_is_found(shell: Shell) -> None:
    with Manager(shell.url) as manager:
        manager.send("a", "b")
    code, found = findings(shell, BROKERKIT_MAX_MESSAGE_SIZE=str(1 << 40))
    assert code == 1
    assert "max_message_size allows" in texts(found, "wrong")


@pytest.mark.parametrize(
    "yaml, text",
    [("retri: {}\n", "did you mean 'retry'?"), (f"url: 'amqp://u:{PLANTED}@h:port/'\n", "url")],
)
def test_a_configuration_that_does_not_load_is_exit_code_2_without_secrets(shell: Shell, yaml: str, text: str) -> None:
    shell.write("brokerkit.yaml", yaml)
    result = shell.run("doctor", BROKERKIT_URL="")
    assert result.returncode == 2
    assert text in result.stdout
    assert PLANTED not in result.stdout + result.stderr


def test_requeue_for_ever_in_the_configuration_is_advice(shell: Shell) -> None:
    shell.write("brokerkit.yaml", "topics: {jobs: {retry: {exhausted: requeue}, declare: verify}}\n")
    with Manager(shell.url) as manager:
        manager.send("other", "b")
    code, found = findings(shell)
    assert code == 1
    assert "topics.jobs.retry.exhausted is requeue" in texts(found, "advice")
    assert "jobs" in texts(found, "wrong")
