"""The skeleton of the conformance suite: harness, cases, plugin, report, and the layers that make faults."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from brokerkit.names import check_group, check_topic
from brokerkit.spi import Capability, Manage
from brokerkit.testing import EmbeddedHarness, Harness, Timing
from brokerkit.testing.report import Matrix
from brokerkit.testing.suite._cases import (
    case,
    collect,
    needs,
    outbound,
    receive_exactly,
    receive_nothing,
    requires,
    send,
    undeclared,
)

SOON = 20.0


# --- running pytest on cases ------------------------------------------------------------------------------------

_PREAMBLE = """
import asyncio
import pytest
from brokerkit.spi import Capability
from brokerkit.testing import EmbeddedHarness, Harness
from brokerkit.testing.suite._cases import case, needs, requires, undeclared

class Mine(EmbeddedHarness):
    deviations = DEVIATIONS

@pytest.fixture(scope="session")
def harness():
    return Mine("memory://mine")
"""


def run_pytest(directory: Path, source: str, *options: str, deviations: str = "{}", **environ: str) -> str:
    (directory / "test_it.py").write_text(_PREAMBLE.replace("DEVIATIONS", deviations) + source)
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "--rootdir", str(directory)]
    done = subprocess.run(
        [*command, *options, str(directory / "test_it.py")],
        cwd=directory,
        env={**_environment(), **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def _environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith(("BROKERKIT_", "PYTEST_"))}


def test_cases_run_beside_pytest_asyncio_in_both_modes(tmp_path: Path) -> None:
    source = """
@case
async def test_ours(harness):
    "Runs on a loop of its own."
    await asyncio.sleep(0)

@pytest.mark.asyncio
async def test_theirs():
    await asyncio.sleep(0)
"""
    for mode in ("auto", "strict"):
        options = ("-W", "error", "-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function")
        output = run_pytest(tmp_path, source, *options)
        assert "2 passed" in output, output


def test_cases_run_without_any_asyncio_plugin(tmp_path: Path) -> None:
    source = """
@case
async def test_ours(harness):
    "Needs no plugin."
    await asyncio.sleep(0)
"""
    assert "1 passed" in run_pytest(tmp_path, source, "-p", "no:asyncio", "-W", "error")


_CASES = """
@case
@needs("drop_connection")
async def test_hook(harness):
    "Needs a hook."
    raise AssertionError("it ran")

@case
@requires(Capability.DURABLE)
async def test_capability(harness):
    "Needs a capability."
    raise AssertionError("it ran")

@case
@undeclared(Capability.TAGS)
async def test_inverse(harness):
    "Runs where it is not declared."
    raise AssertionError("it ran")

@case
async def test_deviates(harness):
    "Fails here."
    assert 1 == 2

@case
@pytest.mark.parametrize("n", [1, 2])
async def test_one_of_two(harness, n):
    "Fails for 2."
    assert n == 1

@case
async def test_repaired(harness):
    "Passes, although it is said to deviate."

tasks = []

@case
async def test_leaks(harness):
    "Leaves a task."
    tasks.append(asyncio.create_task(asyncio.sleep(3600), name="the-leaked-one"))

@case(timeout=0.2)
async def test_hangs(harness):
    "Never ends."
    await asyncio.sleep(3600)

@case
@requires(Capability.PURGE, Capability.STATS)
async def test_two_capabilities(harness):
    "Fails."
    assert tasks == ["the values are shown"]
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest printed for `_CASES`."""
    deviations = "{'test_deviates': 'BUG-1', 'test_one_of_two[2]': 'BUG-2', 'test_repaired': 'BUG-3'}"
    return run_pytest(tmp_path_factory.mktemp("cases"), _CASES, deviations=deviations)


def test_a_case_that_misses_something_is_skipped_and_says_so(output: str) -> None:
    assert " 3 skipped" in output
    assert "skipped: the harness of memory has no drop_connection: test_hook" in output
    assert "skipped: embedded does not declare durable: test_capability" in output
    assert "skipped: embedded declares tags: test_inverse" in output


def test_a_deviation_is_a_strict_xfail(output: str) -> None:
    assert " 2 xfailed" in output
    assert "FAILED test_it.py::test_repaired - [XPASS(strict)] BUG-3" in output
    assert "deviates: test_deviates: BUG-1" in output
    assert "deviates: test_one_of_two[2]: BUG-2" in output
    assert " 1 passed" in output


def test_a_case_that_leaves_a_task_fails_and_so_does_one_that_hangs(output: str) -> None:
    assert "FAILED test_it.py::test_leaks" in output
    assert "1 tasks were left behind" in output
    assert "the-leaked-one" in output
    assert "FAILED test_it.py::test_hangs" in output
    assert "the case did not end within 0 s" in output


def test_the_report_counts_by_capability(output: str) -> None:
    lines = [line.split() for line in output.splitlines()]
    #                               passed failed deviating skipped
    assert ["every", "backend", "1", "3", "2", "1"] in lines
    assert ["purge", "0", "1", "0", "0"] in lines
    assert ["stats", "0", "1", "0", "0"] in lines
    assert ["durable", "0", "0", "0", "1"] in lines
    assert "memory: backend embedded (sqlite" in output
    assert "strict-topics" in output


def test_an_unreachable_broker_is_a_skip_and_a_failure_where_it_is_required(tmp_path: Path) -> None:
    source = """
from brokerkit.errors import BrokerUnavailable

class Nowhere(Harness):
    url = "memory://nowhere"
    async def probe(self):
        raise BrokerUnavailable("nobody answers at nowhere:1")

@pytest.fixture(scope="session")
def harness():
    from brokerkit.embedded.backend import EmbeddedBackend
    return Nowhere(EmbeddedBackend())

@case
async def test_something(harness):
    "Needs the broker."
"""
    skipped = run_pytest(tmp_path, source)
    assert "1 skipped" in skipped
    assert "embedded is not available: nobody answers at nowhere:1" in skipped
    assert "1 failed" in run_pytest(tmp_path, source, BROKERKIT_REQUIRE="rabbitmq, embedded")
    assert "1 skipped" in run_pytest(tmp_path, source, BROKERKIT_REQUIRE="rabbitmq")


def test_the_plugin_loads_nothing_but_the_package_where_the_suite_is_not_used() -> None:
    script = (
        "import sys, brokerkit; before = set(sys.modules); import brokerkit.testing.plugin; "
        "print(sorted(name for name in set(sys.modules) - before if name.startswith('brokerkit')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['brokerkit.testing', 'brokerkit.testing.plugin']"


def test_a_url_is_enough_to_run_the_suite(tmp_path: Path) -> None:
    script = """
import sys
from brokerkit.testing.conformance import harness_for, run
code, matrix = run(harness_for(sys.argv[1]), keyword="test_send_receive_one or test_connect_and_ping")
print(code, matrix.rows["every backend"].passed)
"""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '--no-such-option'\n")
    command = [sys.executable, "-c", script, f"sqlite:///{tmp_path / 'x.db'}"]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0 2", done.stdout + done.stderr
    assert "test_connect_and_ping PASSED" in done.stdout
    assert "sqlite: backend embedded" in done.stdout


def test_managers_of_the_suite_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKERKIT_SEND_TIMEOUT", "77")
    manager = EmbeddedHarness("memory://env").manager(retry={"max_attempts": 9})
    assert manager.settings.send_timeout != 77
    assert manager.settings.retry.max_attempts == 9


# --- declarations of cases --------------------------------------------------------------------------------------


def test_a_case_knows_what_it_needs() -> None:
    @case(timeout=7)
    @requires(Capability.TAGS)
    @requires(Capability.LEASE)
    @undeclared(Capability.PURGE)
    @needs("restart", "stall")
    async def test_it(harness: Harness) -> None:
        """Promise
        in two lines."""

    info = cast(Any, test_it).case
    assert (info.name, info.promise, info.timeout) == ("test_it", "Promise in two lines.", 7)
    assert info.requires == {Capability.TAGS, Capability.LEASE}
    assert (info.undeclared, info.needs) == ({Capability.PURGE}, {"restart", "stall"})
    assert not asyncio.iscoroutinefunction(test_it)


def test_a_case_without_a_promise_or_with_an_unknown_hook_is_refused() -> None:
    async def test_it(harness: Harness) -> None:
        pass

    with pytest.raises(ValueError, match="no docstring"):
        case(test_it)
    with pytest.raises(ValueError, match="reboot"):
        needs("reboot")


def test_outcomes_of_the_matrix_are_checked() -> None:
    matrix = Matrix(label="x")
    matrix.add("test_a", ["tags"], "passed")
    matrix.add("test_b", [], "skipped", "no hook")
    assert (matrix.rows["tags"].run, matrix.rows["every backend"].skipped) == (1, 1)
    assert matrix.as_dict()["skipped"] == {"no hook": ["test_b"]}
    with pytest.raises(ValueError, match="passd"):
        matrix.add("test_c", [], "passd")


# --- harness ----------------------------------------------------------------------------------------------------


async def test_topics_are_fresh_named_after_the_case_and_legal() -> None:
    harness = EmbeddedHarness("memory://names")
    await harness.begin("test_unsettled_redelivered_after_connection_loss_with_a_long_name", frozenset())
    try:
        names = [harness.name("portable"), harness.name("portable"), harness.name()]
        assert len(set(names)) == 3
        for name in names:
            assert "unsettled_redelivered" in name
            check_group(check_topic(name), "a-group-of-20-letters")
    finally:
        await harness.end()


async def test_topics_of_a_case_are_deleted_after_it() -> None:
    harness = EmbeddedHarness("memory://dropped")
    await harness.probe()
    async with harness.connection() as watcher:  # the store lives as long as this
        await harness.begin("test_x", frozenset())
        name = harness.name()
        async with harness.connection() as connection:
            await harness.declare(connection, name)
        spec = harness.topics[name]
        await cast(Manage, watcher).verify(spec, spec.groups["g"])
        await harness.end()
        with pytest.raises(Exception, match="does not exist"):
            await cast(Manage, watcher).verify(spec, spec.groups["g"])


def test_the_embedded_harness_offers_what_has_a_subject() -> None:
    on_file, in_memory = EmbeddedHarness("sqlite:///x.db"), EmbeddedHarness("memory://x")
    missing = {"bad_url", "unreachable_url", "failover_url", "freeze", "thaw", "cut", "drop_connection"}
    for hook in missing:
        assert not on_file.offers(hook)
    for hook in {"restart", "kill", "inject_foreign", "refuse_sends", "stall", "max_bytes"}:
        assert on_file.offers(hook)
        assert in_memory.offers(hook) == (hook != "kill")


def test_deadlines_grow_with_messages_delays_and_the_factor() -> None:
    timing = Timing()
    assert timing.within(100) > timing.within() >= timing.deadline
    assert timing.within(delay=5.0) >= timing.within() + 5.0
    assert Timing(factor=3.0).within() == pytest.approx(3 * timing.within())


# --- receiving helpers ------------------------------------------------------------------------------------------


@pytest.fixture
async def harness() -> AsyncIterator[EmbeddedHarness]:
    harness = EmbeddedHarness("memory://unit")
    await harness.begin("test_unit", frozenset({"restart"}))
    yield harness
    await harness.end()


async def test_receive_exactly_tells_missing_unexpected_and_doubled_apart(harness: EmbeddedHarness) -> None:
    topic = harness.name()
    async with harness.connection() as connection:
        await harness.declare(connection, topic)
        producer = await connection.open_producer()
        consumer = await harness.consumer(connection, topic)
        ids = await send(producer, outbound(topic), outbound(topic))
        with pytest.raises(AssertionError, match=r"1 of 3 did not come .*absent"):
            await receive_exactly(consumer, [*ids, "absent"], within=0.3)
        (sent,) = await send(producer, outbound(topic, b"surprise"))
        with pytest.raises(AssertionError, match=r"nobody waits for.*surprise"):
            await receive_exactly(consumer, ["other"], within=SOON)
        (doubled,) = await send(producer, outbound(topic))
        await send(producer, outbound(topic, message_id=doubled))
        with pytest.raises(AssertionError, match="came twice"):
            await receive_exactly(consumer, [doubled, "other"], within=SOON, duplicates=False)
        await send(producer, outbound(topic, b"noise"))
        with pytest.raises(AssertionError, match="none should"):
            await receive_nothing(consumer, SOON)
        with pytest.raises(AssertionError, match="of 50 messages came"):
            await collect(consumer, 50, within=0.2)
        await receive_nothing(consumer, 0.05)
    assert sent
