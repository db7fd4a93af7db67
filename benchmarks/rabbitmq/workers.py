"""Workers of peers, started by the peers' own commands."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.rabbitmq.sides import CONCURRENCY, COUNT, PREFETCH, RESULT, THREADS, Figure, read_figure

__all__ = ["dramatiq_worker", "faststream_worker", "taskiq_worker"]

#: Seconds that a worker may take for everything.
_PATIENCE = 120.0


def faststream_worker(count: int) -> Figure:
    """One process; its handlers run all at once, as many as are prefetched."""
    return _worked("faststream", ["run", "benchmarks.rabbitmq.peers.faststream:app"], count)


def taskiq_worker(count: int) -> Figure:
    """One process."""
    options = ["--workers", "1", "--max-async-tasks", str(CONCURRENCY), "--log-level", "WARNING"]
    return _worked("taskiq", ["worker", "benchmarks.rabbitmq.peers.taskiq:broker", *options], count)


def dramatiq_worker(count: int) -> Figure:
    """One process with threads."""
    options = ["--processes", "1", "--threads", str(THREADS)]
    environment = {"dramatiq_queue_prefetch": str(PREFETCH)}
    return _worked("dramatiq", ["benchmarks.rabbitmq.peers.dramatiq", *options], count, environment)


def _worked(module: str, arguments: Sequence[str], count: int, environment: Mapping[str, str] | None = None) -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "figure", Path(folder) / "log"
        told = {**os.environ, **(environment or {}), COUNT: str(count), RESULT: str(result)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=told, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                deadline = time.monotonic() + _PATIENCE
                while (figure := read_figure(result)) is None:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"{module} did not handle {count} messages:\n{log.read_text()[-3000:]}")
                    time.sleep(0.05)
                return figure
            finally:
                process.terminate()
                try:
                    process.wait(15.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
