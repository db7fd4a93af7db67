"""The open file of one store: its connection, and everything that lives and ends with it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from brokerkit.embedded import groups
from brokerkit.embedded.audience import Audience, Subscriber
from brokerkit.embedded.catalog import Catalog
from brokerkit.embedded.filelock import FileLock
from brokerkit.embedded.janitor import Janitor
from brokerkit.embedded.location import check_location
from brokerkit.embedded.neighbours import Neighbours
from brokerkit.embedded.operation import Operation
from brokerkit.embedded.schema import prepare
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.sqlite_errors import map_sqlite_error
from brokerkit.embedded.starts import StartMarks
from brokerkit.embedded.transaction import Transaction
from brokerkit.embedded.wakeup import WakeSocket
from brokerkit.embedded.writer import GroupCommit
from brokerkit.errors import BrokerError, Closed
from brokerkit.spi import Clock
from brokerkit.sqlite_forks import FORKS

__all__ = ["StoreFile"]

T = TypeVar("T")

#: Pages of the WAL after which a commit checkpoints; the janitor does it long before (speed.md).
_AUTOCHECKPOINT = 16_000
#: KiB of pages that a connection keeps in memory.
_CACHE = 16_000
_PRAGMAS = (
    f"wal_autocheckpoint = {_AUTOCHECKPOINT}",
    f"cache_size = -{_CACHE}",
    # Debian builds SQLite so that it overwrites what is deleted.
    "secure_delete = OFF",
    "temp_store = MEMORY",
    # macOS only: what fsync does elsewhere.
    "fullfsync = ON",
)


class StoreFile:
    """One SQLite file, opened once per store, with its writer, its janitor and the way to other processes.

    Beside ``path`` lie ``<path>-lock``, the lock of whoever writes, and the directory ``<path>-run``: a file per
    living store with its start marks, and its socket.
    """

    def __init__(self, path: Path, settings: EmbeddedSettings, clock: Clock, attempt_timeout: float) -> None:
        """Open the file; raise `BlockingIOError` while another process or program has it locked."""
        check_location(path)
        FORKS.check()
        self.path = path
        self._clock = clock
        self._timeout = attempt_timeout
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._audiences: dict[tuple[str, str], Audience] = {}
        #: Loops that read the socket, and for how many subscribers.
        self._readers: dict[asyncio.AbstractEventLoop, int] = {}
        self._changes = 0
        #: The topics and groups of the latest transaction here.
        self.catalog: Catalog | None = None
        #: (group id, owner) of the consumers that are registered in the file.
        self.consumers: set[tuple[int, str]] = set()
        try:
            self.lock = FileLock(path.with_name(path.name + "-lock"))
        except OSError as error:
            raise map_sqlite_error(error, path) from error
        if not self.lock.try_acquire():
            self.lock.close()
            raise BlockingIOError
        self.writer = GroupCommit(
            self._connect,
            path,
            self.lock,
            begin=lambda connection: Transaction(connection, self.catalog, clock.time(), settings.max_message_size),
            committed=self._committed,
            full_sync=settings.durability == "full",
            clock=clock,
            attempt_timeout=attempt_timeout,
        )
        # Until it is added, a fork would carry the connection over.
        with FORKS:
            self._open()
            self.janitor = Janitor(
                path,
                self.writer.call,
                self.writer.exclusive,
                clock,
                age=settings.retention_age,
                size=settings.retention_bytes,
            )
            FORKS.add(self)

    def _open(self) -> None:
        path = self.path
        try:
            prepare(self.writer.connection, path)
            run = path.with_name(path.name + "-run")
            run.mkdir(exist_ok=True)
            self.neighbours = Neighbours(run)
            self.starts = StartMarks(self.neighbours.my_file)
            self._socket = WakeSocket(run, self.neighbours.my_name)
        except BaseException as error:
            self.writer.let_go()
            self.lock.close()
            if (getattr(error, "sqlite_errorcode", 0) & 0xFF) == sqlite3.SQLITE_BUSY:
                raise BlockingIOError from error
            if isinstance(error, sqlite3.Error | OSError):
                raise map_sqlite_error(error, path) from error
            raise
        self.lock.release()
        #: What any store on this file had started.
        self.marks = self.neighbours.marks(self.starts)

    def _connect(self) -> sqlite3.Connection:
        # No busy handler: it would hold up the event loop.  Who can wait does it in the writer.
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=256, timeout=0.0
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        self._changes = 0
        return connection

    def check_process(self) -> None:
        """Raise `Closed` in the child of a fork."""
        if os.getpid() != self._pid:
            raise Closed(
                "this store was opened by the parent process; open a connection of your own after a fork",
                backend="embedded",
            )

    # --- working --------------------------------------------------------------------------------------------------

    async def do(self, operation: Operation) -> Any:
        """Run the operation and return its result."""
        error = await self.writer.submit(operation)
        if error is not None:
            raise map_sqlite_error(error, self.path)
        return operation.result

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query that may take long, on a connection and in a thread of its own."""

        def run() -> T:
            with FORKS:
                connection = sqlite3.connect(self.path, isolation_level=None, timeout=self._timeout)
                try:
                    connection.execute("BEGIN")
                    return function(connection)
                except sqlite3.Error as error:
                    raise map_sqlite_error(error, self.path) from error
                finally:
                    connection.close()

        return await asyncio.to_thread(run)

    async def bury_neighbours(self) -> None:
        """Return what dead stores had, when it is time to look for some."""
        graves = self.neighbours.find_dead(self._clock, self.writer)
        if not graves:
            return
        with ExitStack() as stack:
            for grave in graves:
                stack.callback(grave.close, remove=False)
            for grave in graves:
                number, marks = grave.number, grave.marks()
                await self.do(
                    Operation(lambda tx: groups.bury(tx, number, lambda store: marks), durable=False)  # noqa: B023
                )
                grave.close(remove=True)

    def _committed(self, tx: Transaction) -> None:
        before, self.catalog = self.catalog, tx.catalog
        for action in tx.after:
            action()
        changes = self.writer.connection.total_changes
        if changes != self._changes:
            self._changes = changes
            self.janitor.note_write()
        if tx.woken:
            self._wake(tx.woken, before)
            self._socket.announce(tx.woken)

    # --- waking ---------------------------------------------------------------------------------------------------

    def subscribe(self, topic: str, group: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake`` on the running loop when the group may have something to claim; return the undo."""
        loop = asyncio.get_running_loop()
        subscriber = Subscriber(wake)
        with self._guard:
            audience = self._audiences.setdefault((topic, group), Audience())
            audience.members = (*audience.members, subscriber)
            if loop not in self._readers:
                loop.add_reader(self._socket.fileno(), self._on_datagram)
            self._readers[loop] = self._readers.get(loop, 0) + 1

        def unsubscribe() -> None:
            with self._guard:
                if subscriber not in audience.members:
                    return
                audience.members = tuple(member for member in audience.members if member is not subscriber)
                if not audience.members and self._audiences.get((topic, group)) is audience:
                    del self._audiences[topic, group]
                self._readers[loop] -= 1
                if not self._readers[loop]:
                    del self._readers[loop]
                    self._stop_reading(loop)

        return unsubscribe

    def subscribers(self, topic: str, group: str) -> int:
        """Return how many consumers of this store have subscribed to the group."""
        audience = self._audiences.get((topic, group))
        return 0 if audience is None else len(audience.members)

    def _stop_reading(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._socket.fileno() >= 0 and not loop.is_closed():
            loop.remove_reader(self._socket.fileno())

    def _on_datagram(self) -> None:
        numbers = self._socket.read()
        if numbers is None or numbers:
            self._wake(numbers)

    def _wake(self, numbers: set[int] | None, before: Catalog | None = None) -> None:
        """Wake this store's subscribers of these groups; None: all of them."""
        if not self._audiences:
            return
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        catalogs = [catalog for catalog in (self.catalog, before) if catalog is not None]
        audiences: set[Audience] = set()
        for number in numbers or ():
            group = next((c.groups[number] for c in catalogs if number in c.groups), None)
            if group is None:
                numbers = None  # of a catalog that this process has not seen yet
                break
            audience = self._audiences.get((group.topic.name, group.name))
            if audience is not None:
                audiences.add(audience)
        for audience in tuple(self._audiences.values()) if numbers is None else audiences:
            for member in audience.members:
                member.call(running)

    # --- the end --------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Finish what was submitted, give back what is leased, and free everything."""
        await self.writer.submit(Operation(lambda tx: None, durable=False, probe=lambda: 0))
        self.writer.unwatch()
        with self._guard:
            for loop in self._readers:
                self._stop_reading(loop)
        # Blocks for as long as the last checkpoint takes.
        await asyncio.shield(asyncio.to_thread(self._shut))

    def _shut(self) -> None:
        number = self.neighbours.my_number
        returned = True
        self.janitor.close(self._timeout)
        try:
            self.writer.call(
                lambda tx: groups.bury(tx, number, lambda store: self.starts.started()), timeout=self._timeout
            )
        except (sqlite3.Error, BrokerError):
            returned = False  # the neighbours do it when they notice that this store is gone
        FORKS.discard(self)
        ended = self.writer.close()
        self._socket.close()
        self.starts.close(remove=returned)
        if ended:
            # Otherwise the thread still waits for a process that hangs with the lock; it needs both.
            with FORKS:
                self.writer.let_go()
            self.lock.close()

    def let_go(self) -> None:
        """Close the connections before a fork."""
        self.janitor.let_go()
        self.writer.let_go()

    def abandon(self) -> None:
        """In the child of a fork: let go of the descriptors that make this process look alive to its neighbours."""
        self.lock.close()
        self.starts.abandon()
        self._socket.abandon()
