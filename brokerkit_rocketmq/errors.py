"""What RocketMQ answers and how connections end, as errors of brokerkit.

The codes are those of ``ResponseCode``; the remarks are the broker's (``SendMessageProcessor``,
``AdminBrokerProcessor``, the validators of both ACLs).  They quote names of topics and groups; the access key, which
those of the ACLs quote too, is hidden.
"""

from __future__ import annotations

import re
import ssl
from typing import Protocol

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
from brokerkit_rocketmq.remoting.codes import ResponseCode
from brokerkit_rocketmq.remoting.errors import ConnectionLost, FrameError, Oversized, RemotingError, RequestTimeout

__all__ = ["NAME", "fresh", "is_acl_refusal", "is_stored", "refused", "unanswered", "unreachable"]

#: The name of the backend in errors.
NAME = "rocketmq"

#: Characters of a remark that an error shows: some hold a whole stack trace of Java's.
_LONGEST_REMARK = 300

#: Where the remarks of both ACLs quote the access key, which is the name of the user on 5.x.
_QUOTED_KEY = re.compile(
    r"(access_?key\s*[=:]?\s*|acl config for |\bAK\s*[=:]\s*|\buser\s*[=:]\s*)[^\s,;:\]]+", re.IGNORECASE
)

#: A send with one of these is stored, and not as safely as the broker is configured to do it.
_STORED = frozenset(
    {ResponseCode.FLUSH_DISK_TIMEOUT, ResponseCode.SLAVE_NOT_AVAILABLE, ResponseCode.FLUSH_SLAVE_TIMEOUT}
)
#: Codes of 4.9.x for a broken configuration of its ACL, which 5.x uses for something else.
_ACL_CONFIGURATION = (209, 210)

#: Which error a code means, and what to do about it.  A code that is not here may pass.
_MEANING: dict[int, tuple[type[BrokerError], str]] = {
    ResponseCode.REQUEST_CODE_NOT_SUPPORTED: (CapabilityNotSupported, "this version of RocketMQ cannot do it"),
    ResponseCode.VERSION_NOT_SUPPORTED: (CapabilityNotSupported, "this version of RocketMQ cannot do it"),
    ResponseCode.NO_PERMISSION: (AccessRefused, "check access_key, secret_key and what the ACL allows them"),
    ResponseCode.TOPIC_NOT_EXIST: (TopicNotFound, "declare the topic first"),
    ResponseCode.TOPIC_EXIST_ALREADY: (TopologyConflict, "it exists with other properties"),
    ResponseCode.SUBSCRIPTION_PARSE_FAILED: (ConfigurationError, "the tag filter or the SQL expression is wrong"),
    ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST: (TopicNotFound, "declare the group first"),
    ResponseCode.INVALID_PARAMETER: (ConfigurationError, "a name or a number in the request is not legal"),
    ResponseCode.ILLEGAL_OPERATION: (CapabilityNotSupported, "the broker does not allow it"),
    ResponseCode.USER_NOT_EXIST: (AccessRefused, "check access_key and secret_key"),
    ResponseCode.POLICY_NOT_EXIST: (AccessRefused, "check what the ACL allows access_key"),
}

#: Why a code that may pass was answered.
_HINTS: dict[int, str] = {
    ResponseCode.SYSTEM_BUSY: "the broker is overloaded",
    ResponseCode.SERVICE_NOT_AVAILABLE: "is its disk full, is it a slave, or is it shutting down?",
    ResponseCode.FLOW_CONTROL: "the broker limits its clients",
    ResponseCode.GO_AWAY: "the broker is shutting down",
    ResponseCode.SUBSCRIPTION_NOT_EXIST: "the heartbeat of the group has not arrived yet",
    ResponseCode.SUBSCRIPTION_NOT_LATEST: "another member of the group subscribed to something else",
    ResponseCode.NOT_LEADER_FOR_QUEUE: "the master of this queue has changed",
    ResponseCode.CONSUMER_NOT_ONLINE: "no member of the group is connected",
}


class Answer(Protocol):
    """What is looked at of an answer; a frame of the remoting protocol has it."""

    code: int
    remark: str | None


def refused(frame: Answer, what: str, *, topic: str | None = None, send: bool = False) -> BrokerError:
    """Return the error that an answer other than SUCCESS means.

    ``what`` was asked for, as in "declaring the topic"; it begins the text.  With ``send`` a message was to be stored:
    what may pass is then `SendRefused`, and `SendTimeout` where it is stored but not safely; else `BrokerUnavailable`.
    """
    code, remark = int(frame.code), frame.remark or ""
    shown = _shown(code, remark, what)
    if code in _STORED and send:
        return SendTimeout(
            f"{shown}; it is stored, but not yet as safely as the broker should do it, and may be stored twice",
            topic=topic,
            backend=NAME,
        )
    if is_acl_refusal(frame):
        return AccessRefused(
            f"{shown}; check access_key, secret_key and what the ACL allows them", topic=topic, backend=NAME
        )
    kind, hint = _by_remark(code, remark) or _MEANING.get(code) or (None, _HINTS.get(code, ""))
    if kind is None:
        kind = SendRefused if send else BrokerUnavailable
    return kind(f"{shown}; {hint}" if hint else shown, topic=topic, backend=NAME)


def _shown(code: int, remark: str, what: str) -> str:
    name = ResponseCode(code).name if code in ResponseCode._value2member_map_ else ""
    # What follows the first line is a stack trace, or the link to a page about the code.
    text = remark.strip().partition("\n")[0].partition("For more information, please visit the url")[0].rstrip(" ,;")
    text = _QUOTED_KEY.sub(r"\1***", text)
    if len(text) > _LONGEST_REMARK:
        text = f"{text[:_LONGEST_REMARK]}…"
    return f"{what}: RocketMQ answered {code} {name}".rstrip() + (f": {text}" if text else "")


def is_acl_refusal(frame: Answer) -> bool:
    """Return whether an ACL refused it: 16 on 5.x, 1 with an AclException on 4.9.x.

    A topic or a broker that nobody may write to is 16 too and no matter of the ACL.
    """
    remark = frame.remark or ""
    if frame.code == ResponseCode.SYSTEM_ERROR or frame.code in _ACL_CONFIGURATION:
        return "AclException" in remark or "acl.common" in remark
    return frame.code == ResponseCode.NO_PERMISSION and "is forbidden" not in remark


def is_stored(code: int) -> bool:
    """Return whether a send with this answer is stored, if not as safely as configured."""
    return code in _STORED


def _by_remark(code: int, remark: str) -> tuple[type[BrokerError], str] | None:
    """Return what a code means whose remark says more than it does."""
    if code == ResponseCode.NO_PERMISSION and "sending message is forbidden" in remark:
        # Read-only: an operator took the broker out of service, or another broker of the topic takes it.
        return SendRefused, "the topic or the broker is read-only"
    if code == ResponseCode.NO_PERMISSION and "is forbidden" in remark:
        return AccessRefused, "the topic cannot be read"
    if code == ResponseCode.MESSAGE_ILLEGAL:
        if "timer message" in remark:
            return PayloadError, "RocketMQ delays a message by at most timerMaxDelaySec, three days by default"
        if "length" in remark:
            return MessageTooLarge, "the limits are the broker's maxMessageSize and 32,767 bytes of properties"
        return PayloadError, "the broker does not take such a message"
    if code == ResponseCode.SYSTEM_ERROR:
        if "message body size exceeded" in remark or "message size exceeded" in remark:
            return MessageTooLarge, "the limit is the broker's maxMessageSize"
        if "timerWheelEnable" in remark:
            return CapabilityNotSupported, "set timers: off, or timerWheelEnable=true on the broker"
        if "illegal characters" in remark or "topic is longer" in remark or "group is longer" in remark:
            return ConfigurationError, "the broker does not take this name"
        if "not exist" in remark and ("consumer group" in remark or "consumer's group" in remark):
            return TopicNotFound, "declare the group first"
    return None


def unreachable(exc: BaseException, where: str = "") -> BrokerError:
    """Return the error for a call, other than a send, that ``where``, an address, did not answer.

    Takes what the protocol layer, asyncio and ssl raise.
    """
    if isinstance(exc, BrokerError):
        return exc
    at = f"TLS to {where}" if where else "TLS"
    error: BrokerError
    if isinstance(exc, ssl.SSLCertVerificationError):
        error = BrokerUnavailable(
            f"{at} failed: {getattr(exc, 'verify_message', None) or exc}; check ca_file, server_name and the server's "
            f"certificate",
            backend=NAME,
            retryable=False,
        )
    elif isinstance(exc, ssl.SSLError):
        error = BrokerUnavailable(
            f"{at} failed: {getattr(exc, 'reason', None) or exc}; does the server have TLS (tls.server.mode), and does "
            f"it want a client certificate (cert_file, key_file)?",
            backend=NAME,
            retryable=False,
        )
    elif isinstance(exc, UnicodeError):
        error = ConfigurationError(f"{where or 'the address'} is no host name", backend=NAME)
    elif isinstance(exc, Oversized):
        error = MessageTooLarge(_text(exc), backend=NAME)
    elif isinstance(exc, RemotingError):
        # Their texts name the peer.
        error = BrokerUnavailable(_text(exc), backend=NAME)
    else:
        error = BrokerUnavailable(f"cannot connect to {where or 'the broker'}: {_text(exc)}", backend=NAME)
    error.__cause__ = exc
    return error


def unanswered(exc: BaseException, where: str = "") -> BrokerError:
    """Return the outcome of a send that ``where`` did not answer: unknown where it was written, else `unreachable`."""
    if not isinstance(exc, ConnectionLost | RequestTimeout | FrameError):
        return unreachable(exc, where)
    error = SendTimeout(f"the outcome is unknown: {_text(exc)}", backend=NAME)
    error.__cause__ = exc
    return error


def _text(exc: BaseException) -> str:
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__


def fresh(error: BrokerError) -> BrokerError:
    """Return a copy of an error that several callers raise: each adds a context and a traceback of its own."""
    copy = type(error)(error.message, topic=error.topic, backend=error.backend, retryable=error.retryable)
    copy.__cause__ = error.__cause__
    return copy
