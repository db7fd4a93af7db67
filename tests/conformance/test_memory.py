"""The suite in memory: the cases of a file but those about durability and other processes."""

from __future__ import annotations

import pytest

from brokerkit.testing import EmbeddedHarness
from brokerkit.testing.suite import *


@pytest.fixture(scope="session")
def harness() -> EmbeddedHarness:
    return EmbeddedHarness("memory://conformance")
