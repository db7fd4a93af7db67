from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import spec

from brokerkit.envelope import user_headers
from brokerkit.errors import PayloadError
from brokerkit.spi import Inbound, Outbound, ToGroup, ToTopic
from brokerkit.testing.suite._cases import WEIRD_STRINGS
from brokerkit_rabbitmq.mapping import encode_message, fill_inbound, sequence_of
from brokerkit_rabbitmq.properties import decode_properties

#: What a message of the SPI has beside its destination and its body.
FIELDS = ("message_id", "key", "tag", "type", "content_type", "priority", "correlation_id", "reply_to", "due")
#: Names that RabbitMQ gives a meaning or writes itself.
NAMES_OF_RABBITMQ = (
    "CC",
    "BCC",
    "x-death",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-delay",
    "x-delivery-count",
    "x-acquired-count",
    "x-opt-anything",
    "x-stream-offset",
    "x-received-from",
    "x-shovelled-by",
    "x-match",
)

texts = st.one_of(st.sampled_from(WEIRD_STRINGS), st.text(max_size=30), st.just("l" * 256), st.just("ü" * 200))
header_names = st.one_of(
    st.sampled_from([text for text in WEIRD_STRINGS if text]),
    st.sampled_from(NAMES_OF_RABBITMQ),
    st.sampled_from(["n" * 255, "n" * 256, "ü" * 128, "bk-attempt", "bk-expires", "bk-dead-traceback", "C", "x-", "B"]),
    st.text(min_size=1, max_size=30).filter(lambda name: name[:3].lower() != "bk-"),
)
messages = st.builds(
    Outbound,
    destination=st.just(ToTopic("t")),
    body=st.just(b""),
    message_id=texts,
    headers=st.dictionaries(header_names, texts, max_size=5),
    due=st.none() | st.floats(0, 1e10),
    key=st.none() | texts,
    tag=st.none() | st.text(min_size=1, max_size=30),
    type=st.none() | texts,
    content_type=st.none() | texts,
    priority=st.integers(0, 9),
    timestamp=st.just(0.0) | st.floats(0.001, 1e10),
    correlation_id=st.none() | texts,
    reply_to=st.none() | texts,
)


def received(raw: bytes, routed_tag: str | None = None) -> Inbound:
    """What arrives when the properties ``raw`` do."""
    inbound = Inbound(topic="t", group="g", body=b"", message_id=None)
    fill_inbound(inbound, decode_properties(raw, 0, {}), routed_tag)
    return inbound


def from_pika(**fields: Any) -> bytes:
    return b"".join(spec.BasicProperties(**fields).encode())


def sent_on(inbound: Inbound) -> Outbound:
    """What the core sends when it hands a message on: the same one, to the group."""
    return Outbound(
        destination=ToGroup("t", "g"),
        body=inbound.body,
        message_id="made-by-the-core" if inbound.message_id is None else inbound.message_id,
        headers=inbound.headers,
        **{name: getattr(inbound, name) for name in FIELDS if name != "message_id"},
        timestamp=inbound.timestamp or 0.0,
    )


def outbound(**fields: Any) -> Outbound:
    return Outbound(**{"destination": ToTopic("t"), "body": b"", "message_id": "id", **fields})


# --- our own messages -------------------------------------------------------------------------------------------


@given(messages, st.integers(1, (1 << 63) - 1), st.lists(st.text(max_size=10), max_size=2))
def test_a_message_arrives_as_it_was_sent(message: Outbound, sequence: int, keys: list[str]) -> None:
    raw = encode_message(message, sequence, tuple(keys))
    inbound = received(raw, "the routing key, which counts only for foreign messages")

    assert dict(inbound.headers) == dict(message.headers)
    for name in FIELDS:
        assert getattr(inbound, name) == getattr(message, name), name
    assert inbound.timestamp == (message.timestamp or None)
    assert sequence_of(decode_properties(raw, 0, {})) == sequence


@given(messages)
def test_a_priority_that_no_queue_may_deliver_by_arrives_all_the_same(message: Outbound) -> None:
    raw = encode_message(message, 1, by_priority=False)

    assert spec.BasicProperties().decode(raw).priority is None
    inbound = received(raw)
    assert inbound.priority == message.priority
    assert dict(inbound.headers) == dict(message.headers)


@pytest.mark.parametrize(("text", "priority"), [("-3", 0), ("300", 9), ("nan", 0), ("much", 0), (7, 7), (True, 1)])
def test_a_hidden_priority_that_a_foreign_sender_made_up_is_a_priority(text: object, priority: int) -> None:
    assert received(from_pika(headers={"bk-prio": text})).priority == priority


def test_priority_zero_is_said_as_quorum_queues_from_4_3_on_take_none_for_four() -> None:
    assert spec.BasicProperties().decode(encode_message(outbound(), 1)).priority == 0


@given(messages)
def test_a_message_that_is_handed_on_twice_is_still_the_same(message: Outbound) -> None:
    once = received(encode_message(message, 1))
    twice = received(encode_message(sent_on(once), 2, ("a key",)))

    assert dict(twice.headers) == dict(message.headers)
    for name in (*FIELDS, "timestamp"):
        assert getattr(twice, name) == getattr(once, name), name


@given(messages)
def test_no_header_with_a_meaning_for_rabbitmq_travels_under_its_name(message: Outbound) -> None:
    read = spec.BasicProperties().decode(encode_message(message, 1))

    assert not set(NAMES_OF_RABBITMQ) & set(read.headers)
    # Fields of its own would change what the broker does.
    assert (read.expiration, read.user_id, read.delivery_mode) == (None, None, 2)


def test_foreign_clients_read_the_properties_where_they_expect_them() -> None:
    message = outbound(
        message_id="id",
        headers={"user": "header", "bk-attempt": "2"},
        type="order",
        content_type="application/json",
        priority=7,
        timestamp=1_700_000_000.75,
        correlation_id="c",
        reply_to="r",
        key="k",
        tag="eu",
        due=1_700_000_001.5,
    )
    read = spec.BasicProperties().decode(encode_message(message, 5, ("eu",)))

    assert (read.message_id, read.type, read.content_type) == ("id", "order", "application/json")
    assert (read.priority, read.timestamp, read.correlation_id, read.reply_to) == (7, 1_700_000_000, "c", "r")
    assert read.headers == {
        "user": "header",
        "bk-attempt": "2",
        "bk-seq": 5,
        "bk-key": "k",
        "bk-tag": "eu",
        "bk-due": "1700000001.5",
        "bk-time": "1700000000.75",
        "CC": ["eu"],
    }


@pytest.mark.parametrize("field", ["message_id", "content_type", "correlation_id", "reply_to", "type"])
@pytest.mark.parametrize("text", ["x" * 255, "x" * 256, "ü" * 128, "x" * 70_000], ids=len)
def test_a_property_of_any_length_arrives(field: str, text: str) -> None:
    inbound = received(encode_message(outbound(**{field: text}), 1))

    assert getattr(inbound, field) == text


@pytest.mark.parametrize("stamp", [float("inf"), 2.0**64, 1.8446744073709552e19])
def test_a_timestamp_out_of_reach_does_not_break_the_send(stamp: float) -> None:
    assert received(encode_message(outbound(timestamp=stamp), 1)).timestamp is None


# --- native options ---------------------------------------------------------------------------------------------


def test_native_options_reach_the_wire() -> None:
    table = {"n": 5, "list": [1, "a"], "CC": ["copy"]}
    native = {"routing_key": "k", "persistent": False, "app_id": "app", "user_id": "guest", "headers": table}
    read = spec.BasicProperties().decode(encode_message(outbound(native=native), 1))

    assert (read.delivery_mode, read.app_id, read.user_id) == (1, "app", "guest")
    assert {name: read.headers[name] for name in table} == table


def test_a_native_option_that_is_none_is_not_there() -> None:
    native = {"app_id": None, "user_id": None, "headers": None}
    read = spec.BasicProperties().decode(encode_message(outbound(native=native), 1))

    assert (read.app_id, read.user_id, read.headers) == (None, None, {"bk-seq": 1})


@pytest.mark.parametrize(
    ("native", "text"),
    [
        ({"routingkey": "k"}, "unknown native option 'routingkey' for RabbitMQ; known are .*routing_key"),
        ({"expiration": "1"}, "unknown native option 'expiration'"),
        ({"app_id": "x" * 256}, "app_id is a text of at most 255 bytes"),
        ({"user_id": 5}, "user_id is a text"),
        ({"app_id": "half \ud800"}, "app_id is a text"),
        ({"headers": {"x": object()}}, "native headers: AMQP has no field type for object"),
        ({"headers": {"n" * 256: 1}}, "native headers: .* 256 bytes"),
        ({"headers": {5: 1}}, "native headers: a field name is a text, not int"),
        ({"headers": {"half \ud800": 1}}, "native headers: "),
        ({"headers": {"t": datetime(1960, 1, 1, tzinfo=UTC)}}, "native headers: .*1970"),
        ({"headers": [("a", 1)]}, "native headers are a mapping, not list"),
        ({"headers": {"bk-seq": 1}}, "native header 'bk-seq' is reserved"),
        ({"headers": {"BK-attempt": 1}}, "native header 'BK-attempt' is reserved"),
    ],
)
def test_a_native_option_that_cannot_work_is_a_payload_error(native: Mapping[str, Any], text: str) -> None:
    with pytest.raises(PayloadError, match=text):
        encode_message(outbound(native=native), 1)


# --- messages of others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (True, "true"),
        (None, "null"),
        ([1, "a", {"b": None}], '[1, "a", {"b": null}]'),
        ({"a": [1]}, '{"a": [1]}'),
        (b"\xff\x00raw", "\\xff\x00raw"),
        (b"text", "text"),
        (Decimal("1.5"), '"1.5"'),
        (datetime(2026, 1, 1, tzinfo=UTC), '"2026-01-01 00:00:00+00:00"'),
    ],
    ids=repr,
)
def test_a_foreign_header_of_any_type_is_a_text(value: Any, text: str) -> None:
    assert user_headers(received(from_pika(headers={"h": value})).headers) == {"h": text}


def test_a_foreign_message_without_anything_has_nothing() -> None:
    inbound = received(from_pika(), "eu")

    assert (inbound.message_id, inbound.timestamp, inbound.type, inbound.content_type) == (None, None, None, None)
    assert (inbound.priority, inbound.due, inbound.key, dict(inbound.headers)) == (0, None, None, {})
    assert inbound.tag == "eu"


def test_the_routing_key_of_a_foreign_message_is_its_tag_also_beside_headers() -> None:
    assert received(from_pika(headers={"a": "b"}), "eu").tag == "eu"
    # Ours has none when it says none.
    assert received(encode_message(outbound(), 1), "eu").tag is None


def test_a_foreign_priority_beyond_ours_is_the_highest() -> None:
    assert received(from_pika(priority=200)).priority == 9


@pytest.mark.parametrize("stamp", [1_700_000_000, 1_700_000_000_123, (1 << 64) - 1])
def test_a_foreign_timestamp_of_any_size_is_read_and_can_be_sent_on(stamp: int) -> None:
    inbound = received(from_pika(timestamp=stamp))

    assert inbound.timestamp == float(stamp)
    received(encode_message(sent_on(inbound), 1))


X_DEATH = [{"queue": "q", "reason": "expired", "count": 3, "exchange": "", "routing-keys": ["q"]}]


def test_nothing_that_a_broker_wrote_is_sent_on() -> None:
    theirs = {
        "x-death": X_DEATH,
        "x-first-death-queue": "q",
        "x-first-death-reason": "expired",
        "x-first-death-exchange": "",
        "x-last-death-queue": "q",
        "x-delivery-count": 4,
        "x-acquired-count": 4,
        "x-received-from": [{"uri": "amqp://elsewhere"}],
        "x-shovelled": [{"src-uri": "amqp://elsewhere"}],
        "CC": ["tag"],
        "BCC": "someone",
        "mine": "kept",
    }
    inbound = received(from_pika(message_id="m", headers=theirs))

    assert dict(inbound.headers) == {"mine": "kept"}
    assert spec.BasicProperties().decode(encode_message(sent_on(inbound), 1)).headers == {"bk-seq": 1, "mine": "kept"}


def test_a_users_own_header_with_such_a_name_outlives_two_dead_letterings() -> None:
    own = {"x-death": "a text of the user's", "CC": "of a letter", "x-delay": "5"}
    inbound = received(encode_message(outbound(headers=own), 1))

    for hop in range(2):
        on_the_wire = spec.BasicProperties().decode(encode_message(sent_on(inbound), hop))
        # What the broker adds on its way through a queue with a dead-letter exchange.
        on_the_wire.headers |= {"x-death": X_DEATH, "x-first-death-queue": "bk.delay.0.1", "CC": ["tag"]}
        inbound = received(b"".join(on_the_wire.encode()))
        assert dict(inbound.headers) == own


MALFORMED_JSON = ["", "{", "[1]", "5", "null", '{"a": 5}', "[" * 100_000, '{"a": "half \\ud800"}', "9" * 5_000]


@pytest.mark.parametrize("text", MALFORMED_JSON, ids=lambda text: ascii(text[:20]))
def test_a_foreign_header_with_our_name_and_other_contents_does_no_harm(text: str) -> None:
    names = ("bk-hidden", "bk-long", "bk-due", "bk-time", "bk-seq")
    inbound = received(from_pika(message_id="m", timestamp=7, headers={**dict.fromkeys(names, text), "mine": "kept"}))

    assert dict(inbound.headers) == {"mine": "kept"}
    assert inbound.message_id == "m"
    encode_message(sent_on(inbound), 1)


@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}, b"\xff", datetime(2026, 1, 1, tzinfo=UTC)], ids=repr)
def test_our_headers_with_values_of_other_types_do_no_harm(value: Any) -> None:
    names = ("bk-hidden", "bk-long", "bk-due", "bk-time", "bk-key", "bk-tag", "bk-seq")
    inbound = received(from_pika(message_id="m", headers={**dict.fromkeys(names, value), "mine": "kept"}))

    assert (dict(inbound.headers), inbound.message_id, inbound.key, inbound.tag) == ({"mine": "kept"}, "m", None, None)
    encode_message(sent_on(inbound), 1)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "soon", ""])
def test_a_time_that_is_none_is_no_time(text: str) -> None:
    inbound = received(from_pika(timestamp=7, headers={"bk-due": text, "bk-time": text}))

    assert (inbound.due, inbound.timestamp) == (None, 7.0)


def test_the_json_of_long_properties_sets_only_these() -> None:
    long = json.dumps({"message_id": "m", "topic": "other", "body": "x", "token": "t", "__class__": "c"})
    inbound = received(from_pika(headers={"bk-long": long}))

    assert (inbound.message_id, inbound.topic, inbound.body, inbound.token) == ("m", "t", b"", None)


def test_no_foreign_header_can_hide_one_of_ours() -> None:
    hidden = json.dumps({"bk-foreign": "{", "bk-attempt": "7", "BK-seq": "1", "CC": "a user's"})
    inbound = received(from_pika(headers={"bk-hidden": hidden}))

    assert dict(inbound.headers) == {"CC": "a user's"}
    assert dict(received(encode_message(sent_on(inbound), 1)).headers) == {"CC": "a user's"}


def test_a_foreign_header_without_a_name_is_read_and_can_be_sent_on() -> None:
    inbound = received(from_pika(headers={"": "nameless"}))

    assert dict(received(encode_message(sent_on(inbound), 1)).headers) == {"": "nameless"}


wire_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
wire_names = st.sampled_from(["bk-hidden", "bk-long", "bk-due", "bk-key", "bk-tag", "CC", "x-death"]) | st.text(
    max_size=9
)


@given(st.dictionaries(wire_names, wire_values, max_size=5))
def test_any_foreign_headers_become_texts_that_can_be_sent_on(table: dict[str, Any]) -> None:
    inbound = received(from_pika(headers=table), "tag")

    assert all(type(value) is str for value in inbound.headers.values())
    again = received(encode_message(sent_on(inbound), 1))
    assert user_headers(again.headers) == user_headers(inbound.headers)


@given(st.text(max_size=9) | st.integers())
def test_only_a_number_is_a_sequence(value: Any) -> None:
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        value %= 1 << 63
    properties = decode_properties(from_pika(headers={"bk-seq": value}), 0, {})

    assert sequence_of(properties) == (value if isinstance(value, int) else None)
