"""Whether the embedded broker's file is whole, as far as reading it can tell."""

from __future__ import annotations

import sqlite3
from pathlib import Path

__all__ = ["find_damage"]

#: Bytes above which a file is not read: at a few hundred MB a second nobody wants to wait for more.
_LARGEST = 1 << 30


def find_damage(path: Path) -> str | None:
    """Return SQLite's words for the first damage in the file; None for none, and for a file that is too large.

    Only reads, on a connection of its own, and holds nobody up.  Blocks for as long as reading the file takes.
    Raise `sqlite3.Error` when it cannot be read.
    """
    if path.stat().st_size > _LARGEST:
        return None
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=1.0)
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if (getattr(error, "sqlite_errorcode", 0) & 0xFF) != sqlite3.SQLITE_CORRUPT:
            raise
        return str(error)
    finally:
        connection.close()
    return None if found == "ok" else " ".join(str(found).split())
