"""The store on a file: one SQLite database, shared by any number of processes of one machine."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from brokerkit.embedded import groups, leases
from brokerkit.embedded.catalog import INBOXES, Group
from brokerkit.embedded.operation import MAX_WEIGHT, Operation, Sending, split
from brokerkit.embedded.refusals import verify_shape
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.sqlite_errors import map_send_error, map_sqlite_error
from brokerkit.embedded.store import Claimant
from brokerkit.embedded.storefile import StoreFile
from brokerkit.embedded.transaction import Transaction
from brokerkit.errors import BrokerError, BrokerUnavailable, Closed, PayloadError
from brokerkit.spi import Clock, GroupSpec, GroupStats, Inbound, Outbound, TopicSpec, wait

__all__ = ["SqliteStore"]

#: Most messages that one claim takes.
MAX_CLAIM = 500
#: Seconds between two tries to open a file that is locked.
_RETRY_OPEN = 0.01

_WAITING = (
    "SELECT (SELECT catalog FROM meta), EXISTS (SELECT 1 FROM ready WHERE group_id = ?1),"
    " (SELECT min(due) FROM later WHERE group_id = ?1), (SELECT min(due) FROM scheduled WHERE topic_id = ?2),"
    " (SELECT min(until) FROM claim WHERE group_id = ?1)"
)


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
        self._file: StoreFile | None = None
        #: When something happens next in a group, by (topic, group).
        self._events: dict[tuple[str, str], float | None] = {}

    # --- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        deadline = self._clock.monotonic() + self._timeout
        while True:
            with self._guard:
                if self._file is not None:
                    self._file.check_process()
                    self._opened += 1
                    return
                try:
                    self._file = StoreFile(self._path, self._settings, self._clock, self._timeout)
                    self._opened = 1
                    return
                except BlockingIOError as error:
                    if self._clock.monotonic() >= deadline:
                        raise BrokerUnavailable(
                            f"{self._path} was locked by another process for more than {self._timeout:g} s",
                            backend="embedded",
                        ) from error
            await self._clock.sleep(_RETRY_OPEN)

    async def close(self) -> None:
        with self._guard:
            file = self._file
            if file is None:
                return
            file.check_process()
            self._opened -= 1
            if self._opened:
                return
            # From here on a new `open` makes a new one.
            self._file = None
        await file.close()

    def _require(self) -> StoreFile:
        file = self._file
        if file is None:
            raise Closed(f"{self._path} is not open", backend="embedded")
        file.check_process()
        return file

    @property
    def lock_waits(self) -> deque[float]:
        """Seconds that the latest 2,000 transactions of this store waited for the file; for benchmarks."""
        return self._require().lock.waits

    @property
    def commits(self) -> int:
        """How many transactions this store committed since it was opened; for benchmarks."""
        return self._require().writer.commits

    def sweep(self) -> None:
        """Do now what the background does in time: retention, deleted groups, free space.  Blocks."""
        self._require().janitor.sweep(thorough=True)

    async def ping(self, timeout: float) -> None:
        # A transaction that changes nothing takes the lock, which says whether a send would get it; it writes no page.
        future = self._require().writer.submit(Operation(lambda tx: None, durable=False))
        try:
            if not await wait(self._clock, future, timeout):
                raise BrokerUnavailable(
                    f"{self._path} could not be written to for {timeout:g} s: somebody else keeps it locked, "
                    "or the disk is slow",
                    backend="embedded",
                )
        finally:
            future.cancel()
        error = future.result()
        if error is not None:
            raise map_sqlite_error(error, self._path)

    # --- sending ------------------------------------------------------------------------------------------------

    async def send(self, messages: Sequence[Outbound]) -> list[BrokerError | None]:
        writer = self._require().writer
        if len(messages) == 1:
            operation = Sending(messages, len(messages[0].body))
            error = await writer.submit(operation)
            if error is None:
                stored: list[BrokerError | None] = operation.result
                return stored
            return await self._outcomes(operation, error)
        parts = split(messages)
        futures = [writer.submit(part) for part in parts]
        outcomes: list[BrokerError | None] = []
        try:
            for future, part in zip(futures, parts, strict=True):
                outcomes += await self._outcomes(part, await future)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        return outcomes

    async def _outcomes(self, sending: Sending, error: BaseException | None) -> list[BrokerError | None]:
        if error is None:
            outcomes: list[BrokerError | None] = sending.result
            return outcomes
        if isinstance(error, Closed):
            raise error
        messages = sending.messages
        if len(messages) > 1 and isinstance(map_send_error(error, self._path), PayloadError):
            # One of them cannot be stored; it must not take the others with it.
            return [outcome for message in messages for outcome in await self.send([message])]
        return [map_send_error(error, self._path) for _ in messages]

    # --- claiming -----------------------------------------------------------------------------------------------

    async def claim(self, claimant: Claimant, limit: int) -> list[Inbound]:
        file = self._require()
        limit = min(limit, MAX_CLAIM)
        if limit <= 0:
            return []

        def apply(tx: Transaction) -> list[Inbound]:
            tx.flush()
            group = groups.refresh(tx, claimant, self._settings.retention_age, file.marks)
            if group is None:
                return []
            messages = leases.claim(tx, group, claimant, file.neighbours.my_number, limit)
            self._register(tx, file, group, claimant.owner)
            self._note_event(tx, group, claimant, complete=len(messages) < limit)
            return messages

        operation = Operation(
            apply,
            durable=False,
            weight=limit,
            probe=lambda: self._nothing(file, claimant),
            discard=lambda messages: self._put_back(claimant, messages),
        )
        messages: list[Inbound] = await self._claimed(operation, claimant)
        if not messages:
            await file.bury_neighbours()
        return messages

    async def _claimed(self, operation: Operation, claimant: Claimant) -> Any:
        future = self._require().writer.submit(operation)
        try:
            error = await future
        except asyncio.CancelledError:
            # Cancelled between the commit and this coroutine: nobody will ever settle these.
            if not future.cancelled() and future.result() is None:
                self._put_back(claimant, operation.result)
            raise
        if error is not None:
            raise map_sqlite_error(error, self._path)
        return operation.result

    def _put_back(self, claimant: Claimant, messages: Sequence[Inbound]) -> None:
        file = self._file
        if messages and file is not None:
            try:
                file.writer.submit(self._releasing(file, claimant, messages))
            except Closed:
                return  # closing returns them

    def _register(self, tx: Transaction, file: StoreFile, group: Group, owner: str) -> None:
        if (group.id, owner) not in file.consumers:
            tx.connection.execute(
                "INSERT OR IGNORE INTO consumer VALUES (?, ?, ?)", (group.id, owner, file.neighbours.my_number)
            )
            tx.after.append(lambda: file.consumers.add((group.id, owner)))

    def _nothing(self, file: StoreFile, claimant: Claimant) -> list[Inbound] | None:
        """Return () as a list when a claim would find nothing to do, None when it must be tried."""
        catalog = file.catalog
        group = None if catalog is None else catalog.find(claimant.topic, claimant.group)
        if catalog is None or group is None or group.backfill_next < group.backfill_end:
            return None
        if (group.id, claimant.owner) not in file.consumers:
            return None
        row = file.writer.connection.execute(_WAITING, (group.id, group.topic.id)).fetchone()
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

    def next_event(self, topic: str, group: str) -> float | None:
        return self._events.get((topic, group))

    async def claim_dead(self, claimant: Claimant, limit: int, ids: frozenset[str] | None) -> list[Inbound]:
        file = self._require()
        limit = min(limit, MAX_CLAIM)

        def apply(tx: Transaction) -> list[Inbound]:
            tx.flush()
            group = tx.catalog.group(claimant.topic, claimant.group)
            leases.expire(tx, group, file.marks)
            return leases.claim_dead(tx, group, claimant, file.neighbours.my_number, limit, ids)

        operation = Operation(
            apply, durable=False, weight=limit, discard=lambda messages: self._put_back(claimant, messages)
        )
        messages: list[Inbound] = await self._claimed(operation, claimant)
        return messages

    # --- settling -----------------------------------------------------------------------------------------------

    async def ack(self, claimant: Claimant, messages: Sequence[Inbound]) -> int:
        file = self._require()
        tokens = [message.token for message in messages]

        def apply(tx: Transaction) -> int:
            stale = leases.ack(tx, tokens)
            tx.after.append(lambda: _clear_marks(file, tokens))
            if claimant.ordered:
                self._unlocked(tx, claimant)
            return stale

        stale: int = await self._require().do(Operation(apply, durable=False, weight=1 + len(tokens) // 4))
        return stale

    @staticmethod
    def _unlocked(tx: Transaction, claimant: Claimant) -> None:
        """Wake the other consumers of an ordered group: a key may be free now."""
        group = tx.catalog.find(claimant.topic, claimant.group)
        if group is not None:
            tx.woken.add(group.id)

    async def release(self, claimant: Claimant, messages: Sequence[Inbound]) -> int:
        stale: int = await self._require().do(self._releasing(self._require(), claimant, messages))
        return stale

    @staticmethod
    def _releasing(file: StoreFile, claimant: Claimant, messages: Sequence[Inbound]) -> Operation:
        tokens = [message.token for message in messages]

        def apply(tx: Transaction) -> int:
            tx.after.append(lambda: _clear_marks(file, tokens))
            return leases.release(tx, tx.catalog.find(claimant.topic, claimant.group), tokens)

        return Operation(apply, durable=False, weight=1 + len(tokens) // 2)

    async def extend(self, claimant: Claimant, messages: Sequence[Inbound], until: float) -> int:
        tokens = [message.token for message in messages]
        stale: int = await self._require().do(Operation(lambda tx: leases.extend(tx, tokens, until), durable=False))
        return stale

    async def settle_with(self, claimant: Claimant, message: Inbound, outbounds: Sequence[Outbound]) -> None:
        file = self._require()
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
            tx.after.append(lambda: _clear_marks(file, [token]))
            if claimant.ordered:
                self._unlocked(tx, claimant)

        size = sum(len(outbound.body) for outbound in outbounds)
        operation = Operation(apply, durable=True, weight=1 + len(outbounds), size=size)
        error = await file.writer.submit(operation)
        if error is not None:
            raise map_send_error(error, self._path)

    def mark_started(self, claimant: Claimant, message: Inbound) -> None:
        token = message.token
        try:
            self._require().starts.mark(token[0], token[3])
        except OSError as error:
            raise map_sqlite_error(error, self._path) from error

    # --- consumers ----------------------------------------------------------------------------------------------

    def subscribe(self, topic: str, group: str, wake: Callable[[], None]) -> Callable[[], None]:
        return self._require().subscribe(topic, group, wake)

    async def attach(self, topic: str | None, owner: str) -> tuple[str, str]:
        place = INBOXES if topic is None else topic
        name = f"bk.{'inbox' if topic is None else 'broadcast'}.{owner}"
        number = self._require().neighbours.my_number
        await self._require().do(Operation(lambda tx: groups.attach(tx, place, name, owner, number), durable=False))
        return place, name

    async def detach(self, owner: str) -> None:
        file = self._require()

        def apply(tx: Transaction) -> None:
            tx.flush()
            claims = groups.detach(tx, owner)
            tx.after.append(lambda: forget(claims))

        def forget(claims: Sequence[int]) -> None:
            file.consumers = {entry for entry in file.consumers if entry[1] != owner}
            for key in [key for key in self._events if key[1].endswith(owner)]:
                del self._events[key]  # of a private group, which is gone
            if file.starts:
                for number in claims:
                    file.starts.forget_claim(number)

        await self._require().do(Operation(apply, durable=False))

    # --- management ---------------------------------------------------------------------------------------------

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        # In steps of their own: each is a short transaction, however much is due or was stored before.
        while await self._require().do(Operation(lambda tx: groups.promote(tx, topic.name), durable=False)):
            continue
        await self._require().do(Operation(lambda tx: groups.declare(tx, topic, group), durable=True))
        age = self._settings.retention_age
        if group is not None and group.start == "earliest":
            name = group.name
            while await self._require().do(
                Operation(lambda tx: groups.backfill(tx, topic.name, name, age), durable=False)
            ):
                continue

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        await self._require().do(Operation(lambda tx: verify_shape(tx.catalog.topics, topic, group), durable=False))

    async def delete(self, topic: str, group: str | None) -> None:
        await self._require().do(Operation(lambda tx: groups.delete(tx, topic, group), durable=True))

    async def purge(self, topic: str, group: str) -> int:
        file = self._require()
        age = self._settings.retention_age
        place = Claimant(topic=topic, group=group, owner="")
        last: int | None = None
        total = 0
        while True:
            until = last

            def apply(tx: Transaction) -> tuple[int, int]:
                tx.flush()
                if until is None:  # noqa: B023
                    groups.refresh(tx, place, age, file.marks)
                end = tx.seq if until is None else until  # noqa: B023
                return groups.purge(tx, tx.catalog.group(topic, group), end), end

            removed: int
            removed, last = await self._require().do(Operation(apply, durable=False, weight=MAX_WEIGHT))
            total += removed
            if removed < groups.STEP:
                return total

    async def stats(self, topic: str, group: str) -> GroupStats:
        file = self._require()
        place = Claimant(topic=topic, group=group, owner="")
        marks = file.marks
        age = self._settings.retention_age

        def apply(tx: Transaction) -> int:
            tx.flush()
            groups.refresh(tx, place, age, marks)
            return tx.catalog.group(topic, group).id

        number: int = await self._require().do(Operation(apply, durable=False))
        here = file.subscribers(topic, group)
        mine = file.neighbours.my_number
        now = self._clock.time()
        return await file.read(lambda connection: groups.stats(connection, topic, group, number, now, mine, here))

    async def browse(self, topic: str, group: str, limit: int) -> list[Inbound]:
        file = self._require()
        found: Group = await file.do(Operation(lambda tx: tx.catalog.group(topic, group), durable=False))
        return await file.read(lambda connection: leases.browse(connection, found, limit))


def _clear_marks(file: StoreFile, tokens: Sequence[leases.Token]) -> None:
    if file.starts:
        for token in tokens:
            file.starts.clear(token[0], token[3])
