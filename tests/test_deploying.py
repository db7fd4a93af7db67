"""The unit and the manifest of docs/deploying.md: they fit the command line, the settings and each other."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from brokerkit.settings import Settings
from brokerkit.supervisor import _GRACE
from tests.cli.conftest import SCRIPT, Shell
from tests.test_docs import DOCS, blocks

PAGE = DOCS / "deploying.md"
UNIT = "brokerkit-worker@.service"

#: Seconds until a supervisor with the default settings has killed what did not stop.
LONGEST_STOP = Settings().stop_timeout + _GRACE


def file_block(name: str) -> str:
    (found,) = [block.text for block in blocks(PAGE) if block.file == name]
    return found


def directives() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", file_block(UNIT), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def variables() -> dict[str, str]:
    (text,) = [block.text for block in blocks(PAGE) if block.language == "text" and "BROKERKIT_URL" in block.text]
    return dict(line.split("=", 1) for line in text.splitlines())


def manifest() -> dict[str, Any]:
    pod: dict[str, Any] = yaml.safe_load(file_block("deployment.yaml"))["spec"]["template"]["spec"]
    return pod


def is_taken(shell: Shell, arguments: list[str]) -> bool:
    """Whether the command and its options exist: click reads all of them before it shows the help."""
    return shell.run(*arguments, "--help").returncode == 0


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_the_unit_starts_a_command_with_options_that_it_has(shell: Shell) -> None:
    (line,) = directives()["ExecStart"]
    program, *arguments = shlex.split(line)
    assert program.endswith("/bin/brokerkit")
    (extra,) = re.findall(r"`WORKER_OPTIONS=([^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert arguments.pop() == "$WORKER_OPTIONS"

    assert is_taken(shell, [*arguments, *extra.split()])
    assert not is_taken(shell, [*arguments, "--no-such-option"])


def test_the_unit_leaves_the_supervisor_its_time_and_the_only_signal() -> None:
    unit = directives()
    assert unit["KillMode"] == ["mixed"]
    assert float(unit["TimeoutStopSec"][0]) > LONGEST_STOP


def test_what_the_environment_file_names_lies_where_the_unit_lets_it_write(shell: Shell) -> None:
    folder = f"/var/lib/{directives()['StateDirectory'][0]}/"
    named = variables()
    assert all(folder in value for value in named.values())

    moved = {name: value.replace(folder, f"{shell.folder}/") for name, value in named.items()}
    found = shell.run("doctor", **moved)

    assert found.returncode == 0, found.stdout + found.stderr
    assert str(shell.folder / "work.db") in found.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    (line,) = directives()["ExecStart"]
    # It looks for the program, which is not here.
    text = file_block(UNIT).replace(line.split()[0], shutil.which("true") or sys.executable)
    (tmp_path / UNIT).write_text(text, encoding="utf-8")

    instance = tmp_path / UNIT.replace("@", "@1")
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(instance)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    # It exits with 0 for directives that it does not know, but names them.
    assert [said for said in result.stderr.splitlines() if "brokerkit-worker" in said] == []
    assert result.returncode == 0, result.stderr


def test_the_manifest_runs_and_asks_commands_that_exist(shell: Shell) -> None:
    pod = manifest()
    (container,) = pod["containers"]
    probe = container["livenessProbe"]

    assert is_taken(shell, container["args"])
    program, *arguments = probe["exec"]["command"]
    assert program == Path(SCRIPT).name
    assert shell.run(*arguments).returncode == 0
    assert pod["terminationGracePeriodSeconds"] > LONGEST_STOP


def test_the_exit_codes_of_a_worker_are_those_of_the_page(shell: Shell) -> None:
    assert shell.run("worker", "missing_module").returncode == 2
    shell.write("app.py", "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    assert shell.run("worker", "app").returncode == -15
    assert "| 143 |" in PAGE.read_text(encoding="utf-8")


def test_every_command_of_the_page_exists(shell: Shell) -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"brokerkit (status|doctor|dead \w+|lag|worker|send)\b", text))
    assert {"doctor", "status", "lag", "dead redrive"} <= named
    assert [command for command in sorted(named) if not is_taken(shell, command.split())] == []
