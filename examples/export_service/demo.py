"""One run of the demo: start workers, submit, kill one worker on the way, account for every task."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from brokerkit import BrokerError, ConfigurationError, ExportManager, TopicNotFound, initialize
from brokerkit.state_files import WorkerState
from brokerkit.url import BrokerUrl
from examples.export_service.crew import Crew, CrewFailed, handlers_elsewhere
from examples.export_service.interrupts import Interrupts
from examples.export_service.ledger import Figures, Ledger
from examples.export_service.options import Options, absolute_url, new_folder, options_of
from examples.export_service.places import DOCUMENTS, JOURNAL, WORKERS_LOG, here, shown
from examples.export_service.report import Course, Report
from examples.export_service.show import Show
from examples.export_service.tasks import batches, read_tasks

__all__ = ["Demo", "run"]

#: Exit codes.
_FAILED, _WRONG, _INTERRUPTED = 1, 2, 130

#: The share of the tasks that is settled when a worker is killed.
_MIDDLE = 0.4
#: Seconds between two looks at the files, and at the dead letters.
_LOOK, _LOOK_AT_DEAD = 0.15, 1.0
#: Seconds that the broker has to become empty once every task is settled: what came twice is then seen too.
_QUIET = 15.0
_ALL = 100_000
#: Bytes on the disk below which nothing can be expected to work.
_LEAST_FREE = 1 << 20
#: Columns where nobody says how wide a line may be.
_PIPE_WIDTH = 120
#: Seconds before a failed task is tried again at first: shorter than in earnest, somebody is watching.
_RETRY_DELAY = "0.5"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code.  What goes wrong is said in a sentence."""
    options = options_of(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a bar gets question marks
    console = Console()
    show = Show(console if console.is_terminal else Console(width=_PIPE_WIDTH))
    interrupts = Interrupts()
    with interrupts.listening():
        demo = Demo(options, show, interrupts)
        try:
            try:
                return demo.run()
            finally:
                show.end()
                demo.close()
        except KeyboardInterrupt:
            demo.close()  # it may have come in the middle of that
            return demo.interrupted()
        except (BrokerError, CrewFailed, OSError) as error:
            show.fail(f"The demo ended: {error}")
            return _WRONG if isinstance(error, ConfigurationError) else _FAILED
        finally:
            demo.abandon()
            if show.gone:
                # What Python still holds for a reader that is gone would raise once more at its end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Demo:
    """One run, in a folder of its own."""

    def __init__(self, options: Options, show: Show, interrupts: Interrupts) -> None:
        self._options = options
        self._show = show
        self._interrupts = interrupts
        self._manager: ExportManager | None = None
        self._crew: Crew | None = None
        self._ledger: Ledger | None = None
        self._folder: Path | None = None
        self._killed: WorkerState | None = None
        self._successor: WorkerState | None = None
        #: What the killed worker had begun and not ended.
        self._orphans: set[str] = set()
        self._others_dead = 0
        self._next_look_at_dead = 0.0

    def run(self) -> int:
        """Do it all; return the exit code."""
        tasks = read_tasks()
        manager, url = self._connect()
        folder = self._make_folder()
        ledger = self._ledger = Ledger(folder / DOCUMENTS, folder / JOURNAL)
        crew = self._crew = Crew(f"demo-{os.getpid()}", self._options.processes, folder / WORKERS_LOG)
        self._start(crew, manager, url, folder, len(tasks))
        self._submit(manager, ledger, tasks)
        in_time = self._watch(manager, ledger, crew, len(tasks))
        self._stop()
        ledger.look()
        self._look_at_dead(manager, ledger)
        course = Course(
            url=url,
            folder=folder,
            topic=manager.topic,
            group=manager.consumer_group,
            killed=self._killed,
            successor=self._successor,
            orphans=frozenset(self._orphans),
            others_dead=self._others_dead,
            deadline=None if in_time else self._options.deadline,
        )
        return self._report(Report(ledger, course))

    def _report(self, report: Report) -> int:
        report.show(self._show)
        if self._options.picture is not None:
            self._show.picture(self._options.picture)
        if self._options.json is not None:
            self._options.json.write_text(json.dumps(report.account(), indent=2), encoding="utf-8")
        return _FAILED if report.problems else 0

    def close(self) -> None:
        """Leave no process behind."""
        if self._crew is not None:
            self._stop()
        if self._manager is not None:
            self._manager.close()

    def abandon(self) -> None:
        """End what `close` did not come to, whatever kept it from that."""
        if self._crew is not None:
            self._crew.kill_all()

    def interrupted(self) -> int:
        """Say where everything is after Ctrl-C."""
        if self._ledger is None or self._folder is None or not self._ledger.submitted:
            self._show.say("\nStopped before anything was submitted; no worker runs any more.")
            return _INTERRUPTED
        ledger = self._ledger
        ledger.look()
        log, documents = here(self._folder / WORKERS_LOG), here(self._folder / DOCUMENTS)
        self._show.say(
            f"\nStopped; no worker runs any more, and {log} has what they said.\n"
            f"{len(ledger.done)} of {len(ledger.submitted)} submitted tasks are documents in {documents}.\n"
            f"The others are in the broker: the next make demo with the same broker goes on with them."
        )
        return _INTERRUPTED

    # --- the beginning --------------------------------------------------------------------------------------------

    def _connect(self) -> tuple[ExportManager, BrokerUrl]:
        options = self._options
        if options.broker.lower().startswith("sqlite:"):
            self._make(options.out)
        manager = self._manager = initialize({"url": options.broker})
        url = absolute_url(options.broker, manager.settings)
        rivals = handlers_elsewhere(str(url), manager.topic, manager.consumer_group)
        if rivals:
            pids = " ".join(map(str, rivals))
            raise ConfigurationError(
                f"other workers handle the export tasks of this broker already and would take those of the demo; stop "
                f"them (kill {pids}), or give the demo another place: make demo OUT=/some/folder"
            )
        manager.connect()
        return manager, url

    def _make_folder(self) -> Path:
        self._make(self._options.out)
        try:
            self._folder = new_folder(self._options.out)
        except OSError as error:
            raise _unwritable(self._options.out, error) from None
        return self._folder

    @staticmethod
    def _make(folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None

    def _start(self, crew: Crew, manager: ExportManager, url: BrokerUrl, folder: Path, count: int) -> None:
        say = self._show.say
        say(f"[bold]brokerkit demo[/bold]: {count} export tasks become documents in {here(folder / DOCUMENTS)}")
        say(f"broker   {escape(shown(url))}")
        self._tell_of_earlier_runs(manager)
        environment = {
            "EXPORT_RETRY_DELAY": _RETRY_DELAY,
            **os.environ,
            "BROKERKIT_URL": url.reveal(),
            "EXPORT_FOLDER": str(folder),
        }
        with self._interrupts.held():
            crew.start(environment)
        say(f"workers  {self._options.processes} processes under a supervisor; they write to {here(crew.log)}")
        crew.wait_until_ready()
        say(f"ready    pid {', '.join(str(one.pid) for one in crew.workers())}")

    def _tell_of_earlier_runs(self, manager: ExportManager) -> None:
        try:
            stats = manager.monitor.stats(manager.topic, manager.consumer_group)
        except TopicNotFound:
            return
        waiting = (stats.ready or 0) + (stats.unsettled or 0) + (stats.delayed or 0)
        if waiting:
            self._show.say(f"earlier  {waiting} tasks of a run that was stopped wait in the broker: they are made too")
        if stats.dead:
            self._show.say(f"earlier  {stats.dead} dead letters of earlier runs are in the broker, and are not counted")

    def _submit(self, manager: ExportManager, ledger: Ledger, tasks: list[dict[str, Any]]) -> None:
        began = time.monotonic()
        for batch in batches(tasks):
            at = time.time()
            with self._interrupts.held():
                ids = manager.send_batch_export_tasks(batch.template_id, batch.data, batch.output_format)
                ledger.submit(ids, batch.template_id, batch.output_format, at)
        self._show.say(f"sent     {len(ledger.submitted)} tasks in {time.monotonic() - began:.2f} s")

    # --- the middle -----------------------------------------------------------------------------------------------

    def _watch(self, manager: ExportManager, ledger: Ledger, crew: Crew, total: int) -> bool:
        """Return whether every task was settled in time."""
        deadline = time.monotonic() + self._options.deadline
        quiet_until: float | None = None
        self._show.begin()
        while True:
            crew.check()
            if self._show.gone:
                raise BrokenPipeError("nobody reads what it says")
            ledger.look()
            self._look_at_dead(manager, ledger)
            figures = ledger.figures()
            self._show.progress(figures, total)
            self._kill_or_greet(crew, ledger, figures, total)
            now = time.monotonic()
            if not ledger.open and self._successor is not None:
                quiet_until = quiet_until or now + _QUIET
                if now > quiet_until or self._is_quiet(manager):
                    break
            if now > deadline:
                break
            time.sleep(_LOOK)
        self._show.end()
        return not ledger.open and self._successor is not None

    def _look_at_dead(self, manager: ExportManager, ledger: Ledger) -> None:
        if time.monotonic() < self._next_look_at_dead and ledger.open:
            return
        self._next_look_at_dead = time.monotonic() + _LOOK_AT_DEAD
        if shutil.disk_usage(self._options.out).free < _LEAST_FREE:
            raise OSError(
                f"the disk of {self._options.out} is full; make room and start again: what was sent waits in the broker"
            )
        self._others_dead = ledger.bury(manager.admin.dead_letters(manager.topic, manager.consumer_group, _ALL))

    def _is_quiet(self, manager: ExportManager) -> bool:
        lag = manager.monitor.lag(manager.topic, manager.consumer_group)
        return not (lag.ready or lag.unsettled or lag.delayed)

    def _kill_or_greet(self, crew: Crew, ledger: Ledger, figures: Figures, total: int) -> None:
        """Kill a worker in the middle of its work, once; then wait for the one that takes its place."""
        if self._killed is None:
            if figures.done + figures.dead < total * _MIDDLE and ledger.open:
                return
            busy = max(crew.workers(), key=lambda one: len(ledger.in_work.get(one.pid, ())), default=None)
            if busy is None or (not ledger.in_work.get(busy.pid) and ledger.open):
                return
            crew.kill(busy)
            self._killed = busy
            ledger.look()
            self._orphans = set(ledger.in_work.get(busy.pid, ()))
            self._show.remember_bars(figures, total)
            self._show.say(
                f"[bold red]killed[/bold red]   worker {busy.id} (pid {busy.pid}) with SIGKILL, "
                f"{len(self._orphans)} documents in its hands"
            )
        elif self._successor is None:
            killed = self._killed
            found = [one for one in crew.workers() if one.id == killed.id and one.pid != killed.pid]
            if found:
                self._successor = found[0]
                self._show.say(
                    f"[bold green]started[/bold green]  {killed.id} again (pid {found[0].pid}), by its supervisor"
                )

    # --- the end --------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        crew = self._crew
        if crew is None:
            return
        seen = self._interrupts.count
        if seen:
            self._show.end()
            self._show.say("\nStopping the workers; they finish what they have begun. Once more stops without waiting.")
        for _ in crew.stop():
            if self._interrupts.count > seen:
                seen = self._interrupts.count
                if seen > 2:
                    crew.kill_all()
                else:
                    crew.hurry()
        # Not earlier: what interrupts an ordinary stop leaves the rest of it to the next call.
        self._crew = None


def _unwritable(folder: Path, error: OSError) -> OSError:
    why = error.strerror or str(error)
    return OSError(f"nothing can be written to {folder} ({why}); name another folder: make demo OUT=/some/folder")
