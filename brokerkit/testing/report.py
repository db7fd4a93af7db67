"""The matrix of a conformance run: for each capability, what ran, what was skipped and what deviates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["EVERY_BACKEND", "Matrix", "Row"]

#: The row of the cases that need no capability.
EVERY_BACKEND = "every backend"

_COLUMNS = ("passed", "failed", "deviating", "skipped")


@dataclass(slots=True)
class Row:
    """The cases of one capability, by how they ended."""

    passed: int = 0
    failed: int = 0
    #: Failed as the harness' ``deviations`` say.
    deviating: int = 0
    skipped: int = 0

    @property
    def run(self) -> int:
        return self.passed + self.failed + self.deviating


@dataclass(slots=True)
class Matrix:
    """What became of the cases on one harness."""

    label: str
    backend: str = ""
    capabilities: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    #: Reason to the names of the cases that were skipped for it.
    skips: dict[str, list[str]] = field(default_factory=dict)
    #: Case to the reason of its deviation.
    deviations: dict[str, str] = field(default_factory=dict)

    def add(self, case: str, capabilities: Iterable[str], outcome: str, reason: str = "") -> None:
        """Count a case that ended as ``outcome``: passed, failed, deviating or skipped.

        It counts in the row of each of its ``capabilities``, so the columns may sum to more than there are cases.
        """
        if outcome not in _COLUMNS:
            raise ValueError(f"outcome {outcome!r} is none of {_COLUMNS}")
        for capability in tuple(capabilities) or (EVERY_BACKEND,):
            row = self.rows.setdefault(capability, Row())
            setattr(row, outcome, getattr(row, outcome) + 1)
        if outcome == "skipped":
            self.skips.setdefault(reason or "no reason", []).append(case)
        elif outcome == "deviating":
            self.deviations[case] = reason

    def head(self) -> list[str]:
        """Return what was tested: backend, versions and capabilities."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [f"{self.label}: backend {self.backend or 'unknown'}" + (f" ({versions})" if versions else "")]
        if self.backend:
            lines.append("declares: " + (", ".join(self.capabilities) or "no optional capability"))
        return lines

    def table(self) -> list[str]:
        """Return the matrix as lines of text."""
        names = [EVERY_BACKEND] if EVERY_BACKEND in self.rows else []
        names += sorted(name for name in self.rows if name != EVERY_BACKEND)
        width = max((len(name) for name in names), default=0)
        lines = [" " * width + "".join(f"{column:>11}" for column in _COLUMNS)]
        for name in names:
            row = self.rows[name]
            lines.append(f"{name:<{width}}" + "".join(f"{getattr(row, column):>11}" for column in _COLUMNS))
        return lines

    def notes(self) -> list[str]:
        """Return the reasons of skips and deviations, with the cases that they concern."""
        lines = [f"deviates: {case}: {reason}" for case, reason in sorted(self.deviations.items())]
        lines += [f"skipped: {reason}: {', '.join(sorted(cases))}" for reason, cases in sorted(self.skips.items())]
        return lines

    def as_dict(self) -> dict[str, object]:
        """Return all of it as JSON-encodable data."""
        return {
            "label": self.label,
            "backend": self.backend,
            "versions": dict(self.versions),
            "capabilities": list(self.capabilities),
            "matrix": {name: {column: getattr(row, column) for column in _COLUMNS} for name, row in self.rows.items()},
            "deviations": dict(self.deviations),
            "skipped": {reason: sorted(cases) for reason, cases in self.skips.items()},
        }
