from __future__ import annotations

import random

import pytest

from brokerkit.clock import SystemClock
from brokerkit.metrics import LatencySummary, Metrics


class ManualClock(SystemClock):
    """Both clocks move together, when they are told to."""

    def __init__(self) -> None:
        self.now = 500.0

    def time(self) -> float:
        return 1_700_000_000.0 + self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def metrics(clock: ManualClock) -> Metrics:
    return Metrics(clock)


def test_nothing_measured_is_none_and_not_zero(metrics: Metrics) -> None:
    snapshot = metrics.snapshot()
    assert snapshot.latency("handle") == LatencySummary(count=0, average=None, p50=None, p95=None, p99=None)
    assert snapshot.send_error_rate is None
    assert snapshot.consume_error_rate is None
    assert snapshot.counts["handled"] == 0
    assert snapshot.rates["handled"] == 0.0


def test_rates_refer_to_the_time_that_was_covered(metrics: Metrics, clock: ManualClock) -> None:
    metrics.count("sent", 60)
    clock.now += 20
    metrics.count("sent")
    metrics.count("sent", 19)
    snapshot = metrics.snapshot()
    assert snapshot.covered == 20
    assert snapshot.rates["sent"] == 4.0
    assert snapshot.window_end == clock.time()
    assert snapshot.window_start == clock.time() - 20


def test_the_first_moments_do_not_make_a_huge_rate(metrics: Metrics, clock: ManualClock) -> None:
    metrics.count("sent", 3)
    clock.now += 0.001
    assert metrics.snapshot().rates["sent"] == 3.0


def test_what_left_the_window_is_dropped_and_stays_in_the_totals(metrics: Metrics, clock: ManualClock) -> None:
    metrics.count("handled", 100)
    metrics.record_latency("handle", 9.0)
    clock.now += 289
    metrics.count("handled", 5)
    metrics.record_latency("handle", 1.0)
    before = metrics.snapshot()
    assert (before.counts["handled"], before.latency("handle").count) == (105, 2)
    clock.now += 12
    after = metrics.snapshot()
    assert (after.counts["handled"], after.latency("handle").count) == (5, 1)
    assert after.latency("handle").average == 1.0
    assert after.totals["handled"] == 105
    assert 290 <= after.covered <= 300


def test_a_clock_that_jumps_over_the_whole_window_leaves_it_empty(metrics: Metrics, clock: ManualClock) -> None:
    metrics.count("handled", 100)
    metrics.record_latency("handle", 9.0)
    clock.now += 86_400
    snapshot = metrics.snapshot()
    assert snapshot.counts["handled"] == 0
    assert snapshot.latencies == {}
    assert snapshot.totals["handled"] == 100
    assert 290 <= snapshot.covered <= 300
    metrics.count("handled")
    assert metrics.snapshot().counts["handled"] == 1


def test_a_steady_stream_shows_its_rate_over_hours(metrics: Metrics, clock: ManualClock) -> None:
    for _ in range(2 * 3600):
        clock.now += 1
        metrics.count("sent", 7)
    snapshot = metrics.snapshot()
    assert snapshot.rates["sent"] == pytest.approx(7, rel=0.01)
    assert snapshot.totals["sent"] == 2 * 3600 * 7


def test_error_rates_are_shares_of_all_tries(metrics: Metrics) -> None:
    metrics.count("sent", 3)
    metrics.count("send_failed")
    metrics.count("failed", 2)
    snapshot = metrics.snapshot()
    assert snapshot.send_error_rate == 0.25
    assert snapshot.consume_error_rate == 1.0


def test_names_of_the_application_are_counted_too(metrics: Metrics, clock: ManualClock) -> None:
    metrics.count("invoices", 4)
    clock.now += 2
    snapshot = metrics.snapshot()
    assert (snapshot.counts["invoices"], snapshot.rates["invoices"], snapshot.totals["invoices"]) == (4, 2.0, 4)


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0, 3600.0])
def test_percentiles_are_at_most_five_percent_off(metrics: Metrics, clock: ManualClock, scale: float) -> None:
    source = random.Random(7)
    values = [scale * source.lognormvariate(0, 1) for _ in range(5000)]
    for number, value in enumerate(values):
        clock.now += 0.01
        metrics.record_latency("handle" if number % 2 else "send", value)
    for kind, first in (("send", 0), ("handle", 1)):
        ordered = sorted(values[first::2])
        summary = metrics.snapshot().latency(kind)
        assert summary.count == 2500
        assert summary.average == pytest.approx(sum(ordered) / 2500)
        assert summary.p50 == pytest.approx(ordered[1249], rel=0.05)
        assert summary.p95 == pytest.approx(ordered[2374], rel=0.05)
        assert summary.p99 == pytest.approx(ordered[2474], rel=0.05)


@pytest.mark.parametrize("value", [0.0, -5.0, float("nan"), float("inf"), 1e300])
def test_impossible_latencies_do_no_harm(metrics: Metrics, value: float) -> None:
    metrics.record_latency("send", value)
    summary = metrics.snapshot().latency("send")
    assert summary.average is not None
    assert 0 < summary.average <= 1e7
    assert summary.p99 is not None
