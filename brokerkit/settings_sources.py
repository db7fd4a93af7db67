"""Where settings are written: environment variables, a ``.env`` file, ``brokerkit.yaml``; and which one wins.

Each source becomes a `Layer`, a nested mapping that remembers where its values stand.  pydantic-settings is not
used for it: it reads the environment of the process only, passes over misspelt variables, and would take a
quarter of the 0.3 seconds that ``import brokerkit`` may take.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from brokerkit.compatibility import RABBITMQ_VARIABLES
from brokerkit.errors import ConfigurationError
from brokerkit.settings_schema import leaves, plain_type
from brokerkit.suggest import did_you_mean
from brokerkit.url import is_secret

__all__ = [
    "CONFIG_FILE",
    "CONFIG_VARIABLE",
    "ENVIRONMENT",
    "PREFIX",
    "Layer",
    "argument_layer",
    "config_file",
    "dotenv_variables",
    "environment_layer",
    "file_layer",
    "merge",
    "rabbitmq_layer",
]

PREFIX = "BROKERKIT_"
#: The label of the layer of the process' environment.
ENVIRONMENT = "the environment"
#: Names the configuration file.
CONFIG_VARIABLE = "BROKERKIT_CONFIG"
#: Read from the working directory where the variable names no other.
CONFIG_FILE = "brokerkit.yaml"

# What the tests read, and what is read before the settings.
_TEST_PREFIX = PREFIX + "TEST_"
_NOT_SETTINGS = frozenset({PREFIX + "REQUIRE", CONFIG_VARIABLE})
# Deeper than any setting; a YAML alias can make a mapping that contains itself.
_DEEPEST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One source of settings."""

    #: For error texts: ``the environment``, the path of a file.
    label: str
    values: Mapping[str, Any]
    #: More exact places of single values, by path.
    places: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    #: Looked at only where no URL is set and this backend is the chosen one.
    only_for: str | None = None

    def place(self, path: tuple[str, ...]) -> str | None:
        """Return where the value of ``path`` stands in this source, or None when it does not."""
        current: Any = self.values
        for step in path:
            if not isinstance(current, Mapping):
                return None
            # YAML makes other things than texts of some keys; a path has their text.
            key = step if step in current else next((key for key in current if str(key) == step), None)
            if key is None:
                return None
            current = current[key]
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.label


def argument_layer(values: Mapping[str, Any], label: str = "an argument") -> Layer:
    """Return what the code passed."""
    return Layer(label=label, values=_plain(values, label))


def file_layer(path: Path, *, required: bool) -> Layer | None:
    """Read a YAML file; return None when it is missing and not required.  Raise `ConfigurationError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if not required:
            return None
        raise ConfigurationError(f"the configuration file {path} does not exist; {CONFIG_VARIABLE} names it") from None
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"the configuration file {path} cannot be read: {reason}") from None
    # Not at the top: most processes that import brokerkit in a container are configured by their environment.
    import yaml

    place = ""
    try:
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as exc:
        # The problem's own text may quote the line, and with it a password.
        mark = exc.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else " "
    except (yaml.YAMLError, ValueError, RecursionError):
        place = " "
    if place:
        raise ConfigurationError(
            f"the configuration file {path} is not valid YAML{place.rstrip()}; "
            "values that begin with one of * & ! @ % ` or hold ': ' need quotes"
        )
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"the configuration file {path} holds a {type(values).__name__}, not keys and values")
    return Layer(label=str(path), values=_plain(values, str(path)))


def dotenv_variables(path: Path) -> dict[str, str]:
    """Return the variables of a ``.env`` file; empty when there is none."""
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    try:
        # Without interpolation: a password may hold "${".
        found = dotenv_values(path, interpolate=False, encoding="utf-8")
    except (OSError, UnicodeError):
        raise ConfigurationError(f"the file {path} cannot be read, or is not UTF-8") from None
    return {name: value for name, value in found.items() if value is not None}


def environment_layer(
    variables: Mapping[str, str],
    model: type[BaseModel],
    *,
    label: str,
    backends: Iterable[str] = (),
    known: Mapping[str, Any] | None = None,
) -> Layer:
    """Return the ``BROKERKIT_*`` variables as a layer; ``__`` goes one level down, empty values count as unset.

    A name that the user chooses (a topic, a group, a manager) is lower case where the variable is upper case,
    unless ``known``, the settings of the file, has it with other capitals.  A mapping may be given as JSON.
    Raise `ConfigurationError` for a variable that no setting belongs to.
    """
    values: dict[str, Any] = {}
    places: dict[tuple[str, ...], str] = {}
    # Short names first, so that a single key overrides the same key in a JSON mapping.
    for name in sorted(variables, key=lambda name: (name.count("__"), name)):
        text = variables[name]
        if not text or not name.startswith(PREFIX) or name.startswith(_TEST_PREFIX) or name in _NOT_SETTINGS:
            continue
        place = _place(name, label)
        path, annotation = _resolve(name, place, model, frozenset(backends), known or {})
        _put(values, path, _value(text, path, annotation, place), place)
        places[path] = place
    return Layer(label=label, values=values, places=places)


def rabbitmq_layer(variables: Mapping[str, str], *, label: str) -> Layer:
    """Return ``RABBITMQ_URL``, or else the variables of the service client, as a layer for rabbitmq only."""
    if variables.get("RABBITMQ_URL"):
        place = _place("RABBITMQ_URL", label)
        values = {"url": variables["RABBITMQ_URL"]}
        return Layer(label=label, values=values, places={("url",): place}, only_for="rabbitmq")
    section: dict[str, Any] = {}
    places: dict[tuple[str, ...], str] = {}
    for name, key in RABBITMQ_VARIABLES.items():
        if variables.get(name):
            section[key] = variables[name]
            places["rabbitmq", key] = _place(name, label)
    return Layer(label=label, values={"rabbitmq": section} if section else {}, places=places, only_for="rabbitmq")


def merge(layers: Iterable[Layer]) -> dict[str, Any]:
    """Return all layers as one mapping; the first layer that has a value for a key wins, null is no value."""
    merged: dict[str, Any] = {}
    for layer in layers:
        _fill(merged, layer.values)
    return merged


def _place(name: str, label: str) -> str:
    return name if label == ENVIRONMENT else f"{name} in {label}"


def _fill(target: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        present = target.get(key)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _fill(present, value)
        elif present is None:
            # A copy, because lower layers are filled into it.
            target[key] = _plain(value, "the settings") if isinstance(value, Mapping) else value


def _plain(value: Any, label: str, depth: int = 0) -> Any:
    """Return a copy of ``value`` in which mappings are dicts and models are what was set in them."""
    if depth > _DEEPEST:
        raise ConfigurationError(f"configuration ({label}): values are nested more than {_DEEPEST} levels deep")
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: _plain(item, label, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, label, depth + 1) for item in value]
    return value


def _resolve(
    name: str, place: str, model: type[BaseModel], backends: frozenset[str], known: Mapping[str, Any]
) -> tuple[tuple[str, ...], Any]:
    """Return the path that a variable sets, and the type that is expected there (None in a free mapping)."""
    path: list[str] = []
    current: Any = model
    there: Any = known
    for segment in name[len(PREFIX) :].split("__"):
        if isinstance(current, type) and issubclass(current, BaseModel):
            key = segment.lower()
            found = current.model_fields.get(key)
            sectioned = current.model_config.get("extra") == "allow"
            if found is None and not (sectioned and key in backends):
                raise _unknown(name, place, model)
            current = plain_type(found.annotation) if found is not None else dict[str, Any]
        elif get_origin(current) is dict:
            current = plain_type(get_args(current)[1])
            free = not (isinstance(current, type) and issubclass(current, BaseModel))
            key = segment.lower() if free else _chosen_name(segment, there)
        elif current is Any:
            key = segment.lower()
        else:
            raise _unknown(name, place, model)
        if not key:
            raise _unknown(name, place, model)
        path.append(key)
        there = there.get(key) if isinstance(there, Mapping) else None
    return tuple(path), current


def _chosen_name(segment: str, there: Any) -> str:
    if isinstance(there, Mapping):
        for name in there:
            if isinstance(name, str) and name.casefold() == segment.casefold():
                return name
    return segment.lower() if segment.isupper() else segment


def _unknown(name: str, place: str, model: type[BaseModel]) -> ConfigurationError:
    known = [PREFIX + "__".join(path).upper() for path in leaves(model) if "<name>" not in path]
    known.append(CONFIG_VARIABLE)
    hint = did_you_mean(name, known)
    return ConfigurationError(f"configuration: no setting belongs to the variable {place}{hint}")


def _value(text: str, path: tuple[str, ...], annotation: Any, place: str) -> Any:
    free = annotation is Any
    nested = get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel))
    if not nested and not (free and text[:1] in "{[" and not is_secret(path[-1])):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if free:
            return text
    # Outside the handler: the error of json holds the whole text.
    raise ConfigurationError(f'configuration: {place} takes a mapping as JSON, as in {{"key": "value"}}')


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any, place: str) -> None:
    for step in path[:-1]:
        inner = values.setdefault(step, {})
        if not isinstance(inner, dict):
            raise ConfigurationError(f"configuration: {place} contradicts another variable, which gives {step} a value")
        values = inner
    values[path[-1]] = value


def config_file(variables: Mapping[str, str], directory: Path) -> tuple[Path, bool]:
    """Return the path of the configuration file, and whether it must exist because it was named."""
    named = variables.get(CONFIG_VARIABLE)
    if named:
        return Path(os.path.abspath(directory / os.path.expanduser(named))), True
    return directory / CONFIG_FILE, False
