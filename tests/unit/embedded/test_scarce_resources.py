"""A full disk, and a process that has opened all the files that it may: errors that say so, and no crash."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import threading
from pathlib import Path

import pytest

from brokerkit.clock import SystemClock
from brokerkit.embedded.integrity import find_damage
from brokerkit.embedded.janitor import Janitor
from brokerkit.embedded.location import check_location
from brokerkit.embedded.sqlite_errors import map_sqlite_error
from brokerkit.embedded.starts import StartMarks
from brokerkit.embedded.wakeup import WakeSocket
from brokerkit.errors import AccessRefused, BrokerError, BrokerUnavailable, ConfigurationError
from brokerkit.testing import eventually_sync


def test_start_marks_have_their_place_on_the_disk_before_memory_is_written(tmp_path: Path) -> None:
    """A hole gets its place when the memory is written: on a full disk that is SIGBUS, and the process is gone."""
    marks = StartMarks(tmp_path / "store.owner")
    for number in range(3000):
        marks.mark(number, number)
    found = os.stat(marks.path)
    assert found.st_blocks * 512 >= found.st_size > 3000 * 16
    assert len(marks.started()) == 3000
    marks.close(remove=True)


def test_a_socket_that_cannot_list_the_others_wakes_nobody_and_raises_nothing(tmp_path: Path) -> None:
    mine, other = WakeSocket(tmp_path, "mine"), WakeSocket(tmp_path, "other")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        mine.announce([1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert other.read() == set()
    mine.announce([1])
    assert other.read() == {1}
    mine.close()
    other.close()


def test_a_janitor_that_cannot_open_the_file_goes_on_trying(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "work.db"
    swept = threading.Event()
    janitor = Janitor(
        path,
        lambda apply: swept.set(),
        threading.Lock,  # type: ignore[arg-type]
        SystemClock(),
        age=60.0,
        size=1 << 30,
    )
    try:
        janitor.note_write()
        eventually_sync(lambda: not janitor._wake.is_set(), within=30, what="the janitor began")
        path.parent.mkdir()

        def opened() -> bool:
            janitor.note_write()
            return path.exists()

        eventually_sync(opened, within=30, what="the janitor opened the file")
    finally:
        janitor.close(10)


@pytest.mark.parametrize(
    "number, kind, words",
    [
        (errno.ENOSPC, BrokerUnavailable, "Free some disk space"),
        (errno.EACCES, AccessRefused, "/x/broker.db-lock cannot be written"),
        (errno.EROFS, AccessRefused, "/x/broker.db-lock cannot be written"),
        (errno.EEXIST, ConfigurationError, "move it away"),
        (errno.EMFILE, BrokerUnavailable, "ulimit -n"),
        (errno.EIO, BrokerUnavailable, "/x/broker.db-lock: "),
    ],
)
def test_an_error_of_the_system_has_one_meaning(number: int, kind: type[BrokerError], words: str) -> None:
    cause = OSError(number, os.strerror(number), "/x/broker.db-lock")
    error = map_sqlite_error(cause, Path("/x/broker.db"))
    assert type(error) is kind
    assert words in str(error)
    assert "Errno" not in str(error)
    assert error.__cause__ is cause


@pytest.mark.parametrize(
    "path, words",
    [
        ("/dev/null", "not a regular file"),
        ("/proc/nope.db", "belongs to the kernel"),
        ("/tmp/" + "n" * 300, "name too long"),
        ("/tmp/a\0b", "null byte"),
    ],
)
def test_a_place_that_can_hold_no_file_is_refused_before_sqlite_is_asked(path: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_location(Path(path), "22 27 0:21 / /proc rw - proc proc rw\n27 1 254:0 / / rw - ext4 /dev/vda rw\n")


def test_damage_is_found_by_reading(tmp_path: Path) -> None:
    path = tmp_path / "work.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a)")
    connection.executemany("INSERT INTO t VALUES (?)", [("x" * 3000,) for _ in range(20)])
    connection.commit()
    connection.close()
    assert find_damage(path) is None
    with path.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"A" * 4096)
    assert find_damage(path) is not None
