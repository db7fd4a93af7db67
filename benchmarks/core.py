"""What the core costs: the memory store, no optional policy."""

from __future__ import annotations

import threading
import time

from benchmarks.measure import Row, interleave
from benchmarks.workload import BODY, TOPIC, concurrent, handled, in_memory, many
from brokerkit import Manager

__all__ = ["overhead"]


def overhead(rounds: int, scale: float) -> list[Row]:
    """CPU and rate per sent and per handled message."""
    count = max(5_000, int(60_000 * scale))
    found = interleave(
        rounds,
        {
            "send, 100 tasks": lambda: in_memory(concurrent(count)),
            "send, 100 tasks, us CPU": lambda: in_memory(concurrent(count, figure="cpu")),
            "send_many": lambda: in_memory(many(count)),
            "handled, async": lambda: in_memory(handled(count)),
            "handled, async, us CPU": lambda: in_memory(handled(count, figure="cpu")),
            "handled, sync in threads": lambda: in_memory(handled(count, sync=True, concurrency=10)),
            "Manager, 8 threads": lambda: _blocking(max(2_000, int(20_000 * scale))),
        },
    )
    return [
        Row("send, 100 tasks", found["send, 100 tasks"], "/s", 60_000),
        Row("send, CPU", found["send, 100 tasks, us CPU"], "µs", 15, at_most=True),
        Row("send_many", found["send_many"], "/s"),
        Row("handled, async handler", found["handled, async"], "/s", 60_000),
        Row("handled, CPU", found["handled, async, us CPU"], "µs", 15, at_most=True),
        Row("handled, sync handler in threads", found["handled, sync in threads"], "/s", 20_000),
        Row("blocking Manager, 8 threads", found["Manager, 8 threads"], "/s", 10_000),
    ]


def _blocking(count: int) -> float:
    with Manager(settings={"url": "memory://"}) as manager:
        manager.send(TOPIC, BODY)
        share = count // 8

        def sender() -> None:
            for _ in range(share):
                manager.send(TOPIC, BODY)

        threads = [threading.Thread(target=sender) for _ in range(8)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return share * 8 / (time.perf_counter() - began)
