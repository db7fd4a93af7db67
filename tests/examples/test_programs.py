"""Every program of examples/ does what its docstring says, as often as it is run.

A docstring holds ``Prints:`` or ``Prints, in any order:`` and the lines below it, and may name the capabilities that it
``Needs:``.  A program without expectations fails here.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from brokerkit import Capability

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
#: Programs that serve until they are stopped; each has a test of its own.
SERVERS = {"web": "test_web.py"}
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "__init__")
PRINTING = [name for name in PROGRAMS if name not in SERVERS]

_PRINTS = re.compile(r"^Prints(?P<unordered>, in any order)?:\n\n(?P<lines>(?:    .+\n?)+)\Z", re.MULTILINE)


def docstring(program: str) -> str:
    text = ast.get_docstring(ast.parse((EXAMPLES / f"{program}.py").read_text(encoding="utf-8")))
    assert text is not None, f"{program} does not say what it shows"
    return text


def expectation(program: str) -> tuple[list[str], bool]:
    """Return the lines that the program says it prints, and whether in this order."""
    found = _PRINTS.search(docstring(program))
    assert found is not None, f"the docstring of {program} does not end with `Prints:` and what that is"
    return [line[4:] for line in found["lines"].splitlines()], found["unordered"] is None


def run(program: str, folder: Path, url: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BROKERKIT_", "RABBITMQ_"))}
    result = subprocess.run(
        [sys.executable, "-m", f"examples.{program}"],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "BROKERKIT_URL": url},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = f"{result.stdout}\n{result.stderr}"
    assert result.returncode == 0, said
    assert "Traceback" not in said, said
    return result.stdout.splitlines()


def check(program: str, printed: list[str]) -> None:
    expected, in_order = expectation(program)
    assert (printed if in_order else sorted(printed)) == (expected if in_order else sorted(expected))


@pytest.mark.parametrize("program", PRINTING)
def test_a_program_prints_what_it_says_and_the_same_when_run_again(program: str, tmp_path: Path) -> None:
    for _ in range(2):
        check(program, run(program, tmp_path, "sqlite:///work.db"))


@pytest.mark.parametrize("program", PRINTING)
def test_a_program_runs_unchanged_in_memory(program: str, tmp_path: Path) -> None:
    check(program, run(program, tmp_path, "memory://examples"))

    if program != "two_brokers":  # its second broker is a file
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", PRINTING)
def test_a_program_runs_unchanged_on_rocketmq(program: str, tmp_path: Path, rocketmq_url: str) -> None:
    printed = run(program, tmp_path, rocketmq_url)

    if program == "priorities":  # it needs what RocketMQ has not, and says so
        expected, _ = expectation(program)
        assert printed[0].startswith("strict priorities: no")
        assert sorted(printed[1:]) == sorted(expected[1:])
    else:
        check(program, printed)


def test_the_tests_of_the_shop_run_under_pytest(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BROKERKIT_", "PYTEST_"))}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "testing_the_shop.py")],
        cwd=tmp_path,
        env=kept,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "3 passed" in result.stdout, result.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_says_how_it_is_run_and_what_it_needs(program: str) -> None:
    text = docstring(program)
    command = f"uvicorn examples.{program}:" if program in SERVERS else f"python -m examples.{program}"
    needs = re.findall(r"^Needs: (.+)$", text, re.MULTILINE)

    assert f"    {command}" in text
    assert [name for line in needs for name in line.split(", ") if name not in Capability.__members__] == []
    if program in SERVERS:
        assert (Path(__file__).parent / SERVERS[program]).exists()


def test_the_list_of_the_examples_is_complete() -> None:
    linked = set(re.findall(r"^\| \[\w+\]\((\w+)\.py\) \|", (EXAMPLES / "README.md").read_text("utf-8"), re.MULTILINE))
    assert linked == set(PROGRAMS)


def test_no_two_programs_share_a_topic() -> None:
    """They may run on one broker, where a topic has one declaration."""
    prefixes: dict[str, set[str]] = {}
    for path in [*EXAMPLES.glob("*.py"), *(EXAMPLES / "shop").glob("*.py")]:
        for name in re.findall(r'\bTopic\(\s*"([^"]+)"', path.read_text(encoding="utf-8")):
            prefixes.setdefault(name.split(".")[0], set()).add(path.stem)
    assert prefixes
    assert {prefix: stems for prefix, stems in prefixes.items() if len(stems) > 1} == {}
