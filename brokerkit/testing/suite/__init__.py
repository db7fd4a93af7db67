"""The conformance suite: one set of cases that every backend passes.

A backend runs it with one fixture and one import (docs/conformance.md):

    from brokerkit.testing.suite import *  # noqa: F403

    @pytest.fixture(scope="session")
    def harness():
        return AcmeHarness(AcmeBackend())
"""

from brokerkit.testing.suite.test_admin import *
from brokerkit.testing.suite.test_errors import *
from brokerkit.testing.suite.test_faults import *
from brokerkit.testing.suite.test_fidelity import *
from brokerkit.testing.suite.test_lifecycle import *
from brokerkit.testing.suite.test_optional import *
from brokerkit.testing.suite.test_ordering import *
from brokerkit.testing.suite.test_policy import *
from brokerkit.testing.suite.test_resilience import *
from brokerkit.testing.suite.test_reviewed import *
from brokerkit.testing.suite.test_reviewed_processes import *
from brokerkit.testing.suite.test_settlement import *
from brokerkit.testing.suite.test_tags_broadcast_due import *
from brokerkit.testing.suite.test_transfer import *
