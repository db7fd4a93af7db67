"""Payloads to bytes and back.

bytes and str go as they are; everything else is JSON by pydantic.  There is no envelope around the body: the
other fields of a message travel as properties and headers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pydantic_core
from pydantic import BaseModel, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from brokerkit.errors import ConfigurationError, DecodeError, PayloadError

__all__ = ["BINARY", "JSON", "TEXT", "Decoder", "decode", "decoder", "encode"]

JSON = "application/json"
TEXT = "text/plain"
BINARY = "application/octet-stream"


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

    __slots__ = ("_type", "decode")

    def __init__(self, type_: Any) -> None:
        """Prepare for ``type_``; raise `ConfigurationError` when pydantic knows no way to decode into it."""
        self._type = type_
        if type_ is bytes:
            self.decode = _as_is
        elif type_ is str:
            self.decode = _text
        elif type_ is Any or type_ is object:
            self.decode = _json
        else:
            try:
                validate = (
                    type_.model_validate_json
                    if isinstance(type_, type) and issubclass(type_, BaseModel)
                    else TypeAdapter(type_).validate_json
                )
            except (PydanticSchemaGenerationError, PydanticUserError, NameError, TypeError) as exc:
                raise ConfigurationError(f"no body can be decoded into {type_!r}: {exc}") from exc

            def validated(body: bytes) -> Any:
                try:
                    return validate(body)
                except ValidationError as exc:
                    # The input is left out: it is the user's data and may be secret.
                    problems = exc.errors(include_url=False, include_context=False, include_input=False)
                    what = "; ".join(_problem(problem) for problem in problems[:3])
                    raise DecodeError(f"the body is not a {_name(type_)}: {what}") from exc

            self.decode = validated


def _problem(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
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
