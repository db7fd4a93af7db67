"""What a newcomer types first: every help text has an example, and every mistake is answered in one line."""

from __future__ import annotations

import subprocess
import sys

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
    "factories.py": (
        "from brokerkit import Manager\n\ndef noargs(url):\n    return Manager(url)\n\n"
        "def nothing(): ...\n\ndef fails():\n    raise KeyError('SETTING')\n"
    ),
    "quits.py": "import sys\nsys.exit('no environment')\n",
    "script.py": "import sys\nsys.exit(3)\n",
    "needs.py": "import a_module_that_nobody_has\n",
}


@pytest.mark.parametrize(
    "target, texts",
    [
        ("fin", ["there is no module 'fin'", "fin.py", "did you mean 'fine'?"]),
        ("fine.deep", ["there is no module 'fine.deep'"]),
        ("fine.py", ["is the path of a file", "fine"]),
        ("./fine.py", ["would: fine, from"]),
        ("./no/fine.py:manager", ["would: no.fine:manager, from"]),
        ("fine:managr", ["has no 'managr'", "did you mean 'manager'?"]),
        ("fine:Manager", ["is the class", "fine:manager"]),
        ("factories:noargs", ["with parameters", "managers there: none"]),
        ("factories:nothing", ["returned a NoneType"]),
        ("factories:fails", ["KeyError: 'SETTING'", "factories.py, line 9"]),
        ("fine", ["has no handlers", "@manager.handler"]),
        ("two", ["several managers", "two:one, two:two"]),
        ("routed", ["holds no Manager", "Router"]),
        ("broken", ["ZeroDivisionError", "broken.py, line 2"]),
        ("half", ["SyntaxError", "half.py, line 1"]),
        ("script", ["ended the process (exit code 3)", "__main__"]),
        ("quits", ["ended the process (no environment)"]),
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


def test_an_import_that_fails_deep_inside_shows_the_lines_of_the_application_alone(shell: Shell) -> None:
    shell.write("app.py", "import settings\n")
    shell.write("settings.py", "import json\n\ndef read():\n    return json.loads('{no')\n\nVALUES = read()\n")
    for processes in ("1", "2"):
        result = shell.run("worker", "app", "--processes", processes)
        assert result.returncode == 2
        first, *frames = result.stderr.splitlines()
        assert first.startswith("brokerkit: importing app failed: JSONDecodeError: ")
        assert frames == [
            "  app.py, line 1, in <module>: import settings",
            "  settings.py, line 6, in <module>: VALUES = read()",
            "  settings.py, line 4, in read: return json.loads('{no')",
        ]


def test_the_name_of_a_manager_that_is_given_apart_is_understood(app: Shell) -> None:
    result = app.run("worker", "app", "manager")
    assert (result.returncode, "app:manager" in result.stderr) == (2, True)


def test_a_manager_with_another_name_is_told(app: Shell) -> None:
    result = app.run("worker", "app", "--manager", "shop")
    assert (result.returncode, "manager is 'default'" in result.stderr) == (2, True)


def test_the_module_runs_as_the_command_does(shell: Shell) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "brokerkit", "--version"],
        env=shell.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == shell.ok("--version") + "\n"


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
