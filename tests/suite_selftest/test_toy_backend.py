"""The suite from outside the package: a backend written against `brokerkit.spi` alone passes it."""

from __future__ import annotations

import pytest

from brokerkit.testing import Harness, Timing
from brokerkit.testing.suite import *  # noqa: F403

from .toy_backend import MAX_BYTES, ToyBackend


class ToyHarness(Harness):
    timing = Timing(redelivery=0.3, settle=0.1)
    max_bytes = MAX_BYTES


@pytest.fixture(scope="session")
def harness() -> ToyHarness:
    return ToyHarness(ToyBackend())
