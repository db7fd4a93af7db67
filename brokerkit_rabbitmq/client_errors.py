"""Errors of pika as errors of brokerkit: of its codec here, and of all of it for applications that use both."""

from __future__ import annotations

import sys

from brokerkit.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    MessageTooLarge,
    PayloadError,
    SendRefused,
    Unroutable,
)
from brokerkit_rabbitmq.errors import NAME, close_error

__all__ = ["map_client_error"]

#: By the name of the class, most special first: what is not here is looked for by its base class.
_BY_NAME: dict[str, type[BrokerError]] = {
    "ProbableAuthenticationError": AccessRefused,
    "AuthenticationError": AccessRefused,
    "ProbableAccessDeniedError": AccessRefused,
    "UnroutableError": Unroutable,
    "NackError": SendRefused,
    "BodyTooLongError": MessageTooLarge,
    "ShortStringTooLong": PayloadError,
    "UnsupportedAMQPFieldException": PayloadError,
    "InvalidFieldTypeException": PayloadError,
    "InvalidChannelNumber": ConfigurationError,
    "InvalidMinimumFrameSize": ConfigurationError,
    "InvalidMaximumFrameSize": ConfigurationError,
    "DuplicateGetOkCallback": ConfigurationError,
    "ReentrancyError": ConfigurationError,
    "ChannelError": BrokerUnavailable,
    "AMQPError": BrokerUnavailable,
}


def map_client_error(exc: BaseException) -> BrokerError | None:
    """Return the error that an exception of pika means; None for any other exception."""
    pika = sys.modules.get("pika.exceptions")
    if pika is None or not isinstance(exc, pika.AMQPError | pika.ChannelError | pika.ReentrancyError):
        return None
    code, text = getattr(exc, "reply_code", None), getattr(exc, "reply_text", "")
    if isinstance(code, int) and code not in (0, 200):
        return close_error(code, str(text))
    kind = next((_BY_NAME[base.__name__] for base in type(exc).__mro__ if base.__name__ in _BY_NAME), BrokerUnavailable)
    # What could not be encoded may be a secret.
    shown = type(exc).__name__ if kind is PayloadError else str(exc) or type(exc).__name__
    return kind(f"pika: {shown}", backend=NAME)
