"""The tasks of the demo, from the data file that ships with it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["HOPELESS", "Batch", "batches", "read_tasks"]

FILE = Path(__file__).parent / "data" / "tasks.jsonl"
#: The template that never works.
HOPELESS = "legacy_contract"

#: Tasks that are sent with one call.
_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call of `ExportManager.send_batch_export_tasks` takes."""

    template_id: str
    output_format: str
    data: Sequence[dict[str, Any]]


def read_tasks(path: Path = FILE) -> list[dict[str, Any]]:
    """Return one mapping with template_id, data and output_format a line."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def batches(tasks: Sequence[dict[str, Any]]) -> Iterator[Batch]:
    """Yield the tasks in batches of one template and format, all kinds in turn."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for task in tasks:
        kinds[(task["template_id"], task["output_format"])].append(task["data"])
    longest = max((len(data) for data in kinds.values()), default=0)
    for start in range(0, longest, _AT_ONCE):
        for (template_id, output_format), data in kinds.items():
            if data[start : start + _AT_ONCE]:
                yield Batch(template_id, output_format, data[start : start + _AT_ONCE])
