from __future__ import annotations

import inspect
import socket
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import exceptions

from brokerkit.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    CapabilityNotSupported,
    ConfigurationError,
    MessageTooLarge,
    PayloadError,
    SendRefused,
    SendTimeout,
    TopicNotFound,
    TopologyConflict,
    Unroutable,
)
from brokerkit_rabbitmq.backend import RabbitMQBackend
from brokerkit_rabbitmq.errors import close_error, link_error, unknown_outcome
from tests.planted import PLANTED

# --- what the broker says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (311, MessageTooLarge),
        (312, BrokerUnavailable),
        (313, BrokerUnavailable),
        (320, BrokerUnavailable),
        (402, BrokerUnavailable),
        (403, AccessRefused),
        (404, TopicNotFound),
        (405, BrokerUnavailable),
        (406, PayloadError),
        (501, BrokerUnavailable),
        (502, BrokerUnavailable),
        (503, BrokerUnavailable),
        (504, BrokerUnavailable),
        (505, BrokerUnavailable),
        (506, BrokerUnavailable),
        (530, AccessRefused),
        (540, CapabilityNotSupported),
        (541, BrokerUnavailable),
        (599, BrokerUnavailable),
    ],
)
def test_every_reply_code_is_one_error(code: int, kind: type[BrokerError]) -> None:
    error = close_error(code, "SOME TEXT")

    assert type(error) is kind
    assert error.retryable is kind.default_retryable
    assert str(error).startswith(f"RabbitMQ answered {code} SOME TEXT")
    assert error.backend == "rabbitmq"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'orders:billing' in vhost '/': received "
            "'quorum' but current is 'classic'",
            "queue 'orders:billing' exists with another 'x-queue-type': ",
        ),
        (
            "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'q' in vhost '/': received none but "
            "current is the value '5' of type 'signedint'",
            "queue 'q' exists with another 'x-max-priority': ",
        ),
        (
            "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received the value "
            "'5' of type 'signedint' but current is none",
            "queue 'q' exists with another 'x-message-ttl': ",
        ),
        (
            "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'orders' in vhost '/': received 'topic' but "
            "current is 'direct'",
            "exchange 'orders' exists with another 'type': ",
        ),
        (
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current "
            "is 'false'",
            "queue 'q' exists with another 'durable': ",
        ),
        ("PRECONDITION_FAILED - inequivalent arg 'x-queue-t", "inequivalent arg"),  # cut after 255 bytes
        (
            "PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'q' in vhost '/': not supported",
            "'x-max-priority'",
        ),
        ("PRECONDITION_FAILED - invalid property 'exclusive-owner' for queue 'q' in vhost '/'", "'exclusive-owner'"),
    ],
)
def test_a_queue_or_an_exchange_with_another_argument_is_a_conflict_that_names_it(text: str, shown: str) -> None:
    error = close_error(406, text)

    assert type(error) is TopologyConflict
    assert shown in error.message
    assert text in error.message


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (406, "PRECONDITION_FAILED - message size 134217729 is larger than max size 134217728", MessageTooLarge),
        (
            406,
            "PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216",
            MessageTooLarge,
        ),
        (
            406,
            "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 60000 ms. "
            "This timeout value can be configured, see consumers doc guide to learn more",
            BrokerUnavailable,
        ),
        (406, "PRECONDITION_FAILED - unknown delivery tag 7", BrokerUnavailable),
        (406, "PRECONDITION_FAILED - invalid expiration 'x': {leftover_string,\"x\"}", PayloadError),
        (406, "PRECONDITION_FAILED - user_id property set to 'a' but authenticated user was 'b'", PayloadError),
        (404, "NOT_FOUND - no exchange 'orders' in vhost '/'", TopicNotFound),
        (404, "NOT_FOUND - no queue 'orders:billing' in vhost '/'", TopicNotFound),
        (404, "NOT_FOUND - no queue 'is down or inaccessible' in vhost '/'", TopicNotFound),
        (
            404,
            "NOT_FOUND - home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or inaccessible",
            BrokerUnavailable,
        ),
        (404, "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor", BrokerUnavailable),
        (404, "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout", BrokerUnavailable),
        (
            403,
            "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker "
            "logfile.",
            AccessRefused,
        ),
        (
            403,
            "ACCESS_REFUSED - access to exchange 'orders' in vhost '/' refused for user 'guest'",
            AccessRefused,
        ),
        (
            405,
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'bk.inbox.x' in vhost '/'",
            BrokerUnavailable,
        ),
        (530, "NOT_ALLOWED - vhost prod not found", AccessRefused),
        (530, "NOT_ALLOWED - access to vhost 'prod' refused for user 'guest'", AccessRefused),
        (530, "NOT_ALLOWED - access to vhost 'limit (5)' refused for user 'is down'", AccessRefused),
        (530, "NOT_ALLOWED - vhost 'prod' is down", BrokerUnavailable),
        (
            530,
            "NOT_ALLOWED - access to vhost 'prod' refused for user 'guest': connection limit (5) is reached",
            BrokerUnavailable,
        ),
        (
            530,
            "NOT_ALLOWED - Connection refused for user 'guest': user connection limit (5) is reached",
            BrokerUnavailable,
        ),
        (
            530,
            "NOT_ALLOWED - number of channels opened for user 'guest' has reached the maximum allowed user limit "
            "of (9)",
            BrokerUnavailable,
        ),
        (541, "INTERNAL_ERROR - vhost 'prod' is down", BrokerUnavailable),
        (541, "INTERNAL_ERROR - Cannot declare a queue 'queue 'q' in vhost '/'' on node", BrokerUnavailable),
        (540, "NOT_IMPLEMENTED - queue 'q' in vhost '/' does not support global qos", CapabilityNotSupported),
        (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", BrokerUnavailable),
    ],
)
def test_the_texts_of_rabbitmq_decide_where_the_code_does_not(code: int, text: str, kind: type[BrokerError]) -> None:
    error = close_error(code, text)

    assert type(error) is kind
    assert error.retryable is kind.default_retryable
    assert text in error.message
    # pika gives bytes where a text is no UTF-8.
    assert str(close_error(code, text.encode())) == str(error)


def test_a_wrong_virtual_host_says_what_to_check() -> None:
    assert "is the virtual host right" in close_error(530, "NOT_ALLOWED - vhost prod not found").message


def test_a_text_that_the_broker_cut_within_a_character_is_shown() -> None:
    text = ("PRECONDITION_FAILED - inequivalent arg 'type' for exchange '" + "ü" * 200).encode()[:253]
    error = close_error(406, text)

    assert type(error) is TopologyConflict
    assert "inequivalent arg 'type'" in error.message


@given(st.integers(0, 65535), st.text() | st.binary())
def test_every_code_with_every_text_is_an_error(code: int, text: str | bytes) -> None:
    assert isinstance(close_error(code, text), BrokerError)


def test_an_unknown_outcome_names_its_cause_and_may_be_repeated() -> None:
    cause = BrokerUnavailable("the link broke", backend="rabbitmq")
    error = unknown_outcome(cause)

    assert (type(error), error.retryable, error.__cause__) == (SendTimeout, True, cause)
    assert "the outcome is unknown" in error.message
    assert "the link broke" in error.message


# --- what the network says --------------------------------------------------------------------------------------


def certificate_error() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "Hostname mismatch"
    return error


@pytest.mark.parametrize(
    ("exc", "kind", "retryable", "text"),
    [
        (
            ConnectionRefusedError(111, "Connection refused"),
            BrokerUnavailable,
            True,
            "cannot connect to h:1: Connection",
        ),
        (TimeoutError(), BrokerUnavailable, True, "cannot connect to h:1: TimeoutError"),
        (socket.gaierror(-2, "Name or service not known"), BrokerUnavailable, True, "Name or service not known"),
        (certificate_error(), BrokerUnavailable, False, "TLS to h:1 failed: Hostname mismatch; check ca_file"),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), BrokerUnavailable, False, "TLS to h:1 failed: .*is it the TLS port"),
        (UnicodeError("label too long"), ConfigurationError, False, "h:1 is no host name"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_why_a_host_cannot_be_reached(exc: Exception, kind: type[BrokerError], retryable: bool, text: str) -> None:
    error = link_error(exc, "h:1")

    assert (type(error), error.retryable, error.__cause__) == (kind, retryable, exc)
    with pytest.raises(kind, match=text):
        raise error


def test_an_error_of_ours_stays_as_it_is() -> None:
    error = AccessRefused("no", backend="rabbitmq")

    assert link_error(error, "h:1") is error


# --- pika -------------------------------------------------------------------------------------------------------

PIKA = [
    found
    for name, found in vars(exceptions).items()
    if inspect.isclass(found) and issubclass(found, Exception) and not name.startswith("_")
]
#: What the classes that are more than their name mean; all others say that the broker is not there.
MEANINGS: dict[str, type[BrokerError]] = {
    "AuthenticationError": AccessRefused,
    "ProbableAuthenticationError": AccessRefused,
    "ProbableAccessDeniedError": AccessRefused,
    "UnroutableError": Unroutable,
    "NackError": SendRefused,
    "BodyTooLongError": MessageTooLarge,
    "ShortStringTooLong": PayloadError,
    "UnsupportedAMQPFieldException": PayloadError,
    "InvalidFieldTypeException": PayloadError,
    "InvalidChannelNumber": ConfigurationError,
    "DuplicateGetOkCallback": ConfigurationError,
    "ReentrancyError": ConfigurationError,
}


def made(kind: type[Exception]) -> Exception:
    required = [
        each
        for each in inspect.signature(kind.__init__).parameters.values()
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD and each.name != "self"
    ]
    values = {"reply_code": 320, "reply_text": "CONNECTION_FORCED - shutdown", "messages": ()}
    return kind(*(values[each.name] for each in required))


@pytest.mark.parametrize("kind", PIKA, ids=lambda kind: kind.__name__)
def test_every_exception_of_pika_means_something(kind: type[Exception]) -> None:
    for exc in (made(kind), type("Own", (kind,), {})(*made(kind).args)):
        error = RabbitMQBackend().map_error(exc)

        assert type(error) is MEANINGS.get(kind.__name__, BrokerUnavailable)
        assert error.backend == "rabbitmq"
        assert error.message.removeprefix("pika: ").strip()


def test_the_reply_code_of_a_close_decides() -> None:
    found = RabbitMQBackend().map_error(exceptions.ChannelClosedByBroker(404, "NOT_FOUND - no queue 'q' in vhost '/'"))
    assert type(found) is TopicNotFound

    found = RabbitMQBackend().map_error(exceptions.ConnectionClosedByBroker(403, "ACCESS_REFUSED - no"))
    assert type(found) is AccessRefused

    found = RabbitMQBackend().map_error(exceptions.ConnectionClosedByClient(200, "Normal shutdown"))
    assert type(found) is BrokerUnavailable


def test_what_pika_could_not_encode_is_not_shown() -> None:
    for exc in (
        exceptions.ShortStringTooLong(PLANTED.encode() * 20),
        exceptions.UnsupportedAMQPFieldException([PLANTED.encode()], object()),
    ):
        error = RabbitMQBackend().map_error(exc)
        assert error is not None
        assert PLANTED not in str(error)
        assert type(exc).__name__ in str(error)


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("x"),
        OSError("x"),
        KeyboardInterrupt(),
        RuntimeError("x"),
        BrokerUnavailable("x"),
        type("AMQPError", (Exception,), {})(),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_other_exceptions_mean_nothing(exc: BaseException) -> None:
    assert RabbitMQBackend().map_error(exc) is None
