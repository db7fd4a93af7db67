"""All contenders, interleaved on one private node, and what brokerkit must reach."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.measure import Row, interleave
from benchmarks.rabbitmq import ours, raw, workers
from benchmarks.rabbitmq.delays import Delays, delays
from benchmarks.rabbitmq.java import JavaMissing, JavaPublisher
from benchmarks.rabbitmq.sides import CONCURRENCY, PREFETCH, THREADS, URL, WINDOW, Figure, Side
from brokerkit.testing.services.rabbitmq import RabbitMQNode, find_installation
from brokerkit.testing.services.service import Missing

__all__ = ["comparison"]

_SEND_MANY, _SENDS = "brokerkit, send_many", f"brokerkit, {WINDOW:,} concurrent send"
_HANDLED, _IN_THREADS = "brokerkit, handled", "brokerkit, handled in threads"
_BY_TOPIC = "raw socket by topic exchange, publish"
_JAVA_BY_TOPIC = "Java client by topic exchange, publish"
_ROUND_TRIP_BY_TOPIC = "raw socket by topic exchange, round trip, ms"
_ROUND_TRIP, _LONE = "raw socket, round trip, ms", "brokerkit, lone send, ms"


def comparison(rounds: int, scale: float) -> list[Row]:
    """Publishing, handling, lone sends, delays and CPU time, each against its target."""
    found = find_installation()
    if isinstance(found, Missing):
        return [Row("not run", 0.0, note=str(found))]
    print(
        f"  RabbitMQ {found.version}: one node, quorum queues, 512-byte persistent bodies, confirms,\n"
        f"  window {WINDOW:,} (Celery and Dramatiq can only publish one after the other),\n"
        f"  prefetch {PREFETCH}, {CONCURRENCY} async handlers (FastStream: all that is prefetched) or {THREADS} threads"
    )
    with ExitStack() as stack:
        node = stack.enter_context(RabbitMQNode(installation=found))
        # For the modules of the peers, which make their brokers when they are imported.
        os.environ[URL] = node.url
        stack.callback(os.environ.pop, URL)
        contest = _Contest(node.url, rounds, scale, stack)
        rows = contest.rows()
        late = delays(node.url, max(2_000, int(100_000 * scale)), max(3.0, 10.0 * min(1.0, scale)))
    return [*rows, *_delay_rows(late)]


class _Contest:
    """The rounds, and the figures of each contender."""

    def __init__(self, url: str, rounds: int, scale: float, stack: ExitStack) -> None:
        self._url = url
        self._scale = scale
        self._stack = stack
        self._costs: dict[str, list[float]] = {}
        self._latencies: dict[str, list[float]] = {name: [] for name in (_ROUND_TRIP, _ROUND_TRIP_BY_TOPIC, _LONE)}
        java = self._java()
        self._medians = interleave(rounds, self._contenders(java))

    def _contenders(self, java: JavaPublisher | None) -> dict[str, Callable[[], float]]:
        from benchmarks.rabbitmq.peers import aio_pika, celery, dramatiq, faststream, taskiq

        url, side = self._url, self._side
        most, some = self._count(25_000), self._count(5_000)
        few, fewer = self._count(1_200), self._count(800)
        ours_side, raw_side = side(), side()
        found: dict[str, Callable[[], float]] = {}

        def add(name: str, run: Callable[[], Figure]) -> None:
            found[name] = partial(self._noted, name, run)

        # What is handled is what was published just before.
        add("raw socket, publish", lambda: raw_side.run(raw.publish, url, most))
        add(_BY_TOPIC, lambda: raw_side.run(raw.publish_by_topic, url, most))
        add(_SEND_MANY, lambda: ours_side.run(ours.send_many, url, most))
        add(_SENDS, lambda: ours_side.run(ours.sends, url, most))
        if java is not None:
            found["Java client, publish"] = partial(java.publish, most)
            found[_JAVA_BY_TOPIC] = partial(java.publish, most, "bench.by-topic")
        add("raw socket, consume", lambda: raw_side.run(raw.consume, url, most))
        add(_HANDLED, lambda: ours_side.run(ours.handled, url, most))
        add(_IN_THREADS, lambda: ours_side.run(ours.handled_in_threads, url, most))
        for name, publish, count in (
            ("FastStream, publish", faststream.publish, some),
            ("Taskiq, publish", taskiq.publish, some),
            ("aio-pika, publish", aio_pika.publish, some),
            ("Celery, publish", celery.publish, fewer),
            ("Dramatiq, publish", partial(dramatiq.publish, more=some), few),
        ):
            add(name, partial(side().run, publish, count))
        add("FastStream, handled", lambda: workers.faststream_worker(some))
        add("Taskiq, handled", lambda: workers.taskiq_worker(some))
        add("Dramatiq, handled", lambda: workers.dramatiq_worker(few + some))
        found[_ROUND_TRIP] = partial(self._one_by_one, _ROUND_TRIP, raw_side, raw.round_trips)
        found[_ROUND_TRIP_BY_TOPIC] = partial(
            self._one_by_one, _ROUND_TRIP_BY_TOPIC, raw_side, raw.round_trips_by_topic
        )
        found[_LONE] = partial(self._one_by_one, _LONE, ours_side, ours.lone_sends)
        return found

    def _count(self, full: int) -> int:
        return max(300, int(full * self._scale))

    def _side(self) -> Side:
        made = Side()
        self._stack.callback(made.close)
        return made

    def _java(self) -> JavaPublisher | None:
        try:
            return JavaPublisher(Path(self._stack.enter_context(tempfile.TemporaryDirectory())))
        except JavaMissing as missing:
            print(f"  without the Java client: {missing}")
            return None

    def _noted(self, name: str, run: Callable[[], Figure]) -> float:
        figure = run()
        self._costs.setdefault(name, []).append(figure.cost)
        return figure.rate

    def _one_by_one(self, name: str, side: Side, measure: Callable[[str, int], list[float]]) -> float:
        took = side.run(measure, self._url, self._count(500))
        self._latencies[name] += took
        return 1e3 * statistics.median(took)

    # --- what it comes to ---

    def rows(self) -> list[Row]:
        """Return the ratios and the CPU time."""
        rows = []
        for name, what in ((_SEND_MANY, "send_many"), (_SENDS, "concurrent send")):
            for peer, target in (
                ("FastStream, publish", 5),
                ("Taskiq, publish", 5),
                ("aio-pika, publish", 5),
                ("Celery, publish", 10),
                ("Dramatiq, publish", 10),
                ("raw socket, publish", 0.6),
                (_BY_TOPIC, None),
                ("Java client, publish", 0.9),
                (_JAVA_BY_TOPIC, None),
            ):
                rows += self._ratio(what, name, peer, target)
        for peer, target in (("FastStream, handled", 8), ("Taskiq, handled", 8), ("raw socket, consume", 0.4)):
            rows += self._ratio("handled", _HANDLED, peer, target)
        rows += self._ratio("handled in threads", _IN_THREADS, "Dramatiq, handled", 3)
        for which, share, target in (("p50", 0.5, 1.25), ("p99", 0.99, 1.4)):
            for bare, goal in ((_ROUND_TRIP, target), (_ROUND_TRIP_BY_TOPIC, None)):
                own, other = (_quantile(self._latencies[name], share) for name in (_LONE, bare))
                what = f"lone send, {which} / {bare.partition(',')[0]}"
                note = f"{1e3 * own:.2f} ms against {1e3 * other:.2f} ms"
                rows.append(Row(what, own / other, "x", goal, at_most=True, note=note))
        for name in (_SEND_MANY, _SENDS, _HANDLED, _IN_THREADS):
            peer = {_HANDLED: "FastStream, handled", _IN_THREADS: "Dramatiq, handled"}.get(name, "FastStream, publish")
            note = f"{peer}: {self._cost(peer):.1f} µs"
            rows.append(Row(f"CPU a message, {name.removeprefix('brokerkit, ')}", self._cost(name), "µs", note=note))
        return rows

    def _cost(self, name: str) -> float:
        return statistics.median(self._costs[name])

    def _ratio(self, what: str, name: str, peer: str, target: float | None) -> list[Row]:
        if peer not in self._medians:
            return []
        own, other = self._medians[name], self._medians[peer]
        note = f"{own:,.0f}/s against {other:,.0f}/s"
        return [Row(f"{what} / {peer.partition(',')[0]}", own / other, "x", target, note=note)]


def _delay_rows(found: Delays) -> list[Row]:
    late = found.lateness
    beside = f"beside {found.pending:,} pending"
    return [
        Row(
            f"worker memory, {found.pending:,} delays pending", found.growth / 2**20, "MiB", 5, at_most=True,
            note=f"growth; sent at {found.rate:,.0f}/s",
        ),
        Row(f"lateness, p99, {beside}", 1e3 * _quantile(late, 0.99), "ms", 300, at_most=True,
            note=f"{len(late):,} messages, 200 a second"),
        Row(f"lateness, p50, {beside}", 1e3 * _quantile(late, 0.5), "ms"),
        Row(f"lateness, least, {beside}", 1e3 * late[0], "ms", 0, note="never early"),
    ]  # fmt: skip


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
