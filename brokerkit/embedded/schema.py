"""The tables of the embedded broker's file, and how an older file becomes a current one."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from brokerkit.errors import ConfigurationError

__all__ = ["APPLICATION_ID", "MIGRATIONS", "prepare"]

#: "BKIT" in ASCII; SQLite keeps it in the header of the file, so that another program's file is never touched.
APPLICATION_ID = 0x424B4954

_VERSION_1 = """
-- One row: the counters, and the version of topic and grp, which every process caches.  No number is used twice:
-- the highest seq so far stands here or in message, whichever is higher.
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, claim INTEGER NOT NULL,
                   catalog INTEGER NOT NULL);
INSERT INTO meta VALUES (1, 0, 0, 1);

CREATE TABLE topic (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, ordered INTEGER NOT NULL);

-- topic_id 0: an inbox.  owner and store are set on private groups.  A group that begins at the earliest message
-- still has to take over the log in (backfill_next, backfill_end].
CREATE TABLE grp (id INTEGER PRIMARY KEY AUTOINCREMENT, topic_id INTEGER NOT NULL, name TEXT NOT NULL,
                  tag TEXT NOT NULL, ordered INTEGER NOT NULL, owner TEXT, store INTEGER,
                  backfill_next INTEGER NOT NULL DEFAULT 0, backfill_end INTEGER NOT NULL DEFAULT 0,
                  UNIQUE (topic_id, name));

-- The log: one body per message, whatever the number of groups.  topic_id NULL: the message belongs to one group
-- only and goes with its delivery; otherwise it stays until retention.
CREATE TABLE message (seq INTEGER PRIMARY KEY, topic_id INTEGER, stored REAL NOT NULL, message_id TEXT NOT NULL,
                      type TEXT, tag TEXT, key TEXT, content_type TEXT, priority INTEGER NOT NULL, timestamp REAL,
                      due REAL, correlation_id TEXT, reply_to TEXT, headers TEXT, body BLOB NOT NULL);

-- State of a message in a group; rank = -priority; key only in ordered groups.
CREATE TABLE ready (group_id INTEGER NOT NULL, rank INTEGER NOT NULL, seq INTEGER NOT NULL, flags INTEGER NOT NULL,
                    key TEXT, PRIMARY KEY (group_id, rank, seq)) WITHOUT ROWID;
CREATE TABLE later (group_id INTEGER NOT NULL, due REAL NOT NULL, seq INTEGER NOT NULL,
                    PRIMARY KEY (group_id, due, seq)) WITHOUT ROWID;
CREATE TABLE scheduled (topic_id INTEGER NOT NULL, due REAL NOT NULL, seq INTEGER NOT NULL,
                        PRIMARY KEY (topic_id, due, seq)) WITHOUT ROWID;
-- claim: set while a consumer of dead letters has it.
CREATE TABLE dead (group_id INTEGER NOT NULL, seq INTEGER NOT NULL, flags INTEGER NOT NULL, claim INTEGER,
                   PRIMARY KEY (group_id, seq)) WITHOUT ROWID;

-- One row per claim, not per message: until is the earliest end among its leases.
CREATE TABLE claim (id INTEGER PRIMARY KEY, group_id INTEGER NOT NULL, owner TEXT NOT NULL, store INTEGER NOT NULL,
                    until REAL NOT NULL, dead INTEGER NOT NULL);
CREATE INDEX claim_until ON claim (group_id, until);
CREATE TABLE leased (claim INTEGER NOT NULL, rank INTEGER NOT NULL, seq INTEGER NOT NULL, flags INTEGER NOT NULL,
                     until REAL NOT NULL, key TEXT, PRIMARY KEY (claim, rank, seq)) WITHOUT ROWID;

CREATE TABLE consumer (group_id INTEGER NOT NULL, owner TEXT NOT NULL, store INTEGER NOT NULL,
                       PRIMARY KEY (group_id, owner)) WITHOUT ROWID;

-- Deleted groups and topics whose rows are still to be removed, in small steps.
CREATE TABLE garbage (kind TEXT NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID;
"""

_VERSION_2 = """
-- Where each key of an ordered group stands, past any number of messages of keys that are leased.
CREATE INDEX ready_key ON ready (group_id, key, rank, seq) WHERE key IS NOT NULL;
"""

#: version -> the script that makes a file of the version before into one of this version.
MIGRATIONS: Mapping[int, str] = {1: _VERSION_1, 2: _VERSION_2}


def prepare(connection: sqlite3.Connection, path: Path, migrations: Mapping[int, str] = MIGRATIONS) -> None:
    """Create or migrate the tables; the caller holds the write lock and is in no transaction.

    Raise `ConfigurationError` for a file of another program or of a newer brokerkit.  Each version is one
    transaction: a process that dies half-way leaves the version before.
    """
    newest = max(migrations)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise ConfigurationError(
            f"{path} is an SQLite file of another program (application id {application:#x}); "
            "give the embedded broker a file of its own"
        )
    if version > newest:
        raise ConfigurationError(
            f"{path} has schema version {version}, this brokerkit knows up to {newest}: upgrade brokerkit "
            "in every process that uses the file"
        )
    if version == 0:
        # Only possible before the first table; without it deleted rows never give their space back.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    for number in range(version + 1, newest + 1):
        script = (
            f"BEGIN IMMEDIATE; {migrations[number]}; "
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number}; COMMIT;"
        )
        try:
            connection.executescript(script)
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
