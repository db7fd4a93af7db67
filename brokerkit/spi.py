"""What a backend implements: four protocols with fourteen methods, and optional ones behind capabilities.

The rule is *policy above, transport below*.  A driver never retries a send, never declares on a send, never
deduplicates and never decides about a failed message: the portable classes do that, once, for every backend.
They also validate arguments, check the closed state and refuse what the connection does not offer, so a driver
may assume that its arguments are legal.

A backend imports only this module and `brokerkit.errors`.  It imports without its client library installed;
`Backend.connect` then raises `ConfigurationError` that says what to install.  All errors that leave a driver
are `brokerkit.errors.BrokerError`; `Backend.map_error` translates those of the client library.

Times are seconds as float: ``due`` and ``timestamp`` since the epoch, timeouts as durations.  Sizes are bytes.
All methods are called on the event loop that `Backend.connect` ran on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from brokerkit.clock import Clock, SystemClock, Timer, wait
from brokerkit.errors import BrokerError
from brokerkit.sections import checked_section
from brokerkit.spi_data import (
    Capability,
    ConnectOptions,
    ConsumerOptions,
    Destination,
    Finding,
    GroupSpec,
    GroupStats,
    Inbound,
    Outbound,
    ToDead,
    ToGroup,
    ToInbox,
    TopicSpec,
    ToTopic,
)
from brokerkit.url import BrokerUrl

__all__ = [
    # what travels
    "ToTopic",
    "ToGroup",
    "ToDead",
    "ToInbox",
    "Destination",
    "Outbound",
    "Inbound",
    # what is declared
    "Capability",
    "TopicSpec",
    "GroupSpec",
    "GroupStats",
    "Finding",
    "ConnectOptions",
    "ConsumerOptions",
    # required
    "Backend",
    "Connection",
    "ProducerDriver",
    "ConsumerDriver",
    # optional
    "AtomicSettle",
    "Browse",
    "DeadLetters",
    "Diagnose",
    "InboxDriver",
    "Inboxes",
    "Lease",
    "Manage",
    "NativeAdmin",
    "Purge",
    "SettleBarrier",
    "StartMarks",
    "Stats",
    "Trials",
    # re-exported for drivers
    "BrokerUrl",
    "Clock",
    "SystemClock",
    "Timer",
    "checked_section",
    "wait",
]


# --- required -------------------------------------------------------------------------------------------------


@runtime_checkable
class Backend(Protocol):
    """One kind of broker; what a ``brokerkit.backends`` entry point names.  Made without arguments, without I/O.

    A backend may have an attribute ``settings_model``, a pydantic model of its configuration section; it is
    used to check the section early and to generate the documentation.
    """

    @property
    def name(self) -> str:
        """The name in configuration and in errors, e.g. ``rabbitmq``; a class attribute will do."""
        ...

    @property
    def schemes(self) -> tuple[str, ...]:
        """URL schemes that choose this backend, e.g. ``("amqp", "amqps")``."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """All that any connection of this backend may offer."""
        ...

    async def connect(self, options: ConnectOptions) -> Connection:
        """Connect once and return the connection; it heals itself from then on.

        Raise `BrokerUnavailable` when the broker cannot be reached within ``options.attempt_timeout`` per
        address, `AccessRefused` for wrong credentials, `ConfigurationError` for a malformed URL or section.
        """
        ...

    def map_error(self, exc: BaseException) -> BrokerError | None:
        """Translate an exception of the client library, or return None when it is not one of those."""
        ...


@runtime_checkable
class Connection(Protocol):
    """A link to one broker that reconnects by itself with jittered, capped exponential backoff."""

    def capabilities(self, topic: str) -> frozenset[Capability]:
        """Return what holds for ``topic`` on this broker: version, permissions, adopted topology.  No I/O."""
        ...

    async def open_producer(self) -> ProducerDriver:
        """Return a producer.  Any number may be open."""
        ...

    async def open_consumer(self, options: ConsumerOptions) -> ConsumerDriver:
        """Return a consumer; raise `TopicNotFound` on STRICT_TOPICS when the topic or the group is missing."""
        ...

    async def ping(self, timeout: float) -> None:
        """Return when the broker answered; raise `BrokerUnavailable` after ``timeout`` seconds."""
        ...

    async def aclose(self) -> None:
        """Close the producers and consumers, then the link.  Idempotent; leaves no task and no socket."""
        ...


@runtime_checkable
class ProducerDriver(Protocol):
    """Stores messages.  Concurrent calls are safe; calls for ordered topics keep the order they were made in."""

    async def send(self, messages: Sequence[Outbound]) -> Sequence[BrokerError | None]:
        """Try once to store the messages; return one outcome each, in their order.

        None: the broker has taken responsibility (publisher confirm, SEND_OK, commit).  A bad message fails
        alone.  Raise only `Closed`.  If cancelled, each message is stored at most once, and may not be.
        An answer that does not come in ``attempt_timeout`` is a `SendTimeout`.
        """
        ...

    async def aclose(self) -> None:
        """Wait for the answers that are under way, at most ``attempt_timeout``, then close.  Idempotent."""
        ...


@runtime_checkable
class ConsumerDriver(Protocol):
    """Delivers the messages of one group and settles them by token."""

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        """Return 1..max_messages, or () after about ``timeout`` seconds.

        () does not mean that the topic is empty.  If cancelled, no message is lost: whatever was not returned
        stays deliverable.  Raise `Closed` promptly when the consumer is closed meanwhile, `TopicNotFound`
        when topic or group were deleted and do not come back.  One call at a time.
        """
        ...

    async def ack(self, messages: Sequence[Inbound]) -> None:
        """Hand the settlement to the broker.  A stale token is ignored and counted."""
        ...

    async def release(self, messages: Sequence[Inbound]) -> None:
        """Give the messages back for delivery without delay, not counted as an attempt; stale ones ignored."""
        ...

    def live(self, message: Inbound) -> bool:
        """Return whether the message's token still holds, as far as is known here.  No I/O."""
        ...

    async def aclose(self) -> None:
        """Stop receiving, give back what was not settled, close.  Idempotent."""
        ...


# --- optional, each behind a capability -------------------------------------------------------------------------


@runtime_checkable
class Lease(Protocol):
    """Consumer drivers with LEASE: an unsettled delivery returns to the group after `lease` seconds."""

    #: Seconds until an unsettled delivery returns.
    lease: float

    async def extend(self, messages: Sequence[Inbound], seconds: float) -> None:
        """Let the leases end ``seconds`` from now; stale tokens are ignored."""
        ...


@runtime_checkable
class SettleBarrier(Protocol):
    """Consumer drivers whose `ack` returns before the broker has the settlement; needs no capability."""

    async def settled(self) -> None:
        """Return when the broker has taken every settlement that was handed over before the call."""
        ...


@runtime_checkable
class AtomicSettle(Protocol):
    """Consumer drivers with ATOMIC_SETTLE."""

    async def settle_with(self, message: Inbound, outbounds: Sequence[Outbound]) -> None:
        """Store ``outbounds`` and acknowledge ``message`` in one transaction: all of it or nothing.

        Store nothing when the token is stale.  Raise the first outcome that is an error.
        """
        ...


@runtime_checkable
class StartMarks(Protocol):
    """Consumer drivers with START_MARKS, and those with `Trials` that want to know what is at work."""

    def mark_started(self, message: Inbound) -> None:
        """Note that the handler is about to start; with START_MARKS that survives a crash of this process."""
        ...


@runtime_checkable
class Inboxes(Protocol):
    """Connections with INBOX."""

    async def open_inbox(self) -> InboxDriver:
        """Return a consumer of a new, private address."""
        ...


@runtime_checkable
class InboxDriver(ConsumerDriver, Protocol):
    """A consumer of messages to one `ToInbox` address; they may be lost when the link is."""

    #: What goes into `Outbound.reply_to` and `ToInbox`.
    address: str


@runtime_checkable
class Manage(Protocol):
    """Connections with MANAGE."""

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        """Create the topic, and the group if one is given; verify what exists and never narrow it.

        Idempotent.  Raise `TopologyConflict` that names the differing property, with the connection usable.
        """
        ...

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        """Raise `TopicNotFound` or `TopologyConflict` unless it exists as given.  Creates nothing."""
        ...

    async def delete(self, topic: str, group: str | None) -> None:
        """Delete the group with its messages and dead letters, or the topic with all groups.  Missing: no-op."""
        ...


@runtime_checkable
class Purge(Protocol):
    """Connections with PURGE."""

    async def purge(self, topic: str, group: str) -> int:
        """Remove what is ready in this group, and nothing else; return how many.

        Delayed messages and retries that wait for their delay stay.
        """
        ...


@runtime_checkable
class Stats(Protocol):
    """Connections with STATS."""

    async def stats(self, topic: str, group: str) -> GroupStats:
        """Return the figures of the group; raise `TopicNotFound` when it is missing.  Creates nothing."""
        ...


@runtime_checkable
class Browse(Protocol):
    """Connections with BROWSE."""

    async def browse(self, topic: str, group: str, limit: int) -> Sequence[Inbound]:
        """Return up to ``limit`` dead letters, oldest first, changing neither their order nor their state."""
        ...


@runtime_checkable
class DeadLetters(Protocol):
    """Connections with DEAD_LETTER."""

    async def take_dead(self, topic: str, group: str, ids: Sequence[str] | None) -> ConsumerDriver:
        """Return a consumer of the dead letters with these message ids (None: all), oldest first.

        Its `receive` returns () at once when none is left.  What is acknowledged is gone; what is released
        or left at `aclose` stays a dead letter in its place.
        """
        ...


# --- optional, without a capability -----------------------------------------------------------------------------


@runtime_checkable
class Trials(Protocol):
    """Consumer drivers that count the starts of messages that a process may have died of, and of no others.

    `Inbound.started` of what they redeliver says whether it is such a message, a suspect: True also where it was merely
    fetched by a process that is gone; its ``crashes`` are then at least 1.  Suspects are started one at a time.
    """

    async def begin_trial(self, message: Inbound) -> None:
        """Record that a suspect is about to be started alone; return when that survives a crash of this process.

        If the process dies, ``crashes`` of the next delivery is one higher; if the message is settled or released
        instead, the start does not count.  Raise `BrokerError` when it cannot be recorded for now; where it
        never can be, return.  Stale ones are ignored.
        """
        ...


@runtime_checkable
class Diagnose(Protocol):
    """Connections that know what commonly goes wrong with their broker."""

    async def diagnose(self) -> Sequence[Finding]:
        """Look for it, also in the topics and groups of `ConnectOptions.topics`.

        Creates and changes nothing, and takes some seconds at most.  What cannot be found out, for lack of a
        permission or an answer, is left out or is advice; no `BrokerError` is raised for it.
        """
        ...


@runtime_checkable
class NativeAdmin(Protocol):
    """Connections that can administer what is not portable."""

    @property
    def native_admin(self) -> Any:
        """An object with asynchronous methods of this one backend; `brokerkit.Admin.native` hands it out."""
        ...
