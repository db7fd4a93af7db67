"""The export service: a manager and its handler, run by ``brokerkit worker examples.export_service.app:manager``.

EXPORT_FOLDER is where the documents go (``exports`` in the working directory), EXPORT_RETRY_DELAY the seconds
before a failed task is tried again at first (1).
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from brokerkit import ConsumeResult, ErrorEvent, ExportTask, Reject, RetryPolicy, get_manager
from examples.export_service.documents import FORMATS, TemplateBroken, UnknownTemplate, render
from examples.export_service.journal import Journal
from examples.export_service.places import DOCUMENTS, JOURNAL, RATES
from examples.export_service.rates import RateSource

__all__ = ["export", "manager"]

#: An id comes with a message, so anybody may have chosen it; as a name of a file it must stay in the folder.
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")

manager = get_manager()


def export(task: ExportTask) -> ConsumeResult:
    """Make one document; made once, it is not touched again however often its task comes."""
    if not _SAFE_ID.fullmatch(task.task_id) or task.output_format not in FORMATS:
        raise Reject(f"cannot be a file name: task_id {task.task_id!r}, output_format {task.output_format!r}")
    journal = Journal(_folder() / JOURNAL)
    documents = _folder() / DOCUMENTS
    documents.mkdir(parents=True, exist_ok=True)
    journal.note("begin", task.task_id)

    target = documents / f"{task.task_id}.{task.output_format}"
    if target.exists():
        # A worker died between this file and its acknowledgement, or the sender sent twice.
        journal.note("skip", task.task_id)
        return ConsumeResult(True, task.task_id)

    started = time.perf_counter()
    if task.template_id == "exchange_report":
        RateSource(_folder() / RATES).check(task.task_id)
    part = documents / f"{task.task_id}.part"
    render(task.template_id, task.data, task.output_format, part)
    _store(part, target)
    journal.note("finish", task.task_id, seconds=time.perf_counter() - started)
    return ConsumeResult(True, task.task_id)


manager.set_message_handler(
    export,
    timeout=60,
    retry=RetryPolicy(
        max_attempts=5,
        base_delay=float(os.environ.get("EXPORT_RETRY_DELAY", "1")),
        # No attempt would change these; whoever mends the template redrives the dead letters.
        fatal=(UnknownTemplate, TemplateBroken),
    ),
)


@manager.on_error
def note_failure(event: ErrorEvent) -> None:
    """Note what failed: the place for an error tracker."""
    if event.message is not None and event.message.message_id is not None:
        error = type(event.error).__name__ if event.error is not None else event.reason
        Journal(_folder() / JOURNAL).note(event.kind, event.message.message_id, error=error)


def _store(part: Path, target: Path) -> None:
    """Give a finished document its name, so that nobody ever sees half of one under it."""
    with part.open("rb") as file:
        # The task is gone from the broker when this handler has returned: its document must survive a power cut.
        os.fsync(file.fileno())
    part.rename(target)


def _folder() -> Path:
    return Path(os.environ.get("EXPORT_FOLDER", "exports"))
