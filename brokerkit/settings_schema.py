"""What all settings models share: frozen, strict about keys, silent about secrets, errors that say where.

pydantic's own errors never leave these models: they become `ConfigurationError` with the dotted path of the key,
the nearest known key, and no secret.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, SecretBytes, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails

from brokerkit.errors import ConfigurationError
from brokerkit.suggest import did_you_mean
from brokerkit.url import HIDDEN, is_secret, redact

__all__ = ["UNKNOWN_KEY", "Origin", "Path", "SettingsModel", "explain", "hide", "keys_at", "leaves"]

#: The keys that lead to a value, from the outside to the inside.
Path = tuple[str, ...]
#: Tells where the value of a path was written: an argument, a variable, a file; None when it is not known.
Origin = Callable[[Path], str | None]
#: The type of the error that a model raises for a key that it looks up at run time.
UNKNOWN_KEY = "unknown_key"

_MOST_PROBLEMS = 3
_LONGEST_VALUE = 60


def _nowhere(path: Path) -> str | None:
    return None


class SettingsModel(BaseModel):
    """A section of the settings; immutable.  An empty section (``orders:``) and null values mean "not set"."""

    # hide_input_in_errors: an error of pydantic may survive as a context and must not show a password there.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def __init__(self, /, **data: Any) -> None:
        """Check and convert ``data``; raise `ConfigurationError`."""
        try:
            super().__init__(**data)
            return
        except ValidationError as exc:
            error = explain(exc, type(self))
        # Outside the handler, so that the error of pydantic is no context of ours.
        raise error

    # Tells pydantic that nested data need not go through __init__: errors then keep their whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """As `BaseModel.model_validate`, but raise `ConfigurationError`."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as exc:
            error = explain(exc, cls)
        raise error

    @classmethod
    def checked(
        cls,
        values: Mapping[str, Any],
        *,
        context: Mapping[str, Any] | None = None,
        prefix: Path = (),
        origin: Origin = _nowhere,
    ) -> Self:
        """Check and convert ``values``; raise `ConfigurationError` that says where a bad value was written.

        ``prefix`` is the path of ``values`` in the settings; ``origin`` tells where the value of a path stands.
        """
        try:
            return super().model_validate(values, context=context)
        except ValidationError as exc:
            error = explain(exc, cls, prefix=prefix, origin=origin)
        raise error

    @model_validator(mode="before")
    @classmethod
    def _drop_what_is_not_set(cls, data: Any) -> Any:
        if data is None:
            return {}
        if isinstance(data, Mapping):
            return {key: value for key, value in data.items() if value is not None}
        return data

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            if name is None or name in self.model_fields_set:
                yield name, hide(value, name or "")


def hide(value: Any, key: str = "") -> Any:
    """Return ``value`` with the secrets of mappings and URLs in it replaced by ``***``."""
    if is_secret(key) and value is not None:
        return HIDDEN
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: hide(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide(item) for item in value]
    return value


def explain(
    exc: ValidationError,
    model: type[BaseModel],
    *,
    prefix: Path = (),
    origin: Origin = _nowhere,
) -> ConfigurationError:
    """Return a `ConfigurationError` for what pydantic found wrong.

    ``prefix`` is the path of the validated mapping; ``origin`` tells where the value of a path was written.
    """
    details = exc.errors(include_url=False)
    problems = [_problem(detail, model, prefix, origin) for detail in details[:_MOST_PROBLEMS]]
    if len(details) > _MOST_PROBLEMS:
        problems.append(f"and {len(details) - _MOST_PROBLEMS} more")
    return ConfigurationError("configuration: " + "; ".join(problems))


def _problem(detail: ErrorDetails, model: type[BaseModel], prefix: Path, origin: Origin) -> str:
    path = tuple(str(step) for step in detail["loc"])
    context = detail.get("ctx", {})
    extra: Iterable[str] = ()
    if detail["type"] == UNKNOWN_KEY:
        path, extra = (*path, str(context["key"])), context["known"]
    dotted = _printable(".".join((*prefix, *path)))
    written = origin((*prefix, *path)) if dotted else None
    where = f" ({written})" if written else ""
    if detail["type"] in ("extra_forbidden", UNKNOWN_KEY):
        return f"unknown key {dotted!r}{where}{_meant(path, model, extra)}"
    message = detail["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "it should be", 1)
    value = detail["input"]
    if any(is_secret(step) for step in path) or _type_at(model, path) in (SecretStr, SecretBytes):
        return f"{dotted}{where}: {'it should be a text; put it in quotes' if 'string' in message else 'not legal'}"
    if "valid string" in message:
        message += "; put it in quotes"
    if detail["type"] in ("dict_type", "model_type", "mapping_type"):
        # A text where a section should be may be anything, a password among it.
        return f"{dotted}{where}: it should be a mapping of keys to values"
    if detail["type"] == "value_error" or not isinstance(value, (str, int, float)):
        return _printable(f"{dotted}{where}: {redact(message)}").removeprefix(": ")
    shown = repr(value if not isinstance(value, int) or abs(value) < 10**20 else float("inf"))
    if len(shown) > _LONGEST_VALUE:
        shown = shown[:_LONGEST_VALUE] + "…"
    return _printable(f"{dotted}{where} is {redact(shown)}: {message}")


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _meant(path: Path, model: type[BaseModel], extra: Iterable[str]) -> str:
    *inside, key = path
    known = {*keys_at(model, tuple(inside)), *extra}
    near = did_you_mean(key, known)
    if near:
        return near
    places = sorted(".".join(place) for place in leaves(model) if place[-1] == key and "<" not in "".join(place))
    if places:
        return f"; did you mean {places[0]!r}?"
    return f"; known here: {', '.join(sorted(known))}" if known else ""


def keys_at(model: type[BaseModel], path: Path) -> set[str]:
    """Return the keys that are known at ``path``; empty where any key is legal."""
    found = _type_at(model, path)
    if isinstance(found, type) and issubclass(found, BaseModel):
        return {field.alias or name for name, field in found.model_fields.items()}
    return set()


def _type_at(model: type[BaseModel], path: Path) -> Any:
    """Return the type that is expected at ``path``; None where there is none or any is legal."""
    current: Any = model
    for step in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(step)
            current = None if field is None else plain_type(field.annotation)
        elif get_origin(current) is dict:
            current = plain_type(get_args(current)[1])
        else:
            return None
    return current


def leaves(model: type[BaseModel], inside: Path = ()) -> Iterator[Path]:
    """Yield the path of every key below ``model``; a name that the user chooses appears as ``<name>``."""
    for name, field in model.model_fields.items():
        yield (*inside, name)
        annotation = plain_type(field.annotation)
        below = (*inside, name)
        if get_origin(annotation) is dict:
            annotation = plain_type(get_args(annotation)[1])
            below = (*below, "<name>")
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, below)


def plain_type(annotation: Any) -> Any:
    """Return the annotation without its ``| None``."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return annotation
