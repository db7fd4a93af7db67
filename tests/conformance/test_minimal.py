"""The suite on a backend without any optional capability: what a backend needs at least, and every refusal."""

from __future__ import annotations

import pytest

from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.testing import EmbeddedHarness, MinimalBackend
from brokerkit.testing.suite import *


@pytest.fixture(scope="module")
def harness() -> EmbeddedHarness:
    # Without LEASE nobody extends: what the embedded broker calls a lease must not end during a case.
    return EmbeddedHarness("memory://minimal", MinimalBackend(EmbeddedBackend()), lease=3600.0)


async def test_the_minimal_backend_declares_nothing(harness: EmbeddedHarness) -> None:
    assert (await harness.probe()).capabilities == frozenset()
