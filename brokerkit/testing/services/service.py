"""What a broker is to a test, and what a package implements to make its broker findable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

__all__ = ["Controllable", "ExternalService", "Missing", "Service", "ServiceProvider"]


class Service(Protocol):
    """A running broker.  All methods block; from a coroutine call them through ``asyncio.to_thread``."""

    @property
    def name(self) -> str:
        """The provider's name."""

    @property
    def url(self) -> str:
        """What to connect to; may hold credentials."""

    @property
    def origin(self) -> str:
        """How it was found, for the report's header: "environment", "local" or "docker"."""

    def close(self) -> None:
        """End what was started for the test; an external broker stays as it is.  Idempotent."""


@runtime_checkable
class Controllable(Service, Protocol):
    """A broker that fault tests may break, because nobody else uses it."""

    def start(self) -> None:
        """Start it and return when it is ready; `BrokerUnavailable` with the end of its log when that fails."""

    def stop(self) -> None:
        """End it in good order; what it stored stays."""

    def kill(self) -> None:
        """End it as a crash does; what it stored durably stays."""

    def restart(self) -> None:
        """Stop it if it runs, and start it again at the same address."""

    def suspend(self) -> None:
        """Freeze it: connections stay open and nothing answers."""

    def resume(self) -> None:
        """Let it go on after `suspend`."""


@dataclass(frozen=True, slots=True)
class ExternalService:
    """A broker that somebody else runs."""

    name: str
    #: Not in the repr: it may hold credentials.
    url: str = field(repr=False)
    origin: str = "environment"

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Missing:
    """No broker, and why."""

    name: str
    reason: str
    #: BROKERKIT_REQUIRE names it: the tests that need it fail instead of being skipped.
    required: bool = False

    def __str__(self) -> str:
        return f"no {self.name}: {self.reason}"


class ServiceProvider(Protocol):
    """How one kind of broker is reached or started.

    Each step returns a `Service` that answers, or a `Missing` that says what was not there.  A step that found
    what it needs and then failed raises `BrokerError`.  Steps block.
    """

    @property
    def name(self) -> str:
        """The broker's name: "rabbitmq" reads BROKERKIT_TEST_RABBITMQ_URL."""

    def from_environment(self, url: str) -> Service | Missing:
        """Use the broker at ``url``; `Missing` when it does not answer."""

    def local(self) -> Service | Missing:
        """Start a private node from binaries of this machine."""

    def docker(self) -> Service | Missing:
        """Start a container; called only where Docker answers."""
