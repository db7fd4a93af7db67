"""Frames as the Java classes of RocketMQ 4.9.4 write and read them."""

from __future__ import annotations

import json
import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given

from brokerkit_rocketmq.remoting.errors import FrameError, Oversized
from brokerkit_rocketmq.remoting.frames import (
    FRAME_MAX,
    Frame,
    FrameParser,
    HeadTemplate,
    encode_request,
    encode_response,
    render_head,
    rendered_request,
)

#: What ``RemotingCommand.encode`` of remoting-4.9.4.jar returned for the same three commands, as JSON and as ROCKETMQ.
JAVA_RESPONSE = {
    "JSON": (
        "000000cd000000c57b22636f6465223a31372c226578744669656c6473223a7b226e616d65223a2254c3bc5c753030303178"
        "222c226d73674964223a2237463030222c2271756575654f6666736574223a223132227d2c22666c6167223a312c226c616e"
        "6775616765223a224a415641222c226f7061717565223a37372c2272656d61726b223a224e6f20746f706963205c22c3a95c"
        "225c6ee4bda0222c2273657269616c697a655479706543757272656e74525043223a224a534f4e222c2276657273696f6e22"
        "3a3430317d626f6479"
    ),
    "ROCKETMQ": (
        "0000005f0100005700110001910000004d00000001000000114e6f20746f7069632022c3a9220ae4bda00000003100046e61"
        "6d650000000554c3bc017800056d736749640000000437463030000b71756575654f6666736574000000023132626f6479"
    ),
}
JAVA_ONEWAY = {
    "JSON": (
        "00000086000000827b22636f6465223a34302c226578744669656c6473223a7b22636f6e73756d657247726f7570223a2247"
        "227d2c22666c6167223a322c226c616e6775616765223a224a415641222c226f7061717565223a352c2273657269616c697a"
        "655479706543757272656e74525043223a224a534f4e222c2276657273696f6e223a3430317d"
    ),
    "ROCKETMQ": "0000002d01000029002800019100000005000000020000000000000014000d636f6e73756d657247726f75700000000147",
}
JAVA_EMPTY = {
    "JSON": (
        "0000006c000000687b22636f6465223a302c22666c6167223a312c226c616e6775616765223a224a415641222c226f706171"
        "7565223a323134373438333634372c2273657269616c697a655479706543757272656e74525043223a224a534f4e222c2276"
        "657273696f6e223a3430317d"
    ),
    "ROCKETMQ": "000000190100001500000001917fffffff000000010000000000000000",
}

BOTH = pytest.mark.parametrize("kind", ["JSON", "ROCKETMQ"])


def only(data: bytes) -> Frame:
    """The one frame in ``data``."""
    parser = FrameParser()
    (frame,) = parser.feed(data)
    assert parser.held == 0
    return frame


def framed(header: bytes, body: bytes = b"", kind: int = 0) -> bytes:
    return struct.pack(">II", len(header) + len(body) + 4, kind << 24 | len(header)) + header + body


@BOTH
def test_an_answer_of_java_is_read(kind: str) -> None:
    fields = {"msgId": "7F00", "queueOffset": "12", "name": "Tü\x01x"}
    expected = Frame(17, 77, 1, fields, b"body", 'No topic "é"\n你', 401, "JAVA")
    assert only(bytes.fromhex(JAVA_RESPONSE[kind])) == expected


@BOTH
def test_a_oneway_request_of_java_is_read(kind: str) -> None:
    frame = only(bytes.fromhex(JAVA_ONEWAY[kind]))
    assert frame == Frame(40, 5, 2, {"consumerGroup": "G"}, b"", None, 401, "JAVA")
    assert frame.is_oneway and not frame.is_response


@BOTH
def test_an_answer_without_fields_and_remark_is_read(kind: str) -> None:
    frame = only(bytes.fromhex(JAVA_EMPTY[kind]))
    assert frame == Frame(0, 2**31 - 1, 1, {}, b"", None, 401, "JAVA")
    assert frame.is_response and not frame.is_oneway


@BOTH
def test_frames_that_come_byte_by_byte_are_the_same(kind: str) -> None:
    data = b"".join(bytes.fromhex(golden[kind]) for golden in (JAVA_RESPONSE, JAVA_ONEWAY, JAVA_EMPTY))
    parser = FrameParser()
    frames = [frame for byte in data for frame in parser.feed(bytes((byte,)))]
    assert frames == FrameParser().feed(data)
    assert [frame.code for frame in frames] == [17, 40, 0]


def test_a_request_is_what_java_reads() -> None:
    data = encode_request(310, 7, {"b": "Tüx", "q": '"\\/\n'}, b"body\0")
    size, word = struct.unpack_from(">II", data)
    assert size == len(data) - 4 and word >> 24 == 0
    header = json.loads(data[8 : 8 + word])
    assert header == {
        "code": 310,
        "language": "PYTHON",
        "version": 401,
        "flag": 0,
        "opaque": 7,
        "extFields": {"b": "Tüx", "q": '"\\/\n'},
    }
    assert data[8 + word :] == b"body\0"


def test_a_oneway_request_has_its_flag() -> None:
    frame = only(encode_request(15, 1, {"offset": "3"}, oneway=True))
    assert frame.is_oneway and not frame.is_response


def test_an_answer_carries_the_number_of_its_request_and_a_remark() -> None:
    frame = only(encode_response(1, 3, {"x": ""}, b"b", remark='nö "x"'))
    assert frame == Frame(1, 3, 1, {"x": ""}, b"b", 'nö "x"', 401, "PYTHON")


def test_a_rendered_request_is_the_same_as_one_that_is_not() -> None:
    fields = {"a": "group", "i": "KEYS\x01k\x02"}
    before, after = render_head(310, fields)
    body = b"x" * 100
    for opaque in (0, 1, 12345, 2**31 - 1):
        assert rendered_request(before, opaque, after, len(body)) + body == encode_request(310, opaque, fields, body)


def test_a_request_that_no_server_reads_is_refused() -> None:
    with pytest.raises(Oversized, match="16,777,2"):
        encode_request(310, 1, {}, bytes(FRAME_MAX))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack(">II", FRAME_MAX - 3, 10), "over the limit"),
        (b"\xff" * 8, "over the limit"),
        (b"HTTP/1.1 400 Bad Request", "over the limit"),
        (struct.pack(">II", 3, 0), "a header of 0 bytes in a frame of 3 bytes"),
        (struct.pack(">II", 20, 17), "a header of 17 bytes in a frame of 20 bytes"),
        (framed(b"{}", kind=2), "unknown kind 2"),
        (framed(b""), "JSON header"),
        (framed(b"[]"), "JSON header"),
        (framed(b"[" * 100_000), "JSON header"),
        (framed(b'{"code":0'), "JSON header"),
        (framed(b'{"code":0,"opaque":1,"flag":1} x'), "more behind it"),
        (framed(b'{"code":"0","opaque":1,"flag":1}'), "numbers are none"),
        (framed(b'{"code":0,"opaque":1,"flag":1,"extFields":[]}'), "no object"),
        (framed(b'{"code":0,"opaque":1,"flag":1,"extFields":{"a":{}}}'), "hold a dict"),
        (framed(b'{"code":0,"opaque":1,"flag":1,"remark":"\xff"}'), "JSON header"),
        (framed(b"\0" * 10, kind=1), "binary header"),
        (framed(struct.pack(">hBhiii", 0, 0, 401, 1, 1, -1) + bytes(4), kind=1), "lengths do not fit"),
        (framed(struct.pack(">hBhiiii", 0, 0, 401, 1, 1, 0, 99), kind=1), "lengths do not fit"),
        (framed(struct.pack(">hBhiiiih", 0, 0, 401, 1, 1, 0, 2, 50), kind=1), "lengths do not fit"),
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        FrameParser().feed(data)


def test_a_frame_over_the_limit_is_refused_before_it_is_there() -> None:
    parser = FrameParser(limit=1000)
    with pytest.raises(FrameError, match="over the limit of 1,000 bytes"):
        parser.feed(struct.pack(">I", 1000) + b"\0\0\0\2")
    assert parser.held == 0


def test_a_frame_of_exactly_the_limit_is_read() -> None:
    data = framed(b'{"code":0,"opaque":1,"flag":1}', bytes(1000))
    assert FrameParser(limit=len(data)).feed(data)
    with pytest.raises(FrameError, match="over the limit"):
        FrameParser(limit=len(data) - 1).feed(data)


def test_numbers_and_null_in_the_fields_of_other_languages_are_texts_and_absent() -> None:
    header = b'{"code":0,"opaque":1,"flag":1,"extFields":{"n":5,"b":true,"f":false,"z":null,"t":"x"}}'
    assert only(framed(header)).fields == {"n": "5", "b": "true", "f": "false", "t": "x"}


def test_an_unknown_language_is_some_other_one() -> None:
    assert only(framed(struct.pack(">hBhiiii", 0, 99, 401, 1, 1, 0, 0), kind=1)).language == "OTHER"
    assert only(framed(b'{"code":0,"opaque":1,"flag":1,"language":7}')).language == "OTHER"


@given(number=st.integers(0, (1 << 63) - 1), value=st.text(max_size=20))
def test_a_template_renders_what_rendering_everything_does(number: int, value: str) -> None:
    fields = {"a": value + '"offset":"0"', "offset": "7", "z": '"offset":"0"'}
    template = HeadTemplate(15, fields, "offset")
    assert template.render(number) == render_head(15, {**fields, "offset": str(number)})
