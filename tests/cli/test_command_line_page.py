"""The page about the command line names what the console script has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import Shell
from tests.cli.test_help_and_errors import COMMANDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_in_the_table(command: tuple[str, ...]) -> None:
    assert f"| `brokerkit {' '.join(command)} " in PAGE.read_text(encoding="utf-8")


def test_every_example_uses_options_that_the_command_has(shell: Shell) -> None:
    examples = re.findall(r"^(?:.*\| )?brokerkit (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(examples) > 10
    helps: dict[tuple[str, ...], str] = {}
    unknown = []
    for example in examples:
        command = next(one for one in COMMANDS if example.startswith(" ".join(one) + " ") or example == " ".join(one))
        if command not in helps:
            helps[command] = shell.ok(*command, "--help")
        unknown += [option for option in re.findall(r"--[a-z-]+", example) if f"{option} " not in helps[command]]
    assert unknown == []
