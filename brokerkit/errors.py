"""Every error that brokerkit raises, as one tree.

BrokerError
├── BrokerUnavailable      cannot be reached, or the link broke                 retryable
├── AccessRefused          wrong credentials or missing permission
├── TopicNotFound          the topic or the group does not exist
├── TopologyConflict       it exists with other properties than asked for
├── SendRefused            the broker answered no (full, alarm, limit)          retryable
├── SendTimeout            no answer in time: the outcome is unknown            retryable
├── MessageTooLarge        larger than the broker's or the configured limit
├── Unroutable             no group would ever receive the message
├── CapabilityNotSupported this connection does not offer the asked behaviour
├── Closed                 the object was closed before the call
├── AlreadySettled         the delivery was settled with another verb
├── ConfigurationError     settings, names or declarations that cannot work
├── PayloadError           the payload cannot be encoded
├── DecodeError            the body cannot be decoded into the asked type
├── ReplyTimeout           no reply within the timeout of a request             retryable
└── RemoteError            the handler on the other side failed the request

``Reject`` and ``Retry`` are not errors of brokerkit: a handler raises them to say what becomes of a message.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self

__all__ = [
    "BrokerError",
    "BrokerUnavailable",
    "AccessRefused",
    "TopicNotFound",
    "TopologyConflict",
    "SendRefused",
    "SendTimeout",
    "MessageTooLarge",
    "Unroutable",
    "CapabilityNotSupported",
    "Closed",
    "AlreadySettled",
    "ConfigurationError",
    "PayloadError",
    "DecodeError",
    "ReplyTimeout",
    "RemoteError",
    "Reject",
    "Retry",
]


class BrokerError(Exception):
    """The base of all errors of brokerkit.

    ``retryable`` says whether the same call may succeed later without a change by anybody.  ``topic`` and
    ``backend`` are part of the text once they are known; the error of a client library is ``__cause__``.
    The text never holds a credential.
    """

    #: What instances are unless they say otherwise.
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        topic: str | None = None,
        backend: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.topic = topic
        self.backend = backend
        self.retryable: bool = self.default_retryable if retryable is None else retryable

    def with_context(self, *, topic: str | None = None, backend: str | None = None) -> Self:
        """Fill in the topic and the backend where they are not known yet; return self."""
        if self.topic is None:
            self.topic = topic
        if self.backend is None:
            self.backend = backend
        return self

    def __str__(self) -> str:
        context = []
        if self.topic is not None and repr(self.topic) not in self.message:
            context.append(f"topic {self.topic!r}")
        if self.backend is not None:
            context.append(f"backend {self.backend}")
        return f"{self.message} ({', '.join(context)})" if context else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions travel between processes (executor="process"); keyword-only state and notes must travel too.
        return (type(self), (self.message,), self.__dict__)


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached, refused the connection, or the link broke."""

    default_retryable = True


class AccessRefused(BrokerError):
    """The broker refused the credentials, or they lack a permission."""


class TopicNotFound(BrokerError):
    """The topic or the group does not exist on the broker."""


class TopologyConflict(BrokerError):
    """A topic or a group exists with properties that contradict the declared ones; the text names them."""


class SendRefused(BrokerError):
    """The broker answered that it did not take the message: a full queue, an alarm, a limit."""

    default_retryable = True


class SendTimeout(BrokerError):
    """No answer came in time.  The outcome is unknown: the message may or may not be stored."""

    default_retryable = True


class MessageTooLarge(BrokerError):
    """The message exceeds a size limit; the text names the limit and the sizes in bytes."""


class Unroutable(BrokerError):
    """No group would receive the message and the backend does not keep messages for later groups."""


class CapabilityNotSupported(BrokerError):
    """The connection does not offer the behaviour that was asked for; raised before any I/O."""


class Closed(BrokerError):
    """The manager, connection, producer or consumer was closed before or during the call."""


class AlreadySettled(BrokerError):
    """A delivery was settled with one verb and then with a conflicting one."""


class ConfigurationError(BrokerError):
    """Settings, names or declarations that cannot work; the text says where and what to do."""


class PayloadError(BrokerError):
    """The payload cannot be encoded, or an option of the message is not legal."""


class DecodeError(BrokerError):
    """The body cannot be decoded into the type that the handler or the caller asked for."""


class ReplyTimeout(BrokerError):
    """No reply came within the timeout of a request.  A late reply is dropped."""

    default_retryable = True


class RemoteError(BrokerError):
    """The handler on the other side answered a request with a failure; the text is its reason."""


class Reject(Exception):
    """Raise in a handler to make the message a dead letter now, without further attempts.

    ``reason`` is stored with the dead letter.
    """

    def __init__(self, reason: str = "rejected") -> None:
        super().__init__(reason)
        self.reason = reason


class Retry(Exception):
    """Raise in a handler to have the message again; the attempt counts.

    ``delay`` is in seconds; None takes the delay of the handler's retry policy.
    """

    def __init__(self, delay: float | None = None) -> None:
        """Raise `PayloadError` for a delay that is no finite number of at least 0."""
        super().__init__(delay)
        if delay is not None:
            check_seconds("delay", delay)
        self.delay = delay


def check_seconds(name: str, value: object) -> None:
    """Raise `PayloadError` unless ``value`` is a finite number of seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PayloadError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise PayloadError(f"{name} is a finite number of seconds of at least 0, not {value!r}")
