"""``send``, ``send-export``, ``lag``, ``status`` and ``dead`` on an SQLite file."""

from __future__ import annotations

import json
import signal

import pytest

from brokerkit import Manager
from brokerkit.testing import eventually_sync
from tests.cli.conftest import Shell, done


def declare(shell: Shell) -> None:
    with Manager(shell.url) as manager:
        manager.admin.declare("jobs", "crew")


def test_a_sent_message_arrives_with_all_its_options(shell: Shell) -> None:
    declare(shell)
    options = ("--key", "k", "--tag", "t", "--type", "made", "--header", "a=b=c", "--priority", "3", "--json-body")
    message_id = shell.ok("send", "jobs", '{"n": 1}', *options)

    with Manager(shell.url) as manager, manager.consume("jobs", group="crew") as deliveries:
        for delivery in deliveries:
            message = delivery.message
            delivery.ack()
            break
    assert (message.message_id, message.body) == (message_id, b'{"n":1}')
    assert (message.key, message.tag, message.type, message.priority) == ("k", "t", "made", 3)
    assert message.headers == {"a": "b=c"}


def test_the_body_can_come_from_standard_input(shell: Shell) -> None:
    declare(shell)
    shell.ok("send", "jobs", "-", "--delay", "600", stdin="from a pipe")
    assert shell.json("lag", "jobs", "crew")["delayed"] == 1


def test_an_export_task_is_sent_and_shown_by_status(shell: Shell) -> None:
    task_id = shell.ok("send-export", "invoice", '{"number": 7}', "--format", "docx")
    assert task_id
    (group,) = shell.json("status")["groups"]
    assert (group["topic"], group["ready"]) == ("export_tasks", 1)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("jobs", "{", "--json-body"), "the body is not JSON"),
        (("jobs", "x", "--header", "a"), "name=value"),
        (("jobs", "x", "--priority", "12"), "priority"),
        (("no such", "x"), "illegal topic name"),
        (("jobs", "x", "--url", "memory://here"), "inside one process"),
        (("jobs", "x", "--url", "sqlit:///x"), "sqlit"),
        (("jobs", "x", "--config", "missing.yaml"), "missing.yaml"),
        (("jobs", "x", "--manager", "other"), "no manager 'other'"),
    ],
)
def test_what_cannot_be_sent_is_explained_with_exit_code_2(shell: Shell, arguments: tuple[str, ...], text: str) -> None:
    result = shell.run("send", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert text in result.stderr
    assert not (shell.folder / "brokerkit.db").exists()


def test_options_for_the_broker_work_before_and_after_the_command(shell: Shell) -> None:
    other = f"sqlite:///{shell.folder}/other.db"
    shell.ok("--url", other, "send", "jobs", "1")
    assert shell.json("status", "--url", other)["broker"] == other
    assert not (shell.folder / "work.db").exists()


def test_reading_creates_no_file(shell: Shell) -> None:
    for command in (("status",), ("lag", "jobs", "crew"), ("dead", "list", "jobs", "crew"), ("doctor",)):
        result = shell.run(*command)
        assert "not there yet" in result.stdout or "nothing was sent there" in result.stderr
    assert [path.name for path in shell.folder.iterdir() if path.name.startswith("work.db")] == []


def test_a_missing_group_is_exit_code_1(shell: Shell) -> None:
    declare(shell)
    result = shell.run("lag", "jobs", "nobody")
    assert result.returncode == 1
    assert "nobody" in result.stderr


def test_dead_letters_are_listed_shown_redriven_and_discarded(app: Shell) -> None:
    declare(app)
    first, second = (app.ok("send", "jobs", json.dumps({"n": n, "bad": True})) for n in (1, 2))
    worker = app.start("worker", "app")
    eventually_sync(lambda: len(app.json("dead", "list", "jobs", "crew")) == 2, within=60)
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0

    assert "it is bad" in app.ok("dead", "list", "jobs", "crew")
    shown = app.ok("dead", "show", "jobs", "crew", second)
    assert second in shown and "Reject: it is bad" in shown and first not in shown
    assert app.run("dead", "show", "jobs", "crew", "nope").returncode == 1

    assert app.json("dead", "redrive", "jobs", "crew", first)["redriven"] == 1
    assert app.json("lag", "jobs", "crew")["ready"] == 1
    assert app.run("dead", "redrive", "jobs", "crew", first).returncode == 1

    refused = app.run("dead", "discard", "jobs", "crew", stdin="n\n")
    assert refused.returncode == 1
    assert app.run("dead", "discard", "jobs", "crew").returncode == 2
    assert len(app.json("dead", "list", "jobs", "crew")) == 1
    assert app.json("dead", "discard", "jobs", "crew", "--yes")["discarded"] == 1
    assert app.json("dead", "list", "jobs", "crew") == []
    assert done(app) == []
