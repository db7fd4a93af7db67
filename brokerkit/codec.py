"""Payloads to bytes and back.

bytes and str go as they are; everything else is JSON by pydantic.  There is no envelope around the body: the
other fields of a message travel as properties and headers.

The type asked for decides how a body is read.  Of a union of str or bytes with others the others go first, so the
text ``12`` read as ``int | str`` is a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic_core
from pydantic import BaseModel, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from brokerkit.errors import ConfigurationError, DecodeError, PayloadError

__all__ = ["BINARY", "JSON", "TEXT", "Decoder", "decode", "decoder", "encode"]

JSON = "application/json"
TEXT = "text/plain"
BINARY = "application/octet-stream"

#: Problems whose texts by pydantic quote the input, and what is said instead.
_UNQUOTED: Mapping[str, str] = {
    "union_tag_invalid": "Input tag does not match any of the expected tags",
    "uuid_parsing": "Input should be a valid UUID",
}
#: Names in the place of a problem may come from the body; characters that are shown of each.
_LONGEST_NAME = 40
#: Problems of one body that are kept; a long list of wrong items has as many.
_MOST_PROBLEMS = 20


def encode(payload: object) -> tuple[bytes, str]:
    """Return (body, content type) of ``payload``; raise `PayloadError` when it cannot be encoded."""
    if isinstance(payload, bytes):
        return payload, BINARY
    if isinstance(payload, str):
        try:
            return payload.encode(), TEXT
        except UnicodeEncodeError as exc:
            raise PayloadError("the payload holds a lone surrogate, which UTF-8 cannot encode") from exc
    if isinstance(payload, bytearray | memoryview):
        return bytes(payload), BINARY
    try:
        return pydantic_core.to_json(payload), JSON
    except (pydantic_core.PydanticSerializationError, ValueError, RecursionError) as exc:
        raise PayloadError(f"a payload of type {type(payload).__name__} cannot be encoded: {exc}") from exc


class Decoder:
    """Decodes bodies into one type.  Made once per handler: building the adapter costs more than a thousand uses."""

    __slots__ = ("decode",)

    def __init__(self, type_: Any) -> None:
        """Prepare for ``type_``; raise `ConfigurationError` when pydantic knows no way to decode into it."""
        self.decode: Callable[[bytes], Any]
        if type_ is bytes:
            self.decode = _as_is
        elif type_ is str:
            self.decode = _text
        elif type_ is bytearray:
            self.decode = bytearray
        elif type_ is Any or type_ is object:
            self.decode = _json
        else:
            self.decode = _validating(type_)


def _validating(type_: Any) -> Callable[[bytes], Any]:
    adapter: TypeAdapter[Any]
    try:
        adapter = TypeAdapter(type_)
        # A name that is missing in the type is found by the first validation: now and not by a message.
        adapter.validate_json(b"")
    except ValidationError:
        pass
    except (PydanticSchemaGenerationError, PydanticUserError, NameError, TypeError, SyntaxError) as exc:
        reason = getattr(exc, "message", None) or str(exc)
        raise ConfigurationError(f"no body can be decoded into {type_!r}: {reason}") from exc
    from_json: Callable[[bytes], Any] = adapter.validate_json
    if isinstance(type_, type) and issubclass(type_, BaseModel):
        from_json = type_.model_validate_json
    arms = list(_arms(type_))
    raw = [arm for arm in arms if _is_raw(arm)]
    validate = from_json
    if raw and len(raw) == len(arms):
        # str and bytes travel as they are, so what narrows them (Literal, StrEnum, Annotated) is no JSON either.
        validate = _from_raw(adapter, raw)
    elif raw:
        validate = _from_json_or_raw(from_json, _from_raw(adapter, raw))

    def validated(body: bytes) -> Any:
        try:
            return validate(body)
        except ValidationError as exc:
            problems = _without_input(exc)
        what = "; ".join(_text_of(problem) for problem in problems.errors(include_url=False)[:3])
        raise DecodeError(f"the body is not a {_name(type_)}: {what}") from problems

    return validated


def _arms(type_: Any) -> Iterator[Any]:
    """Give the parts of a union, each without aliases and annotations."""
    if hasattr(type_, "__supertype__"):
        yield from _arms(type_.__supertype__)
    elif get_origin(type_) is Annotated:
        yield from _arms(get_args(type_)[0])
    elif get_origin(type_) in (Union, UnionType):
        for arm in get_args(type_):
            yield from _arms(arm)
    elif type(type_).__name__ == "TypeAliasType":
        yield from _arms(type_.__value__)
    else:
        yield type_


def _is_raw(arm: Any) -> bool:
    """Whether `encode` takes payloads of this type as they are."""
    if get_origin(arm) is Literal:
        return all(isinstance(value, str | bytes) for value in get_args(arm))
    return isinstance(arm, type) and issubclass(arm, str | bytes)


def _from_raw(adapter: TypeAdapter[Any], raw: list[Any]) -> Callable[[bytes], Any]:
    binary = any(isinstance(arm, type) and issubclass(arm, bytes) for arm in raw)

    def validate(body: bytes) -> Any:
        try:
            return adapter.validate_python(body.decode())
        except UnicodeDecodeError:
            if not binary:
                return adapter.validate_python(_text(body))
        return adapter.validate_python(body)

    return validate if len(raw) > 1 or not binary else adapter.validate_python


def _from_json_or_raw(from_json: Callable[[bytes], Any], from_raw: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def validate(body: bytes) -> Any:
        try:
            found = from_json(body)
        except ValidationError as problem:
            try:
                return from_raw(body)
            except (ValidationError, DecodeError):
                raise problem from None
        if not isinstance(found, str | bytes):
            return found
        # A text that happens to be JSON, as "quoted" with its quotes: a str was sent as it is.
        try:
            return from_raw(body)
        except (ValidationError, DecodeError):
            return found

    return validate


def _without_input(exc: ValidationError) -> ValidationError:
    """Return the same problems without the input: it is the user's data and may be secret."""
    problems: list[pydantic_core.InitErrorDetails] = []
    for problem in exc.errors(include_url=False, include_context=False, include_input=False)[:_MOST_PROBLEMS]:
        text = _UNQUOTED.get(problem["type"], problem["msg"])
        problems.append(
            {
                "type": pydantic_core.PydanticCustomError(problem["type"], "{text}", {"text": text}),
                "loc": tuple(part[:_LONGEST_NAME] if isinstance(part, str) else part for part in problem["loc"]),
                "input": None,
            }
        )
    return ValidationError.from_exception_data(exc.title, problems, "json", hide_input=True)


def _text_of(problem: Mapping[str, Any]) -> str:
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def _name(type_: Any) -> str:
    return getattr(type_, "__name__", None) or str(type_)


def _as_is(body: bytes) -> Any:
    return body


def _text(body: bytes) -> Any:
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        raise DecodeError(f"the body is not UTF-8: byte {exc.start} is {body[exc.start]:#04x}") from exc


def _json(body: bytes) -> Any:
    try:
        return pydantic_core.from_json(body)
    except ValueError as exc:
        raise DecodeError(f"the body is not JSON: {exc}") from exc


@lru_cache(maxsize=256)
def decoder(type_: Any) -> Decoder:
    """Return the decoder of a hashable type, made once."""
    return Decoder(type_)


def decode(body: bytes, type_: Any) -> Any:
    """Decode ``body`` into ``type_``; raise `DecodeError` when it does not fit."""
    try:
        found = decoder(type_)
    except TypeError:  # an unhashable annotation
        found = Decoder(type_)
    return found.decode(body)
