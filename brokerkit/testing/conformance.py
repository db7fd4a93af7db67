"""The suite on the broker behind a URL, for who has no test file: ``brokerkit conformance URL``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from brokerkit.registry import backend_for_url
from brokerkit.testing.embedded import EmbeddedHarness
from brokerkit.testing.harness import Harness
from brokerkit.testing.plugin import matrices
from brokerkit.testing.report import Matrix

__all__ = ["harness_for", "run"]


def harness_for(url: str) -> Harness:
    """Return the harness for ``url``: ours, or one without any hook.  Raise `ConfigurationError` for a bad URL."""
    backend = backend_for_url(url)
    if backend.name == "embedded":
        return EmbeddedHarness(url, backend)
    return Harness(backend, url=url)


class _Run:
    """A pytest plugin: gives the cases their harness, and keeps the matrix."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.matrix: Matrix | None = None

    @pytest.fixture(scope="session")
    def harness(self) -> Harness:
        return self._harness

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.matrix = next(iter(matrices(session.config).values()), None)


def run(harness: Harness, *, keyword: str | None = None, options: Sequence[str] = ("-v",)) -> tuple[int, Matrix | None]:
    """Run the suite, print a line per case and the matrix; return pytest's exit code (0: all passed) and the matrix.

    ``keyword`` chooses cases as pytest's ``-k`` does; ``options`` are further options of pytest.
    """
    plugin = _Run(harness)
    cases = Path(__file__).parent / "suite" / "all_cases.py"
    # No configuration of the project that we happen to stand in: neither its options nor its plugins' modes.
    command = [str(cases), "-c", os.devnull, "--rootdir", str(cases.parent), "-p", "no:cacheprovider", *options]
    if keyword is not None:
        command += ["-k", keyword]
    return int(pytest.main(command, plugins=[plugin])), plugin.matrix
