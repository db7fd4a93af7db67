"""What an exception of `sqlite3` means to a user of the embedded broker."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from brokerkit.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    PayloadError,
    SendRefused,
    SendTimeout,
)

__all__ = ["map_send_error", "map_sqlite_error"]

#: A write that the system refused, not for a full disk: extended result codes of sqlite.org/rescode.html.
_IOERR_WRITE = 778
#: A full disk, too, which the file that processes share their state in met first.
_IOERR_SHMSIZE = 4874
#: Of a flush to disk that failed: what was written may or may not be there after a power loss.
_IOERR_FSYNC = (1034, 1290)


def map_sqlite_error(exc: BaseException, path: Path) -> BrokerError:
    """Return the error that says what is wrong with the file at ``path``; ``exc`` becomes its cause."""
    error = _translate(exc, path)
    error.__cause__ = exc
    return error.with_context(backend="embedded")


def map_send_error(exc: BaseException, path: Path) -> BrokerError:
    """Return the outcome of a send whose transaction failed with ``exc``."""
    code = getattr(exc, "sqlite_errorcode", None) or 0
    error: BrokerError
    if code & 0xFF == sqlite3.SQLITE_FULL or code == _IOERR_WRITE:
        error = SendRefused(f"{path} cannot grow: {exc}. Free some disk space; the message was not stored")
    elif code in _IOERR_FSYNC:
        error = SendTimeout(f"the disk did not confirm that {path} was written: {exc}")
    else:
        return map_sqlite_error(exc, path)
    error.__cause__ = exc
    return error.with_context(backend="embedded")


def _translate(exc: BaseException, path: Path) -> BrokerError:
    if isinstance(exc, BrokerError):
        return exc
    if isinstance(exc, UnicodeEncodeError | OverflowError | sqlite3.InterfaceError | sqlite3.DataError):
        return PayloadError(f"a field of the message cannot be stored: {exc}")
    if isinstance(exc, OSError):
        return _translate_os(exc, path)
    if not isinstance(exc, sqlite3.Error):
        return BrokerUnavailable(f"{path}: {type(exc).__name__}: {exc}")
    code = getattr(exc, "sqlite_errorcode", None) or 0
    match sqlite3.SQLITE_FULL if code == _IOERR_SHMSIZE else code & 0xFF:
        case sqlite3.SQLITE_NOTADB:
            return ConfigurationError(f"{path} is not an SQLite database; point `embedded.path` to another file")
        case sqlite3.SQLITE_CORRUPT:
            return ConfigurationError(
                f"{path} is damaged ({exc}): move it away, with its -wal file, and recover it with "
                "`sqlite3 FILE .recover`, or restore a backup"
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return AccessRefused(f"{path} is read-only for this user: {exc}")
        case sqlite3.SQLITE_CANTOPEN:
            return AccessRefused(
                f"{path} cannot be opened: {exc}. The directory must exist and be writable, and the process "
                "may open more files (ulimit -n)"
            )
        case sqlite3.SQLITE_FULL:
            return BrokerUnavailable(f"{path} cannot grow: {exc}. Free some disk space")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return BrokerUnavailable(f"{path} is locked by another program: {exc}")
        case sqlite3.SQLITE_TOOBIG:
            return PayloadError(f"a field of the message is larger than SQLite stores: {exc}")
    return BrokerUnavailable(f"{path}: {exc}")


def _translate_os(exc: OSError, path: Path) -> BrokerError:
    """What became of a file that the broker keeps beside its own."""
    what = exc.filename if isinstance(exc.filename, str) else str(path)
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return BrokerUnavailable(f"there is no room beside {path}: {exc.strerror}. Free some disk space")
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        return BrokerUnavailable(f"{what} cannot be opened: {exc.strerror}; allow more (ulimit -n), or open fewer")
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessRefused(
            f"{what} cannot be written: {exc.strerror}. All who use {path.name} must be able to write it and what is "
            "beside it"
        )
    if exc.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return ConfigurationError(f"{what} is in the way of the embedded broker's own file of that name: move it away")
    return BrokerUnavailable(f"{what}: {exc.strerror or exc}")
