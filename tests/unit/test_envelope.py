from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.envelope import ATTEMPT, EXPIRES, PARENT, attempt_of, check_options, expires_of, message_of, user_headers
from brokerkit.errors import ConfigurationError, PayloadError
from brokerkit.link import Link
from brokerkit.message import Message, MessageIds
from brokerkit.metrics import Metrics
from brokerkit.producer import Producer
from brokerkit.spi import ConnectOptions, Inbound, Outbound
from brokerkit.testing import VirtualClock
from brokerkit.topology import Topology

NOW = 1_700_000_000.0

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["\x00", "\r\n", "é", "=?", "%"]
)
header_names = texts.filter(lambda name: name and name[:3].lower() != "bk-")
tags = st.from_regex(r"\A[A-Za-z0-9_.-]{1,8}\Z")
options = st.fixed_dictionaries(
    {},
    optional={
        "key": st.none() | texts,
        "tag": st.none() | tags,
        "type": st.none() | texts,
        "headers": st.none() | st.dictionaries(header_names, texts, max_size=4),
        "delay": st.none() | st.just(0.0) | st.floats(0.001, 1e9) | st.integers(0, 10**9),
        "ttl": st.none() | st.floats(0.001, 1e9),
        "priority": st.integers(0, 9),
        "message_id": st.none() | texts.filter(bool),
        "correlation_id": st.none() | texts,
        "reply_to": st.none() | texts,
        "parent": st.none() | texts,
    },
)


def a_producer() -> Producer:
    clock = VirtualClock(NOW)
    topology = Topology("embedded")
    link = Link(EmbeddedBackend(), ConnectOptions(topics=topology, clock=clock), topology)
    return Producer(link, MessageIds(), Metrics(clock))


def received(outbound: Outbound, **changes: Any) -> Inbound:
    fields: tuple[str, ...] = (
        "body",
        "message_id",
        "headers",
        "due",
        "key",
        "tag",
        "type",
        "content_type",
        "priority",
        "timestamp",
    )
    fields += ("correlation_id", "reply_to")
    values = {name: getattr(outbound, name) for name in fields}
    return Inbound(**{"topic": "orders", "group": "g", **values, **changes})


def an_inbound(**fields: Any) -> Inbound:
    return Inbound(**{"topic": "orders", "group": "g", "body": b"", "message_id": "m", **fields})


def assert_carries(message: Message, given: dict[str, Any]) -> None:
    for name in ("key", "tag", "type", "correlation_id", "reply_to"):
        assert getattr(message, name) == given.get(name)
    assert message.headers == (given.get("headers") or {})
    assert message.priority == given.get("priority", 0)
    assert message.parent_id == given.get("parent")
    assert message.timestamp == NOW
    assert message.due == (NOW + given["delay"] if given.get("delay") else None)
    if given.get("ttl") is None:
        assert message.ttl is None
    else:
        assert message.ttl == pytest.approx(given["ttl"], abs=1e-6)
    if given.get("message_id") is not None:
        assert message.message_id == given["message_id"]
    assert message.message_id


@given(options, st.binary(max_size=20))
def test_every_option_of_a_send_arrives_as_a_field_of_the_message(given: dict[str, Any], body: bytes) -> None:
    message = message_of(received(a_producer().outbound("orders", body, given)), NOW + 1)
    assert (message.body, message.topic, message.receive_time, message.attempt) == (body, "orders", NOW + 1, 1)
    assert_carries(message, given)


@given(options)
def test_a_received_message_that_is_sent_again_is_the_same_message(given: dict[str, Any]) -> None:
    producer = a_producer()
    first = message_of(received(producer.outbound("orders", b"x", given)))
    second = message_of(received(producer.outbound("orders", first, {})))
    assert second.message_id == first.message_id and second.content_type == first.content_type
    assert_carries(second, {**given, "message_id": first.message_id})


hostile = st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2)


@given(st.sampled_from(["key", "tag", "type", "message_id", "correlation_id", "reply_to", "parent"]), texts, hostile)
def test_a_lone_surrogate_is_refused_in_every_text(name: str, text: str, surrogate: str) -> None:
    with pytest.raises(PayloadError, match=name):
        check_options({name: text + surrogate}, NOW)


@given(header_names, texts, hostile)
def test_a_lone_surrogate_is_refused_in_headers(name: str, text: str, surrogate: str) -> None:
    for headers in ({name + surrogate: text}, {name: text + surrogate}):
        with pytest.raises(PayloadError, match="surrogate"):
            check_options({"headers": headers}, NOW)


@given(st.sampled_from(["bk-", "BK-", "Bk-"]), texts)
def test_reserved_headers_are_refused(prefix: str, rest: str) -> None:
    with pytest.raises(PayloadError, match="reserved"):
        check_options({"headers": {prefix + rest: "1"}}, NOW)


class NotAMessage:
    message_id = 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prio": 3}, "unknown send option 'prio'; known are .*priority"),
        ({"priority": 10}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": 1.0}, "priority"),
        ({"priority": None}, "priority"),
        ({"delay": -0.1}, "delay must not be negative"),
        ({"delay": "5"}, "delay is a number of seconds, not str"),
        ({"delay": True}, "delay is a number of seconds, not bool"),
        ({"delay": timedelta(1)}, "delay is a number of seconds, not timedelta"),
        ({"delay": math.nan}, "delay is a finite number"),
        ({"delay": math.inf}, "delay is a finite number"),
        ({"delay": 10**400}, "delay is a finite number"),
        ({"delay": 1, "due": 5}, "delay or due, not both"),
        ({"due": "tomorrow"}, "due is a number of seconds, not str"),
        ({"due": -math.inf}, "due is a finite number"),
        ({"due": datetime(2030, 1, 1)}, "naive datetime"),
        ({"ttl": 0}, "ttl must be positive"),
        ({"ttl": -1}, "ttl must be positive"),
        ({"ttl": math.inf}, "ttl is a finite number"),
        ({"ttl": 10**400}, "ttl is a finite number"),
        ({"message_id": ""}, "message_id must not be empty"),
        ({"message_id": 5}, "message_id must be a str, not int"),
        ({"key": b"k"}, "key must be a str, not bytes"),
        ({"tag": "a||b"}, "illegal tag"),
        ({"tag": 5}, "tag must be a str, not int"),
        ({"headers": [("a", "b")]}, "headers are a mapping"),
        ({"headers": ""}, "headers are a mapping"),
        ({"headers": {"a": 1}}, "header 'a' must be a str, not int"),
        ({"parent": 5}, "parent is a message with an id"),
        ({"parent": NotAMessage()}, "parent is a message with an id"),
    ],
    # No addresses: the ids must be the same in every process of xdist.
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),
)
def test_an_option_that_cannot_work_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PayloadError, match=said):
        check_options(given, NOW)


def test_a_parent_without_an_id_is_refused_without_showing_its_body() -> None:
    with pytest.raises(PayloadError, match="this Message has none") as caught:
        check_options({"parent": Message(body=b"hunter2")}, NOW)
    assert "hunter2" not in str(caught.value)


def test_a_parent_may_be_a_message_its_id_or_a_delivery() -> None:
    message = Message(body=b"", message_id="m1")

    class HasMessage:
        def __init__(self) -> None:
            self.message = message

    for parent in (message, "m1", HasMessage()):
        assert check_options({"parent": parent}, NOW)[0] == {PARENT: "m1"}


@pytest.mark.parametrize("due", [NOW, NOW - 1, 0, datetime(2001, 1, 1, tzinfo=UTC), None])
def test_an_instant_that_has_passed_means_at_once(due: Any) -> None:
    assert check_options({"due": due}, NOW)[1] is None


@given(st.datetimes(datetime(2024, 1, 1)), st.integers(-23, 23))
def test_an_aware_datetime_is_the_same_instant_in_every_zone(due: datetime, hours: int) -> None:
    aware = due.replace(tzinfo=UTC)
    try:
        moved = aware.astimezone(timezone(timedelta(hours=hours)))
    except OverflowError:
        return
    assert check_options({"due": moved}, NOW)[1] == aware.timestamp()


def test_an_ordered_topic_takes_no_delayed_message() -> None:
    producer = a_producer()
    producer._topology.configure("orders", _ordered())
    with pytest.raises(PayloadError, match="ordered topic"):
        producer.outbound("orders", b"", {"delay": 5})
    assert producer.outbound("orders", b"", {"key": "k"}).ordered
    with pytest.raises(ConfigurationError):
        producer.outbound("no topic", b"", {})


def _ordered() -> Any:
    from brokerkit.settings import TopicSettings

    return TopicSettings.model_validate({"ordered": True})


# --- what foreign senders may write ---


@given(st.text() | st.integers().map(str) | st.sampled_from(["٣", "²", "1e3", "+5", " 5", "999999999", "9999999999"]))
def test_an_attempt_is_at_least_one_whatever_stands_in_the_header(text: str) -> None:
    attempt = attempt_of(an_inbound(headers={ATTEMPT: text}, native_attempt=4))
    assert 1 <= attempt <= 999_999_999
    if text.isascii() and text.isdigit() and len(text) < 10:
        assert attempt == max(1, int(text))


@pytest.mark.parametrize(
    ("fields", "attempt"),
    [
        ({}, 1),
        ({"native_attempt": 3}, 3),
        ({"headers": {ATTEMPT: "2"}, "native_attempt": 9}, 2),
        ({"headers": {ATTEMPT: "2"}, "native_attempt": 3, "crashes": 2, "started": False}, 4),
        ({"crashes": 2, "started": True}, 3),
        ({"native_attempt": 2, "crashes": 2, "started": True}, 4),
        ({"headers": {ATTEMPT: "junk"}, "crashes": 1, "started": True}, 2),
    ],
)
def test_the_attempt_counts_starts_and_not_deliveries(fields: dict[str, Any], attempt: int) -> None:
    assert attempt_of(an_inbound(**fields)) == attempt


@given(st.text() | st.floats().map(repr))
def test_an_expiry_is_a_finite_instant_or_none(text: str) -> None:
    inbound = an_inbound(headers={EXPIRES: text}, timestamp=NOW)
    instant = expires_of(inbound)
    assert instant is None or math.isfinite(instant)
    assert message_of(inbound).ttl == (None if instant is None else instant - NOW)


def test_a_message_does_not_share_its_headers_with_the_delivery() -> None:
    for headers in ({}, {"a": "b"}, {"a": "b", ATTEMPT: "2"}):
        assert user_headers(headers) is not headers
        assert ATTEMPT not in user_headers(headers)


def test_a_foreign_message_without_anything_is_delivered_as_it_is() -> None:
    message = message_of(an_inbound(message_id=None, headers={EXPIRES: "1700000005"}))
    assert (message.message_id, message.ttl, message.timestamp, message.headers) == (None, None, None, {})
