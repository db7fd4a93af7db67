"""All cases as one module, for `brokerkit.testing.conformance`; the harness comes from there."""

from brokerkit.testing.suite import *  # noqa: F403
