"""The store on a file: one SQLite database, shared by any number of processes of one machine."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from brokerkit.embedded import groups, leases
from brokerkit.embedded.audience import Audience, Subscriber
from brokerkit.embedded.catalog import INBOXES, Catalog, Group
from brokerkit.embedded.filelock import FileLock
from brokerkit.embedded.janitor import Janitor
from brokerkit.embedded.location import check_location
from brokerkit.embedded.neighbours import Neighbours
from brokerkit.embedded.schema import prepare
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.sqlite_errors import map_send_error, map_sqlite_error
from brokerkit.embedded.starts import StartMarks
from brokerkit.embedded.store import Claimant
from brokerkit.embedded.transaction import Transaction
from brokerkit.embedded.wakeup import WakeSocket
from brokerkit.embedded.writer import MAX_BYTES, MAX_WEIGHT, GroupCommit, Operation
from brokerkit.errors import BrokerError, BrokerUnavailable, Closed, PayloadError
from brokerkit.spi import Clock, GroupSpec, GroupStats, Inbound, Outbound, TopicSpec

__all__ = ["SqliteStore"]

T = TypeVar("T")

#: Most messages that one claim takes.
MAX_CLAIM = 500
#: Pages of the WAL after which a commit checkpoints; the janitor does it long before (speed.md).
_AUTOCHECKPOINT = 16_000
#: KiB of pages that a connection keeps in memory.
_CACHE = 16_000
_RETRY_OPEN = 0.01

_WAITING = (
    "SELECT (SELECT catalog FROM meta), EXISTS (SELECT 1 FROM ready WHERE group_id = ?1),"
    " (SELECT min(due) FROM later WHERE group_id = ?1), (SELECT min(due) FROM scheduled WHERE topic_id = ?2),"
    " (SELECT min(until) FROM claim WHERE group_id = ?1)"
)


class _Open:
    """What exists while the store is open."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        lock: FileLock,
        marks: StartMarks,
        socket: WakeSocket,
        neighbours: Neighbours,
    ) -> None:
        self.connection = connection
        self.lock = lock
        self.marks = marks
        self.socket = socket
        self.neighbours = neighbours
        self.catalog: Catalog | None = None
        self.consumers: set[tuple[int, str]] = set()
        #: Loops that read the socket, and for how many subscribers.
        self.readers: dict[asyncio.AbstractEventLoop, int] = {}
        self.changes = 0
        self.commit: GroupCommit
        self.janitor: Janitor


class SqliteStore:
    """A `Store` on the file ``path``.  Making one does no I/O.

    Beside the file it keeps ``<file>-lock`` (who writes) and the directory ``<file>-run`` (who lives, and how to
    wake them).  ``attempt_timeout`` bounds, in seconds, how long an operation waits for another process.
    """

    persistent = True

    def __init__(self, path: Path, *, settings: EmbeddedSettings, clock: Clock, attempt_timeout: float = 5.0) -> None:
        self._path = path
        self._settings = settings
        self._clock = clock
        self._timeout = attempt_timeout
        self._guard = threading.Lock()
        self._opened = 0
        self._pid = os.getpid()
        self._parts: _Open | None = None
        self._audiences: dict[tuple[str, str], Audience] = {}
        self._events: dict[tuple[str, str], float | None] = {}

    # --- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        deadline = self._clock.monotonic() + self._timeout
        while True:
            with self._guard:
                if self._parts is not None:
                    self._check_process()
                    self._opened += 1
                    return
                if self._try_open():
                    self._opened = 1
                    return
            if self._clock.monotonic() >= deadline:
                raise BrokerUnavailable(
                    f"{self._path} was locked by another process for more than {self._timeout:g} s",
                    backend="embedded",
                )
            await self._clock.sleep(_RETRY_OPEN)

    def _try_open(self) -> bool:
        """Open the file; return False when another process has it locked."""
        path = self._path
        check_location(path)
        try:
            lock = FileLock(path.with_name(path.name + "-lock"))
        except OSError as error:
            raise map_sqlite_error(error, path) from error
        connection: sqlite3.Connection | None = None
        try:
            if not lock.try_acquire():
                lock.close()
                return False
            # No busy handler: it would hold up the event loop.  Who can wait does it above.
            connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, cached_statements=256, timeout=0.0
            )
            prepare(connection, path)
            for pragma in (
                f"wal_autocheckpoint = {_AUTOCHECKPOINT}",
                f"cache_size = -{_CACHE}",
                "secure_delete = OFF",
                "temp_store = MEMORY",
                "fullfsync = ON",
            ):
                connection.execute(f"PRAGMA {pragma}")
            self._pid = os.getpid()
            run = path.with_name(path.name + "-run")
            run.mkdir(exist_ok=True)
            neighbours = Neighbours(run)
            marks = StartMarks(neighbours.my_file)
            parts = _Open(connection, lock, marks, WakeSocket(run, neighbours.my_name), neighbours)
        except BaseException as error:
            if connection is not None:
                connection.close()
            lock.close()
            if (getattr(error, "sqlite_errorcode", 0) & 0xFF) == sqlite3.SQLITE_BUSY:
                return False
            if isinstance(error, sqlite3.Error | OSError):
                raise map_sqlite_error(error, path) from error
            raise
        lock.release()
        parts.commit = GroupCommit(
            connection,
            path,
            lock,
            begin=lambda: Transaction(connection, parts.catalog, self._clock.time(), self._settings.max_message_size),
            committed=self._committed,
            full_sync=self._settings.durability == "full",
            clock=self._clock,
            attempt_timeout=self._timeout,
        )
        settings = self._settings
        self._parts = parts
        parts.janitor = Janitor(
            path, parts.commit.call, self._clock, age=settings.retention_age, size=settings.retention_bytes
        )
        _leak_in_child(parts)
        return True

    async def close(self) -> None:
        with self._guard:
            if self._opened == 0:
                return
            self._check_process()
            self._opened -= 1
            if self._opened:
                return
            parts = self._parts
        if parts is None:
            return
        # What was submitted before must not find the file closed.
        await parts.commit.submit(Operation(lambda tx: None, durable=False, probe=lambda: 0))
        with self._guard:
            if self._opened:
                return
            self._parts = None
        for loop in list(parts.readers):
            if not loop.is_closed():
                loop.remove_reader(parts.socket.fileno())
        await asyncio.shield(asyncio.to_thread(self._shut, parts))

    def _shut(self, parts: _Open) -> None:
        parts.janitor.close()
        number = parts.neighbours.my_number
        returned = True
        try:
            parts.commit.call(lambda tx: groups.bury(tx, number, lambda store: parts.marks.started()))
        except (sqlite3.Error, BrokerError):
            returned = False  # the others do it when they notice that this store is gone
        parts.commit.close()
        parts.connection.close()
        parts.socket.close()
        parts.marks.close(remove=returned)
        parts.lock.close()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise Closed(
                "this store was opened by the parent process; open a connection of your own after a fork",
                backend="embedded",
            )

    def _require(self) -> _Open:
        parts = self._parts
        self._check_process()
        if parts is None:
            raise Closed(f"{self._path} is not open", backend="embedded")
        return parts

    @property
    def lock_waits(self) -> deque[float]:
        """Seconds that the latest transactions of this store waited for the file; for benchmarks."""
        return self._require().lock.waits

    @property
    def commits(self) -> int:
        """How many transactions this store committed since it was opened; for benchmarks."""
        return self._require().commit.commits

    def sweep(self) -> None:
        """Do now what the background does in time: retention, deleted groups, free space.  Blocks."""
        self._require().janitor.sweep()

    # --- operations ---------------------------------------------------------------------------------------------

    async def _do(self, operation: Operation) -> Any:
        await self._require().commit.submit(operation)
        if operation.error is not None:
            raise map_sqlite_error(operation.error, self._path)
        return operation.result

    async def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query that may take long on a connection and in a thread of its own."""
        self._require()

        def run() -> T:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=self._timeout)
            try:
                connection.execute("BEGIN")
                return function(connection)
            except sqlite3.Error as error:
                raise map_sqlite_error(error, self._path) from error
            finally:
                connection.close()

        return await asyncio.to_thread(run)

    def _committed(self, tx: Transaction) -> None:
        parts = self._parts
        if parts is None:
            return
        before, parts.catalog = parts.catalog, tx.catalog
        for action in tx.after:
            action()
        changes = parts.connection.total_changes
        if changes != parts.changes:
            parts.changes = changes
            parts.janitor.note_write()
        if tx.woken:
            self._wake(tx.woken, before)
            parts.socket.announce(tx.woken)

    def _wake(self, numbers: set[int] | None, before: Catalog | None = None) -> None:
        """Wake this process's subscribers of these groups; None: all of them."""
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        parts = self._parts
        catalogs = [catalog for catalog in (parts.catalog if parts else None, before) if catalog is not None]
        audiences: set[Audience] = set()
        for number in numbers or ():
            group = next((c.groups[number] for c in catalogs if number in c.groups), None)
            if group is None:
                numbers = None  # of a catalog that this process has not seen yet
                break
            audience = self._audiences.get((group.topic.name, group.name))
            if audience is not None:
                audiences.add(audience)
        for audience in list(self._audiences.values()) if numbers is None else audiences:
            for member in audience.members:
                member.call(running)

    # --- sending ------------------------------------------------------------------------------------------------

    async def send(self, messages: Sequence[Outbound]) -> list[BrokerError | None]:
        operations = [(part, self._sending(part)) for part in _parts(messages)]
        commit = self._require().commit
        futures = [commit.submit(operation) for _, operation in operations]
        outcomes: list[BrokerError | None] = []
        try:
            for future, (part, operation) in zip(futures, operations, strict=True):
                await future
                outcomes += await self._outcomes(part, operation)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        return outcomes

    def _sending(self, messages: Sequence[Outbound]) -> Operation:
        size = sum(len(message.body) for message in messages)
        return Operation(lambda tx: tx.send(messages), durable=True, weight=len(messages), size=size)

    async def _outcomes(self, messages: Sequence[Outbound], operation: Operation) -> list[BrokerError | None]:
        error = operation.error
        if error is None:
            outcomes: list[BrokerError | None] = operation.result
            return outcomes
        if isinstance(error, Closed):
            raise error
        if len(messages) > 1 and isinstance(map_send_error(error, self._path), PayloadError):
            # One of them cannot be stored; it must not take the others with it.
            return [outcome for message in messages for outcome in await self.send([message])]
        return [map_send_error(error, self._path) for _ in messages]

    # --- claiming -----------------------------------------------------------------------------------------------

    async def claim(self, claimant: Claimant, limit: int) -> list[Inbound]:
        parts = self._require()
        limit = min(limit, MAX_CLAIM)
        if limit <= 0:
            return []

        def apply(tx: Transaction) -> list[Inbound]:
            tx.flush()
            group = groups.refresh(tx, claimant, self._settings.retention_age, parts.neighbours.marks(parts.marks))
            if group is None:
                return []
            messages = leases.claim(tx, group, claimant, parts.neighbours.my_number, limit)
            self._register(tx, parts, group, claimant.owner)
            self._note_event(tx, group, claimant, complete=len(messages) < limit)
            return messages

        operation = Operation(
            apply,
            durable=False,
            weight=limit,
            probe=lambda: self._nothing(parts, claimant),
            discard=lambda messages: self._put_back(claimant, messages),
        )
        messages: list[Inbound] = await self._claimed(operation, claimant)
        if not messages:
            await self._bury_neighbours(parts)
        return messages

    async def _claimed(self, operation: Operation, claimant: Claimant) -> Any:
        future = self._require().commit.submit(operation)
        try:
            await future
        except asyncio.CancelledError:
            # Cancelled between the commit and this coroutine: nobody will ever settle these.
            if not future.cancelled() and operation.error is None:
                self._put_back(claimant, operation.result)
            raise
        if operation.error is not None:
            raise map_sqlite_error(operation.error, self._path)
        return operation.result

    def _put_back(self, claimant: Claimant, messages: Sequence[Inbound]) -> None:
        parts = self._parts
        if messages and parts is not None:
            try:
                parts.commit.submit(self._releasing(parts, claimant, messages))
            except Closed:
                return  # closing returns them

    def _register(self, tx: Transaction, parts: _Open, group: Group, owner: str) -> None:
        if (group.id, owner) not in parts.consumers:
            tx.connection.execute(
                "INSERT OR IGNORE INTO consumer VALUES (?, ?, ?)", (group.id, owner, parts.neighbours.my_number)
            )
            tx.after.append(lambda: parts.consumers.add((group.id, owner)))

    def _nothing(self, parts: _Open, claimant: Claimant) -> list[Inbound] | None:
        """Return () as a list when a claim would find nothing to do, None when it must be tried."""
        catalog = parts.catalog
        group = None if catalog is None else catalog.find(claimant.topic, claimant.group)
        if catalog is None or group is None or group.backfill_next < group.backfill_end:
            return None
        if (group.id, claimant.owner) not in parts.consumers:
            return None
        row = parts.connection.execute(_WAITING, (group.id, group.topic.id)).fetchone()
        version, waiting, *times = row
        event = min((time for time in times if time is not None), default=None)
        if version != catalog.version or waiting or (event is not None and event <= self._clock.time()):
            return None
        self._events[claimant.topic, claimant.group] = event
        return []

    def _note_event(self, tx: Transaction, group: Group, claimant: Claimant, *, complete: bool) -> None:
        """Remember when something happens in the group next; only looked up when there is no more to claim now."""
        key = (claimant.topic, claimant.group)
        if complete:
            times = tx.connection.execute(_WAITING, (group.id, group.topic.id)).fetchone()[2:]
            event = min((time for time in times if time is not None), default=None)
        else:
            known = self._events.get(key)
            until = tx.now + claimant.lease
            event = until if known is None else min(known, until)
        tx.after.append(lambda: self._events.__setitem__(key, event))

    async def _bury_neighbours(self, parts: _Open) -> None:
        """Return what dead stores had, when it is time to look for some."""
        for grave in parts.neighbours.find_dead(self._clock, parts.connection, parts.commit.mutex):
            returned = False
            try:
                number, marks = grave.number, grave.marks()
                await self._do(
                    Operation(lambda tx: groups.bury(tx, number, lambda store: marks), durable=False)  # noqa: B023
                )
                returned = True
            finally:
                grave.close(remove=returned)

    def next_event(self, topic: str, group: str) -> float | None:
        return self._events.get((topic, group))

    async def claim_dead(self, claimant: Claimant, limit: int, ids: frozenset[str] | None) -> list[Inbound]:
        parts = self._require()
        limit = min(limit, MAX_CLAIM)

        def apply(tx: Transaction) -> list[Inbound]:
            tx.flush()
            group = tx.catalog.group(claimant.topic, claimant.group)
            leases.expire(tx, group, parts.neighbours.marks(parts.marks))
            return leases.claim_dead(tx, group, claimant, parts.neighbours.my_number, limit, ids)

        operation = Operation(
            apply, durable=False, weight=limit, discard=lambda messages: self._put_back(claimant, messages)
        )
        messages: list[Inbound] = await self._claimed(operation, claimant)
        return messages

    # --- settling -----------------------------------------------------------------------------------------------

    async def ack(self, claimant: Claimant, messages: Sequence[Inbound]) -> int:
        parts = self._require()
        tokens = [message.token for message in messages]

        def apply(tx: Transaction) -> int:
            stale = leases.ack(tx, tokens)
            tx.after.append(lambda: _clear_marks(parts, tokens))
            if claimant.ordered:
                self._unlocked(tx, claimant)
            return stale

        stale: int = await self._do(Operation(apply, durable=False, weight=1 + len(tokens) // 4))
        return stale

    @staticmethod
    def _unlocked(tx: Transaction, claimant: Claimant) -> None:
        """Wake the other consumers of an ordered group: a key may be free now."""
        group = tx.catalog.find(claimant.topic, claimant.group)
        if group is not None:
            tx.woken.add(group.id)

    async def release(self, claimant: Claimant, messages: Sequence[Inbound]) -> int:
        stale: int = await self._do(self._releasing(self._require(), claimant, messages))
        return stale

    @staticmethod
    def _releasing(parts: _Open, claimant: Claimant, messages: Sequence[Inbound]) -> Operation:
        tokens = [message.token for message in messages]

        def apply(tx: Transaction) -> int:
            tx.after.append(lambda: _clear_marks(parts, tokens))
            return leases.release(tx, tx.catalog.find(claimant.topic, claimant.group), tokens)

        return Operation(apply, durable=False, weight=1 + len(tokens) // 2)

    async def extend(self, claimant: Claimant, messages: Sequence[Inbound], until: float) -> int:
        tokens = [message.token for message in messages]
        stale: int = await self._do(Operation(lambda tx: leases.extend(tx, tokens, until), durable=False))
        return stale

    async def settle_with(self, claimant: Claimant, message: Inbound, outbounds: Sequence[Outbound]) -> None:
        parts = self._require()
        token = message.token

        def apply(tx: Transaction) -> None:
            if not leases.is_live(tx, token):
                return
            for outbound in outbounds:
                fault = tx.fault(outbound)
                if fault is not None:
                    raise fault
            for outbound in outbounds:
                tx.put(outbound)
            leases.ack(tx, [token])
            tx.after.append(lambda: _clear_marks(parts, [token]))
            if claimant.ordered:
                self._unlocked(tx, claimant)

        size = sum(len(outbound.body) for outbound in outbounds)
        operation = Operation(apply, durable=True, weight=1 + len(outbounds), size=size)
        await parts.commit.submit(operation)
        if operation.error is not None:
            raise map_send_error(operation.error, self._path)

    def mark_started(self, claimant: Claimant, message: Inbound) -> None:
        token = message.token
        self._require().marks.mark(token[0], token[3])

    # --- consumers ----------------------------------------------------------------------------------------------

    def subscribe(self, topic: str, group: str, wake: Callable[[], None]) -> Callable[[], None]:
        parts = self._require()
        loop = asyncio.get_running_loop()
        subscriber = Subscriber(wake)
        with self._guard:
            audience = self._audiences.setdefault((topic, group), Audience())
            audience.members = (*audience.members, subscriber)
            if loop not in parts.readers:
                loop.add_reader(parts.socket.fileno(), self._on_datagram, parts)
            parts.readers[loop] = parts.readers.get(loop, 0) + 1

        def unsubscribe() -> None:
            with self._guard:
                if subscriber not in audience.members:
                    return
                audience.members = tuple(member for member in audience.members if member is not subscriber)
                parts.readers[loop] -= 1
                if not parts.readers[loop]:
                    del parts.readers[loop]
                    if self._parts is parts and not loop.is_closed():
                        loop.remove_reader(parts.socket.fileno())

        return unsubscribe

    def _on_datagram(self, parts: _Open) -> None:
        numbers = parts.socket.read()
        if numbers is None or numbers:
            self._wake(numbers)

    async def attach(self, topic: str | None, owner: str) -> tuple[str, str]:
        place = INBOXES if topic is None else topic
        name = f"bk.{'inbox' if topic is None else 'broadcast'}.{owner}"
        number = self._require().neighbours.my_number
        await self._do(Operation(lambda tx: groups.attach(tx, place, name, owner, number), durable=False))
        return place, name

    async def detach(self, owner: str) -> None:
        parts = self._require()

        def apply(tx: Transaction) -> None:
            tx.flush()
            claims = groups.detach(tx, owner)
            tx.after.append(lambda: forget(claims))

        def forget(claims: Sequence[int]) -> None:
            parts.consumers = {entry for entry in parts.consumers if entry[1] != owner}
            if parts.marks:
                for number in claims:
                    parts.marks.forget_claim(number)

        await self._do(Operation(apply, durable=False))

    # --- management ---------------------------------------------------------------------------------------------

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        # In steps of their own: each is a short transaction, however much is due or was stored before.
        while await self._do(Operation(lambda tx: groups.promote(tx, topic.name), durable=False)):
            continue
        await self._do(Operation(lambda tx: groups.declare(tx, topic, group), durable=True))
        age = self._settings.retention_age
        if group is not None and group.start == "earliest":
            while await self._do(Operation(lambda tx: groups.backfill(tx, topic.name, group.name, age), durable=False)):
                continue

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        await self._do(Operation(lambda tx: tx.catalog.verify(topic, group), durable=False))

    async def delete(self, topic: str, group: str | None) -> None:
        await self._do(Operation(lambda tx: groups.delete(tx, topic, group), durable=True))

    async def purge(self, topic: str, group: str) -> int:
        parts = self._require()
        age = self._settings.retention_age
        place = Claimant(topic=topic, group=group, owner="")
        last: int | None = None
        total = 0
        while True:
            until = last

            def apply(tx: Transaction) -> tuple[int, int]:
                tx.flush()
                if until is None:  # noqa: B023
                    groups.refresh(tx, place, age, parts.neighbours.marks(parts.marks))
                end = tx.seq if until is None else until  # noqa: B023
                return groups.purge(tx, tx.catalog.group(topic, group), end), end

            removed: int
            removed, last = await self._do(Operation(apply, durable=False, weight=MAX_WEIGHT))
            total += removed
            if removed < groups.STEP:
                return total

    async def stats(self, topic: str, group: str) -> GroupStats:
        parts = self._require()
        place = Claimant(topic=topic, group=group, owner="")
        marks = parts.neighbours.marks(parts.marks)
        age = self._settings.retention_age

        def apply(tx: Transaction) -> int:
            tx.flush()
            groups.refresh(tx, place, age, marks)
            return tx.catalog.group(topic, group).id

        number: int = await self._do(Operation(apply, durable=False))
        audience = self._audiences.get((topic, group))
        here = len(audience.members) if audience is not None else 0
        mine = parts.neighbours.my_number
        now = self._clock.time()
        return await self._read(lambda connection: groups.stats(connection, topic, group, number, now, mine, here))

    async def browse(self, topic: str, group: str, limit: int) -> list[Inbound]:
        found: Group = await self._do(Operation(lambda tx: tx.catalog.group(topic, group), durable=False))
        return await self._read(lambda connection: leases.browse(connection, found, limit))


def _parts(messages: Sequence[Outbound]) -> list[Sequence[Outbound]]:
    """Split what is too much for one transaction."""
    if len(messages) <= MAX_WEIGHT and sum(len(message.body) for message in messages) <= MAX_BYTES:
        return [messages] if messages else []
    parts: list[Sequence[Outbound]] = []
    part: list[Outbound] = []
    size = 0
    for message in messages:
        size += len(message.body)
        if part and (len(part) >= MAX_WEIGHT or size > MAX_BYTES):
            parts.append(part)
            part, size = [], len(message.body)
        part.append(message)
    parts.append(part)
    return parts


def _clear_marks(parts: _Open, tokens: Sequence[leases.Token]) -> None:
    if parts.marks:
        for token in tokens:
            parts.marks.clear(token[0], token[3])


def _leak_in_child(parts: _Open) -> None:
    """Let a forked child drop the descriptors that would keep this process alive in the eyes of its neighbours.

    The SQLite connection is leaked there on purpose: closing it would drop locks and write to the parent's file.
    """
    reference = weakref.ref(parts)

    def in_child() -> None:
        inherited = reference()
        if inherited is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited.connection))
            inherited.lock.close()
            inherited.marks.abandon()
            inherited.socket.abandon()

    os.register_at_fork(after_in_child=in_child)
