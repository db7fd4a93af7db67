from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit_rocketmq.remoting.properties import encode_properties, is_system, parse_properties

text = st.text(st.characters(exclude_characters="\x01\x02", codec="utf-8"), min_size=1)


@given(st.dictionaries(text, text))
def test_properties_round_trip(properties: dict[str, str]) -> None:
    encoded = encode_properties(properties)

    assert parse_properties(encoded) == properties
    assert parse_properties(encoded.encode()) == properties
    # 4.9.4 stores them without the last separator.
    assert parse_properties(encoded.removesuffix("\x02").encode()) == properties


def test_the_text_is_that_of_java() -> None:
    assert encode_properties({"KEYS": "k1", "TAGS": "a"}) == "KEYS\x01k1\x02TAGS\x01a\x02"


@pytest.mark.parametrize(
    ("raw", "properties"),
    [
        (b"", {}),
        (b"\x02", {}),
        (b"\x01\x02", {}),
        (b"a", {}),
        (b"a\x01", {"a": ""}),
        (b"\x01b\x02c\x01d", {"c": "d"}),
        (b"a\x01b\x02\x02c\x01d\x02\x02", {"a": "b", "c": "d"}),
        (b"a\x01b\x01c\x02", {"a": "b\x01c"}),
        (b"a\x011\x02a\x012\x02", {"a": "2"}),
        (b"a\x01\xff\x02", {"a": "\ufffd"}),
        (b"junk\x02a\x01b", {"a": "b"}),
    ],
)
def test_what_foreign_senders_write_is_read_as_java_reads_it(raw: bytes, properties: dict[str, str]) -> None:
    assert parse_properties(raw) == properties


@given(st.binary())
def test_any_bytes_are_some_properties(raw: bytes) -> None:
    assert all(parse_properties(raw))


@pytest.mark.parametrize("bad", [("", "v"), ("n", ""), ("n\x01", "v"), ("n", "v\x02"), ("n", "\x01")])
def test_what_a_broker_would_change_is_refused(bad: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="property"):
        encode_properties([("good", "one"), bad])


@pytest.mark.parametrize(
    "name", ["KEYS", "DELAY", "UNIQ_KEY", "TIMER_DELIVER_MS", "__SHARDINGKEY", "INNER_NUM", "POP_CK"]
)
def test_names_with_a_meaning_are_known(name: str) -> None:
    assert is_system(name)
    assert not is_system("x-" + name)
