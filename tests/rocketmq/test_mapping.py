from __future__ import annotations

import dataclasses
import json
import random
import string
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokerkit.errors import ConfigurationError, MessageTooLarge
from brokerkit.spi import Inbound, Outbound, SystemClock, ToDead, ToGroup, ToInbox, TopicSpec, ToTopic
from brokerkit_rocketmq.mapping import Codec, WireMessage
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.native import native_options
from brokerkit_rocketmq.remoting.compression import compress
from brokerkit_rocketmq.remoting.messages import StoredMessage
from brokerkit_rocketmq.remoting.properties import is_system, parse_properties
from brokerkit_rocketmq.settings import RocketMQSettings

NOW = 1_732_300_000.0
TOPIC, RETRY, DEAD = ToTopic("orders"), ToGroup("orders", "billing"), ToDead("orders", "billing")
STORE_HOST = bytes([127, 0, 0, 1]) + (10911).to_bytes(4, "big")

#: Anything that UTF-8 can encode, with what is hard more often than by chance.
weird = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.sampled_from(
        ["", "\x01", "\x02", "a\x01b\x02", "\0", " ", "KEYS", "DELAY", "TAGS", "__x", "TIMER_A", "\U0001f600"]
    ),
)
header_name = weird.filter(lambda name: name != "" and not name.lower().startswith("bk-"))


class Still(SystemClock):
    """A clock that stands still."""

    def time(self) -> float:
        return NOW


def codec(topics: Mapping[str, TopicSpec] | None = None, **section: Any) -> Codec:
    checked = RocketMQSettings.model_validate(section)
    return Codec(Names(topics or {}, checked), checked, Still())


def outbound(destination: Any = TOPIC, body: bytes = b"body", **fields: Any) -> Outbound:
    fields.setdefault("message_id", "id-1")
    return Outbound(destination=destination, body=body, **fields)


def stored(wire: WireMessage, **more: Any) -> StoredMessage:
    """What a broker makes of a message: it drops what is empty and adds what is its own."""
    kept = {name: value for name, value in parse_properties(wire.properties).items() if value}
    assert len(kept) == wire.properties.count("\x02"), "the broker would drop or join a property"
    kept |= {"MSG_REGION": "DefaultRegion", "TRACE_ON": "true", "WAIT": "true", "CLUSTER": "DefaultCluster"}
    text = "".join(f"{name}\x01{value}\x02" for name, value in kept.items())
    fields: dict[str, Any] = {
        "flag": wire.flag,
        "sys_flag": wire.sys_flag,
        "born_timestamp": wire.born,
        "reconsume_times": wire.reconsume_times,
        "commit_log_offset": 1200,
        "raw_store_host": STORE_HOST,
    } | more
    return StoredMessage(wire.topic, 0, 12, wire.body, text.encode(), **fields)


def foreign(body: bytes = b"body", **fields: Any) -> StoredMessage:
    properties: Mapping[str, str] = fields.pop("properties", {})
    raw = fields.pop("raw", "".join(f"{name}\x01{value}\x02" for name, value in properties.items()).encode())
    fields.setdefault("topic", "orders")
    fields.setdefault("raw_store_host", STORE_HOST)
    return StoredMessage(fields.pop("topic"), 0, 12, body, raw, **fields)


def received(message: StoredMessage) -> Inbound:
    return codec().decode(message, "orders", "billing")


def through(message: Outbound, *, five: bool = True, **section: Any) -> Inbound:
    one = codec(**section)
    return one.decode(stored(one.encode(message, five=five)), "orders", "billing")


def properties(message: Outbound, *, five: bool = False, **section: Any) -> dict[str, str]:
    return parse_properties(codec(**section).encode(message, five=five).properties)


def fields_of(inbound: Inbound) -> dict[str, object]:
    names = {field.name for field in dataclasses.fields(inbound)} - {"native"}
    return {name: getattr(inbound, name) for name in names}


def copy_of(inbound: Inbound, destination: Any, **more: Any) -> Outbound:
    """A retry or a dead letter, as the core makes them."""
    fields = ("key", "tag", "type", "content_type", "priority", "correlation_id", "reply_to")
    headers = {**inbound.headers, **more.pop("headers", {})}
    return Outbound(
        destination=destination,
        body=inbound.body,
        message_id=inbound.message_id or "",
        timestamp=inbound.timestamp or 0.0,
        headers=headers,
        **{name: getattr(inbound, name) for name in fields},
        **more,
    )


# --- there and back -----------------------------------------------------------------------------------------------


@given(
    body=st.binary(max_size=20),
    message_id=weird.filter(bool),
    texts=st.fixed_dictionaries(
        {name: st.none() | weird for name in ("key", "tag", "type", "content_type", "correlation_id", "reply_to")}
    ),
    headers=st.dictionaries(header_name, weird, max_size=5),
    priority=st.integers(0, 9),
    timestamp=st.floats(0.001, 4e9),
    destination=st.sampled_from([TOPIC, RETRY, DEAD]),
    ordered=st.booleans(),
    five=st.booleans(),
)
def test_a_message_arrives_as_it_was_sent(
    body: bytes, message_id: str, texts: dict[str, str | None], headers: dict[str, str], priority: int,
    timestamp: float, destination: Any, ordered: bool, five: bool,
) -> None:  # fmt: skip
    message = Outbound(
        destination=destination, body=body, message_id=message_id, headers=headers, priority=priority,
        timestamp=timestamp, ordered=ordered, **texts,  # type: ignore[arg-type]
    )  # fmt: skip

    found = through(message, five=five)

    assert (found.body, found.message_id, found.headers) == (body, message_id, headers)
    assert (found.priority, found.timestamp) == (priority, timestamp)
    assert {name: getattr(found, name) for name in texts} == texts
    assert (found.topic, found.group, found.problem) == ("orders", "billing", None)


@given(
    body=st.binary(max_size=20),
    message_id=weird.filter(bool),
    texts=st.fixed_dictionaries(
        {name: st.none() | weird for name in ("key", "tag", "type", "content_type", "correlation_id", "reply_to")}
    ),
    priority=st.integers(0, 9),
    timestamp=st.floats(0, 4e9),
    ordered=st.booleans(),
)
def test_the_short_way_of_a_plain_message_writes_what_the_long_one_does(
    body: bytes, message_id: str, texts: dict[str, str | None], priority: int, timestamp: float, ordered: bool
) -> None:
    message = Outbound(
        destination=TOPIC, body=body, message_id=message_id, priority=priority, timestamp=timestamp, ordered=ordered,
        **texts,  # type: ignore[arg-type]
    )  # fmt: skip
    short = codec().encode(message, five=False)
    # Says nothing, but takes the long way.
    message.native = {"flag": 0}
    long = codec().encode(message, five=False)

    assert {name: getattr(short, name) for name in WireMessage.__slots__} == {
        name: getattr(long, name) for name in WireMessage.__slots__
    }


#: Names that mean something, names that do not, and values with the separators of the text.
_property = st.tuples(
    st.sampled_from(
        ["UNIQ_KEY", "KEYS", "TAGS", "bk-key", "bk-tag", "bk-type", "bk-time", "bk-due", "bk-empty", "bk-foreign",
         "bk-attempt", "CLUSTER", "__SHARDINGKEY", "TIMER_X", "RETRY_TOPIC", "ORIGIN_MESSAGE_ID", "x", "y.*", ""]
    ),
    st.sampled_from(["", "1", "1e3", "nan", "a\x01b", "\n", "ü"]) | st.text(st.characters(codec="utf-8"), max_size=5),
)  # fmt: skip


@given(
    st.lists(st.lists(_property, max_size=6), min_size=1, max_size=4),
    st.sampled_from(["", "\x02", "\x02\x02"]),
    st.sampled_from(["orders", "bk|inbox"]),
)
def test_a_message_laid_out_like_one_before_is_read_as_that_was(
    messages: list[list[tuple[str, str]]], end: str, topic: str
) -> None:
    one = codec()
    for _ in range(2):
        for pairs in messages:
            text = "\x02".join(f"{name}\x01{value}" for name, value in pairs) + end
            message = foreign(raw=text.encode(), born_timestamp=7, reconsume_times=2, topic=topic)

            known, new = one.decode(message, "orders", "billing"), codec().decode(message, "orders", "billing")

            assert fields_of(known) == fields_of(new)


def test_names_that_differ_from_message_to_message_cost_no_more_and_more() -> None:
    one = codec()

    for number in range(1000):
        found = one.decode(foreign(properties={"UNIQ_KEY": "i", f"h{number}": "v"}), "orders", "billing")
        assert found.headers == {f"h{number}": "v"}

    assert len(one._layouts.tried) < 10


@given(st.binary(max_size=20), st.dictionaries(header_name, weird, max_size=4), weird.filter(bool))
def test_a_retry_of_a_retry_is_still_the_same_message(body: bytes, headers: dict[str, str], message_id: str) -> None:
    first = through(outbound(body=body, headers=headers, message_id=message_id, key="k", tag="t", timestamp=5.5))
    second = through(copy_of(first, RETRY))
    third = through(copy_of(second, DEAD))

    assert (third.body, third.headers, third.message_id) == (body, headers, message_id)
    assert (third.key, third.tag, third.timestamp) == ("k", "t", 5.5)


@given(
    raw=st.binary(max_size=120),
    body=st.binary(max_size=40),
    flags=st.integers(0, 2**11),
    flag=st.integers(-9, 9),
    times=st.integers(-2, 2**31 - 1),
    born=st.integers(-(2**63), 2**63 - 1),
    problem=st.none() | st.just("broken"),
)
def test_nothing_that_a_foreign_sender_writes_raises(
    raw: bytes, body: bytes, flags: int, flag: int, times: int, born: int, problem: str | None
) -> None:
    message = foreign(
        body, raw=raw, sys_flag=flags, flag=flag, reconsume_times=times, born_timestamp=born, problem=problem
    )

    found = received(message)

    assert found.message_id
    assert found.native is message
    assert not any(is_system(name) for name in found.headers)
    # What was received can be sent again.
    again = through(copy_of(found, RETRY))
    assert (again.body, again.message_id, again.key) == (found.body, found.message_id, found.key)


hostile = st.text(alphabet='{}[]":,\\ud8x01é\x01', max_size=20)


ours = ["bk-hidden", "bk-packed", "bk-foreign", "bk-stored", "bk-empty", "bk-due", "bk-prio", "bk-time", "bk-attempt"]


@given(st.dictionaries(st.sampled_from(ours), hostile | st.sampled_from(["nan", "1e999", "-5", "7"])))
def test_what_only_looks_like_ours_does_not_raise(written: dict[str, str]) -> None:
    found = received(foreign(properties=written))

    assert found.due is None or abs(found.due) < 1e18
    assert 0 <= found.priority <= 9
    assert not {"bk-hidden", "bk-packed", "bk-foreign", "bk-stored"} & set(found.headers)
    through(copy_of(found, RETRY))


def test_a_hidden_header_that_cannot_be_encoded_is_left_out() -> None:
    hidden = '{"headers":{"a":"\\ud800"},"fields":{}}'

    assert received(foreign(properties={"bk-hidden": hidden})).headers == {}


# --- what others see ----------------------------------------------------------------------------------------------


def test_the_properties_that_foreign_clients_know() -> None:
    message = outbound(
        key="k1", tag="a", correlation_id="c", type="order.new", content_type="text/plain", timestamp=1.5,
        reply_to="inbox-1", priority=7, headers={"x": "1"},
    )  # fmt: skip

    assert properties(message) == {
        "UNIQ_KEY": "id-1", "TAGS": "a", "bk-time": "1.5", "bk-content-type": "text/plain", "KEYS": "k1",
        "bk-type": "order.new", "CORRELATION_ID": "c", "bk-reply-to": "inbox-1", "bk-prio": "7", "x": "1",
    }  # fmt: skip


def test_a_plain_message_byte_by_byte() -> None:
    wire = codec().encode(outbound(timestamp=1732300000.25, headers={"x": "1"}), five=True)

    assert wire.properties == "UNIQ_KEY\x01id-1\x02bk-time\x011732300000.25\x02x\x011\x02"
    assert (wire.topic, wire.body, wire.born, wire.flag, wire.sys_flag) == ("orders", b"body", 1732300000250, 0, 0)
    assert (wire.reconsume_times, wire.batchable, wire.delayed, wire.oneway) == (0, True, False, False)
    assert wire.size == len(wire.properties) + 4


def test_the_key_of_an_ordered_message_is_the_message_group_of_grpc_clients() -> None:
    assert properties(outbound(key="k", ordered=True))["__SHARDINGKEY"] == "k"
    assert "__SHARDINGKEY" not in properties(outbound(key="k"))


def test_headers_that_rocketmq_interprets_or_drops_travel_hidden_and_the_others_by_their_names() -> None:
    odd = {"DELAY": "3", "KEYS": "no", "TIMER_DELIVER_MS": "1", "__x": "y", "empty": "", "torn": "\x01"}
    message = outbound(headers={**odd, "plain": "seen"})

    found = properties(message)

    assert found["plain"] == "seen"
    assert set(found) == {"UNIQ_KEY", "plain", "bk-hidden"}
    assert through(message).headers == message.headers


def test_a_message_without_a_time_is_born_now() -> None:
    assert codec().encode(outbound(), five=False).born == int(NOW * 1000)


# --- destinations -------------------------------------------------------------------------------------------------


def test_a_retry_goes_to_the_retry_topic_with_its_origin_and_its_count() -> None:
    wire = codec(namespace="ns").encode(outbound(RETRY, headers={"bk-attempt": "4"}, tag="a"), five=False)

    assert wire.topic == "%RETRY%ns%billing||orders"
    assert parse_properties(wire.properties)["RETRY_TOPIC"] == "ns%orders"
    assert (wire.reconsume_times, wire.batchable) == (3, False)
    assert wire.max_reconsume_times > 10**9
    assert received(stored(wire)).native_attempt == 4


@pytest.mark.parametrize("written", [None, "", "0", "-1", "x", "9" * 12])
def test_an_attempt_that_is_none_is_the_first(written: str | None) -> None:
    headers = {} if written is None else {"bk-attempt": written}

    assert codec().encode(outbound(RETRY, headers=headers), five=False).reconsume_times == 0


def test_a_dead_letter_goes_to_the_topic_that_tools_of_rocketmq_look_at() -> None:
    wire = codec().encode(outbound(DEAD), five=True)

    assert wire.topic == "%DLQ%billing||orders"
    found = parse_properties(wire.properties)
    assert (found["RETRY_TOPIC"], found["DLQ_ORIGIN_TOPIC"]) == ("orders", "orders")


def test_the_tag_of_a_message_to_an_inbox_is_its_address_and_the_own_tag_arrives() -> None:
    one = codec()
    wire = one.encode(outbound(ToInbox("inbox-7"), tag="mine"), five=True)
    without = one.encode(outbound(ToInbox("inbox-7")), five=True)

    assert (wire.topic, parse_properties(wire.properties)["TAGS"]) == ("bk|inbox", "inbox-7")
    assert one.decode(stored(wire), "", "").tag == "mine"
    assert one.decode(stored(without), "", "").tag is None


# --- delays -------------------------------------------------------------------------------------------------------


def test_a_delay_is_a_level_on_4_9_and_a_timer_on_5() -> None:
    message = outbound(due=NOW + 40)

    assert properties(message)["DELAY"] == "4"
    assert properties(message, five=True)["TIMER_DELIVER_MS"] == str(int((NOW + 40 - 1.02) * 1000))
    assert properties(message, five=True, timers="off")["DELAY"] == "4"
    for five in (False, True):
        wire = codec().encode(message, five=five)
        assert wire.delayed
        assert not wire.batchable
        assert through(message, five=five).due == NOW + 40


def test_levels_are_those_of_the_broker() -> None:
    assert properties(outbound(due=NOW + 40), delay_levels="2s 20s")["DELAY"] == "2"


def test_what_is_due_soon_is_not_delayed_and_still_says_when() -> None:
    wire = codec().encode(outbound(due=NOW + 0.5), five=True)

    assert not wire.delayed
    assert wire.batchable
    assert received(stored(wire)).due == NOW + 0.5


# --- bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("five", [False, True])
def test_an_empty_body_is_escaped(five: bool) -> None:
    # 5.x refuses one, and on 4.9 a queue of a Java member stands still before one.
    wire = codec().encode(outbound(body=b""), five=five)

    assert (wire.body, wire.batchable) == (b"\0", True)
    assert received(stored(wire)).body == b""


def test_a_body_of_one_zero_byte_stays_one() -> None:
    assert through(outbound(body=b"\0")).body == b"\0"


def test_bodies_are_compressed_only_where_that_is_asked_for_and_helps() -> None:
    text = b"text " * 1000
    noise = random.Random(1).randbytes(5000)

    assert codec().encode(outbound(body=text), five=True).sys_flag == 0
    assert codec(compress_over=4096).encode(outbound(body=noise), five=True).body == noise
    wire = codec(compress_over=4096).encode(outbound(body=text), five=True)
    assert (wire.sys_flag, wire.batchable) == (1, False)
    assert len(wire.body) < 200
    assert received(stored(wire)).body == text
    assert codec(compress_over=5000).encode(outbound(body=text), five=True).sys_flag == 0


def test_a_body_over_the_limit_is_refused_by_the_name_of_the_limit() -> None:
    one = codec(max_message_size=1000)

    one.encode(outbound(body=bytes(1000)), five=True)
    with pytest.raises(MessageTooLarge, match="1001 bytes, max_message_size is 1000"):
        one.encode(outbound(body=bytes(1001)), five=True)


def test_a_copy_of_a_large_message_of_somebody_else_is_compressed_and_never_refused() -> None:
    one = codec(max_message_size=1000)

    wire = one.encode(outbound(RETRY, body=bytes(5000)), five=True)

    assert (wire.sys_flag, len(wire.body) < 100) == (1, True)


# --- bodies that cannot be read here ------------------------------------------------------------------------------


def test_a_body_in_an_unknown_compression_is_delivered_as_a_problem_and_its_dead_letter_stays_readable() -> None:
    lz4_flags = 1 | 5 << 8
    found = received(foreign(b"squeezed", sys_flag=lz4_flags, properties={"UNIQ_KEY": "7", "x": "1"}))

    assert found.body == b"squeezed"
    assert found.problem is not None and "unknown way" in found.problem
    letter = codec().encode(copy_of(found, DEAD), five=True)
    assert (letter.body, letter.sys_flag) == (b"squeezed", lz4_flags)
    assert parse_properties(letter.properties)["x"] == "1"
    assert "bk-stored" not in letter.properties


def test_a_damaged_body_is_a_problem() -> None:
    assert received(foreign(problem="the checksum is wrong")).problem == "the checksum is wrong"


def test_a_compressed_message_of_java_is_read() -> None:
    assert received(foreign(compress(b"text" * 2000), sys_flag=1)).body == b"text" * 2000


# --- foreign messages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "message_id"),
    [
        ({"UNIQ_KEY": "7F", "ORIGIN_MESSAGE_ID": "0A"}, "7F"),
        ({"ORIGIN_MESSAGE_ID": "0A"}, "0A"),
        ({}, "7F00000100002A9F00000000000004B0"),
    ],
)
def test_a_foreign_message_always_has_an_id(written: dict[str, str], message_id: str) -> None:
    assert received(foreign(properties=written, commit_log_offset=1200)).message_id == message_id


def test_a_message_of_java_in_its_third_delivery() -> None:
    found = received(
        foreign(
            properties={
                "KEYS": "k1 k2", "TAGS": "a", "UNIQ_KEY": "7F", "WAIT": "true", "RETRY_TOPIC": "orders", "DELAY": "3",
                "REAL_TOPIC": "%RETRY%billing||orders", "REAL_QID": "0", "CLUSTER": "c", "shop": "7", "empty": "",
            },
            reconsume_times=2,
            born_timestamp=1732300000123,
        )
    )  # fmt: skip

    assert (found.key, found.tag, found.native_attempt, found.timestamp) == ("k1 k2", "a", 3, 1732300000.123)
    assert found.headers == {"shop": "7", "empty": ""}
    assert not {"DELAY", "REAL_TOPIC", "REAL_QID", "WAIT"} & set(properties(copy_of(found, RETRY)))


def test_flag_and_addresses_of_a_foreign_sender_reach_the_foreign_reader_of_its_retry() -> None:
    found = received(foreign(properties={"REPLY_TO_CLIENT": "c@1", "MSG_TYPE": "reply", "x": "1"}, flag=-7))
    wire = codec().encode(copy_of(found, RETRY), five=True)

    assert wire.flag == -7
    again = parse_properties(wire.properties)
    assert (again["REPLY_TO_CLIENT"], again["MSG_TYPE"], again["x"]) == ("c@1", "reply", "1")
    assert "bk-foreign" not in again
    assert received(stored(wire)).headers == found.headers


def test_the_message_group_of_a_grpc_client_is_the_key_where_there_is_no_other() -> None:
    assert received(foreign(properties={"__SHARDINGKEY": "g"})).key == "g"
    assert received(foreign(properties={"__SHARDINGKEY": "g", "KEYS": "k"})).key == "k"


# --- room for properties ------------------------------------------------------------------------------------------


def test_too_many_bytes_of_headers_are_refused_by_name_before_they_are_sent() -> None:
    codec().encode(outbound(headers={"x": "y" * 30_000}), five=True)
    with pytest.raises(MessageTooLarge, match=r"have 32997 bytes; 30720 of the 32767 that RocketMQ stores"):
        codec().encode(outbound(headers={"x": "y" * 32_980}), five=True)
    with pytest.raises(MessageTooLarge):
        codec().encode(outbound(headers={"x": "\u5bfc" * 11_000}), five=True)


def test_a_message_with_as_many_headers_as_can_be_sent_can_still_become_a_dead_letter() -> None:
    noise = random.Random(1)
    text = "".join(noise.choices(string.printable[:90], k=30_000))
    found = through(outbound(headers={"x": text}))
    explanation = {
        "bk-dead-reason": "exhausted",
        "bk-dead-traceback": "line of code\n" * 300,
        "bk-dead-text": "t" * 500,
    }

    letter = codec().encode(copy_of(found, DEAD, headers=explanation), five=True)

    assert len(letter.properties.encode()) <= 32_000
    assert received(stored(letter)).headers == {"x": text, **explanation}


def test_a_dead_letter_rather_loses_its_traceback_than_be_refused() -> None:
    noise = "".join(random.Random(1).choices(string.printable[:90], k=35_500))
    found = through(outbound(headers={"x": noise[:30_500]}))
    explanation = {"bk-dead-reason": "exhausted", "bk-dead-traceback": noise[30_500:]}

    letter = codec().encode(copy_of(found, DEAD, headers=explanation), five=True)

    assert received(stored(letter)).headers == {"x": noise[:30_500], "bk-dead-reason": "exhausted"}


def test_a_copy_is_refused_only_when_nothing_helps() -> None:
    noise = "".join(random.Random(1).choices(string.printable[:90], k=60_000))

    with pytest.raises(MessageTooLarge, match="too many also compressed"):
        codec().encode(outbound(RETRY, headers={"x": noise}), five=True)


def test_a_packed_bomb_is_ignored() -> None:
    import base64

    bomb = base64.b64encode(compress(json.dumps({"x": "y" * (8 << 20)}).encode())).decode()

    assert received(foreign(properties={"bk-packed": bomb, "a": "b"})).headers == {"a": "b"}


# --- native options -----------------------------------------------------------------------------------------------


def test_native_options_of_a_send() -> None:
    message = outbound(
        key="k",
        native={"delay_level": 3, "oneway": True, "flag": 9, "keys": ["a", "b"], "properties": {"BUYER_ID": "7"}},
    )
    wire = codec().encode(message, five=True)
    found = parse_properties(wire.properties)

    assert (wire.flag, wire.oneway, wire.delayed, wire.batchable) == (9, True, True, False)
    assert (found["DELAY"], found["KEYS"], found["bk-key"], found["BUYER_ID"]) == ("3", "k a b", "k", "7")
    assert received(stored(wire)).key == "k"


def test_keys_without_a_key_are_read_as_one_as_of_any_foreign_sender() -> None:
    assert through(outbound(native={"keys": ["a", "b"]})).key == "a b"


@pytest.mark.parametrize(
    ("native", "text"),
    [
        ({"dely_level": 1}, "'dely_level' is unknown; known are delay_level, oneway"),
        ({"delay_level": 0}, "delay_level is a number from 1 on, not 0"),
        ({"delay_level": True}, "delay_level is a number from 1 on, not True"),
        ({"delay_level": "3"}, "not '3'"),
        ({"oneway": 1}, "oneway is True or False"),
        ({"flag": 2**31}, "flag is a number of 32 bits"),
        ({"keys": "a b"}, "keys are a list of texts"),
        ({"keys": ["a b"]}, "without blanks"),
        ({"keys": ["a\x01"]}, "without blanks"),
        ({"properties": [("a", "b")]}, "properties are a mapping"),
        ({"properties": {"a": 1}}, "name and value are texts"),
        ({"properties": {"a": ""}}, "drops empty ones"),
        ({"properties": {"a": "secret\x02"}}, r"property 'a' or its value holds"),
        ({"properties": {"a": "\ud800"}}, "UTF-8 cannot encode"),
        ({"properties": {"UNIQ_KEY": "1"}}, "is written by brokerkit"),
        ({"properties": {"bk-key": "1"}}, "is written by brokerkit"),
        ([1], "they are a mapping, not list"),
    ],
)  # fmt: skip
def test_wrong_native_options_are_named_and_their_values_of_properties_are_not(native: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        native_options(native)

    assert "secret" not in str(caught.value)
    assert "backend rocketmq" in str(caught.value)


def test_a_level_and_a_delay_contradict_each_other() -> None:
    with pytest.raises(ConfigurationError, match="contradict"):
        codec().encode(outbound(due=NOW + 5, native={"delay_level": 1}), five=True)


def test_native_headers_survive_as_headers() -> None:
    assert through(outbound(native={"properties": {"shop": "7"}}, headers={"a": "1"})).headers == {
        "shop": "7",
        "a": "1",
    }


@settings(max_examples=50)
@given(st.dictionaries(header_name, weird, max_size=3), weird)
def test_every_property_that_leaves_is_one_that_a_broker_keeps(headers: dict[str, str], key: str) -> None:
    for destination in (TOPIC, RETRY, DEAD):
        wire = codec().encode(outbound(destination, headers=headers, key=key, native={"keys": ["w"]}), five=True)

        stored(wire)
