"""The console script, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys


def brokerkit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from brokerkit.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_version_is_shown() -> None:
    result = brokerkit("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("brokerkit ")


def test_without_a_command_the_help_is_shown() -> None:
    assert "conformance" in brokerkit().stdout


def test_conformance_prints_a_matrix_and_exits_with_0_when_all_passed() -> None:
    result = brokerkit("conformance", "memory://cli", "-k", "test_send_receive_one")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "brokerkit conformance: memory" in result.stdout
    assert "warning" not in result.stdout


def test_conformance_prints_nothing_but_json_when_asked() -> None:
    result = brokerkit("conformance", "memory://cli", "-k", "test_send_receive_one", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["backend"] == "embedded"


def test_an_unknown_scheme_is_explained_without_a_traceback() -> None:
    result = brokerkit("conformance", "ampq://localhost")
    assert result.returncode == 2
    assert "ampq" in result.stderr
    assert "Traceback" not in result.stderr
