"""The peers of the embedded broker, each used in its own fastest way: in one thread, one call after the other."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import persistqueue
from huey import SqliteHuey

from benchmarks.measure import Stopwatch

__all__ = ["huey_handled", "huey_sends", "persistqueue_handled", "persistqueue_sends"]


def _huey(folder: str, fsync: bool) -> tuple[Any, Any]:
    huey = SqliteHuey("bench", filename=str(Path(folder) / "huey.db"), fsync=fsync)

    def handle(body: bytes) -> None:
        return None

    return huey, huey.task()(handle)


def huey_sends(count: int, body: bytes, *, fsync: bool) -> float:
    """Return enqueued tasks a second."""
    with tempfile.TemporaryDirectory() as folder:
        _, task = _huey(folder, fsync)
        watch = Stopwatch()
        with watch.running():
            for _ in range(count):
                task(body)
        return watch.rate(count)


def huey_handled(count: int, body: bytes, *, fsync: bool) -> float:
    """Return executed tasks a second: dequeue and execute in a loop, without the consumer's threads and polling."""
    with tempfile.TemporaryDirectory() as folder:
        huey, task = _huey(folder, fsync)
        for _ in range(count):
            task(body)
        watch = Stopwatch()
        with watch.running():
            for _ in range(count):
                huey.execute(huey.dequeue())
        return watch.rate(count)


def persistqueue_sends(count: int, body: bytes) -> float:
    """Return puts a second into an SQLiteAckQueue."""
    with tempfile.TemporaryDirectory() as folder:
        queue = persistqueue.SQLiteAckQueue(folder, auto_commit=True)
        watch = Stopwatch()
        with watch.running():
            for _ in range(count):
                queue.put(body)
        rate = watch.rate(count)
        queue.close()
        return rate


def persistqueue_handled(count: int, body: bytes) -> float:
    """Return get and ack pairs a second of an SQLiteAckQueue."""
    with tempfile.TemporaryDirectory() as folder:
        queue = persistqueue.SQLiteAckQueue(folder, auto_commit=True)
        for _ in range(count):
            queue.put(body)
        watch = Stopwatch()
        with watch.running():
            for _ in range(count):
                queue.ack(queue.get(block=False))
        rate = watch.rate(count)
        queue.close()
        return rate
