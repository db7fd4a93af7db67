"""The suite in memory: the cases of a file but those about durability and other processes."""

from __future__ import annotations

import pytest

from brokerkit.spi import Capability
from brokerkit.testing import EmbeddedHarness, suite
from brokerkit.testing.suite import *
from brokerkit.testing.suite._cases import cases_in


@pytest.fixture(scope="module")
def harness() -> EmbeddedHarness:
    return EmbeddedHarness("memory://conformance")


async def test_memory_lacks_only_what_needs_a_file(harness: EmbeddedHarness) -> None:
    lacking = {Capability.DURABLE, Capability.MULTIPROCESS}
    assert (await harness.probe()).capabilities == frozenset(Capability) - lacking
    on_file = EmbeddedHarness("sqlite:///never-opened.db")
    for case in cases_in(suite):
        # What runs on a file runs here, unless it is about durability or other processes.
        if all(map(on_file.offers, case.needs)) and not case.requires & lacking:
            assert all(map(harness.offers, case.needs)), case.name
