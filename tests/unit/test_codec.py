from __future__ import annotations

import enum
import math
import traceback
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from brokerkit import codec
from brokerkit.errors import ConfigurationError, DecodeError, PayloadError


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: int
    total: Decimal = Decimal(0)
    note: str | None = None


@dataclass
class Point:
    x: float
    y: float
    label: str = ""


class Person(TypedDict):
    name: str
    born: datetime


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    barks: bool = True


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]
Short = Annotated[str, Field(max_length=5)]
UserId = NewType("UserId", str)

texts = st.text(st.characters(exclude_categories=["Cs"]))
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
orders = st.builds(Order, id=st.integers(), total=st.decimals(-1000, 1000, places=2), note=st.none() | texts)
points = st.builds(Point, finite, finite, texts)
people = st.fixed_dictionaries(
    {"name": texts, "born": st.datetimes(timezones=st.just(UTC), min_value=datetime(1900, 1, 1))}
)


@pytest.mark.parametrize(
    ("type_", "values", "content_type"),
    [
        (bytes, st.binary(), codec.BINARY),
        (bytearray, st.binary().map(bytearray), codec.BINARY),
        (str, texts, codec.TEXT),
        (Any, json_values.filter(lambda value: not isinstance(value, str)), codec.JSON),
        (object, st.lists(json_values), codec.JSON),
        (Order, orders, codec.JSON),
        (list[Order], st.lists(orders, max_size=3), codec.JSON),
        (Point, points, codec.JSON),
        (Person, people, codec.JSON),
        (Pet, st.builds(Cat, lives=st.integers()) | st.builds(Dog, barks=st.booleans()), codec.JSON),
        (Order | Point, orders | points, codec.JSON),
        (dict[str, list[int]], st.dictionaries(texts, st.lists(st.integers())), codec.JSON),
        (uuid.UUID, st.uuids(), codec.JSON),
        (int | None, st.integers() | st.none(), codec.JSON),
        (Colour, st.sampled_from(Colour), codec.TEXT),
        (Literal["red", "12"], st.sampled_from(["red", "12"]), codec.TEXT),
        (Short, texts.filter(lambda text: len(text) <= 5), codec.TEXT),
        (UserId, texts, codec.TEXT),
        (Order | str, orders | texts, None),
        (Optional[str], texts.filter(lambda text: text.strip() != "null"), codec.TEXT),  # noqa: UP045
        (Colour | None, st.sampled_from(Colour) | st.none(), None),
        (Order | bytes, orders | st.binary(max_size=4), None),
    ],
    ids=str,
)
def test_what_is_encoded_is_decoded_into_the_same(type_: Any, values: Any, content_type: str | None) -> None:
    decoder = codec.Decoder(type_)

    @given(values)
    def round_trip(value: Any) -> None:
        body, told = codec.encode(value)
        assert isinstance(body, bytes)
        assert content_type in (None, told)
        found = decoder.decode(body)
        assert found == value and type(found) is type(value)
        assert codec.decode(body, type_) == value

    round_trip()


garbage = st.binary(max_size=40) | st.sampled_from(
    [b"", b"[" * 100_000, b"9" * 5000, b'"\\ud800"', b"NaN", b"1e999", b'{"id":', b"\xff\xfe", b"null", b"-"]
)


@pytest.mark.parametrize(
    "type_",
    [
        str,
        Any,
        int,
        float,
        Order,
        Point,
        Person,
        Pet,
        list[int],
        dict[str, Any],
        Order | None,
        uuid.UUID,
        datetime,
        Colour,
        Short,
        Literal["a"],
        Colour | None,
        Short | int,
        Cat | bytes,
    ],
    ids=str,
)
def test_garbage_is_a_decode_error_and_nothing_else(type_: Any) -> None:
    decoder = codec.Decoder(type_)

    @given(garbage)
    def survives(body: bytes) -> None:
        try:
            decoder.decode(body)
        except DecodeError as error:
            assert not error.retryable and len(str(error)) < 2000

    survives()


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("type_", "body"),
    [
        (int, f'"{SECRET}"'),
        (int, SECRET),
        (Any, SECRET),
        (Order, f'{{"id": "{SECRET}"}}'),
        (Order, f'{{"id": 1, "total": "{SECRET}", "note": ["{SECRET}"]}}'),
        (Pet, f'{{"kind": "{SECRET}"}}'),
        (uuid.UUID, f'"{SECRET}"'),
        (datetime, f'"{SECRET}"'),
        (Colour, SECRET),
        (Colour | int, SECRET),
        (Short, SECRET),
        (Literal["a", "b"], SECRET),
        (list[int], f'["{SECRET}"]'),
        (Order | Point, f'{{"x": "{SECRET}"}}'),
        (dict[str, int], f'{{"{"k" * 200}{SECRET}": "no"}}'),
    ],
    ids=str,
)
def test_no_text_and_no_traceback_quotes_the_body(type_: Any, body: str) -> None:
    with pytest.raises(DecodeError) as caught:
        codec.decode(body.encode(), type_)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in str(caught.value)
    assert SECRET not in shown.replace(f"codec.decode({SECRET!r}", "")
    assert SECRET not in repr(caught.value.__cause__) and SECRET not in repr(caught.value.__context__)


def test_a_decode_error_says_what_is_wrong_and_where() -> None:
    with pytest.raises(DecodeError) as caught:
        codec.decode(b'[{"id": 1}, {"id": "x"}]', list[Order])
    assert "1.id: Input should be a valid integer" in str(caught.value)
    with pytest.raises(DecodeError, match="not UTF-8: byte 1 is 0xff"):
        codec.decode(b"a\xff", str)
    with pytest.raises(DecodeError, match=r"the body is not a Short|the body is not a .*at most 5"):
        codec.decode(b"far too long", Short)


class Unresolved(BaseModel):
    other: Missing  # type: ignore[name-defined]  # noqa: F821


@dataclass
class UnresolvedPoint:
    other: Missing  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    "type_",
    [Unresolved, list[Unresolved], UnresolvedPoint, Unresolved | None, memoryview, 5, "list[", "Missing"],
    ids=str,
)
def test_a_type_that_no_body_fits_is_refused_before_the_first_body(type_: Any) -> None:
    with pytest.raises(ConfigurationError, match="no body can be decoded into"):
        codec.Decoder(type_)


def test_an_unhashable_annotation_is_decoded_too() -> None:
    assert codec.decode(b"5", Annotated[int, {"unhashable": True}]) == 5


loop: list[Any] = []
loop.append(loop)


@pytest.mark.parametrize(
    "payload",
    ["\ud800", {"a": "\ud800"}, object(), {1: object()}, loop, len, [b"\xff"], type],
    ids=lambda one: type(one),
)
def test_what_cannot_be_encoded_is_a_payload_error(payload: object) -> None:
    with pytest.raises(PayloadError):
        codec.encode(payload)


def test_views_and_arrays_of_bytes_are_taken_as_they_are() -> None:
    assert codec.encode(memoryview(b"abcdef")[::2]) == (b"ace", codec.BINARY)
    assert codec.encode(bytearray(b"\x00\xff")) == (b"\x00\xff", codec.BINARY)


def test_a_float_that_json_lacks_comes_back_where_no_model_says_otherwise() -> None:
    body, _ = codec.encode([math.inf])
    assert codec.decode(body, list[float]) == [math.inf]
