"""The demo as a user runs it: real processes on a file, every document read back with other libraries."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import docx
import openpyxl
import pytest
from pypdf import PdfReader

from brokerkit import ExportManager, ExportTask, Message
from brokerkit.testing import eventually_sync, in_memory
from examples.export_service import app
from examples.export_service.journal import Journal
from examples.export_service.ledger import Ledger
from examples.export_service.places import DOCUMENTS, JOURNAL, RATES
from examples.export_service.tasks import HOPELESS, read_tasks

# Two whole runs on a machine that does other things too.
pytestmark = pytest.mark.timeout(900)

TASKS = read_tasks()
DEAD = sum(task["template_id"] == HOPELESS for task in TASKS)


@dataclass(frozen=True)
class Run:
    """What one run of the demo left: its exit code, what it printed, and its account where it came that far."""

    code: int
    printed: str
    account: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.account["folder"])

    @property
    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = self.account["figures"]
        return figures

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / JOURNAL).read_text().splitlines()]

    def begun_by(self, pid: int) -> set[str]:
        """Return the tasks that a process had in its hands when it ended."""
        begun: set[str] = set()
        for line in self.journal():
            if line["pid"] == pid:
                (begun.add if line["what"] == "begin" else begun.discard)(line["task_id"])
        return begun


def environment(place: Path) -> dict[str, str]:
    ours = ("BROKERKIT_", "RABBITMQ_", "EXPORT_", "BROKER", "OUT", "PWD")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # TMPDIR too: the state files of other workers on this machine are not ours to see.
    return {**kept, "XDG_RUNTIME_DIR": str(place / "run"), "TMPDIR": str(place), "PYTHONUNBUFFERED": "1"}


def start(place: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.export_service", "--out", str(place / "out"), *options],
        cwd=place,
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(demo: subprocess.Popen[Any]) -> None:
    """Leave nothing of it behind: killed at once it could not stop its workers."""
    if demo.poll() is None:
        demo.terminate()
        try:
            demo.wait(timeout=60)
        except subprocess.TimeoutExpired:
            demo.kill()
            demo.wait()


def run(place: Path, *options: str) -> Run:
    account = place / "account.json"
    account.unlink(missing_ok=True)
    with start(place, "--json", str(account), *options) as demo:
        try:
            printed, _ = demo.communicate(timeout=400)
        finally:
            end(demo)
    assert "Traceback" not in printed, printed
    return Run(demo.returncode, printed, json.loads(account.read_text()) if account.exists() else {})


def interrupt(place: Path, times: int) -> Run:
    """Run the demo and send it SIGINT once its tasks are sent, ``times`` times."""
    signals_at = ["sent", "Stopping"][:times]
    printed = ""
    with start(place) as demo:
        try:
            for line in demo.stdout or ():
                printed += line
                if line.startswith(tuple(signals_at)):
                    demo.send_signal(signal.SIGINT)
            demo.wait(timeout=120)
        finally:
            end(demo)
    assert "Traceback" not in printed, printed
    assert processes(f"demo-{demo.pid}") == []
    return Run(demo.returncode, printed, {})


def processes(mark: str) -> list[str]:
    """Return the command lines on this machine that hold ``mark``."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if re.search(rf"{mark}\b", line)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """A whole run, one that is stopped in the middle, and a whole one over both; once for all workers of xdist."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "export-service"
    place.mkdir(exist_ok=True)
    results = place / "results.json"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not results.exists():
            made = {
                "first": run(place, "--picture", str(place / "picture.svg")),
                "stopped": interrupt(place, times=1),
                "second": run(place),
            }
            results.write_text(json.dumps({name: asdict(one) for name, one in made.items()}))
    yield {name: Run(**one) for name, one in json.loads(results.read_text()).items()}


@pytest.fixture(scope="module")
def rocketmq_run(tmp_path_factory: pytest.TempPathFactory, rocketmq_url: str) -> Run:
    """A whole run on RocketMQ."""
    return run(tmp_path_factory.mktemp("rocketmq"), "--broker", rocketmq_url)


# --- the account ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["first", "second"])
def test_every_task_becomes_a_document_or_an_explained_dead_letter(runs: Mapping[str, Run], name: str) -> None:
    one = runs[name]

    assert (one.code, one.account["problems"]) == (0, []), one.printed
    expected = {"submitted": len(TASKS), "done": len(TASKS) - DEAD, "dead": DEAD, "lost": 0, "doubled": 0}
    assert {key: one.figures[key] for key in expected} == expected
    assert one.figures["throughput"] > 0 and one.figures["p95"] >= one.figures["median"] > 0
    assert len(one.account["dead_letters"]) == DEAD > 0
    for letter in one.account["dead_letters"]:
        assert letter["reason"] == "not-retryable" and letter["error_type"].endswith("TemplateBroken")
        assert HOPELESS in letter["error"]
    rows = dict(re.findall(r"^(submitted|done|dead|lost|doubled) +(\d+)", one.printed, re.MULTILINE))
    assert rows == {key: str(value) for key, value in expected.items()}


def test_every_task_is_accounted_for_on_rocketmq_with_only_the_url_changed(rocketmq_run: Run) -> None:
    assert (rocketmq_run.code, rocketmq_run.account["problems"]) == (0, []), rocketmq_run.printed
    expected = {"submitted": len(TASKS), "done": len(TASKS) - DEAD, "dead": DEAD, "lost": 0, "doubled": 0}
    assert {key: rocketmq_run.figures[key] for key in expected} == expected
    assert rocketmq_run.account["killed"]["started_again"] is not None
    assert len(list((rocketmq_run.folder / DOCUMENTS).iterdir())) == len(TASKS) - DEAD


def test_the_template_that_fails_twice_is_tried_a_third_time(runs: Mapping[str, Run]) -> None:
    one = runs["first"]
    reports = sum(task["template_id"] == "exchange_report" for task in TASKS)

    # Who asked for the rates counts in a file, before the answer.
    asked = {path.name: path.stat().st_size for path in (one.folder / RATES).iterdir()}
    done = {path.stem for path in (one.folder / DOCUMENTS).iterdir()}
    assert len(asked) == reports > 0 and min(asked.values()) >= 3 and asked.keys() <= done
    assert one.figures["retried"] >= reports
    # The killed worker may have taken the word about the one failure of a task in its hands with it, no more.
    failed = Counter(line["task_id"] for line in one.journal() if line["what"] == "failed")
    untold = {task_id: 2 - failed[task_id] for task_id in asked if failed[task_id] != 2}
    assert untold.keys() <= one.begun_by(one.account["killed"]["pid"]) and set(untold.values()) <= {1}
    assert failed.keys() <= asked.keys()
    assert one.account["failures"]["RatesUnavailable"] == sum(failed.values())


def test_a_worker_is_killed_at_work_and_started_again(runs: Mapping[str, Run]) -> None:
    one = runs["first"]
    killed = one.account["killed"]

    log = (one.folder / "workers.log").read_text()
    assert f"(pid {killed['pid']}) was ended by SIGKILL: restarting" in log
    assert killed["started_again"] != killed["pid"] and f"(pid {killed['started_again']})" in log
    before = [line for line in one.journal() if line["pid"] == killed["pid"]]
    assert 0 < sum(line["what"] == "finish" for line in before) < len(TASKS) - DEAD
    # It was done by others what it had in its hands.
    assert set(killed["in_work"]) <= {path.stem for path in (one.folder / DOCUMENTS).iterdir()}


def test_a_run_over_earlier_ones_leaves_them_alone_and_makes_what_they_left(runs: Mapping[str, Run]) -> None:
    first, second = runs["first"], runs["second"]
    done_when_stopped = int(re.findall(r"^(\d+) of \d+ submitted", runs["stopped"].printed, re.MULTILINE)[0])

    assert second.folder != first.folder
    assert len(list((first.folder / DOCUMENTS).iterdir())) == len(TASKS) - DEAD
    # The stopped run's own 6 may have died before it was stopped or after.
    assert second.account["earlier_runs"]["dead"] == 2 * DEAD
    made_later = second.account["earlier_runs"]["documents"]
    assert done_when_stopped + made_later >= len(TASKS) - DEAD > done_when_stopped
    assert "older dead letters, of earlier runs" in second.printed


def test_ctrl_c_says_what_is_where_and_leaves_no_process(runs: Mapping[str, Run], tmp_path: Path) -> None:
    for stopped in (runs["stopped"], interrupt(tmp_path, times=2)):
        assert stopped.code == 130
        assert f"of {len(TASKS)} submitted tasks are documents in" in stopped.printed
        assert "no worker runs any more" in stopped.printed


def test_a_terminal_that_is_closed_leaves_no_process(tmp_path: Path) -> None:
    terminal, theirs = pty.openpty()
    with open(terminal, "rb", buffering=0) as screen:
        demo = subprocess.Popen(
            [sys.executable, "-m", "examples.export_service", "--out", str(tmp_path / "out")],
            cwd=tmp_path,
            env={**environment(tmp_path), "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        shown = b""
        # The bars are there, in colours.
        while not re.search(rb"\x1b\[[0-9;]*m.*all.*of", shown, re.DOTALL):
            shown += screen.read(4096)
    try:
        demo.send_signal(signal.SIGHUP)
        assert demo.wait(timeout=120) == 130
    finally:
        end(demo)

    assert b"Traceback" not in shown
    assert processes(f"demo-{demo.pid}") == []


@pytest.mark.parametrize("said", ["workers", "sent"])
def test_sigterm_leaves_no_process_when_nobody_reads_what_is_said(tmp_path: Path, said: str) -> None:
    with start(tmp_path) as demo:
        try:
            assert demo.stdout is not None
            while not demo.stdout.readline().startswith(said):
                assert demo.poll() is None
            demo.stdout.close()
            demo.terminate()
            assert demo.wait(timeout=120) == 130
        finally:
            end(demo)
    assert processes(f"demo-{demo.pid}") == []


def test_what_is_printed_is_plain_without_a_terminal_and_its_commands_work(runs: Mapping[str, Run]) -> None:
    one = runs["first"]
    assert "\x1b" not in one.printed
    steps = one.printed.partition("What to try next\n")[2].strip().splitlines()
    commands = [line.strip() for line in steps if "redrive" not in line]

    assert len(commands) == len(steps) - 1 == 5
    place = one.folder.parent.parent
    shell = subprocess.run(
        ["sh", "-e"], input="\n".join(commands), cwd=place, env=environment(place), capture_output=True, text=True
    )

    assert shell.returncode == 0, shell.stderr
    assert len(re.findall(r"\.(?:docx|pdf|xlsx|csv|html)$", shell.stdout, re.MULTILINE)) == one.figures["done"]
    assert "not-retryable" in shell.stdout and "TemplateBroken" in shell.stdout


def test_the_picture_shows_the_table_and_loads_nothing(runs: Mapping[str, Run]) -> None:
    text = (runs["first"].folder.parent.parent / "picture.svg").read_text()

    assert "lost" in "".join(ElementTree.fromstring(text).itertext())
    assert set(re.findall(r"https?://[^\"']+", text)) == {"http://www.w3.org/2000/svg"}


# --- the documents ----------------------------------------------------------------------------------------------------


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def _html(path: Path) -> str:
    parser = _Words()
    parser.feed(path.read_text("utf-8"))
    parser.close()
    return " ".join(parser.words)


def _docx(path: Path) -> str:
    document = docx.Document(str(path))
    cells = [cell.text for table in document.tables for row in table.rows for cell in row.cells]
    return "\n".join([*(paragraph.text for paragraph in document.paragraphs), *cells])


def _xlsx(path: Path) -> str:
    book = openpyxl.load_workbook(path)
    return "\n".join(str(cell) for sheet in book for row in sheet.iter_rows(values_only=True) for cell in row if cell)


def _csv(path: Path) -> str:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return "\n".join(" ".join(row) for row in csv.reader(file))


def _pdf(path: Path) -> str:
    return "\n".join(page.extract_text() for page in PdfReader(path).pages)


READERS: dict[str, Callable[[Path], str]] = {
    ".docx": _docx,
    ".pdf": _pdf,
    ".xlsx": _xlsx,
    ".csv": _csv,
    ".html": _html,
}


def test_every_document_is_read_by_another_library(runs: Mapping[str, Run]) -> None:
    paths = sorted((runs["first"].folder / DOCUMENTS).iterdir())

    read = {path: READERS[path.suffix](path) for path in paths}

    assert len(read) == runs["first"].figures["done"] >= 200
    assert {path.name: text for path, text in read.items() if len(text) < 100} == {}
    formats = Counter(f".{task['output_format']}" for task in TASKS if task["template_id"] != HOPELESS)
    assert Counter(path.suffix for path in read) == formats
    # Each document is about its own task.
    numbers = Counter(task["data"]["number"] for task in TASKS if task["template_id"] != HOPELESS)
    everything = "\n".join(read.values())
    assert [number for number in numbers if number not in everything] == []


# --- what cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, code, sentence",
    [
        (("--broker", "memory://x"), 2, "a memory broker lives inside one process"),
        (("--broker", "nonsense"), 2, "it must begin with a scheme"),
        (("--broker", "sqlite:///nowhere/x.db"), 2, "nowhere of the embedded broker's file does not exist"),
        (("--out", os.devnull), 1, "name another folder: make demo OUT="),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(
    options: tuple[str, ...], code: int, sentence: str, tmp_path: Path
) -> None:
    one = run(tmp_path, *options)

    assert one.code == code
    assert one.printed.startswith("The demo ended: ") and one.printed.count("\n") == 1
    assert sentence in one.printed


# --- the handler ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPORT_FOLDER", str(tmp_path))
    return tmp_path


def of_template(template_id: str, **changes: Any) -> ExportTask:
    (found, *_) = [task for task in TASKS if task["template_id"] == template_id]
    return ExportTask(**{"task_id": "one", **found, "output_format": "csv", **changes})


def send(task: ExportTask) -> None:
    app.manager.send(app.manager.topic, Message.of(task))


def test_a_task_that_comes_twice_is_made_once(folder: Path) -> None:
    with in_memory(app.manager) as broker:
        send(of_template("invoice"))
        broker.advance()
        target = folder / DOCUMENTS / "one.csv"
        before = target.stat()
        send(of_template("invoice"))
        broker.advance()

    assert len(broker.handled) == 2 and not broker.failures
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in (folder / DOCUMENTS).iterdir()] == ["one.csv"]


def test_a_service_that_is_down_costs_attempts_and_a_broken_template_does_not(folder: Path) -> None:
    with in_memory(app.manager) as broker:
        send(of_template("exchange_report"))
        send(of_template(HOPELESS, task_id="two"))
        broker.advance(60)

    assert [each.attempt for each in broker.handled] == [3]
    assert [(letter.reason, letter.attempts) for letter in broker.dead] == [("not-retryable", 1)]
    assert [path.name for path in (folder / DOCUMENTS).iterdir()] == ["one.csv"]


@pytest.mark.parametrize("changes", [{"task_id": "../../one"}, {"output_format": "csv/../../../one"}])
def test_a_task_that_would_leave_the_folder_is_rejected(folder: Path, changes: dict[str, str]) -> None:
    with in_memory(app.manager) as broker:
        send(of_template("invoice", **changes))
        broker.advance()

    assert [letter.reason for letter in broker.dead] == ["rejected"]
    assert list(folder.rglob("*one*")) == []


# --- the ledger -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tells", [True, False], ids=["tells the journal", "tells nobody"])
def test_a_handler_that_does_not_skip_is_found_out(tmp_path: Path, tells: bool) -> None:
    journal = Journal(tmp_path / "journal")
    ledger = Ledger(tmp_path / "documents", tmp_path / "journal")
    (tmp_path / "documents").mkdir()
    made: list[str] = []

    def careless(task: ExportTask) -> None:
        part = tmp_path / "documents" / f"{task.task_id}.part"
        part.write_text(f"document {len(made)}")
        part.rename(part.with_suffix(".csv"))
        if tells:
            journal.note("finish", task.task_id, seconds=0.1)
        made.append(task.task_id)

    with ExportManager("memory://") as manager:
        manager.set_message_handler(careless, concurrency=1)
        manager.start()
        ledger.submit(["once", "twice"], "invoice", "csv", at=0.0)
        for number, task_id in enumerate(["once", "twice", "twice"], start=1):
            manager.send(manager.topic, Message.of(of_template("invoice", task_id=task_id)))
            eventually_sync(lambda number=number: len(made) == number, within=60)  # type: ignore[misc]
            if not tells:
                ledger.look()
        ledger.look()

    assert (ledger.figures().doubled, ledger.figures().lost, ledger.figures().done) == (1, 0, 2)


def test_a_document_that_is_gone_is_lost(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, tmp_path / "journal")
    ledger.submit(["one", "two"], "invoice", "csv", at=0.0)
    (tmp_path / "one.csv").write_text("a document")
    (tmp_path / "two.part").write_text("half a docu")
    ledger.look()
    assert (ledger.figures().done, ledger.figures().lost) == (1, 1)

    (tmp_path / "one.csv").unlink()
    ledger.look()
    assert (ledger.figures().done, ledger.figures().lost) == (0, 2)
