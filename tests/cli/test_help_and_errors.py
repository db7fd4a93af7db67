"""What a newcomer types first: every help text has an example, and every mistake is answered in one line."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Shell

COMMANDS = [
    ("send",),
    ("send-export",),
    ("worker",),
    ("status",),
    ("lag",),
    ("dead", "list"),
    ("dead", "show"),
    ("dead", "redrive"),
    ("dead", "discard"),
    ("doctor",),
    ("bench",),
    ("conformance",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_a_help_with_an_example(shell: Shell, command: tuple[str, ...]) -> None:
    assert f"  brokerkit {' '.join(command)} " in shell.ok(*command, "--help") + " "


def test_the_help_lists_every_command(shell: Shell) -> None:
    text = shell.ok("--help")
    assert [command for command, *_ in COMMANDS if f" {command} " not in text] == []


APPLICATIONS = {
    "fine.py": "from brokerkit import Manager\nmanager = Manager()\n",
    "two.py": "from brokerkit import Manager\none = Manager()\ntwo = Manager()\n",
    "routed.py": "from brokerkit import Router\nrouter = Router()\n",
    "broken.py": "import fine\n1 / 0\n",
    "half.py": "def (\n",
    "script.py": "import sys\nsys.exit(3)\n",
    "needs.py": "import a_module_that_nobody_has\n",
}


@pytest.mark.parametrize(
    "target, texts",
    [
        ("fin", ["there is no module 'fin'", "fin.py", "did you mean 'fine'?"]),
        ("fine.deep", ["there is no module 'fine.deep'"]),
        ("fine.py", ["is a file", "fine"]),
        ("fine:managr", ["has no 'managr'", "did you mean 'manager'?"]),
        ("fine:Manager", ["has no handlers"]),
        ("fine", ["has no handlers", "@manager.handler"]),
        ("two", ["several managers", "two:one, two:two"]),
        ("routed", ["holds no Manager", "Router"]),
        ("broken", ["ZeroDivisionError", "broken.py, line 2"]),
        ("half", ["SyntaxError", "half.py, line 1"]),
        ("script", ["ended the process", "__main__"]),
        ("needs", ["a_module_that_nobody_has", "needs.py, line 1"]),
        (":", ["app:manager"]),
    ],
)
def test_a_wrong_application_is_exit_code_2_and_one_line(shell: Shell, target: str, texts: list[str]) -> None:
    for name, text in APPLICATIONS.items():
        shell.write(name, text)

    result = shell.run("worker", target)

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert [text for text in texts if text not in result.stderr] == []


def test_a_wrong_application_is_told_once_for_all_processes(shell: Shell) -> None:
    result = shell.run("worker", "fin", "--processes", "4")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_a_broker_that_cannot_be_opened_is_one_line(app: Shell) -> None:
    (app.folder / "work.db").write_bytes(b"this is no database, and long enough to tell. " * 100)
    result = app.run("worker", "app")
    assert result.returncode == 2
    assert "is not an SQLite database" in result.stderr.splitlines()[-1]


def test_a_topic_that_the_broker_does_not_have_is_one_line_and_exit_code_1(app: Shell) -> None:
    app.write("brokerkit.yaml", "topics: {jobs: {declare: verify}}\n")
    result = app.run("worker", "app")
    assert result.returncode == 1
    assert "jobs" in result.stderr.splitlines()[-1]


def test_only_a_topic_without_handlers_is_exit_code_2_with_a_suggestion(app: Shell) -> None:
    result = app.run("worker", "app", "--only", "job")
    assert result.returncode == 2
    assert "did you mean 'jobs'?" in result.stderr


def test_bench_prints_a_table_and_leaves_no_topic(shell: Shell) -> None:
    rows = shell.json("bench", shell.url, "--messages", "50")
    assert [row["messages"] for row in rows] == [5, 50, 55]
    assert "messages/s" in shell.ok("bench", shell.url, "--messages", "50")
