"""Checking a backend's own settings: one text for every bad key, wherever it was written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from brokerkit.errors import ConfigurationError
from brokerkit.suggest import nearest
from brokerkit.url import is_secret, redact

__all__ = ["checked_section"]

M = TypeVar("M", bound=BaseModel)


def checked_section(model: type[M], backend: str, *parts: tuple[str, Mapping[str, Any]]) -> M:
    """Return ``model`` made of ``parts``, pairs of where the keys stand and the keys; later ones win.

    Raise `ConfigurationError` that names each bad key, where it stands and, for an unknown key, the nearest known
    one.  What a section with a place for a secret holds is never shown: the secret may stand at another key.
    """
    known = list(model.model_fields)
    secretive = any(map(is_secret, known))
    faults = [
        f"unknown key {key!r} in {where}: {_hint(str(key), known)}"
        for where, keys in parts
        for key in keys
        if key not in known
    ]
    if not faults:
        values: dict[str, Any] = {}
        places: dict[str, str] = {}
        for where, keys in parts:
            values |= keys
            places |= dict.fromkeys(keys, where)
        try:
            return model.model_validate(values)
        except ValidationError as error:
            faults = [_fault(detail, places, secretive) for detail in error.errors(include_url=False)]
    # Outside the handler: the error of pydantic may show what a key holds.
    raise ConfigurationError("; ".join(faults), backend=backend)


def _hint(key: str, known: list[str]) -> str:
    near = nearest(key, known)
    return f"did you mean {near!r}?" if near is not None else f"known are {', '.join(known)}"


def _fault(detail: ErrorDetails, places: Mapping[str, str], secretive: bool) -> str:
    path = [str(part) for part in detail["loc"]]
    key = path[0] if path else ""
    shown = "" if secretive else f", not {redact(repr(detail['input']))}"
    return f"{'.'.join(path)!r} in {places.get(key, 'the section')}: {detail['msg']}{shown}"
