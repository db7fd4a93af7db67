"""The suite on the broker behind a URL, for who has no test file: ``brokerkit conformance URL``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from brokerkit.registry import backend_for_url
from brokerkit.testing.embedded import EmbeddedHarness
from brokerkit.testing.harness import Harness
from brokerkit.testing.plugin import matrices
from brokerkit.testing.rabbitmq import RabbitMQUrlHarness
from brokerkit.testing.report import Matrix
from brokerkit.testing.rocketmq import RocketMQUrlHarness

__all__ = ["harness_for", "run"]


#: brokerkit is imported before pytest here, so its own asserts are not rewritten; the suite's are.
_IMPORTED = "ignore::pytest.PytestAssertRewriteWarning"


def harness_for(url: str) -> Harness:
    """Return the harness for ``url``: ours, or one without any hook.  Raise `ConfigurationError` for a bad URL."""
    backend = backend_for_url(url)
    if backend.name == "embedded":
        return EmbeddedHarness(url, backend)
    if backend.name == "rabbitmq":
        return RabbitMQUrlHarness(backend, url)
    if backend.name == "rocketmq":
        return RocketMQUrlHarness(backend, url)
    return Harness(backend, url=url)


def _giving(harness: Harness) -> ModuleType:
    """Return a pytest plugin with the fixture ``harness``; a module, as pytest gives up fixtures of instances."""

    @pytest.fixture(scope="session", name="harness")
    def given() -> Harness:
        return harness

    plugin = ModuleType("brokerkit-conformance-harness")
    plugin.harness = given  # type: ignore[attr-defined]
    return plugin


class _Run:
    """A pytest plugin that keeps the matrix."""

    matrix: Matrix | None = None

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.matrix = next(iter(matrices(session.config).values()), None)


def run(harness: Harness, *, keyword: str | None = None, options: Sequence[str] = ("-v",)) -> tuple[int, Matrix | None]:
    """Run the suite, print a line per case and the matrix; return pytest's exit code (0: all passed) and the matrix.

    ``keyword`` chooses cases as pytest's ``-k`` does; ``options`` are further options of pytest.
    """
    kept = _Run()
    cases = Path(__file__).parent / "suite" / "all_cases.py"
    # No configuration of the project that we happen to stand in: neither its options nor its plugins' modes.
    command = [str(cases), "-c", os.devnull, "--rootdir", str(cases.parent)]
    command += ["-p", "no:cacheprovider", "-p", "no:asyncio", "-W", _IMPORTED, *options]
    if keyword is not None:
        command += ["-k", keyword]
    return int(pytest.main(command, plugins=[kept, _giving(harness)])), kept.matrix
