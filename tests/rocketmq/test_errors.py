from __future__ import annotations

import ssl
from dataclasses import dataclass

import pytest

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
)
from brokerkit_rocketmq.errors import fresh, is_acl_refusal, refused, unanswered, unreachable
from brokerkit_rocketmq.remoting.codes import ResponseCode
from brokerkit_rocketmq.remoting.errors import (
    ConnectionLost,
    FrameError,
    NotConnected,
    Oversized,
    RemotingError,
    RequestTimeout,
)
from tests.planted import PLANTED


@dataclass
class Answered:
    code: int
    remark: str | None = None


def error(code: int, remark: str | None = None, *, send: bool = False) -> BrokerError:
    return refused(Answered(code, remark), "sending", topic="orders", send=send)


# Remarks as the servers write them (4.9.4 and 5.5.0).
ACL_49 = (
    "org.apache.rocketmq.acl.common.AclException: [PlainAccessValidator] No acl config for AK-1, org.apache.rocketmq"
)
ACL_49_TOPIC = "org.apache.rocketmq.acl.common.AclException: No default permission for orders, and no topic permission"
SIGNATURE = "org.apache.rocketmq.acl.common.AclException: Check signature failed for accessKey=AK-1, BROKER"
ACL_5 = "User:AK-1 has no permission to access Topic:orders from 10.0.0.1, Decision is Deny"
FORBIDDEN = "the broker[10.0.0.1] sending message is forbidden"
NO_PULL = "the topic[orders] pulling message is forbidden"
LENGTH = "the message is illegal, maybe msg body or properties length not matched. msg body length limit 4194304B, …"
TIMER = "timer message illegal, the delay time should not be bigger than the max delay 259200000ms"
BATCH = "java.lang.RuntimeException: message body size exceeded, msg body size: 5000000, maxMessageSize: 4194304"
WHEEL = "accurate timer message is not enabled, timerWheelEnable is false"
LETTERS = "The specified topic contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
NO_GROUP = "THe consumer group <g> not exist"
BUSY = "[TIMEOUT_CLEAN_QUEUE]broker busy, start flow control for a while, period in queue: 201ms, size of queue: 32"


@pytest.mark.parametrize(
    ("code", "remark", "kind"),
    [
        (1, ACL_49, AccessRefused),
        (1, ACL_49_TOPIC, AccessRefused),
        (1, SIGNATURE, AccessRefused),
        (16, ACL_5, AccessRefused),
        (16, None, AccessRefused),
        (16, NO_PULL, AccessRefused),
        (209, "org.apache.rocketmq.acl.common.AclException: update failed", AccessRefused),
        (3001, "The user is not exist", AccessRefused),
        (17, "No topic route info in name server for the topic: orders", TopicNotFound),
        (26, "Group X not exist!", TopicNotFound),
        (1, NO_GROUP, TopicNotFound),
        (13, LENGTH, MessageTooLarge),
        (1, BATCH, MessageTooLarge),
        (13, TIMER, PayloadError),
        (13, "the message is illegal", PayloadError),
        (1, LETTERS, ConfigurationError),
        (29, "queueId is illegal", ConfigurationError),
        (23, "parse the consumer's subscription failed", ConfigurationError),
        (1, WHEEL, CapabilityNotSupported),
        (3, " request type 200050 not supported", CapabilityNotSupported),
        (15, None, CapabilityNotSupported),
        (604, None, CapabilityNotSupported),
        (18, None, TopologyConflict),
    ],
)  # fmt: skip
@pytest.mark.parametrize("send", [True, False])
def test_what_does_not_pass_is_not_retryable(
    code: int, remark: str | None, kind: type[BrokerError], send: bool
) -> None:
    found = error(code, remark, send=send)

    assert type(found) is kind
    assert not found.retryable
    assert (found.topic, found.backend) == ("orders", "rocketmq")
    assert str(found).startswith(f"sending: RocketMQ answered {code}")


@pytest.mark.parametrize(
    ("code", "remark"),
    [(1, "java.lang.NullPointerException, x"), (1, None), (2, BUSY), (14, "service not available now"),
     (215, "flow control"), (1500, "broker is going away"), (16, FORBIDDEN), (204, None), (501, None), (24, None),
     (25, None), (4711, "new")],
)  # fmt: skip
def test_what_may_pass_is_retryable(code: int, remark: str | None) -> None:
    sent, asked = error(code, remark, send=True), error(code, remark)

    assert type(sent) is SendRefused
    assert type(asked) is (SendRefused if remark == FORBIDDEN else BrokerUnavailable)
    assert sent.retryable
    assert asked.retryable


@pytest.mark.parametrize("code", [10, 11, 12])
def test_a_message_that_is_stored_but_not_safely_has_an_unknown_outcome(code: int) -> None:
    found = error(code, send=True)

    assert type(found) is SendTimeout
    assert found.retryable
    assert "it is stored" in str(found)


@pytest.mark.parametrize("code", list(ResponseCode))
def test_every_code_is_some_error_that_says_what_was_answered(code: ResponseCode) -> None:
    for send in (True, False):
        found = error(code, "a remark", send=send)

        assert f"answered {int(code)} {code.name}: a remark" in str(found)
        assert isinstance(found.retryable, bool)


def test_the_access_key_in_a_remark_is_hidden() -> None:
    for code, remark in ((1, ACL_49), (1, SIGNATURE), (16, ACL_5), (1, "accessKey = AK-1 is wrong"), (16, "[AK=AK-1]")):
        found = error(code, remark.replace("AK-1", PLANTED))

        assert PLANTED not in str(found) + repr(found)


def test_a_long_remark_is_cut_and_a_stack_trace_left_out() -> None:
    found = str(error(1, "x" * 5000 + "\n\tat org.apache.rocketmq.Broker.main(Broker.java:1)"))

    assert len(found) < 500
    assert "Broker.java" not in found


def test_who_refused_is_asked_of_the_answer() -> None:
    assert is_acl_refusal(Answered(1, ACL_49))
    assert is_acl_refusal(Answered(16, ACL_5))
    assert not is_acl_refusal(Answered(16, FORBIDDEN))
    assert not is_acl_refusal(Answered(1, "NullPointerException"))
    assert not is_acl_refusal(Answered(17, ACL_5))


# --- connections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exc", [ConnectionLost("x"), RequestTimeout("x"), FrameError("x")])
def test_a_send_that_was_written_and_not_answered_has_an_unknown_outcome(exc: RemotingError) -> None:
    found = unanswered(exc, "h:1")

    assert type(found) is SendTimeout
    assert found.__cause__ is exc
    assert type(unreachable(exc, "h:1")) is BrokerUnavailable


@pytest.mark.parametrize("exc", [NotConnected("x"), OSError(111, "refused"), ConnectionResetError(), TimeoutError()])
def test_what_was_never_written_is_not_stored(exc: BaseException) -> None:
    found = unanswered(exc, "h:1")

    assert type(found) is BrokerUnavailable
    assert found.retryable
    assert found.__cause__ is exc


def test_a_request_that_no_peer_reads_is_too_large() -> None:
    assert type(unanswered(Oversized("17 MiB"), "h:1")) is MessageTooLarge


def test_tls_that_is_set_up_wrongly_does_not_pass() -> None:
    for exc in (ssl.SSLError(1, "wrong version number"), ssl.SSLCertVerificationError(1, "self-signed")):
        found = unreachable(exc, "h:1")

        assert type(found) is BrokerUnavailable
        assert not found.retryable
        assert str(found).startswith("TLS to h:1 failed")


def test_a_name_that_is_none_is_a_mistake_of_the_configuration() -> None:
    assert type(unreachable(UnicodeError("label too long"), "h" * 300)) is ConfigurationError


def test_an_error_of_ours_stays_what_it_is() -> None:
    known = AccessRefused("no")

    assert unreachable(known) is known
    assert unanswered(known) is known


def test_a_fresh_copy_has_the_same_text_and_cause_and_is_another_object() -> None:
    first = unanswered(ConnectionLost("gone"), "h:1")
    copy = fresh(first)

    assert copy is not first
    assert (type(copy), str(copy), copy.retryable, copy.__cause__) == (
        type(first), str(first), first.retryable, first.__cause__,
    )  # fmt: skip
