from __future__ import annotations

import io
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit_rocketmq.remoting.compression import (
    BodyTooLarge,
    CompressionError,
    LibraryMissing,
    compress,
    decompress,
    kind_of,
)

MIB = 1 << 20
lz4_frame = pytest.importorskip("lz4.frame")
zstandard = pytest.importorskip("zstandard")


def java_zstd(body: bytes) -> bytes:
    """A frame that does not say how large its content is, as a stream of Java writes it."""
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as writer:
        writer.write(body)
    return out.getvalue()


WAYS: dict[str, Callable[[bytes], bytes]] = {"zlib": compress, "lz4": lz4_frame.compress, "zstd": java_zstd}


@given(st.sampled_from(sorted(WAYS)), st.binary(max_size=4096))
def test_a_body_comes_out_as_it_went_in(kind: str, body: bytes) -> None:
    assert decompress(WAYS[kind](body), kind, 4096) == body


def test_zlib_is_what_java_writes() -> None:
    # The first bytes of every deflate stream of Java at level 5.
    assert compress(b"x" * 5000)[:2] == b"\x78\x5e"


@pytest.mark.parametrize(
    ("sys_flag", "kind"),
    [
        (0, None), (2, None), (0x100, None), (1, "zlib"), (3, "zlib"), (0x101, "lz4"), (0x201, "zstd"), (0x301, "zlib"),
        (0x701, "kind-7"),
    ],
)  # fmt: skip
def test_the_flags_say_how_a_body_is_compressed(sys_flag: int, kind: str | None) -> None:
    assert kind_of(sys_flag) == kind


@pytest.mark.parametrize("kind", sorted(WAYS))
def test_a_bomb_is_refused_and_takes_little_memory(kind: str) -> None:
    bomb = WAYS[kind](bytes(200 * MIB))
    assert len(bomb) < 2 * MIB
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge, match="more than 1048576 bytes"):
            decompress(bomb, kind, MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 8 * MIB


@pytest.mark.parametrize("kind", sorted(WAYS))
def test_the_limit_itself_is_allowed(kind: str) -> None:
    assert len(decompress(WAYS[kind](bytes(MIB)), kind, MIB)) == MIB
    with pytest.raises(BodyTooLarge):
        decompress(WAYS[kind](bytes(MIB + 1)), kind, MIB)


def test_a_size_that_a_frame_only_claims_takes_no_memory() -> None:
    honest = zstandard.ZstdCompressor().compress(b"x" * 70_000)
    # Behind magic and descriptor: the size of the content in 4 bytes.
    assert honest[4] >> 6 == 2
    lying = honest[:5] + (0xF0000000).to_bytes(4, "little") + honest[9:]
    tracemalloc.start()
    try:
        with pytest.raises(CompressionError):
            decompress(lying, "zstd", 64 * MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 8 * MIB


@pytest.mark.parametrize("kind", sorted(WAYS))
@given(cut=st.integers(0, 400), body=st.binary(min_size=1, max_size=300))
def test_a_body_that_is_cut_off_is_refused(kind: str, cut: int, body: bytes) -> None:
    whole = WAYS[kind](body)
    if cut >= len(whole):
        return
    with pytest.raises(CompressionError):
        decompress(whole[:cut], kind, 4096)


@pytest.mark.parametrize("kind", [*sorted(WAYS), "kind-5"])
@given(body=st.binary(max_size=200))
def test_any_bytes_are_decompressed_or_refused(kind: str, body: bytes) -> None:
    for raw in (body, WAYS.get(kind, compress)(b"abc" * 20)[:10] + body):
        try:
            assert len(decompress(raw, kind, 1000)) <= 1000
        except CompressionError:
            pass


@pytest.mark.parametrize(("kind", "module"), [("lz4", "lz4.frame"), ("zstd", "zstandard")])
def test_a_missing_library_is_named(kind: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = WAYS[kind](b"text")
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(LibraryMissing, match=r"package (lz4|zstandard) is not installed; pip install"):
        decompress(body, kind, 100)


def test_zlib_without_its_header_is_refused() -> None:
    raw = zlib.compressobj(wbits=-15)

    with pytest.raises(CompressionError, match="no zlib stream"):
        decompress(raw.compress(b"text") + raw.flush(), "zlib", 100)
