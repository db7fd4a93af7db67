"""`Ledger`: what became of the submitted tasks, counted from the files, the journal and the dead letters."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from brokerkit import DeadLetter
from examples.export_service.journal import JournalReader

__all__ = ["Figures", "Ledger", "Submitted"]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A task as it was sent; ``at`` is the instant before the send, in seconds since the epoch."""

    template_id: str
    output_format: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One line of the account.  Durations are seconds; None where nothing was finished."""

    submitted: int
    #: Finished files.
    done: int
    #: Tasks that needed more than one attempt: the first one failed, or ended with its worker.
    retried: int
    #: Tasks that came again although their file was there, and were left alone.
    skipped: int
    #: Tasks that became dead letters.
    dead: int
    #: Submitted tasks with neither a file nor a dead letter.
    lost: int
    #: Finished files that were replaced by another one.
    doubled: int
    #: Documents a second, from the first send to the last file.
    throughput: float | None
    #: From the send of a task to its file: half of them and 95 of 100 were faster.
    median: float | None
    p95: float | None
    #: What a document took its handler.
    render_p95: float | None
    #: Submitted and settled (file or dead letter) tasks by format, and the dead ones among them.
    formats: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


class Ledger:
    """Watches one folder of documents and one journal.

    A finished file is remembered as it was seen first: whatever puts another one in its place counts as doubled,
    whether it tells the journal or not.  Between two looks two files of one name look like one, hence the journal.
    """

    def __init__(self, documents: Path, journal: Path) -> None:
        self._documents = documents
        self._journal = JournalReader(journal)
        self.submitted: dict[str, Submitted] = {}
        self.dead: dict[str, DeadLetter] = {}
        #: What each process has begun and not ended.
        self.in_work: dict[int, set[str]] = {}
        #: The files that are there, and what each name stood for when it was seen first.
        self._present: set[str] = set()
        self._files: dict[str, tuple[int, int]] = {}
        self._finished_at: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        #: The errors of failed attempts after which the task came again.
        self._failures: dict[str, list[str]] = {}
        self._begun: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._replaced: set[str] = set()

    def submit(self, task_ids: Iterable[str], template_id: str, output_format: str, at: float) -> None:
        """Enter tasks that the broker has stored."""
        for task_id in task_ids:
            self.submitted[task_id] = Submitted(template_id, output_format, at)

    def bury(self, letters: Iterable[DeadLetter]) -> int:
        """Enter the dead letters of submitted tasks; return how many others there are."""
        others = 0
        for letter in letters:
            task_id = letter.message.message_id
            if task_id in self.submitted:
                self.dead[task_id] = letter
            else:
                others += 1
        return others

    def look(self) -> None:
        """Take note of what changed in the folder and the journal."""
        for line in self._journal.lines():
            task_id, pid = line["task_id"], line["pid"]
            match line["what"]:
                case "begin":
                    self._begun[task_id] += 1
                    self.in_work.setdefault(pid, set()).add(task_id)
                    continue
                case "finish":
                    self._finished[task_id] += 1
                    self._finished_at.setdefault(task_id, line["at"])
                    self._seconds.setdefault(task_id, line["seconds"])
                case "skip":
                    self._skipped[task_id] += 1
                case "failed":
                    self._failures.setdefault(task_id, []).append(line["error"])
            self.in_work.get(pid, set()).discard(task_id)
        self._look_at_files()

    def _look_at_files(self) -> None:
        try:
            entries = list(os.scandir(self._documents))
        except FileNotFoundError:
            return
        self._present.clear()
        for entry in entries:
            task_id, _, suffix = entry.name.rpartition(".")
            if suffix == "part":
                continue
            found = entry.stat()
            self._present.add(task_id)
            identity = (found.st_ino, found.st_mtime_ns)
            if self._files.setdefault(task_id, identity) != identity:
                self._replaced.add(task_id)
                self._files[task_id] = identity
            # A worker that died right after the rename told nobody.
            self._finished_at.setdefault(task_id, found.st_mtime)

    @property
    def done(self) -> set[str]:
        """The submitted tasks whose file is there."""
        return self._present & self.submitted.keys()

    @property
    def open(self) -> set[str]:
        """The submitted tasks that are neither done nor dead."""
        return self.submitted.keys() - self._present - self.dead.keys()

    @property
    def others(self) -> int:
        """Documents of tasks that this run did not submit: an earlier run left them in the broker."""
        return len(self._present - self.submitted.keys())

    @property
    def failures(self) -> Counter[str]:
        """The failed attempts after which submitted tasks came again, by the name of the error."""
        return Counter(name for one in self.submitted for name in self._failures.get(one, ()))

    def figures(self) -> Figures:
        """Return the account as of the last look."""
        done = self.done
        waits = sorted(self._finished_at[one] - self.submitted[one].at for one in done)
        span = 0.0
        if done:
            span = max(self._finished_at[one] for one in done) - min(one.at for one in self.submitted.values())
        doubled = self._replaced | {one for one, times in self._finished.items() if times > 1}
        return Figures(
            submitted=len(self.submitted),
            done=len(done),
            retried=sum(self._begun[one] - self._skipped[one] > 1 for one in self.submitted),
            skipped=sum(self._skipped[one] > 0 for one in self.submitted),
            dead=len(self.dead),
            lost=len(self.open),
            doubled=len(doubled & self.submitted.keys()),
            throughput=len(done) / span if span > 0 else None,
            median=_percentile(waits, 50),
            p95=_percentile(waits, 95),
            render_p95=_percentile(sorted(self._seconds[one] for one in done if one in self._seconds), 95),
            formats=self._formats(),
        )

    def _formats(self) -> dict[str, tuple[int, int, int]]:
        formats: dict[str, tuple[int, int, int]] = {}
        for task_id, task in sorted(self.submitted.items(), key=lambda item: item[1].output_format):
            dead = task_id in self.dead
            total, settled, buried = formats.get(task.output_format, (0, 0, 0))
            settled += dead or task_id in self._present
            formats[task.output_format] = (total + 1, settled, buried + dead)
        return formats


def _percentile(ordered: list[float], share: int) -> float | None:
    """Return the smallest value that ``share`` of 100 values do not exceed."""
    return ordered[max(-(-len(ordered) * share // 100) - 1, 0)] if ordered else None
