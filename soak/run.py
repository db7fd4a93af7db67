"""One soak run: the broker, the processes and the faults together, and the ledger at the end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from brokerkit import AsyncManager
from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError
from brokerkit.testing.process_pool import ProcessPool
from brokerkit.testing.processes import WorkerProcess
from soak.books import Books
from soak.crew import GROUP, ONCE, PLAIN, Order, handle, manager_on, send
from soak.faults import Faults
from soak.journal import CONFIRMED, ENDED, count
from soak.stage import Line, Stage

__all__ = ["Plan", "soak"]

_SENDERS = ("sender-1", "sender-2")
_WORKERS = ("worker-1", "worker-2", "worker-3")
#: Seconds between two lines of progress, and between two looks at the queues.
_PROGRESS, _LOOK = 5.0, 1.0
#: Looks in a row that find all queues empty: what is on its way between two queues is in none.
_LOOKS = 4
#: Share of the messages that are handled while faults strike; the rest shows that nothing was left behind.
_NEARLY = 0.98
#: Seconds that the queues may take to become empty, besides half of the run's own.
_DRAIN = 120.0
_DEAD_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run does."""

    messages: int
    #: Messages a second at most, and the seconds after which sending ends in any case.
    rate: float
    limit: float
    seed: int
    #: Holds the journals.
    folder: Path
    stage: Stage


async def soak(plan: Plan) -> int:
    """Run and print the ledger; return the exit code: 0 all is well, 1 it is not, 130 interrupted."""
    run = _Run(plan)
    loop = asyncio.get_running_loop()
    task = loop.create_task(run.work())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    code = 0
    try:
        await task
    except asyncio.CancelledError:
        code = 130
        run.problems.append("interrupted: what was under way is not handled yet")
    except (BrokerError, AssertionError) as error:
        run.problems.append(f"the run broke off: {error}")
    books = await asyncio.to_thread(Books.read, plan.folder)
    if code == 0 and (run.problems or not books.balanced):
        code = 1
    # Interrupted, what was under way looks like lost and is not.
    run.show(books, evidence=code != 130)
    return code


class _Run:
    """Everything of one run.  ``problems`` is why it is no success, beside the books."""

    def __init__(self, plan: Plan) -> None:
        self.problems: list[str] = []
        self._plan = plan
        self._clock = SystemClock()
        self._began = self._clock.monotonic()
        self._faults: Faults | None = None
        self._pool = ProcessPool()
        self._dead = 0
        self._drained: float | None = None

    async def work(self) -> None:
        """Send, break, heal, drain.  Whatever happens, nothing that was started outlives this."""
        stage = self._plan.stage
        with contextlib.ExitStack() as stack:
            stack.callback(stage.close)
            await asyncio.to_thread(stage.start)
            lines = {name: stack.enter_context(stage.line()) for name in (*_SENDERS, *_WORKERS)}
            await self._declare()
            # Called before the ones above.
            stack.callback(self._keep_what_was_printed)
            stack.enter_context(self._pool)
            await self._traffic(lines)

    def _manager(self) -> AsyncManager:
        return manager_on(self._plan.stage.url, self._plan.stage.settings)

    async def _declare(self) -> None:
        async with self._manager() as manager:
            for topic in (PLAIN, ONCE):
                await manager.admin.declare(topic, GROUP)
        await asyncio.to_thread(self._plan.stage.declared)

    async def _traffic(self, lines: dict[str, Line]) -> None:
        plan, pool, folder = self._plan, self._pool, str(self._plan.folder)
        settings = dict(plan.stage.settings)
        workers = [pool.start(handle, folder, lines[name].url, settings, name=name) for name in _WORKERS]
        for worker in workers:
            worker.supervise()
        senders = []
        for first, name in enumerate(_SENDERS):
            quota = len(range(first, plan.messages, len(_SENDERS)))
            order = Order(first, len(_SENDERS), quota, plan.rate / len(_SENDERS), plan.limit)
            senders.append(pool.start(send, folder, lines[name].url, settings, order, name=name))
        for process in (*workers, *senders):
            await process.started()
        self._began = self._clock.monotonic()
        await self._strike(Faults(plan.seed, plan.stage, lines, workers), senders)
        for sender in senders:
            sender.check()
        if (confirmed := count(plan.folder, CONFIRMED)) < plan.messages:
            self.problems.append(f"{confirmed:,} of {plan.messages:,} messages were confirmed in {plan.limit:,.0f} s")
        await self._drain()
        for worker in workers:
            await worker.stop()
        await self._find_the_dead()

    async def _strike(self, faults: Faults, senders: list[WorkerProcess]) -> None:
        """Let faults strike until everything was sent and nearly everything handled, or until time is up."""
        self._faults = faults
        plan, end = self._plan, self._began + self._plan.limit
        striking = asyncio.get_running_loop().create_task(faults.run(), name="faults")
        over = False
        try:
            while any(sender.alive for sender in senders) or (
                count(plan.folder, ENDED) < _NEARLY * plan.messages and self._clock.monotonic() < end
            ):
                await asyncio.wait((striking,), timeout=_PROGRESS)
                if striking.done():
                    striking.result()
                self._progress()
            over = True
        finally:
            # Interrupted there is nothing left to be repaired for.
            await faults.stop(hurry=not over)
            await asyncio.wait((striking,))

    async def _drain(self) -> None:
        """Return when nothing waits in any queue, delayed or not, or when that takes too long."""
        began = told = self._clock.monotonic()
        limit = _DRAIN + self._plan.limit / 4
        empty = 0
        async with self._manager() as manager:
            while empty < _LOOKS:
                await self._clock.sleep(_LOOK)
                full = await self._plan.stage.waiting(manager)
                empty = 0 if full else empty + 1
                now = self._clock.monotonic()
                if now - told >= _PROGRESS:
                    told = now
                    self._progress()
                if full and now - began > limit:
                    self.problems.append(f"not empty {limit:,.0f} s after the last fault: {'; '.join(full)}")
                    return
        self._drained = self._clock.monotonic() - began

    async def _find_the_dead(self) -> None:
        async with self._manager() as manager:
            for topic in (PLAIN, ONCE):
                letters = await manager.admin.dead_letters(topic, GROUP, limit=1000)
                self._dead += len(letters)
                self.problems += [
                    f"dead letter {letter.id} of {topic.name}: {letter.reason} after {letter.attempts} attempts"
                    for letter in letters[:_DEAD_NAMED]
                ]

    # --- telling ----------------------------------------------------------------------------------------------

    def _keep_what_was_printed(self) -> None:
        folder = self._plan.folder
        for process in self._pool.processes:
            (folder / f"{process.name}.txt").write_text(process.output)
        self._plan.stage.keep_logs(folder)

    def _progress(self) -> None:
        plan, faults = self._plan, self._faults
        confirmed, handled = count(plan.folder, CONFIRMED), count(plan.folder, ENDED)
        strikes, current = ([], []) if faults is None else (faults.diary, faults.current)
        now = f"; now {', '.join(map(str, current))}" if current else ""
        print(
            f"[{self._clock.monotonic() - self._began:5.0f} s] confirmed {confirmed:,} of {plan.messages:,}, "
            f"handled {handled:,} times, {len(strikes)} faults{now}",
            flush=True,
        )

    def show(self, books: Books, *, evidence: bool) -> None:
        """Print the ledger, what went wrong, and with ``evidence`` why the books do not balance."""
        diary = [] if self._faults is None else self._faults.diary
        rows = [*books.rows(), ("dead letters", f"{self._dead:,}", "must be 0")]
        if self._drained is not None:
            rows.append(("queues empty after", f"{self._drained:.1f} s", f"{_LOOKS} looks in a row"))
        workers = [process for process in self._pool.processes if process.name in _WORKERS]
        rows.append(("workers started again", f"{sum(worker.restarts for worker in workers)}", ""))
        failed: Counter[str] = Counter()
        for event in self._pool.events:
            failed.update(event["failed"])
        rows += [(f"failed: {kind}", f"{times:,}", "") for kind, times in failed.most_common()]
        rows.append(("faults", f"{len(diary)}", ""))
        counts = Counter(strike.kind for strike in diary)
        rows += [(f"  {kind}", f"{times}", "") for kind, times in sorted(counts.items())]
        print(f"\nledger of seed {self._plan.seed}, {self._plan.stage.label}")
        for label, figure, remark in rows:
            print(f"  {label:<33}{figure:>10}  {remark}".rstrip())
        chronicle = [f"{strike.began - books.began:8.1f} s  {strike}\n" for strike in diary]
        (self._plan.folder / "faults.txt").write_text("".join(chronicle))
        for line in (*self.problems, *(books.evidence(diary) if evidence else ())):
            print(line)
