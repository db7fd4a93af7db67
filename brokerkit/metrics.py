"""Counters and latencies of the last five minutes.

Recording costs a fraction of a microsecond and is done by the thread of the event loop only.  Time is cut into
slices; a slice that left the window is dropped as a whole, so nothing is kept per message.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from brokerkit.clock import Clock

__all__ = ["COUNTERS", "LatencySummary", "Metrics", "MetricsSnapshot"]

#: The names that brokerkit itself counts; a snapshot always has them.  Any other name may be counted as well.
COUNTERS = (
    "sent",  # messages that the broker took responsibility for
    "send_failed",  # messages whose send ended in an error
    "handled",  # handlers that succeeded
    "failed",  # handlers that failed, each attempt by itself
    "retried",  # retries that were stored
    "dead",  # dead letters that were stored
    "expired",  # messages that were dropped because their ttl was over
    "filtered",  # messages that were dropped because of their tag
    "deferred",  # messages that were sent to their own group again without an attempt
    "released",  # deliveries that were given back unstarted
    "stale",  # settlements of deliveries that no longer held
    "duplicates",  # completed messages that came again and were not run
)

#: Seconds.  The shortest and the longest latency that are told apart.
_SHORTEST, _LONGEST = 1e-7, 1e7
#: Each bucket is this much wider than the one before; its geometric middle is at most 4.9 % off.
_GROWTH = 1.1
_PER_LOG = 1.0 / math.log(_GROWTH)
#: Added to the logarithm instead of dividing by `_SHORTEST`.
_OFFSET = -math.log(_SHORTEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """Latencies of one kind within the window, in seconds; None where nothing was measured.

    The average is exact, the percentiles are off by at most 5 %.
    """

    count: int = 0
    average: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


_NOTHING_MEASURED = LatencySummary()


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSnapshot:
    """What happened within the window, and since the start."""

    #: Wall-clock times, seconds since the epoch.
    window_start: float
    window_end: float
    #: Seconds between the two: less than the whole window until it has passed once.
    covered: float
    #: Events by name within the window.
    counts: Mapping[str, int]
    #: Events per second by name: ``counts`` divided by ``covered``, but at least by one second.
    rates: Mapping[str, float]
    #: Events by name since the start.
    totals: Mapping[str, int]
    #: By kind; `latency` also answers for a kind that was never recorded.
    latencies: Mapping[str, LatencySummary] = field(default_factory=dict)
    #: 0 to 1: failed sends of all sends within the window; None where there was none.
    send_error_rate: float | None = None
    #: 0 to 1: failed handler runs of all runs within the window; None where there was none.
    consume_error_rate: float | None = None

    def latency(self, kind: str) -> LatencySummary:
        """Return the latencies of ``kind``; of a kind that was not measured all figures are None."""
        return self.latencies.get(kind, _NOTHING_MEASURED)


class _Histogram:
    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets: defaultdict[int, int] = defaultdict(int)
        self.total = 0.0


class _Slice:
    __slots__ = ("counts", "histograms", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.histograms: defaultdict[str, _Histogram] = defaultdict(_Histogram)


class Metrics:
    """Counts events and measures latencies over a rolling window.  Not thread-safe: for one event loop."""

    def __init__(self, clock: Clock, *, window: float = 300.0, step: float = 10.0) -> None:
        """Begin to cover a window of ``window`` seconds that moves in steps of ``step`` seconds."""
        self._clock = clock
        self._monotonic = clock.monotonic
        self._width = step
        self._keep = max(1, round(window / step))
        self._start = clock.monotonic()
        self._end = self._start + step
        self._current = _Slice(0)
        self._counts = self._current.counts
        self._histograms = self._current.histograms
        #: Slices of the window that are over, oldest first; those in which nothing happened are left out.
        self._past: deque[_Slice] = deque()
        #: Events of all slices that are over, in the window or not.
        self._before: defaultdict[str, int] = defaultdict(int)

    def count(self, name: str, n: int = 1) -> None:
        """Count ``n`` events."""
        if self._monotonic() >= self._end:
            self._turn()
        self._counts[name] += n

    def record_latency(self, kind: str, seconds: float, now: float | None = None) -> None:
        """Record one latency.  Kinds are free names, e.g. ``send`` and ``handle``.  ``now``: monotonic, if known."""
        if (self._monotonic() if now is None else now) >= self._end:
            self._turn()
        histogram = self._histograms[kind]
        # Wall clocks of two machines differ: a latency may come out negative, and counts as the shortest one.
        if not seconds > _SHORTEST:
            seconds = _SHORTEST
        elif seconds > _LONGEST:
            seconds = _LONGEST
        histogram.total += seconds
        histogram.buckets[int((math.log(seconds) + _OFFSET) * _PER_LOG)] += 1

    def snapshot(self) -> MetricsSnapshot:
        """Return the figures as of now."""
        now = self._monotonic()
        if now >= self._end:
            self._turn()
        slices = [*self._past, self._current]
        counts = dict.fromkeys(COUNTERS, 0)
        _add(counts, (one.counts for one in slices))
        totals = dict.fromkeys(COUNTERS, 0)
        _add(totals, (self._before, self._current.counts))
        oldest = max(0, self._current.index - self._keep + 1)
        covered = now - self._start - oldest * self._width
        wall = self._clock.time()
        kinds = dict.fromkeys(kind for one in slices for kind in one.histograms)
        return MetricsSnapshot(
            window_start=wall - covered,
            window_end=wall,
            covered=covered,
            counts=counts,
            rates={name: n / max(covered, 1.0) for name, n in counts.items()},
            totals=totals,
            latencies={
                kind: _summary([one.histograms[kind] for one in slices if kind in one.histograms]) for kind in kinds
            },
            send_error_rate=_share(counts["send_failed"], counts["sent"]),
            consume_error_rate=_share(counts["failed"], counts["handled"]),
        )

    def _turn(self) -> None:
        over = self._current
        if over.counts or over.histograms:
            self._past.append(over)
            _add(self._before, (over.counts,))
        index = int((self._monotonic() - self._start) // self._width)
        while self._past and self._past[0].index <= index - self._keep:
            self._past.popleft()
        self._current = _Slice(index)
        self._counts = self._current.counts
        self._histograms = self._current.histograms
        self._end = self._start + (index + 1) * self._width


def _add(into: dict[str, int], parts: Iterable[Mapping[str, int]]) -> None:
    for part in parts:
        for name, n in part.items():
            into[name] = into.get(name, 0) + n


def _share(bad: int, good: int) -> float | None:
    return bad / (bad + good) if bad + good else None


def _summary(histograms: list[_Histogram]) -> LatencySummary:
    merged: defaultdict[int, int] = defaultdict(int)
    for histogram in histograms:
        for bucket, n in histogram.buckets.items():
            merged[bucket] += n
    ordered = sorted(merged.items())
    count = sum(merged.values())
    return LatencySummary(
        count=count,
        average=sum(histogram.total for histogram in histograms) / count,
        p50=_percentile(ordered, count, 0.50),
        p95=_percentile(ordered, count, 0.95),
        p99=_percentile(ordered, count, 0.99),
    )


def _percentile(ordered: list[tuple[int, int]], count: int, share: float) -> float:
    rank = max(1, math.ceil(count * share))
    for bucket, n in ordered:
        rank -= n
        if rank <= 0:
            return _SHORTEST * math.sqrt(_GROWTH) * math.pow(_GROWTH, bucket)
    return _LONGEST
