"""All contenders, interleaved on one private server, and what brokerkit must reach."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.measure import Row, interleave
from benchmarks.rabbitmq.sides import BODY, CONCURRENCY, PREFETCH, Figure, Side
from benchmarks.rocketmq import ours, raw
from benchmarks.rocketmq.peers.environments import cpp_peer, grpc_peer
from benchmarks.rocketmq.peers.java import java_peer
from benchmarks.rocketmq.peers.process import Peer, PeerFailed
from brokerkit.testing.services.rocketmq import (
    RocketMQAddress,
    RocketMQControl,
    RocketMQInstallation,
    RocketMQOptions,
    RocketMQServer,
    find_rocketmq,
)
from brokerkit.testing.services.service import Missing

__all__ = ["comparison"]

#: Sends in flight.
_WINDOWS = (256, 1_000)
_BATCH = 32
_SYNC = "Java client, sync"
_TOPICS = (
    "bench-java",
    "bench-java-in",
    "bench-hot",
    "bench-hot-in",
    "bench-cpp",
    "bench-cpp-in",
    "bench-grpc",
    "bench-grpc-in",
)

#: A broker refuses sends that waited for 200 ms, and all of them while one takes a second: "broker busy", "system
#: busy".  Full windows on shared cores exceed both.  What is measured is not flow control.
_SETTINGS = {"waitTimeMillsInSendQueue": "10000", "osPageCacheBusyTimeOutMills": "10000"}


def comparison(rounds: int, scale: float, versions: Sequence[str]) -> list[Row]:
    """Sends, batches, lone sends, handling, lag and memory on each version, against the targets."""
    rows = []
    for version in versions:
        found = find_rocketmq(version)
        if isinstance(found, Missing):
            rows.append(Row(f"{version}: not run", 0.0, note=str(found)))
            continue
        print(
            f"\n  RocketMQ {version}: one broker, asynchronous flush, {raw.QUEUES} queues a topic, {len(BODY)}-byte\n"
            f"  bodies; brokerkit's worker with prefetch {PREFETCH} and {CONCURRENCY} async handlers",
            flush=True,
        )
        with ExitStack() as stack:
            options = RocketMQOptions(proxy=found.major >= 5, settings=_SETTINGS, full_speed=True)
            server = stack.enter_context(RocketMQServer(options, installation=found))
            contest = _Contest(found, server.address, rounds, scale, stack)
            for row in contest.rows():
                row.what = f"{version}: {row.what}"
                rows.append(row)
    return rows


class _Contest:
    """The rounds on one server, and the figures of each contender."""

    def __init__(
        self, installation: RocketMQInstallation, address: RocketMQAddress, rounds: int, scale: float, stack: ExitStack
    ) -> None:
        self._installation = installation
        self._address = address
        self._broker = address.masters[0].address
        self._scale = scale
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._costs: dict[str, list[float]] = {}
        self._lone: dict[str, list[float]] = {}
        self._side = Side()
        stack.callback(self._side.close)
        self._prepare()
        self._medians = interleave(rounds, self._contenders())
        self._statuses = self._side.run(ours.queue_statuses, address.url(), max(10, int(50 * scale)))
        self._flowed = max(50_000, int(1_000_000 * scale))
        # A process that has done nothing else.
        fresh = Side()
        stack.callback(fresh.close)
        self._growth = fresh.run(ours.growth, address.url(), self._flowed)

    def _prepare(self) -> None:
        control = RocketMQControl(self._address)
        for name in ("bench-raw", "bench-raw-lone", *_TOPICS):
            control.create_topic(name, queues=raw.QUEUES)
        # The proxy answers no consumer of a group that it does not know.
        control.create_group("bench-grpc")
        # The compiler of the broker's JVM needs some ten thousand messages; nobody shall have that broker.
        for window in _WINDOWS:
            raw.send(self._broker, 20_000, window)
        raw.send_batches(self._broker, 50_000, _WINDOWS[-1])
        raw.pull(self._broker, 50_000)

    # --- contenders ---

    def _contenders(self) -> dict[str, Callable[[], float]]:
        url, broker = self._address.url(), self._broker
        some, many, lone = self._count(40_000), self._count(100_000), self._count(2_000)
        raw_side, side = Side(), self._side
        self._stack.callback(raw_side.close)
        found: dict[str, Callable[[], float]] = {}

        def add(name: str, run: Callable[[], Figure]) -> None:
            found[name] = partial(self._noted, name, run)

        for window in _WINDOWS:
            add(f"raw socket, {window}", partial(raw_side.run, raw.send, broker, some, window))
            add(f"brokerkit, {window} send", partial(side.run, ours.sends, url, some, window))
        add("raw socket, batches", partial(raw_side.run, raw.send_batches, broker, many, _WINDOWS[-1]))
        add("brokerkit, send_many", partial(side.run, ours.send_many, url, many))
        found["raw socket, lone"] = partial(
            self._one_by_one, "raw socket, lone", raw_side, raw.round_trips, broker, lone
        )
        found["brokerkit, lone"] = partial(self._one_by_one, "brokerkit, lone", side, ours.lone_sends, url, lone)
        add("raw socket, pull", partial(raw_side.run, raw.pull, broker, many))
        add("brokerkit, handled", partial(side.run, ours.handled, url, many))
        for name, run in (*self._java(some, many, lone), *self._cpp(), *self._grpc()):
            add(name, run)
        return found

    def _java(self, some: int, many: int, lone: int) -> list[tuple[str, Callable[[], Figure]]]:
        """A new JVM each time, warmed up with half as many messages; and one that keeps what it compiled."""

        def started() -> Peer | Missing:
            return java_peer(self._installation, self._address, self._folder)

        hot = started()
        if isinstance(hot, Missing):
            print(f"  without the Java client: {hot}")
            return []
        self._stack.callback(hot.close)

        def fresh(what: str, count: int, **fields: object) -> Figure:
            with _there(started()) as peer:
                return _figure(peer, what, count=count, warm=count // 2, **fields)

        def consumed(measured: Callable[..., Figure], topic: str) -> Figure:
            raw.fill(self._broker, topic, many + many // 2 + 1)
            return measured("consume", many, topic=topic, group=topic)

        def kept(what: str, count: int, **fields: object) -> Figure:
            return _figure(hot, what, count=count, **fields)

        made: list[tuple[str, Callable[[], Figure]]] = []
        for client, measured, topic in (("Java client", fresh, "bench-java"), ("hot Java client", kept, "bench-hot")):
            sends = {"topic": topic, "size": len(BODY)}
            made += [
                (f"{client}, {window}", partial(measured, "send", some, mode="async", window=window, **sends))
                for window in _WINDOWS
            ]
            made.append((f"{client}, batches", partial(measured, "send", many, mode="batch", window=_BATCH, **sends)))
            made.append((f"{client}, sync", partial(measured, "send", lone, mode="sync", **sends)))
            made.append((f"{client}, push consumer", partial(consumed, measured, f"{topic}-in")))
        for name, run in made:
            if name.startswith("hot"):
                run()
        return made

    def _cpp(self) -> list[tuple[str, Callable[[], Figure]]]:
        peer = cpp_peer(self._address, self._folder)
        if isinstance(peer, Missing):
            print(f"  without the C++ client: {peer}")
            return []
        self._stack.callback(peer.close)
        few, some = self._count(2_000), self._count(10_000)

        def consumed() -> Figure:
            raw.fill(self._broker, "bench-cpp-in", 3 * some)
            return _figure(peer, "consume", count=3 * some, topic="bench-cpp-in", group="bench-cpp")

        sends = {"topic": "bench-cpp", "size": len(BODY)}
        return [
            ("C++ client, 1 thread", partial(_figure, peer, "send", count=few, window=1, **sends)),
            ("C++ client, 16 threads", partial(_figure, peer, "send", count=some, window=16, **sends)),
            ("C++ client, push consumer", consumed),
        ]

    def _grpc(self) -> list[tuple[str, Callable[[], Figure]]]:
        if self._installation.major < 5:
            return []
        peer = grpc_peer(self._address, self._folder)
        if isinstance(peer, Missing):
            print(f"  without the gRPC client: {peer}")
            return []
        self._stack.callback(peer.close)
        few, some = self._count(500), self._count(3_000)

        def consumed() -> Figure:
            raw.fill(self._broker, "bench-grpc-in", some)
            return _figure(peer, "consume", count=some, topic="bench-grpc-in", group="bench-grpc")

        sends = {"topic": "bench-grpc", "size": len(BODY)}
        return [
            ("gRPC client, sync", partial(_figure, peer, "send", count=few, window=1, **sends)),
            ("gRPC client, 256", partial(_figure, peer, "send", count=some, window=_WINDOWS[0], **sends)),
            ("gRPC client, push consumer", consumed),
        ]

    def _count(self, full: int) -> int:
        return max(320, int(full * self._scale))

    def _noted(self, name: str, run: Callable[[], Figure]) -> float:
        figure = run()
        self._costs.setdefault(name, []).append(figure.cost)
        return figure.rate

    def _one_by_one(
        self, name: str, side: Side, measure: Callable[[str, int], list[float]], where: str, count: int
    ) -> float:
        took = side.run(measure, where, count)
        self._lone.setdefault(name, []).extend(took)
        return len(took) / sum(took)

    # --- what it comes to ---

    def rows(self) -> list[Row]:
        """Return the ratios, the figures of their own, and the CPU time."""
        rows = []
        for window in _WINDOWS:
            name = f"brokerkit, {window} send"
            rows += self._ratios(
                name, {f"Java client, {window}": 1.5, f"hot Java client, {window}": None, "gRPC client, 256": 10,
                       "C++ client, 16 threads": None, f"raw socket, {window}": 0.45},
            )  # fmt: skip
        rows += self._ratios(
            "brokerkit, send_many",
            {"Java client, batches": 1, "hot Java client, batches": None, "raw socket, batches": None},
        )
        rows += self._ratios(
            "brokerkit, lone",
            {_SYNC: 1, f"hot {_SYNC}": None, "C++ client, 1 thread": None, "gRPC client, sync": None,
             "raw socket, lone": None},
        )  # fmt: skip
        rows += self._ratios(
            "brokerkit, handled",
            {"Java client, push consumer": 1, "hot Java client, push consumer": None, "C++ client, push consumer": 2,
             "gRPC client, push consumer": 20, "raw socket, pull": None},
        )  # fmt: skip
        for which, share in (("p50", 0.5), ("p99", 0.99)):
            own, bare = (_quantile(self._lone[name], share) for name in ("brokerkit, lone", "raw socket, lone"))
            rows.append(Row(f"lone send, {which}", 1e3 * own, "ms", note=f"raw socket: {1e3 * bare:.2f} ms"))
        took = 1e3 * statistics.median(self._statuses)
        rows.append(Row(f"queue status over {ours.MANY} queues", took, "ms", 50, at_most=True))
        rows.append(Row(f"memory growth over {self._flowed:,} messages", self._growth / 2**20, "MiB", 20, at_most=True))
        for name, costs in self._costs.items():
            client, _, case = name.partition(", ")
            if client == "brokerkit" or client == "Java client":
                rows.append(Row(f"CPU a message, {client}, {case}", statistics.median(costs), "µs"))
        return rows

    def _ratios(self, name: str, targets: Mapping[str, float | None]) -> list[Row]:
        what = name.removeprefix("brokerkit, ")
        own = self._medians[name]
        return [
            Row(f"{what} / {peer}", own / self._medians[peer], "x", target,
                note=f"{own:,.0f}/s against {self._medians[peer]:,.0f}/s")
            for peer, target in targets.items()
            if peer in self._medians
        ]  # fmt: skip


def _there(found: Peer | Missing) -> Peer:
    if isinstance(found, Missing):
        raise PeerFailed(str(found))
    return found


def _figure(peer: Peer, what: str, **fields: object) -> Figure:
    said = peer.rate(what, **fields)
    if said.get("failed", 0) > said["count"] / 20:
        raise PeerFailed(f"{said['failed']:.0f} of {said['count']:.0f} sends failed")
    return Figure(int(said["count"]), said["seconds"], said["cpu"])


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
