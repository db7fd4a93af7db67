"""Tools for tests: the conformance suite with its harness, private brokers, faults, and in-memory runs.

Names are loaded on first use: pytest imports this package in every run of everybody who has brokerkit installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brokerkit.testing.application import AsyncInMemoryBroker, Handled, InMemoryBroker, in_memory
    from brokerkit.testing.clock import VirtualClock
    from brokerkit.testing.deadlines import eventually, eventually_sync, within
    from brokerkit.testing.embedded import EmbeddedHarness
    from brokerkit.testing.faults import Answer, FaultProxy
    from brokerkit.testing.harness import Harness, Offer, Timing
    from brokerkit.testing.interposed import InterposedBackend
    from brokerkit.testing.ledger import Ledger
    from brokerkit.testing.minimal import MinimalBackend
    from brokerkit.testing.process_pool import ProcessPool
    from brokerkit.testing.processes import WorkerProcess

__all__ = [
    # an application
    "AsyncInMemoryBroker",
    "Handled",
    "InMemoryBroker",
    "in_memory",
    # the suite
    "EmbeddedHarness",
    "Harness",
    "InterposedBackend",
    "MinimalBackend",
    "Offer",
    "Timing",
    # time
    "VirtualClock",
    "eventually",
    "eventually_sync",
    "within",
    # faults
    "Answer",
    "FaultProxy",
    "Ledger",
    "ProcessPool",
    "WorkerProcess",
]

_HOME = {
    "Answer": "faults",
    "AsyncInMemoryBroker": "application",
    "EmbeddedHarness": "embedded",
    "FaultProxy": "faults",
    "Handled": "application",
    "Harness": "harness",
    "InMemoryBroker": "application",
    "InterposedBackend": "interposed",
    "Ledger": "ledger",
    "MinimalBackend": "minimal",
    "Offer": "harness",
    "ProcessPool": "process_pool",
    "Timing": "harness",
    "VirtualClock": "clock",
    "WorkerProcess": "processes",
    "eventually": "deadlines",
    "eventually_sync": "deadlines",
    "in_memory": "application",
    "within": "deadlines",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
