"""The suite on a file: every capability, and every case but those whose hook has no subject on a file."""

from __future__ import annotations

import pytest

from brokerkit.testing import EmbeddedHarness
from brokerkit.testing.suite import *


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedHarness:
    return EmbeddedHarness(f"sqlite:///{tmp_path_factory.mktemp('conformance') / 'broker.db'}")
