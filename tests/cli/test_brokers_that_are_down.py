"""A broker that cannot be used: one line that says why, for every command, and `doctor` finds the same."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokerkit import BrokerError, Manager
from brokerkit.testing import eventually_sync
from tests.cli.conftest import SCRIPT, Shell, done

BODY = '{"n": 1}'


def damaged(path: Path) -> None:
    with Manager(f"sqlite:///{path}") as manager:
        manager.send("jobs", {"n": 0})
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"A" * (size - 3 * 4096))


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (name TEXT)")
    connection.close()


#: How the file is spoiled, the words of the command and its exit code.
SPOILED = {
    "no folder": ("missing/work.db", None, "does not exist: create it", 2),
    "a file as folder": ("app.py/work.db", None, "is not a directory", 2),
    "a folder": ("folder", lambda path: path.mkdir(), "is a directory", 2),
    "no database": ("work.db", lambda path: path.write_bytes(b"nonsense " * 1000), "is not an SQLite database", 2),
    "another program's": ("work.db", foreign, "of another program", 2),
    "damaged": ("work.db", damaged, "is damaged", 2),
    "a name too long": ("n" * 300, None, "File name too long", 2),
    "a device": ("/dev/null", None, "is not a regular file", 2),
    "in the kernel": ("/proc/nope.db", None, "belongs to the kernel", 2),
    "a wrong option": ("work.db?leese=3", None, "did you mean 'lease'?", 2),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_file_that_cannot_be_used_is_one_line_for_senders_and_workers(app: Shell, what: str) -> None:
    name, spoil, words, code = SPOILED[what]
    if spoil is not None:
        spoil(app.folder / name)
    url = f"sqlite:///{app.folder / name}"

    sent = app.run("send", "jobs", BODY, "--url", url)
    assert (sent.returncode, len(sent.stderr.splitlines())) == (code, 1), sent.stderr
    assert words in sent.stderr
    assert "Error:" not in sent.stderr
    worked = app.run("worker", "app", "--url", url)
    assert worked.returncode == code
    assert words in worked.stderr.splitlines()[-1]
    asked = app.run("doctor", "--url", url, "--json")
    assert asked.returncode == 1
    found = [one["text"] for one in json.loads(asked.stdout)["findings"] if one["level"] == "wrong"]
    assert [words in one for one in found] == [True], found


@pytest.mark.parametrize(
    "url, words",
    [
        ("foo://u:secret@host/", "known: amqp"),
        ("sqlite://work.db", "three or four slashes"),
        ("nonsense", "must begin with a scheme"),
        ("", "is empty"),
    ],
)
def test_a_garbled_url_is_one_line_without_its_password(app: Shell, url: str, words: str) -> None:
    for command in (("send", "jobs", BODY), ("status",), ("worker", "app"), ("worker", "app", "--processes", "2")):
        result = app.run(*command, "--url", url)
        assert result.returncode == 2
        assert words in result.stderr.splitlines()[-1]
        assert len(result.stderr.splitlines()) == 1
        assert "secret" not in result.stderr + result.stdout
        assert "BROKERKIT_URL" not in result.stderr


def test_processes_that_no_restart_would_help_are_not_restarted(app: Shell) -> None:
    result = app.run("worker", "app", "--processes", "2", "--url", f"sqlite:///{app.folder}/missing/work.db")
    assert result.returncode == 2
    assert "restarting" not in result.stderr
    assert "does not exist: create it" in result.stderr


def test_an_error_is_json_where_json_was_asked_for(shell: Shell) -> None:
    with Manager(shell.url) as manager:
        manager.send("other", "x")
    for command, code in (
        (("lag", "jobs", "crew"), 1),
        (("dead", "list", "jobs", "crew"), 1),
        (("dead", "redrive", "jobs", "crew"), 1),
        (("send", "jobs", "{", "--json-body"), 2),
        (("send-export", "invoice", "[]"), 2),
        (("bench", "foo://x"), 2),
        (("conformance", "foo://x"), 2),
    ):
        result = shell.run(*command, "--json")
        error = json.loads(result.stdout)
        assert (result.returncode, error["exit_code"]) == (code, code)
        assert error["error"]["text"] in result.stderr
        assert error["error"]["type"]


# --- permissions ---


def unprivileged(shell: Shell, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command for which the modes of files count, which they do not for root."""
    command = [SCRIPT, *arguments]
    if os.getuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("without setpriv root cannot give up its privileges")
        command = [setpriv, "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(
        command, cwd=shell.folder, env=shell.environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "name, mode, words",
    [
        (".", 0o500, "is not writable"),
        (".", 0o600, "cannot be searched"),
        ("work.db", 0o400, "is not readable and writable"),
        ("work.db-lock", 0o400, "work.db-lock cannot be written: Permission denied"),
        ("work.db-run", 0o500, "cannot be written: Permission denied"),
    ],
)
def test_what_may_not_be_written_is_named(shell: Shell, name: str, mode: int, words: str) -> None:
    folder = shell.folder / "broker"
    folder.mkdir()
    url = f"sqlite:///{folder / 'work.db'}"
    with Manager(url) as manager:
        manager.send("jobs", {"n": 0})
    path = folder / name
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        sent = unprivileged(shell, "send", "jobs", BODY, "--url", url)
        asked = unprivileged(shell, "doctor", "--url", url)
    finally:
        path.chmod(before)
    assert sent.returncode == 1
    assert (len(sent.stderr.splitlines()), words in sent.stderr) == (1, True), sent.stderr
    assert asked.returncode == 1
    assert words in asked.stdout
    assert asked.stderr == ""


# --- disks ---


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path_factory.mktemp("disk")
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("needs mount and tmpfs")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    hog = disk / "hog"
    with hog.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return hog


def test_a_disk_mounted_read_only_is_named(shell: Shell, disk: Path) -> None:
    url = f"sqlite:///{disk / 'work.db'}"
    shell.ok("send", "jobs", BODY, "--url", url)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    result = shell.run("send", "jobs", BODY, "--url", url)
    assert result.returncode == 1
    assert "mounted read-only" in result.stderr


def test_commands_on_a_full_disk_say_so(app: Shell, disk: Path) -> None:
    url = f"sqlite:///{disk / 'work.db'}"
    with Manager(url) as manager:
        manager.admin.declare("jobs", "crew")
    fill(disk)
    for command in (("send", "jobs", BODY), ("status", "jobs", "crew"), ("worker", "app")):
        result = app.run(*command, "--url", url)
        assert result.returncode == 1, (command, result)
        assert "Free some disk space" in result.stderr.splitlines()[-1]
    assert "MiB are left on the disk" in app.run("doctor", "--url", url).stdout


def test_a_worker_outlives_a_full_disk_and_nothing_that_was_sent_is_lost(app: Shell, disk: Path) -> None:
    url = f"sqlite:///{disk / 'work.db'}"
    worker = app.start("worker", "app", "--url", url, "--id", "w1")
    sent, refused = [], 0
    with Manager(url, settings={"send_timeout": 3.0}) as manager:
        manager.admin.declare("jobs", "crew")

        def send(number: int) -> bool:
            try:
                manager.send("jobs", {"n": number, "padding": "x" * 4000})
            except BrokerError as error:
                assert "disk" in str(error) or "within" in str(error), error
                return False
            sent.append(number)
            return True

        for number in range(20):
            assert send(number)
        # Its file may be there before it has opened the broker's.
        eventually_sync(lambda: done(app), within=60, what="the worker works")
        hog = fill(disk)
        number = 20
        while refused < 3:
            refused += not send(number)
            number += 1
            assert number < 2000, "the disk is never full"
        hog.unlink()
        assert eventually_sync(lambda: send(number), within=60, what="sends are taken again")

        def all_done() -> bool:
            left = sorted(set(sent) - set(done(app)))
            assert not left, (
                f"{left} of {len(sent)} are not done: {manager.monitor.stats('jobs', 'crew')} {worker.output}"
            )
            return True

        eventually_sync(all_done, within=60, what="all that was sent is done")
        eventually_sync(lambda: manager.monitor.lag("jobs", "crew").unsettled == 0, within=60)
        assert manager.monitor.lag("jobs", "crew").ready == 0
    assert worker.process.poll() is None
    assert "Traceback" not in worker.output
