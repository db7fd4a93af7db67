"""What passes through the SPI: destinations, messages, capabilities, declarations, options.

Backends import these names from `brokerkit.spi`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from brokerkit.clock import Clock, SystemClock

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


# These two are not keyword-only: that doubles the time that one takes to be made, which is once for every message.
@dataclass(slots=True, eq=False)
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


@dataclass(slots=True, eq=False)
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
    #: died or hung.  With `Trials`: whether that may be so.  None: this driver cannot tell; the core then judges by
    #: ``redelivered``.
    started: bool | None = None
    #: The broker's own count of deliveries, where it has one; used only where ``bk-attempt`` is missing.
    native_attempt: int = 1
    #: Why ``body`` is not what was sent but what the broker stored: compressed and the library is missing, or damaged.
    #: No handler is given it; the message is a dead letter ``undecodable``.
    problem: str | None = None
    token: Any = None
    #: The client library's own message, for applications that need what is not portable.
    native: Any = None
    #: Starts of a handler that ended with the process, where ``started`` is not None: they add to the attempts.
    crashes: int = 0


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
    #: Messages of the topic that the group did not finish, by queue; None where queues are not told apart.
    queues: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that ``brokerkit doctor`` looked at.  A ``wrong`` one makes its exit code 1, an ``advice`` does not."""

    level: Literal["ok", "advice", "wrong"]
    about: str
    text: str
    #: What to do about it.
    cure: str = ""


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
