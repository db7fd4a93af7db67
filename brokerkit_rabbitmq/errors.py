"""What RabbitMQ says when it closes a channel or a connection, as errors of brokerkit.

The reply codes are those of AMQP 0-9-1, section 1.1; the texts are RabbitMQ's (rabbit_misc.erl, rabbit_reader.erl).
"""

from __future__ import annotations

import re
import ssl

from brokerkit.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    CapabilityNotSupported,
    ConfigurationError,
    MessageTooLarge,
    PayloadError,
    SendTimeout,
    TopicNotFound,
    TopologyConflict,
)

__all__ = ["NAME", "close_error", "fresh", "link_error", "unknown_outcome"]

#: The name of the backend in errors.
NAME = "rabbitmq"

_CONTENT_TOO_LARGE = 311
_CONNECTION_FORCED = 320
_ACCESS_REFUSED = 403
_NOT_FOUND = 404
_RESOURCE_LOCKED = 405
_PRECONDITION_FAILED = 406
_NOT_ALLOWED = 530
_NOT_IMPLEMENTED = 540

#: "inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received 'quorum' but current is 'classic'", and
#: "… received none but current is the value 'x' of type 'longstr'".
_INEQUIVALENT = re.compile(r"inequivalent arg '(?P<argument>[^']+)' for (?P<what>exchange|queue) '(?P<name>[^']*)'")
#: A queue that exists and cannot be used at the moment (rabbit_amqqueue.erl, rabbit_amqqueue_common).
_ABSENT = re.compile(r"is down or inaccessible|is stopped by supervisor|due to timeout")
#: Names of queues and users may hold any of these words.
_QUOTED = re.compile(r"'[^']*'")
#: "connection limit (5) is reached", "the maximum allowed limit of (10)".
_LIMIT = re.compile(r"limit (of )?\(")


def close_error(code: int, text: str | bytes) -> BrokerError:
    """Return the error that the broker's close of a channel or of a connection means.

    All that may pass, including codes that only a fault of the broker explains, is `BrokerUnavailable`.
    """
    if isinstance(text, bytes):
        # The broker cuts a text after 255 bytes, also within a character.
        text = text.decode("utf-8", "replace")
    shown = f"RabbitMQ answered {code} {text}".strip()
    said = _QUOTED.sub("", text)
    if code == _NOT_FOUND and _ABSENT.search(said) is None:
        return TopicNotFound(shown, backend=NAME)
    if code == _ACCESS_REFUSED:
        return AccessRefused(shown, backend=NAME)
    if code == _CONTENT_TOO_LARGE:
        return MessageTooLarge(shown, backend=NAME)
    if code == _NOT_IMPLEMENTED:
        return CapabilityNotSupported(shown, backend=NAME)
    if code == _PRECONDITION_FAILED:
        return _precondition_failed(text, shown)
    if code == _NOT_ALLOWED:
        if _LIMIT.search(said) is not None or "is down" in said:
            return BrokerUnavailable(shown, backend=NAME)
        if "vhost" in text:
            return AccessRefused(f"{shown}; is the virtual host right, and may this user use it?", backend=NAME)
        return AccessRefused(shown, backend=NAME)
    return BrokerUnavailable(shown, backend=NAME)


def _precondition_failed(text: str, shown: str) -> BrokerError:
    conflict = _INEQUIVALENT.search(text)
    if conflict is not None:
        return TopologyConflict(
            f"{conflict['what']} {conflict['name']!r} exists with another {conflict['argument']!r}: {shown}; name it "
            f"in the configuration as it is, or set declare: verify",
            backend=NAME,
        )
    if "message size" in text:
        return MessageTooLarge(shown, backend=NAME)
    if "acknowledgement" in text or "unknown delivery tag" in text:
        # consumer_timeout: the channel is gone, its deliveries come again.
        return BrokerUnavailable(shown, backend=NAME)
    if "inequivalent" in text or "invalid arg" in text or "invalid property" in text:
        return TopologyConflict(shown, backend=NAME)
    return PayloadError(shown, backend=NAME)


def unknown_outcome(cause: BrokerError) -> SendTimeout:
    """Return the outcome of a message whose confirm can never come because of ``cause``."""
    error = SendTimeout(f"the outcome is unknown, no confirm came before this: {cause.message}", backend=NAME)
    error.__cause__ = cause
    return error


def fresh(error: BrokerError) -> BrokerError:
    """Return a copy of an error that several callers raise: each adds a context and a traceback of its own."""
    copy = type(error)(error.message, topic=error.topic, backend=error.backend, retryable=error.retryable)
    copy.__cause__ = error.__cause__
    return copy


def link_error(exc: BaseException, where: str) -> BrokerError:
    """Return why ``where``, an address, could not be reached."""
    if isinstance(exc, BrokerError):
        return exc
    if isinstance(exc, ssl.SSLCertVerificationError):
        error: BrokerError = BrokerUnavailable(
            f"TLS to {where} failed: {getattr(exc, 'verify_message', None) or exc}; check ca_file, server_name and the "
            f"broker's certificate",
            backend=NAME,
            retryable=False,
        )
    elif isinstance(exc, ssl.SSLError):
        error = BrokerUnavailable(
            f"TLS to {where} failed: {getattr(exc, 'reason', None) or exc}; is it the TLS port, and does the broker "
            f"want a client certificate (cert_file, key_file)?",
            backend=NAME,
            retryable=False,
        )
    elif isinstance(exc, UnicodeError):
        error = ConfigurationError(f"{where} is no host name", backend=NAME)
    else:
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        error = BrokerUnavailable(f"cannot connect to {where}: {reason}", backend=NAME)
    error.__cause__ = exc
    return error
