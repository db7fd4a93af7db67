"""The suite is tested itself: a broken backend fails the cases that name its fault, a healthy one passes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.errors import BrokerError
from brokerkit.testing import EmbeddedHarness, Timing, suite

from .broken_backends import ALL_BROKEN, BrokenBackend
from .interposed import InterposedBackend

#: What a broken backend may fail with; anything else would be a fault of the broken backend's own code.
FAILURES = (AssertionError, BrokerError, OSError, pytest.fail.Exception)

NAMED = sorted({name for broken in ALL_BROKEN for name in broken.caught_by})


class ImpatientHarness(EmbeddedHarness):
    """The embedded broker in memory behind one of the backends of this folder; failures come soon."""

    def __init__(self, kind: type[InterposedBackend], *, patience: float) -> None:
        super().__init__(f"memory://{kind.__name__}", EmbeddedBackend(), lease=0.8)
        self.timing = Timing(redelivery=1.0, deadline=patience, quiet=0.3, delay_tolerance=0.5, reconnect=1.0)
        self._kind = kind

    async def begin(self, case: str, needs: frozenset[str]) -> None:
        await super().begin(case, needs)
        # Outermost, so that the fault is what the portable classes meet.
        self.backend = self._kind(self.backend)


def case_of(name: str) -> Callable[..., None]:
    case: Callable[..., None] = getattr(suite, name)
    return case


@pytest.mark.parametrize("name", NAMED)
def test_healthy_backend_passes_the_cases_that_name_a_fault(name: str) -> None:
    case_of(name)(harness=ImpatientHarness(InterposedBackend, patience=10.0))


@pytest.mark.filterwarnings("ignore")  # a broken backend may leave anything behind
@pytest.mark.parametrize(
    ("broken", "name"),
    [pytest.param(broken, name, id=f"{broken.__name__}-{name}") for broken in ALL_BROKEN for name in broken.caught_by],
)
def test_broken_backend_is_caught(broken: type[BrokenBackend], name: str) -> None:
    try:
        case_of(name)(harness=ImpatientHarness(broken, patience=1.0))
    except FAILURES:
        return
    except pytest.skip.Exception as skipped:
        pytest.fail(f"{name} was skipped: {skipped}")
    pytest.fail(f"{name} passed, although: {broken.__doc__}")


def test_there_are_enough_broken_backends_and_each_is_named() -> None:
    assert len(ALL_BROKEN) >= 15
    every = {kind for kind in _subclasses(BrokenBackend)}
    assert every == set(ALL_BROKEN)
    assert all(broken.caught_by and broken.__doc__ for broken in ALL_BROKEN)


def _subclasses(kind: type[BrokenBackend]) -> set[type[BrokenBackend]]:
    return {one for child in kind.__subclasses__() for one in (child, *_subclasses(child))}
