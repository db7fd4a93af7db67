"""Whatever comes out of a socket is a frame or a `FrameError`, however it is cut."""

from __future__ import annotations

import struct
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from brokerkit_rocketmq.remoting.codes import LANGUAGES
from brokerkit_rocketmq.remoting.errors import FrameError
from brokerkit_rocketmq.remoting.frames import Frame, FrameParser, encode_request, encode_response

#: What Java's UTF-8 can carry: everything but halves of surrogate pairs.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
fields = st.dictionaries(texts, texts, max_size=6)
opaques = st.integers(0, 2**31 - 1)
bodies = st.binary(max_size=200)


def binary_frame(frame: Frame) -> bytes:
    """Write a frame as ``RocketMQSerializable`` does."""

    def piece(text: str, size: str) -> bytes:
        data = text.encode()
        return struct.pack(size, len(data)) + data

    pairs = b"".join(piece(name, ">h") + piece(value, ">i") for name, value in frame.fields.items())
    header = struct.pack(">hBhii", frame.code, LANGUAGES.index(frame.language), frame.version, frame.opaque, frame.flag)
    header += piece(frame.remark or "", ">i") + struct.pack(">i", len(pairs)) + pairs
    return struct.pack(">II", len(header) + len(frame.body) + 4, 1 << 24 | len(header)) + header + frame.body


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, Frame]:
    """A frame in one of the forms it has on the wire, and what must be read from it."""
    code, opaque, names, body = draw(st.integers(0, 32767)), draw(opaques), draw(fields), draw(bodies)
    form = draw(st.sampled_from(["request", "oneway", "response", "binary"]))
    if form == "response":
        remark = draw(st.none() | texts)
        return (
            encode_response(code, opaque, names, body, remark),
            Frame(code, opaque, 1, names, body, remark, 401, "PYTHON"),
        )
    if form == "binary":
        names = {name: value for name, value in names.items() if name or value}
        language = draw(st.sampled_from(LANGUAGES))
        remark = draw(texts) or None
        frame = Frame(code, opaque, draw(st.integers(0, 3)), names, body, remark, draw(st.integers(0, 600)), language)
        return binary_frame(frame), frame
    oneway = form == "oneway"
    return (
        encode_request(code, opaque, names, body, oneway=oneway),
        Frame(code, opaque, 2 if oneway else 0, names, body, None, 401, "PYTHON"),
    )


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """``data`` in pieces, cut at ``places``, some of which may be empty."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


@given(st.lists(frames(), max_size=5), st.lists(st.integers(0, 2000), max_size=12))
def test_frames_are_read_as_they_were_written_however_the_stream_is_cut(
    written: list[tuple[bytes, Frame]], places: list[int]
) -> None:
    parser = FrameParser()
    stream = b"".join(data for data, _ in written)
    read = [frame for piece in cut(stream, places) for frame in parser.feed(piece)]
    assert read == [frame for _, frame in written]
    assert parser.held == 0


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
@example(b"\0\0\0\4\0\0\0\0", [])
@example(b"\0\0\0\6\0\0\0\2{}", [3])
@example(b"\0\0\0\x06\1\0\0\2{}", [3])
def test_garbage_is_refused_or_awaits_more(data: bytes, places: list[int]) -> None:
    feed_all(FrameParser(), cut(data, places))


@given(frames(), st.data())
def test_a_frame_with_broken_bytes_is_refused_or_read_or_awaits_more(
    written: tuple[bytes, Frame], data: st.DataObject
) -> None:
    broken = bytearray(written[0])
    for place in data.draw(st.lists(st.integers(0, len(broken) - 1), min_size=1, max_size=4)):
        broken[place] = data.draw(st.integers(0, 255))
    feed_all(FrameParser(), [bytes(broken)])


@given(st.binary(min_size=1, max_size=120), st.sampled_from([0, 1]))
def test_a_header_of_garbage_is_refused_or_read(header: bytes, kind: int) -> None:
    data = struct.pack(">II", len(header) + 4, kind << 24 | len(header)) + header
    feed_all(FrameParser(), [data])


@given(st.lists(st.binary(max_size=400), max_size=20), st.integers(16, 300))
def test_no_more_is_kept_than_the_limit_and_one_piece(pieces: list[bytes], limit: int) -> None:
    parser = FrameParser(limit)
    try:
        for piece in pieces:
            parser.feed(piece)
            assert parser.held < limit + 8
    except FrameError:
        assert parser.held <= limit + 8


def feed_all(parser: FrameParser, pieces: list[bytes]) -> None:
    """Only `FrameError` may come out."""
    try:
        for piece in pieces:
            for frame in parser.feed(piece):
                assert isinstance(frame.code, int) and isinstance(frame.fields, dict)
                assert all(isinstance(value, str) for value in frame.fields.values())
    except FrameError as error:
        assert str(error)
