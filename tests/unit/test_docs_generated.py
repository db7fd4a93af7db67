from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def generate(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "docs.generate", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_the_generated_parts_of_the_documentation_are_up_to_date() -> None:
    result = generate(ROOT, "--check")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_page_that_is_out_of_date_is_noticed_and_written_again(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    page = tmp_path / "docs" / "configuration.md"
    right = page.read_text(encoding="utf-8")
    page.write_text(right.replace("| `send_timeout` | number | `30` |", "| `send_timeout` | number | `31` |"), "utf-8")
    assert page.read_text(encoding="utf-8") != right

    noticed = generate(tmp_path, "--check")
    assert (noticed.returncode, noticed.stdout) == (1, "configuration.md: out of date; run: python -m docs.generate\n")
    assert generate(tmp_path).returncode == 0
    assert page.read_text(encoding="utf-8") == right


def test_the_pages_describe_every_capability() -> None:
    from brokerkit.spi import Capability

    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")

    assert [capability.name for capability in Capability if f"| {capability.name} |" not in page] == []
