"""Files that cannot be used, and older ones: each says what is wrong, where, and what to do."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from brokerkit.clock import SystemClock
from brokerkit.embedded.location import check_location, filesystem_of
from brokerkit.embedded.schema import APPLICATION_ID, MIGRATIONS, prepare
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.sqlite import SqliteStore
from brokerkit.embedded.sqlite_errors import map_send_error, map_sqlite_error
from brokerkit.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    PayloadError,
    SendRefused,
    SendTimeout,
)

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:50 / /mnt/share rw,relatime shared:1 - nfs4 server:/export rw
41 27 0:51 / /mnt/my\\040disk rw - fuse.sshfs host:/ rw
42 40 0:52 / /mnt/share/local rw - xfs /dev/vdb rw
43 27 0:53 / /srv rw - ext4 /dev/vdc rw
44 43 0:54 / /srv rw - cifs //host/srv rw
"""


async def opened(path: Path) -> None:
    store = SqliteStore(path, settings=EmbeddedSettings(), clock=SystemClock())
    await store.open()
    await store.close()


def test_making_a_store_does_no_io(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "missing" / "broker.db", settings=EmbeddedSettings(), clock=SystemClock())
    assert list(tmp_path.iterdir()) == []


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing.* does not exist: create it"):
        await opened(tmp_path / "missing" / "broker.db")


async def test_a_directory_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a directory"):
        await opened(tmp_path)


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"dear diary, " * 100)
    with pytest.raises(ConfigurationError, match=r"notes\.txt is not an SQLite database"):
        await opened(path)
    assert path.read_bytes() == b"dear diary, " * 100


async def test_the_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"other\.db is an SQLite file of another program"):
        await opened(path)
    assert path.read_bytes() == before


async def test_a_damaged_file_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    await opened(path)
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"broker\.db is damaged"):
        await opened(path)


async def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    await opened(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigurationError, match=r"schema version 99.*upgrade brokerkit"):
        await opened(path)


def test_a_file_is_migrated_version_by_version_and_a_failed_step_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    connection = sqlite3.connect(path, isolation_level=None)
    prepare(connection, path)
    assert connection.execute("PRAGMA user_version").fetchone() == (max(MIGRATIONS),)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    prepare(connection, path)  # nothing to do
    newest = max(MIGRATIONS)
    good = {**MIGRATIONS, newest + 1: "CREATE TABLE more (x); INSERT INTO more VALUES (1)"}
    broken = {**good, newest + 2: "CREATE TABLE still_more (x); INSERT INTO nowhere VALUES (1)"}
    with pytest.raises(sqlite3.OperationalError):
        prepare(connection, path, broken)
    assert connection.execute("PRAGMA user_version").fetchone() == (newest + 1,)
    assert connection.execute("SELECT x FROM more").fetchall() == [(1,)]
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'still_more'").fetchone() == (0,)
    prepare(connection, path, {**good, newest + 2: "CREATE TABLE still_more (x)"})
    assert connection.execute("PRAGMA user_version").fetchone() == (newest + 2,)
    connection.close()


@pytest.mark.parametrize("what", ["directory", "file"])
def test_what_is_read_only_for_the_user_is_named(tmp_path: Path, what: str) -> None:
    program = """
import asyncio, os, sys
from pathlib import Path
from brokerkit.clock import SystemClock
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.sqlite import SqliteStore
from brokerkit.errors import AccessRefused
store = SqliteStore(Path("broker.db"), settings=EmbeddedSettings(), clock=SystemClock())
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)  # permissions do not bind root
try:
    asyncio.run(store.open())
except AccessRefused as error:
    print(error)
"""
    file = tmp_path / "broker.db"
    if what == "file":
        file.touch()
        file.chmod(0o444)
        tmp_path.chmod(0o777)
    else:
        tmp_path.chmod(0o555)
    # In its working directory, because the ones above belong to the user that runs the tests only.
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    tmp_path.chmod(0o777)
    assert ("is not writable" if what == "directory" else "not readable and writable") in result.stdout, result
    assert file.exists() == (what == "file")


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/var/lib/broker.db", "ext4"),
        ("/mnt/share/broker.db", "nfs4"),
        ("/mnt/shared/broker.db", "ext4"),
        ("/mnt/share/local/broker.db", "xfs"),
        ("/mnt/my disk/broker.db", "fuse.sshfs"),
        ("/srv/broker.db", "cifs"),
    ],
)
def test_the_file_system_of_a_path_is_found(place: str, kind: str) -> None:
    assert filesystem_of(Path(place), MOUNTS) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"])
def test_a_network_mounted_file_is_refused(tmp_path: Path, kind: str) -> None:
    mounts = f"1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {os.path.realpath(tmp_path)} rw - {kind} host:/x rw\n"
    with pytest.raises(ConfigurationError, match=rf"network file system \({kind}\)"):
        check_location(tmp_path / "broker.db", mounts)
    check_location(tmp_path / "broker.db", mounts.replace(kind, "xfs"))


def error_with(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("why")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        (sqlite3.SQLITE_NOTADB, ConfigurationError, False),
        (sqlite3.SQLITE_CORRUPT, ConfigurationError, False),
        (sqlite3.SQLITE_READONLY, AccessRefused, False),
        (sqlite3.SQLITE_READONLY_DIRECTORY, AccessRefused, False),
        (sqlite3.SQLITE_CANTOPEN, AccessRefused, False),
        (sqlite3.SQLITE_FULL, BrokerUnavailable, True),
        (sqlite3.SQLITE_BUSY, BrokerUnavailable, True),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, BrokerUnavailable, True),
        (sqlite3.SQLITE_LOCKED, BrokerUnavailable, True),
        (sqlite3.SQLITE_IOERR_READ, BrokerUnavailable, True),
        (sqlite3.SQLITE_TOOBIG, PayloadError, False),
    ],
)
def test_an_sqlite_error_has_one_meaning(code: int, kind: type[BrokerError], retryable: bool) -> None:
    cause = error_with(code)
    error = map_sqlite_error(cause, Path("/x/broker.db"))
    assert type(error) is kind
    assert error.retryable is retryable
    assert error.__cause__ is cause
    assert "/x/broker.db" in str(error) or kind is PayloadError


def test_a_send_that_the_disk_refused_is_told_from_one_that_it_did_not_confirm() -> None:
    path = Path("/x/broker.db")
    assert type(map_send_error(error_with(sqlite3.SQLITE_FULL), path)) is SendRefused
    assert type(map_send_error(error_with(sqlite3.SQLITE_IOERR_WRITE), path)) is SendRefused
    assert type(map_send_error(error_with(sqlite3.SQLITE_IOERR_FSYNC), path)) is SendTimeout
    assert type(map_send_error(error_with(sqlite3.SQLITE_BUSY), path)) is BrokerUnavailable
