"""The pytest plugin of brokerkit: fixtures for applications, and the deviations and the matrix of a conformance run.

pytest loads it wherever brokerkit is installed, so it imports nothing of brokerkit until a test makes use of it.
The cases themselves are plain functions that bring their event loop along (`brokerkit.testing.suite._cases`): they
need no asyncio plugin and disturb none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from brokerkit.blocking import Manager
    from brokerkit.manager import AsyncManager
    from brokerkit.testing.application import AsyncInMemoryBroker, InMemoryBroker
    from brokerkit.testing.report import Matrix
    from brokerkit.testing.suite._cases import CaseInfo

__all__ = ["matrices"]

_PROPERTY = "brokerkit"
_MATRICES: pytest.StashKey[dict[str, Matrix]] = pytest.StashKey()


@pytest.fixture
def brokerkit_in_memory() -> Iterator[Callable[[Manager | AsyncManager], InMemoryBroker]]:
    """Call it: ``broker = brokerkit_in_memory(manager)``, which holds until the end of the test.

    See `brokerkit.testing.in_memory`; it is the ``with`` of that.
    """
    with ExitStack() as stack:

        def enter(manager: Manager | AsyncManager) -> InMemoryBroker:
            from brokerkit.testing.application import in_memory

            return stack.enter_context(in_memory(manager))

        yield enter


@pytest.fixture
def brokerkit_in_memory_async() -> Iterator[Callable[[AsyncManager], Awaitable[AsyncInMemoryBroker]]]:
    """Await it: ``broker = await brokerkit_in_memory_async(manager)``, which holds until the end of the test.

    See `brokerkit.testing.in_memory`; it is the ``async with`` of that.
    """
    with ExitStack() as stack:

        async def enter(manager: AsyncManager) -> AsyncInMemoryBroker:
            from brokerkit.testing.application import in_memory

            rehearsal = in_memory(manager)
            broker = await rehearsal.__aenter__()
            # The end of a test is no coroutine: fixtures work without any plugin for them.
            stack.callback(rehearsal.end, broker)
            return broker

        yield enter


def matrices(config: pytest.Config) -> dict[str, Matrix]:
    """Return the matrices of the run so far, by the label of their harness."""
    return config.stash.setdefault(_MATRICES, {})


def _case_of(item: pytest.Item) -> CaseInfo | None:
    info: CaseInfo | None = getattr(getattr(item, "obj", None), "case", None)
    return info if hasattr(info, "promise") else None


def _names(item: pytest.Item) -> tuple[str, str]:
    return item.name, getattr(item, "originalname", None) or item.name


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Make a case that its harness names in ``deviations`` a strict xfail."""
    if _case_of(item) is not None:
        harness = getattr(item, "funcargs", {}).get("harness")
        deviations = getattr(harness, "deviations", {})
        for name in _names(item):
            if name in deviations:
                item.add_marker(pytest.mark.xfail(reason=deviations[name], strict=True))
                break
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach to the report what the matrix needs; plain data, so that it survives pytest-xdist."""
    report = yield
    info = _case_of(item)
    if info is None or (report.when != "call" and not report.failed and not report.skipped):
        return report
    from brokerkit.spi import Capability

    harness = getattr(item, "funcargs", {}).get("harness")
    offer = getattr(harness, "offer", None)
    # A case that runs once per capability belongs into the row of each.
    parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
    capabilities = {*info.requires, *info.undeclared, *(each for each in parameters if isinstance(each, Capability))}
    note = {
        "label": getattr(harness, "label", "no harness"),
        "case": item.name,
        "capabilities": sorted(each.value for each in capabilities),
        "backend": offer.backend if offer else "",
        "declared": sorted(each.value for each in offer.capabilities) if offer else [],
        "versions": dict(offer.versions) if offer else {},
    }
    report.user_properties.append((_PROPERTY, note))
    return report


def pytest_configure(config: pytest.Config) -> None:
    # The suite's asserts are read by people: without this they would say "AssertionError" and nothing else.
    pytest.register_assert_rewrite("brokerkit.testing.suite")
    config.pluginmanager.register(_Collector(config), "brokerkit-conformance-report")


class _Collector:
    """Gathers the reports, those of xdist's workers included."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        note: Any = dict(report.user_properties).get(_PROPERTY)
        # The properties of a test accumulate over its phases; only the phase that made the outcome counts.
        if note is None or (report.when != "call" and report.passed) or (report.when == "teardown"):
            return
        from brokerkit.testing.report import Matrix

        found = matrices(self._config)
        matrix = found.setdefault(note["label"], Matrix(label=note["label"]))
        if note["backend"]:
            matrix.backend, matrix.versions = note["backend"], note["versions"]
            matrix.capabilities = tuple(note["declared"])
        outcome, reason = _outcome(report)
        matrix.add(note["case"], note["capabilities"], outcome, reason)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for matrix in self._config.stash.get(_MATRICES, {}).values():
            terminalreporter.section(f"brokerkit conformance: {matrix.label}")
            for line in (*matrix.head(), "", *matrix.table(), "", *matrix.notes()):
                terminalreporter.write_line(line)


def _outcome(report: pytest.TestReport) -> tuple[str, str]:
    if hasattr(report, "wasxfail"):
        return ("deviating", str(report.wasxfail)) if report.skipped else ("failed", "")
    if report.skipped:
        # For skips longrepr is (path, line, "Skipped: reason").
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return "skipped", text.removeprefix("Skipped: ")
    return ("passed", "") if report.passed else ("failed", "")
