"""`Report`: the end of a run, for people and as JSON."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from brokerkit import DeadLetter
from brokerkit.state_files import WorkerState
from brokerkit.url import BrokerUrl
from examples.export_service.crew import command_line
from examples.export_service.ledger import Ledger
from examples.export_service.places import DOCUMENTS, here, shown
from examples.export_service.show import Show
from examples.export_service.tasks import HOPELESS

__all__ = ["Course", "Report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What happened in a run besides its tasks."""

    url: BrokerUrl
    folder: Path
    topic: str
    group: str
    #: The worker that was killed, and the one that the supervisor started in its place.
    killed: WorkerState | None
    successor: WorkerState | None
    #: The tasks that the killed worker had begun and not ended.
    orphans: frozenset[str]
    #: Dead letters of earlier runs.
    others_dead: int
    #: The seconds that were not enough; None when all was settled in time.
    deadline: float | None


class Report:
    """The account of one run; ``problems`` says what is not as it should be."""

    def __init__(self, ledger: Ledger, course: Course) -> None:
        self._ledger = ledger
        self._course = course
        self.figures = ledger.figures()
        self._expected_dead = {one for one, task in ledger.submitted.items() if task.template_id == HOPELESS}
        self.problems = self._find_problems()

    def show(self, show: Show) -> None:
        """Tell it."""
        ledger, course = self._ledger, self._course
        show.account(self.figures, expected_dead=len(self._expected_dead), notes={"retried": self._why_retried()})
        show.dead_letters(ledger.dead, ledger.submitted)
        if course.others_dead:
            show.say(f"{course.others_dead} older dead letters, of earlier runs, are in the broker as well.")
        if ledger.others:
            show.say(f"{ledger.others} more documents were made of tasks that an earlier run had left in the broker.")
        for problem in self.problems:
            show.say(f"[bold red]{escape(problem)}[/bold red]")
        show.next_steps("What to try next", self._next_steps())

    def account(self) -> dict[str, Any]:
        """Return it as plain data.  Times are seconds."""
        ledger, course = self._ledger, self._course
        killed = course.killed and {
            "id": course.killed.id,
            "pid": course.killed.pid,
            "in_work": sorted(course.orphans),
            "started_again": course.successor and course.successor.pid,
        }
        return {
            "problems": self.problems,
            "figures": asdict(self.figures),
            "failures": dict(ledger.failures),
            "killed": killed,
            "dead_letters": [_letter(letter) for letter in ledger.dead.values()],
            "earlier_runs": {"dead": course.others_dead, "documents": ledger.others},
            "broker": str(course.url),
            "folder": str(course.folder),
        }

    def _find_problems(self) -> list[str]:
        figures = self.figures
        if self._course.deadline is not None:
            return [
                f"After {self._course.deadline:g} s {figures.lost} tasks are neither done nor dead; the log of the "
                f"workers says what they were at. A slow machine may need more time: --deadline 900"
            ]
        problems = []
        if figures.lost:
            problems.append(f"{figures.lost} tasks are lost.")
        if figures.doubled:
            problems.append(f"{figures.doubled} finished files were replaced.")
        if self._ledger.dead.keys() != self._expected_dead:
            problems.append(f"Not exactly the tasks of the template {HOPELESS} became dead letters.")
        return problems

    def _why_retried(self) -> str:
        reasons = [f"{count} x {name}" for name, count in sorted(self._ledger.failures.items())]
        if self._course.orphans:
            reasons.append(f"{len(self._course.orphans)} in the hands of the killed worker")
        return ", ".join(reasons)

    def _next_steps(self) -> list[tuple[str, str]]:
        course = self._course
        brokerkit, group = here(Path(command_line())), (course.topic, course.group)
        # A password is not shown: whoever typed it knows it.
        hidden = "" if str(course.url) == course.url.reveal() else "with its password"
        return [
            (shlex.join(["ls", here(course.folder / DOCUMENTS)]), "the documents"),
            (f"export BROKERKIT_URL={shlex.quote(shown(course.url))}", hidden),
            (shlex.join([brokerkit, "status", *group]), ""),
            (shlex.join([brokerkit, "dead", "list", *group]), ""),
            (shlex.join([brokerkit, "dead", "show", *group, "--limit", "1"]), "all about one of them"),
            (shlex.join([brokerkit, "dead", "redrive", *group]), "again, with the next make demo"),
        ]


def _letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "task_id": letter.message.message_id,
        "reason": letter.reason,
        "error_type": letter.error_type,
        "error": letter.error,
        "attempts": letter.attempts,
    }
