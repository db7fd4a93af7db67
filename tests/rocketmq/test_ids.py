from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit_rocketmq.remoting.ids import OffsetId, host_text, offset_id, parse_offset_id

GOLDEN = "7F00000100002A9F00000000000004B0"  # from a broker: 127.0.0.1:10911, offset 1200
HOST = bytes([127, 0, 0, 1]) + (10911).to_bytes(4, "big")


def test_the_id_of_a_broker_is_read() -> None:
    found = parse_offset_id(GOLDEN)

    assert found == OffsetId("127.0.0.1", 10911, 1200)
    assert found.address == "127.0.0.1:10911"


def test_the_id_is_written_as_the_broker_writes_it() -> None:
    assert offset_id(HOST, 1200) == GOLDEN


def test_an_ipv6_address_has_brackets() -> None:
    raw = bytes(15) + b"\x01" + (10911).to_bytes(4, "big")

    assert parse_offset_id(offset_id(raw, 7)).address == "[::1]:10911"
    assert host_text(raw) == "[::1]:10911"
    assert host_text(HOST) == "127.0.0.1:10911"


@given(st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)), st.integers(0, 65535),
       st.integers(0, 2**63 - 1))  # fmt: skip
def test_ids_round_trip(host: bytes, port: int, offset: int) -> None:
    text = offset_id(host + port.to_bytes(4, "big"), offset)
    found = parse_offset_id(text)

    assert (found.port, found.offset) == (port, offset)
    assert parse_offset_id(text.lower()) == found


@given(st.text())
def test_nothing_but_an_id_is_one(text: str) -> None:
    with pytest.raises(ValueError, match="no offset id"):
        parse_offset_id(text)


@pytest.mark.parametrize("text", ["F" * 32, "7F000001FFFFFFFF00000000000004B0", " " + GOLDEN[1:], GOLDEN[:-1]])
def test_what_only_looks_like_an_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no offset id"):
        parse_offset_id(text)
