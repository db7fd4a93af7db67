from __future__ import annotations

import struct
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit_rocketmq.remoting.compression import CompressionError, compress
from brokerkit_rocketmq.remoting.messages import (
    MAX_BODY,
    BadMessages,
    StoredMessage,
    decode_messages,
    encode_batch,
    encode_member,
)

#: One message as the store format of ``MessageDecoder`` lays it out, byte by byte.
GOLDEN = bytes.fromhex(
    "0000007d"  # total size, 125
    "daa320a7"  # magic of V1
    "3610a686"  # crc32("hello") without its sign
    "00000003"  # queue
    "00000007"  # flag
    "000000000000000c"  # queue offset 12
    "00000000000004b0"  # commit log offset 1200
    "00000000"  # flags
    "0000019355e47c00"  # born
    "7f000001" "0000d431"  # born host 127.0.0.1:54321
    "0000019355e47c01"  # stored
    "7f000001" "00002a9f"  # store host 127.0.0.1:10911
    "00000002"  # reconsume times
    "0000000000000000"  # prepared transaction
    "00000005" "68656c6c6f"  # body
    "06" "6f7264657273"  # topic "orders"
    "0017" "4b455953016b31025441475301610278013102" "79013202"  # KEYS=k1 TAGS=a x=1 y=2
)  # fmt: skip

V4, V6 = bytes([10, 0, 0, 1]), bytes(range(16))


def stored(
    body: bytes = b"hello",
    *,
    topic: bytes = b"orders",
    properties: bytes = b"",
    offset: int = 12,
    sys_flag: int = 0,
    version: int = 1,
    crc: int | None = None,
    born: bytes = V4,
    store: bytes = V4,
) -> bytes:
    """One message in the store format, written apart from the code that is tested."""
    flags = sys_flag | (16 if len(born) == 16 else 0) | (32 if len(store) == 16 else 0)
    rest = struct.pack(">iii", zlib.crc32(body) & 0x7FFFFFFF if crc is None else crc, 3, 7)
    rest += struct.pack(">qqi", offset, 1200, flags)
    rest += struct.pack(">q", 1732300000123) + born + struct.pack(">i", 54321)
    rest += struct.pack(">q", 1732300000124) + store + struct.pack(">i", 10911)
    rest += struct.pack(">iq", 2, 0) + struct.pack(">i", len(body)) + body
    rest += struct.pack(">b" if version == 1 else ">h", len(topic)) + topic
    rest += struct.pack(">H", len(properties)) + properties
    magic = -626843481 if version == 1 else -626843477
    return struct.pack(">ii", len(rest) + 8, magic) + rest


def only(body: bytes) -> StoredMessage:
    (message,) = decode_messages(body)
    return message


# --- the store format ---------------------------------------------------------------------------------------------


def test_a_stored_message_is_read_byte_by_byte() -> None:
    message = only(GOLDEN)

    assert (message.topic, message.queue_id, message.queue_offset) == ("orders", 3, 12)
    assert (message.body, message.raw_body, message.flag, message.sys_flag) == (b"hello", b"hello", 7, 0)
    assert (message.commit_log_offset, message.reconsume_times, message.prepared_transaction_offset) == (1200, 2, 0)
    assert (message.born_timestamp, message.store_timestamp) == (0x19355E47C00, 0x19355E47C01)
    assert (message.born_host, message.store_host) == ("127.0.0.1:54321", "127.0.0.1:10911")
    assert message.properties == {"KEYS": "k1", "TAGS": "a", "x": "1", "y": "2"}
    changed = message.own_properties()
    changed.clear()
    assert message.own_properties() == message.properties != {}
    assert message.offset_id == "7F00000100002A9F00000000000004B0"
    assert (message.size, message.problem, message.compression) == (125, None, None)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("born", [V4, V6], ids=["born v4", "born v6"])
@pytest.mark.parametrize("store", [V4, V6], ids=["store v4", "store v6"])
def test_hosts_have_four_bytes_or_sixteen(version: int, born: bytes, store: bytes) -> None:
    message = only(stored(b"body", version=version, born=born, store=store, properties=b"a\x01b\x02"))

    assert (message.topic, message.body, message.properties) == ("orders", b"body", {"a": "b"})
    assert message.raw_born_host[:-4] == born
    assert message.store_host == ("10.0.0.1:10911" if store == V4 else "[1:203:405:607:809:a0b:c0d:e0f]:10911")
    assert len(message.offset_id) == (32 if store == V4 else 56)


def test_a_topic_of_more_than_127_bytes_has_the_second_version() -> None:
    message = only(stored(topic=b"t" * 200, version=2))

    assert message.topic == "t" * 200


def test_a_topic_of_the_first_version_may_have_255_bytes() -> None:
    whole = stored(topic=b"")
    at = len(whole) - 3
    longer = struct.pack(">i", len(whole) + 200) + whole[4:at] + bytes([200]) + b"t" * 200 + whole[at + 1 :]

    assert only(longer).topic == "t" * 200


@given(st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=40), st.booleans()), max_size=6))
def test_messages_come_one_after_the_other(given: list[tuple[bytes, bytes, bool]]) -> None:
    raw = b"".join(
        stored(body, properties=properties, version=2 if second else 1, offset=index)
        for index, (body, properties, second) in enumerate(given)
    )

    found = decode_messages(raw)

    assert [message.body for message in found] == [body for body, _, _ in given]
    assert [message.raw_properties for message in found] == [properties for _, properties, _ in given]
    assert [message.queue_offset for message in found] == list(range(len(given)))
    assert sum(message.size for message in found) == len(raw)


def test_a_message_whose_checksum_is_wrong_says_so_and_the_others_are_whole() -> None:
    first, damaged, last = decode_messages(stored(b"a") + stored(b"b", crc=1) + stored(b"c"))

    assert (first.problem, last.problem) == (None, None)
    assert damaged.problem is not None and "checksum" in damaged.problem
    assert damaged.raw_body == b"b"


# --- compressed bodies --------------------------------------------------------------------------------------------


def test_a_compressed_body_is_decompressed_when_it_is_looked_at() -> None:
    message = only(stored(compress(b"x" * 5000), sys_flag=1))

    assert message.compression == "zlib"
    assert message.body == b"x" * 5000
    assert len(message.raw_body) < 100


def test_a_body_that_cannot_be_decompressed_does_not_disturb_the_others() -> None:
    first, broken, last = decode_messages(stored(b"a") + stored(b"no zlib", sys_flag=1) + stored(b"c"))

    assert (first.body, last.body) == (b"a", b"c")
    with pytest.raises(CompressionError, match="no zlib stream"):
        _ = broken.body


def test_a_bomb_takes_no_memory_until_it_is_looked_at_and_little_then() -> None:
    bomb = compress(bytes(100 << 20))
    raw = stored(bomb, sys_flag=1) * 20
    tracemalloc.start()
    try:
        messages = decode_messages(raw)
        with pytest.raises(CompressionError, match="more than 1048576 bytes"):
            messages[0].decompressed(1 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < len(raw) + (4 << 20)


# --- what is no sequence of messages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "raw"),
    [(0, 0), (0, -1), (0, 8), (0, 1 << 30), (0, 124), (0, 126), (4, 0), (4, -875286124), (84, -1), (84, -64),
     (84, 1 << 30), (84, 4)],
)  # fmt: skip
def test_lying_lengths_are_refused_with_what_came_before(at: int, raw: int) -> None:
    lying = GOLDEN[:at] + struct.pack(">i", raw) + GOLDEN[at + 4 :]

    with pytest.raises(BadMessages) as caught:
        decode_messages(GOLDEN + lying + GOLDEN)

    assert [message.body for message in caught.value.messages] == [b"hello"]
    assert "at byte 125 of 375" in str(caught.value)


@given(st.integers(0, 124))
def test_a_message_that_is_cut_off_is_refused(size: int) -> None:
    if size == 0:
        assert decode_messages(b"") == []
        return
    with pytest.raises(BadMessages):
        decode_messages(GOLDEN[:size])


@given(st.binary(max_size=300))
def test_any_bytes_are_messages_or_refused(raw: bytes) -> None:
    _decode(raw)


@given(st.lists(st.tuples(st.integers(0, len(GOLDEN) * 2 - 1), st.integers(0, 255)), max_size=8))
def test_changed_bytes_are_messages_or_refused(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(GOLDEN + stored(_batch(), sys_flag=64 | 128))[: len(GOLDEN) * 2]
    for at, byte in changes:
        if at < len(raw):
            raw[at] = byte
    _decode(bytes(raw))


def _decode(raw: bytes) -> None:
    try:
        found = decode_messages(raw)
    except BadMessages as error:
        found = error.messages
    for message in found:
        # All that is read later.
        assert message.offset_id and message.born_host and message.store_host and repr(message)
        assert message.properties is not None
        try:
            assert message.body is not None
        except CompressionError:
            pass


# --- batches ------------------------------------------------------------------------------------------------------

BATCH = bytes.fromhex(
    "0000001b" "00000000" "00000000" "00000007" "00000001" "61" "0004" "78013102"  # a, x=1, flag 7
    "00000017" "00000000" "00000000" "00000000" "00000001" "62" "0000"  # b
)  # fmt: skip


def _batch() -> bytes:
    return encode_batch([encode_member(b"a", b"x\x011\x02", 7), encode_member(b"b", b"")])


def test_a_batch_is_written_byte_by_byte() -> None:
    assert _batch() == BATCH


@pytest.mark.parametrize("way", ["plain", "compressed"])
def test_a_packed_message_is_taken_apart(way: str) -> None:
    body, flags = (BATCH, 0) if way == "plain" else (compress(BATCH), 1)
    before, a, b, after = decode_messages(
        stored(b"0") + stored(body, sys_flag=64 | 128 | flags, offset=20) + stored(b"9")
    )

    assert (before.body, after.body) == (b"0", b"9")
    assert (a.body, a.properties, a.flag, a.queue_offset) == (b"a", {"x": "1"}, 7, 20)
    assert (b.body, b.properties, b.flag, b.queue_offset) == (b"b", {}, 0, 21)
    assert (a.topic, a.queue_id, a.commit_log_offset, a.reconsume_times) == ("orders", 3, 1200, 2)
    assert (a.sys_flag, a.problem, a.offset_id) == (0, None, b.offset_id)


def test_a_message_with_one_of_the_two_flags_is_not_packed() -> None:
    assert [only(stored(BATCH, sys_flag=flag)).body for flag in (64, 128)] == [BATCH, BATCH]


@pytest.mark.parametrize(
    "body",
    [b"", b"no batch", BATCH[:-1], BATCH + b"\0", bytes(4) + BATCH[4:], struct.pack(">i", 1 << 30) + BATCH[4:],
     BATCH[:16] + struct.pack(">i", -5) + BATCH[20:]],
)  # fmt: skip
def test_a_packed_message_that_cannot_be_taken_apart_says_so(body: bytes) -> None:
    message, after = decode_messages(stored(body, sys_flag=64 | 128) + stored(b"9"))

    assert message.problem is not None and "cannot be taken apart" in message.problem
    assert message.raw_body == body
    assert after.body == b"9"


def test_packed_bombs_take_no_more_than_one_body_together() -> None:
    member = encode_member(bytes(60 << 20), b"")
    bomb = stored(compress(member), sys_flag=1 | 64 | 128)
    tracemalloc.start()
    try:
        messages = decode_messages(bomb * 10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [message.problem is None for message in messages] == [True] + [False] * 9
    # The plain text and its one member, and what another one needs until it is given up.
    assert peak < 3 * MAX_BODY


def test_a_packed_message_has_a_bounded_number_of_members() -> None:
    many = compress(encode_member(b"", b"") * 1_000_000)
    began = time.process_time()

    message = only(stored(many, sys_flag=1 | 64 | 128))

    assert message.problem is not None and "more than 65536 members" in message.problem
    assert time.process_time() - began < 10


@given(
    st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20), st.integers(-(2**31), 2**31 - 1)), min_size=1)
)
def test_members_round_trip(members: list[tuple[bytes, bytes, int]]) -> None:
    body = encode_batch(encode_member(*member) for member in members)

    found = decode_messages(stored(body, sys_flag=64 | 128))

    assert [(message.body, message.raw_properties, message.flag) for message in found] == members
