"""The planted secret: whatever the tests log, print, raise or represent must not show it."""

from __future__ import annotations

import logging

import hypothesis
import pytest

from tests.planted import PLANTED


class _Watch(logging.Handler):
    """Reads every record of the run as a log file would show it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.hits: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if PLANTED in self.format(record):
            self.hits.append(f"log record of {record.name} at {record.pathname}:{record.lineno}")


_watch = pytest.StashKey[_Watch]()


def pytest_configure(config: pytest.Config) -> None:
    # Other tests run beside these: how long an example took says nothing.
    too_slow = hypothesis.HealthCheck.too_slow
    hypothesis.settings.register_profile("brokerkit", deadline=None, suppress_health_check=[too_slow])
    hypothesis.settings.load_profile("brokerkit")
    handler = config.stash[_watch] = _Watch()
    logging.getLogger("brokerkit").addHandler(handler)
    logging.getLogger("brokerkit").setLevel(logging.DEBUG)


def pytest_unconfigure(config: pytest.Config) -> None:
    logging.getLogger("brokerkit").removeHandler(config.stash[_watch])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    shown = "\n".join(content for _, content in report.sections)
    if PLANTED in shown:
        item.config.stash[_watch].hits.append(f"captured output of {item.nodeid}")
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    hits = session.config.stash[_watch].hits
    if hits:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.section("the planted secret was shown", sep="!", red=True)
            for hit in hits:
                reporter.write_line(hit)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name a parameter that UTF-8 cannot encode by its escapes: such an id cannot travel to a worker of xdist."""
    if isinstance(val, str) and any("\ud800" <= character <= "\udfff" for character in val):
        return ascii(val)
    return None
