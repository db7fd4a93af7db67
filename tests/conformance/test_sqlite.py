"""The suite on a file: every capability, and every case but those whose hook has no subject on a file."""

from __future__ import annotations

import pytest

from brokerkit.spi import Capability
from brokerkit.testing import EmbeddedHarness, suite
from brokerkit.testing.suite import *
from brokerkit.testing.suite._cases import cases_in


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedHarness:
    return EmbeddedHarness(f"sqlite:///{tmp_path_factory.mktemp('conformance') / 'broker.db'}")


#: What could fail to come only over a network, or be refused only by a server.
NO_SUBJECT_ON_A_FILE = {
    "test_failover_url_list",
    "test_half_open_link_resumes",
    "test_reset_during_send",
    "test_stale_delivery_sends_no_retry",
    "test_stale_token_never_settles_another_message",
    "test_unreachable_broker_raises_in_time",
    "test_unsettled_redelivered_after_connection_loss",
    "test_wrong_credentials_are_not_retryable",
}


async def test_the_file_declares_everything_and_skips_only_these(harness: EmbeddedHarness) -> None:
    assert (await harness.probe()).capabilities == frozenset(Capability)
    assert {case.name for case in cases_in(suite) if not all(map(harness.offers, case.needs))} == NO_SUBJECT_ON_A_FILE
