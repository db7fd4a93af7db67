"""The documentation is true: its programs run, its links lead somewhere, its tables list what the code has.

How a page is read:

- ``python`` blocks of a page are one program, run from top to bottom on ``memory://docs`` in a fresh directory.
  A ``text`` block right below one is what it prints.
- ``python name.py`` blocks are files; each is used by a test of its own, listed in `FILES`.
- ``yaml`` blocks are configurations, ``toml`` blocks parse, and ``sh`` blocks name targets and extras that exist.
- ``yaml`` and ``ini`` blocks with a file name are of other programs: see `test_deploying`.
- ``py`` blocks are programs for another library: they parse, and import nothing but it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml

from brokerkit import Capability, Manager, RetryPolicy, SendOptions
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.settings import Settings
from brokerkit.spi import Backend, Connection, ConsumerDriver, ProducerDriver
from brokerkit.testing import Harness, Timing, eventually_sync
from brokerkit.testing.harness import HOOKS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
TOY = ROOT / "tests" / "suite_selftest" / "toy_backend.py"

#: Blocks with a file name, all of them run by the tests below.
FILES = {
    ("README.md", "app.py"),
    ("README.md", "send.py"),
    ("README.md", "dead.py"),
    ("conformance.md", "test_memory.py"),
    ("operations.md", "backup.py"),
    ("rocketmq.md", "letters.py"),
    ("testing.md", "test_app.py"),
    ("writing-a-backend.md", "acme.py"),
    ("writing-a-backend.md", "test_toy.py"),
}

#: What a page promises beyond what its blocks print: checked right after the block that holds the marker.
CHECKS = {
    "guide.md": (
        "print(manager.request(squares",
        """
from brokerkit.testing import eventually_sync

small = manager.send(refunds, Order(id=1, total=1.0))
large = manager.send(refunds, Order(id=2, total=2000.0))
def dead():
    letters = manager.admin.dead_letters(refunds, "books")
    return {letter.message.message_id: (letter.reason, letter.attempts) for letter in letters}
eventually_sync(lambda: dead() == {small: ("exhausted", 3), large: ("not-retryable", 1)}, within=30)
eventually_sync(lambda: order_of_steps == [0, 1, 2, 3, 4] and paid == [7], within=30)
eventually_sync(lambda: banking.monitor.metrics().totals["duplicates"] == 2, within=30)
eventually_sync(lambda: manager.monitor.lag(shipped, "mail").ready == 0, within=30)
assert manager.admin.redrive(refunds, "books", [small]) == 1
assert manager.admin.discard(refunds, "books", [large]) == 1
eventually_sync(lambda: dead() == {small: ("exhausted", 3)}, within=30)
assert not manager.admin.dead_letters(orders, "billing") and not manager.admin.dead_letters(shipped, "mail")
""",
    )
}

#: Ours beside theirs: what it sends is handled, and a negative total becomes a dead letter at once.
BILLED = """
from brokerkit.testing import eventually_sync

def done():
    lag = manager.monitor.lag(orders, "billing")
    return (lag.ready, lag.unsettled, lag.delayed) == (0, 0, 0)

manager.send(orders, {"id": 3, "total": -1.0})
manager.start()
eventually_sync(done, within=60)
(letter,) = manager.admin.dead_letters(orders, "billing")
assert letter.attempts == 1 and "negative total" in letter.error, letter
manager.stop()
manager.close()
"""

#: The libraries that somebody may come from.
PEERS = ("celery", "dramatiq", "faststream", "pika")
CHECKS |= {f"coming-from-{peer}.md": ("manager.send(orders", BILLED) for peer in PEERS}

#: Runs the blocks of a page in one namespace; prints what each printed as JSON.
DRIVER = """
import contextlib, io, json, sys
outputs, namespace = [], {"__name__": "__main__"}
for where, line, text in json.load(sys.stdin):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\\n" * line + text, where, "exec"), namespace)
    outputs.append(printed.getvalue())
json.dump(outputs, sys.stdout)
"""

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    #: None: part of the page's program.
    file: str | None
    text: str
    #: What a ``text`` block right below says it prints.
    printed: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    for match, after in zip_longest(found, found[1:]):
        language, _, file = match["info"].strip().partition(" ")
        below = after is not None and after["info"] == "text" and not text[match.end() : after.start()].strip()
        printed = after["text"] if after is not None and below else None
        line = text[: match.start("text")].count("\n")
        yield Block(page.name, line, language, file or None, match["text"], printed)


def of_language(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def file_block(page: str, file: str) -> str:
    (found,) = [block for block in of_language("python") if (block.page, block.file) == (page, file)]
    return found.text


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(page: Path, heading: str) -> str:
    text = page.read_text(encoding="utf-8")
    match = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,3}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"{page.name} has no section {heading!r}"
    return match[2]


def rows(page: Path, heading: str) -> dict[str, str]:
    """Return the first table of the section: every `code` of the first column to the second column."""
    table = re.findall(r"^\| (.+?) \| (.+?) \|", section(page, heading), re.MULTILINE)
    return {name: second for first, second in table for name in re.findall(r"`([^`]+)`", first)}


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BROKERKIT_", "RABBITMQ_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **changes}


def python(folder: Path, *arguments: str, stdin: str | None = None, **variables: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=stdin,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


# --- programs ---------------------------------------------------------------------------------------------------


def program_of(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python" and block.file is None]


@pytest.mark.parametrize("page", [page for page in PAGES if program_of(page)], ids=lambda page: page.name)
def test_the_program_of_a_page_runs_and_prints_what_it_says(page: Path, tmp_path: Path) -> None:
    program = program_of(page)
    marker, check = CHECKS.get(page.name, (None, ""))
    parts: list[tuple[str, int, str]] = []
    printed_at: dict[int, Block] = {}
    for block in program:
        printed_at[len(parts)] = block
        parts.append((block.page, block.line, block.text))
        if marker is not None and marker in block.text:
            parts.append((f"check of {block.page}", 0, check))
    assert marker is None or len(parts) == len(program) + 1, f"{page.name} has not exactly one block with {marker!r}"

    outputs = json.loads(python(tmp_path, "-c", DRIVER, stdin=json.dumps(parts), BROKERKIT_URL="memory://docs"))

    for position, block in printed_at.items():
        if block.printed is not None:
            assert outputs[position] == block.printed, f"{block.page}:{block.line}"


def test_every_block_is_in_a_language_that_is_tested() -> None:
    tested = {"", "ini", "py", "python", "sh", "text", "toml", "yaml"}
    assert [
        f"{block.page}:{block.line}" for page in PAGES for block in blocks(page) if block.language not in tested
    ] == []


def test_every_python_block_with_a_file_name_is_run_by_a_test() -> None:
    assert {(block.page, block.file) for block in of_language("python") if block.file is not None} == FILES


def test_the_quick_start_does_what_the_readme_says(tmp_path: Path) -> None:
    for page, file in FILES:
        if page == "README.md":
            (tmp_path / file).write_text(file_block(page, file), encoding="utf-8")

    assert re.fullmatch(r"[0-9a-f]{24}-1\n", python(tmp_path, "send.py"))
    worker = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    printed: list[str] = []
    try:
        assert worker.stdout is not None
        printed = [worker.stdout.readline().decode().strip() for _ in range(2)]
        # The rejected one may be handled before or after these two.
        eventually_sync(lambda: "rejected" in python(tmp_path, "dead.py"), within=60)
        worker.send_signal(signal.SIGINT)
        worker.communicate(timeout=60)
    finally:
        worker.kill()
        worker.communicate()

    assert printed == ["billed 1", "billed 2"]
    assert worker.returncode == 0
    said = section(ROOT / "README.md", "Quick start")
    assert f"prints: {python(tmp_path, 'dead.py').strip()}\n" in said
    assert (tmp_path / "brokerkit.db").exists()


def test_the_skeleton_of_a_backend_has_every_required_method(tmp_path: Path) -> None:
    (tmp_path / "acme.py").write_text(file_block("writing-a-backend.md", "acme.py"), encoding="utf-8")
    check = """
import asyncio
from acme import *
from brokerkit import ConfigurationError, spi
for one, protocol in (
    (AcmeBackend(), spi.Backend), (AcmeConnection(), spi.Connection),
    (AcmeProducer(), spi.ProducerDriver), (AcmeConsumer(), spi.ConsumerDriver),
):
    assert isinstance(one, protocol), protocol
try:
    asyncio.run(AcmeBackend().connect(spi.ConnectOptions()))
except ConfigurationError as error:
    print(error)
"""
    assert "pip install acme-client" in python(tmp_path, "-c", check)


@pytest.mark.parametrize("page, file", [("writing-a-backend.md", "test_toy.py"), ("conformance.md", "test_memory.py")])
def test_the_test_file_of_a_backend_runs_the_suite(page: str, file: str, tmp_path: Path) -> None:
    shutil.copy(TOY, tmp_path)
    (tmp_path / file).write_text(file_block(page, file), encoding="utf-8")

    chosen = ("-k", "test_send_receive_one or test_lease_expiry_redelivers or test_oversized_body_raises")
    report = python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, file)

    assert "brokerkit conformance" in report
    skipped = "skipped: toy does not declare lease: test_lease_expiry_redelivers"
    assert (skipped in report) is (file == "test_toy.py")
    assert ("2 passed, 1 skipped" if file == "test_toy.py" else "3 passed") in report


def test_the_fixtures_for_applications_work_in_a_test_file(tmp_path: Path) -> None:
    program = [block.text for block in program_of(DOCS / "testing.md")]
    (tmp_path / "app.py").write_text("\n".join(program), encoding="utf-8")
    (tmp_path / "test_app.py").write_text(file_block("testing.md", "test_app.py"), encoding="utf-8")

    options = ("-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", "pythonpath=.")
    assert "2 passed" in python(tmp_path, "-m", "pytest", *options, "test_app.py", BROKERKIT_URL="memory://docs")


def test_a_backup_of_a_file_in_use_holds_its_messages(tmp_path: Path) -> None:
    (tmp_path / "backup.py").write_text(file_block("operations.md", "backup.py"), encoding="utf-8")
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    with Manager(f"sqlite:///{tmp_path}/work.db") as manager:
        manager.admin.declare("orders", "billing")
        for number in range(20):
            manager.send("orders", number)
        python(tmp_path, "backup.py")
        beside = [path.name + "/" * path.is_dir() for path in tmp_path.glob("work.db*")]

    assert [name for name in beside if f"| `{name}` |" not in page] == []
    with Manager(f"sqlite:///{tmp_path}/copy.db") as restored:
        assert restored.monitor.lag("orders", "billing").ready == 20


# --- other blocks -----------------------------------------------------------------------------------------------


def test_every_configuration_is_one() -> None:
    found = [block for block in of_language("yaml") if block.file is None]
    assert found
    for block in found:
        configured = Settings(**yaml.safe_load(block.text))
        EmbeddedSettings.model_validate(configured.model_dump().get("embedded") or {})
    for block in of_language("toml"):
        tomllib.loads(block.text)


@pytest.mark.parametrize("peer", PEERS)
def test_the_program_of_a_peer_parses_and_imports_only_that_peer(peer: str) -> None:
    (program,) = [block for block in of_language("py") if block.page == f"coming-from-{peer}.md"]
    imported = set()
    for node in ast.walk(ast.parse(program.text)):
        if isinstance(node, ast.Import):
            imported |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert peer in imported
    assert imported <= {peer, "pydantic", *sys.stdlib_module_names}


def test_commands_name_targets_extras_and_files_that_exist() -> None:
    text = "\n".join(block.text for block in of_language("sh"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", text, re.MULTILINE)
    scripts = re.findall(r"^(?:python|pytest) (\S+\.py)", text, re.MULTILINE)

    assert targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
    assert [script for script in scripts if script not in {file for _, file in FILES}] == []
    assert set(re.findall(r"pip install '\.\[(\w+)\]'", text)) <= set(extras())


def extras() -> list[str]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["optional-dependencies"])


# --- links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for match in _LINK.finditer(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("table", [ROOT / "README.md", DOCS / "index.md"], ids=lambda page: page.name)
def test_every_page_can_be_found(table: Path) -> None:
    linked = {(table.parent / match["target"]).resolve() for match in _LINK.finditer(table.read_text("utf-8"))}
    assert [page.name for page in DOCS.glob("*.md") if page not in linked and page.name not in ("index.md",)] == []


# --- tables -----------------------------------------------------------------------------------------------------


def test_every_hook_of_a_harness_is_described() -> None:
    assert set(rows(DOCS / "conformance.md", "Hooks")) == HOOKS


def test_every_field_of_the_timing_is_described_with_its_default() -> None:
    table = rows(DOCS / "conformance.md", "Timing")
    assert table == {field.name: str(field.default) for field in fields(Timing)}


def test_every_attribute_of_a_harness_is_described() -> None:
    attributes = {name for name in Harness.__annotations__ if not name.startswith("_")}
    assert set(rows(DOCS / "conformance.md", "Harness")) == attributes - HOOKS


def test_the_required_methods_are_fourteen_and_each_is_described() -> None:
    required = [
        f"{protocol.__name__}.{name}"
        for protocol in (Backend, Connection, ProducerDriver, ConsumerDriver)
        for name, value in vars(protocol).items()
        if callable(value) and not name.startswith("_")
    ]
    described = [name.partition("(")[0] for name in rows(DOCS / "writing-a-backend.md", "The fourteen methods")]

    assert len(required) == 14
    assert described == required


def test_what_each_capability_asks_of_a_driver_is_described() -> None:
    described = rows(DOCS / "writing-a-backend.md", "Capabilities")
    assert set(described) == {capability.name for capability in Capability}


def test_every_option_of_a_send_is_described() -> None:
    assert set(rows(DOCS / "guide.md", "Send")) == set(SendOptions.__annotations__)


def test_every_field_of_a_retry_policy_is_described_with_its_default() -> None:
    table = {name: default.strip("`") for name, default in rows(DOCS / "guide.md", "Retry").items()}
    defaults = {field.name: getattr(RetryPolicy(), field.name) for field in fields(RetryPolicy)}

    assert set(table) == set(defaults)
    for name, default in defaults.items():
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        assert table[name] == ("(Exception,)" if name == "retryable" else shown), name


def test_every_extra_is_described() -> None:
    assert set(rows(ROOT / "README.md", "Install")) == set(extras())
