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

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from brokerkit.clock import Clock, SystemClock, Timer, wait
from brokerkit.errors import BrokerError

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
    "InboxDriver",
    "Inboxes",
    "Lease",
    "Manage",
    "Purge",
    "StartMarks",
    "Stats",
    # re-exported for drivers
    "Clock",
    "SystemClock",
    "Timer",
    "wait",
]


# --- destinations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToTopic:
    """Every group of the topic, as it stands when the message is due."""

    topic: str


@dataclass(frozen=True, slots=True)
class ToGroup:
    """One group only: retries, deferrals and redriven dead letters."""

    topic: str
    group: str


@dataclass(frozen=True, slots=True)
class ToDead:
    """The dead letters of one group."""

    topic: str
    group: str


@dataclass(frozen=True, slots=True)
class ToInbox:
    """The inbox that gave out ``address``.  A message to an inbox that is gone is dropped silently."""

    address: str


Destination = ToTopic | ToGroup | ToDead | ToInbox


# --- messages -------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class Outbound:
    """One message on its way to the broker.

    The fields travel in the broker's own properties where it has them and in ``bk-*`` headers otherwise, so
    that foreign clients can read them.  ``headers`` holds the user's headers and the core's ``bk-*`` ones;
    names and values that the broker would interpret or drop must be encoded by the driver and arrive unchanged.
    """

    destination: Destination
    body: bytes
    #: Made once by the sender and never changed: the driver must not make one of its own.
    message_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Not before this instant; None or an instant that has passed: at once.
    due: float | None = None
    key: str | None = None
    tag: str | None = None
    type: str | None = None
    content_type: str | None = None
    #: 0 (lowest) to 9.
    priority: int = 0
    timestamp: float = 0.0
    correlation_id: str | None = None
    reply_to: str | None = None
    #: The topic is declared ordered: messages with one key must be stored in the order of the calls.
    ordered: bool = False
    #: Options for this one backend, passed through from ``native=``.
    native: Mapping[str, Any] | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Inbound:
    """One message as it was received, foreign ones included.

    ``token`` identifies this one delivery to the driver: (connection epoch, assignment generation, position)
    or whatever serves the same purpose.  A token that outlived its delivery is *stale* and settles nothing.
    """

    topic: str
    group: str
    body: bytes
    #: None where a foreign sender gave none and the broker made none.
    message_id: str | None
    headers: Mapping[str, str] = field(default_factory=dict)
    due: float | None = None
    key: str | None = None
    tag: str | None = None
    type: str | None = None
    content_type: str | None = None
    priority: int = 0
    #: None where a foreign sender gave none.
    timestamp: float | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    #: True: it was delivered before.  False: it was not, and that is never wrong.  None: unknown, no suspect.
    redelivered: bool | None = None
    #: With START_MARKS: whether a handler was started on it and neither settled nor released it, i.e. the process
    #: died or hung.  None: this driver cannot tell started from prefetched; the core then judges by ``redelivered``.
    started: bool | None = None
    #: With START_MARKS: 1 + the number of starts that ended with the process, so it adds to ``bk-attempt``.
    #: Otherwise the broker's own count of deliveries, where it has one; used only where ``bk-attempt`` is missing.
    native_attempt: int = 1
    token: Any = None
    #: The client library's own message, for applications that need what is not portable.
    native: Any = None


# --- declarations ---------------------------------------------------------------------------------------------


class Capability(enum.Enum):
    """One behaviour that a connection may offer.  What is not offered is refused before any I/O."""

    #: A send that returned survives the restart of the broker's process and of this one.
    DURABLE = "durable"
    #: Several processes can work on the same topics.
    MULTIPROCESS = "multiprocess"
    #: Several groups each receive every message of a topic.
    CONSUMER_GROUPS = "consumer-groups"
    #: A group receives only the messages with certain tags.
    TAGS = "tags"
    #: `Outbound.due` is honoured without a process of ours waiting.
    DELAYED_SEND = "delayed-send"
    #: `ToDead` stores dead letters; `DeadLetters` is implemented.
    DEAD_LETTER = "dead-letter"
    #: A consumer may ask to receive every message that is sent while it is connected.
    BROADCAST = "broadcast"
    #: `Inboxes` is implemented.
    INBOX = "inbox"
    #: `Browse` is implemented.
    BROWSE = "browse"
    #: A group may be declared ordered: total order with one consumer.
    ORDERED = "ordered"
    #: In an ordered group messages with one key keep their order across consumers.
    ORDERED_BY_KEY = "ordered-by-key"
    #: A group declared with ``start="earliest"`` receives messages that were sent before.
    FROM_START = "from-start"
    #: An acknowledgement that the broker received never comes back, whatever else is unsettled.
    SELECTIVE_ACK = "selective-ack"
    #: `Inbound.redelivered` is True or False, not None.
    REDELIVERED = "redelivered"
    #: An unsettled delivery returns after a time; `Lease` is implemented.
    LEASE = "lease"
    #: Higher priorities are delivered first.
    STRICT_PRIORITY = "strict-priority"
    #: `AtomicSettle` is implemented.
    ATOMIC_SETTLE = "atomic-settle"
    #: `StartMarks` is implemented: `Inbound.started` is True or False, so crashes are charged exactly.
    START_MARKS = "start-marks"
    #: `Manage` is implemented.
    MANAGE = "manage"
    #: `Purge` is implemented.
    PURGE = "purge"
    #: `Stats` is implemented.
    STATS = "stats"
    #: Sending to or receiving from a topic that was never declared raises `TopicNotFound`.
    STRICT_TOPICS = "strict-topics"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """A group as the application declares it."""

    name: str
    #: Normal form of a tag filter: ``*`` or ``a||b``.
    tag: str = "*"
    ordered: bool = False
    #: Where a new group begins: ``latest`` or ``earliest``.  Pinned when the group is declared.
    start: str = "latest"
    #: The section of the configuration that belongs to this backend (``topics.T.groups.G.<backend>``).
    native: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic as the application declares it."""

    name: str
    ordered: bool = False
    groups: Mapping[str, GroupSpec] = field(default_factory=dict)
    #: Whether a message that no group would receive raises `Unroutable` (``raise``) or is dropped (``drop``).
    unroutable: str = "raise"
    native: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStats:
    """Figures of one group at one instant.  None means unknown, never a made-up 0."""

    topic: str
    group: str
    #: Waiting to be delivered now.
    ready: int | None
    #: Delivered and not settled.
    unsettled: int | None
    #: Waiting for their due time.
    delayed: int | None
    dead: int | None
    consumers: int | None
    #: Seconds that the oldest ready message has waited.
    oldest_age: float | None
    #: Where the figures come from, e.g. ``sqlite``, ``management API``.
    source: str
    #: When they were true, seconds since the epoch.
    as_of: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectOptions:
    """What `Backend.connect` gets."""

    #: The URL of the configuration, credentials included; None where only a section is configured.
    #: Not in the repr, and neither is the section: both may hold credentials.
    url: str | None = field(default=None, repr=False)
    #: The backend's own section of the configuration, as it was written.
    section: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: Live view of the topics that the application declared; grows while the connection is open.
    topics: Mapping[str, TopicSpec] = field(default_factory=dict)
    #: Shown by brokers that list their clients.
    client_id: str = "brokerkit"
    #: Upper bound of one try of a send or of one call, in seconds.
    attempt_timeout: float = 5.0
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerOptions:
    """What `Connection.open_consumer` gets."""

    topic: str
    group: str
    #: Most deliveries that may be unsettled at once, buffered ones included.  At least 1.
    prefetch: int = 20
    #: Normal form of a tag filter.
    tag: str = "*"
    ordered: bool = False
    #: Receive every message sent while connected; ``group`` then only names the consumer.
    broadcast: bool = False
    native: Mapping[str, Any] = field(default_factory=dict)


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
class AtomicSettle(Protocol):
    """Consumer drivers with ATOMIC_SETTLE."""

    async def settle_with(self, message: Inbound, outbounds: Sequence[Outbound]) -> None:
        """Store ``outbounds`` and acknowledge ``message`` in one transaction: all of it or nothing.

        Store nothing when the token is stale.  Raise the first outcome that is an error.
        """
        ...


@runtime_checkable
class StartMarks(Protocol):
    """Consumer drivers with START_MARKS."""

    def mark_started(self, message: Inbound) -> None:
        """Record, so that it survives a crash of this process, that the handler is about to start."""
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
