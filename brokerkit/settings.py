"""The settings of a manager: the models, and `load_settings`, which reads every source.

The order of the sources, the strongest first: arguments, ``BROKERKIT_*`` variables, ``RABBITMQ_*`` variables
(only where no URL is set and the backend is rabbitmq), ``.env``, ``brokerkit.yaml`` or the file that
``BROKERKIT_CONFIG`` names, defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from brokerkit.compatibility import SECTION_MODELS, normalise
from brokerkit.errors import ConfigurationError
from brokerkit.registry import BUILT_IN, SCHEMES, Registry
from brokerkit.settings_models import (
    GroupSettings,
    IdempotencySettings,
    ManagerSettings,
    RetrySettings,
    Settings,
    TopicSettings,
)
from brokerkit.settings_schema import Origin, SettingsModel, explain, keys_at
from brokerkit.settings_sources import (
    ENVIRONMENT,
    Layer,
    argument_layer,
    config_file,
    dotenv_variables,
    environment_layer,
    file_layer,
    merge,
    rabbitmq_layer,
)
from brokerkit.suggest import did_you_mean

__all__ = [
    "GroupSettings",
    "IdempotencySettings",
    "ManagerSettings",
    "RetrySettings",
    "Settings",
    "TopicSettings",
    "load_settings",
]


def load_settings(
    *,
    url: str | None = None,
    backend: str | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    name: str = "default",
    env: Mapping[str, str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    registry: Registry | None = None,
    **overrides: Any,
) -> Settings:
    """Return the settings of all sources together; raise `ConfigurationError` that says which key stands where.

    ``overrides`` are fields of `Settings`.  A `Settings` object replaces every other source but the arguments; a
    mapping counts as arguments.  ``env`` replaces the environment of the process; ``directory`` the working
    directory, in which ``.env`` and the configuration file are looked for.  Relative paths in the settings start
    at the folder of the configuration file where there is one, else at the working directory.

    ``name`` is the manager whose settings are returned: its entry below ``managers``, or a `Settings` object without
    such an entry.  The arguments belong to this manager; with arguments it needs no entry.

    Where sources name different brokers the stronger one decides: a URL in the environment wins over ``backend``
    in the file, and the other way round.
    """
    registry = registry or Registry()
    base = Path(os.path.abspath(directory)) if directory is not None else Path.cwd()
    # What the code passes belongs to the manager that it asks for.
    arguments = {
        key: value for key, value in {**overrides, "url": url, "backend": backend}.items() if value is not None
    }
    if isinstance(settings, Settings):
        own = settings.for_manager(name) if name in settings.managers else settings
        layers = [argument_layer(arguments), argument_layer(own.model_dump(exclude_unset=True), "the Settings object")]
        return _build(layers, own.directory or base, registry)
    layers = [argument_layer(_inside(name, arguments))]
    if settings is not None:
        if not isinstance(settings, Mapping):
            raise ConfigurationError(f"settings must be a Settings or a mapping, not {type(settings).__name__}")
        layers.append(argument_layer(_inside(name, settings)))
    found, base = _read(os.environ if env is None else env, base, registry)
    return _build([_normalised(layer) for layer in (*layers, *found)], base, registry).for_manager(name)


def _inside(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(values) if name == "default" or not values else {"managers": {name: dict(values)}}


def _read(env: Mapping[str, str], here: Path, registry: Registry) -> tuple[list[Layer], Path]:
    """Return the layers of environment, ``.env`` and file, and the folder that relative paths start at."""
    dotenv_path = here / ".env"
    dotenv = dotenv_variables(dotenv_path)
    path, required = config_file({**dotenv, **env}, here)
    file = file_layer(path, required=required)
    layers = []
    for variables, label in ((env, ENVIRONMENT), (dotenv, str(dotenv_path))):
        layers.append(
            environment_layer(
                variables, Settings, label=label, backends=registry.known(), known=file.values if file else {}
            )
        )
        layers.append(rabbitmq_layer(variables, label=label))
    if file is None:
        return layers, here
    return [*layers, file], path.parent


def _normalised(layer: Layer) -> Layer:
    # In each source by itself: RABBITMQ_USER must be able to override `name` in the file.
    values = dict(layer.values)
    for name in BUILT_IN:
        if isinstance(values.get(name), dict):
            try:
                values[name] = normalise(name, values[name])
            except ValueError as exc:
                raise ConfigurationError(f"configuration: {name} ({layer.label}): {exc}") from None
    return replace(layer, values=values)


def _refuse_a_whole_application(layer: Layer, registry: Registry) -> None:
    """Raise `ConfigurationError` for sections of others beside one of ours, which is not about a misspelt key."""
    known = {*Settings.model_fields, *registry.known()}
    ours = next((name for name in BUILT_IN if name in layer.values), None)
    sections = [str(key) for key, value in layer.values.items() if key not in known and isinstance(value, Mapping)]
    foreign = sorted(name for name in sections if not did_you_mean(name, known))
    if ours is not None and foreign:
        raise ConfigurationError(
            f"configuration: unknown sections {', '.join(map(repr, foreign))} ({layer.label}). Of the configuration of "
            f'a whole application brokerkit takes its own part: initialize({{"{ours}": config["{ours}"]}})'
        )


def _build(layers: list[Layer], base: Path, registry: Registry) -> Settings:
    def origin(path: tuple[str, ...]) -> str | None:
        return next((place for layer in layers if (place := layer.place(path)) is not None), None)

    def check(values: Mapping[str, Any]) -> Settings:
        return Settings.checked(values, context={"backends": registry.known()}, origin=origin)

    for layer in layers:
        _refuse_a_whole_application(layer, registry)
    made = check(merge(_one_broker([layer for layer in layers if layer.only_for is None])))
    if made.url is None and any(layer.only_for and layer.values for layer in layers):
        name = made.backend_name
        wanted = [layer for layer in layers if layer.only_for in (None, name)]
        made = check(merge(_one_broker(wanted)))
    for prefix, one in (((), made), *((("managers", name), one) for name, one in made.managers.items())):
        if one.backend is not None and one.backend not in (*BUILT_IN, *registry.known()):
            registry.find(one.backend)
        for name, section in one.sections().items():
            _check_section((*prefix, name), name, section, registry, origin)
        one.place(base, registry)
    return made


def _one_broker(layers: list[Layer]) -> list[Layer]:
    """Return the layers without the URLs and backends that contradict a stronger layer's choice."""
    copies = [dict(layer.values) for layer in layers]
    named: dict[Any, list[dict[str, Any]]] = {}
    for values in copies:
        managers = values.get("managers")
        if isinstance(managers, dict):
            values["managers"] = {name: dict(one) if isinstance(one, dict) else one for name, one in managers.items()}
            for name, one in values["managers"].items():
                if isinstance(one, dict):
                    named.setdefault(name, []).append(one)
    for together in (copies, *named.values()):
        _drop_contradictions(together)
    return [replace(layer, values=values) for layer, values in zip(layers, copies, strict=True)]


def _drop_contradictions(sources: list[dict[str, Any]]) -> None:
    url: Any = None
    backend: Any = None
    for values in sources:
        own_url, own_backend = values.get("url"), values.get("backend")
        if url is not None and own_backend is not None and not _agree(url, own_backend):
            del values["backend"]
        if backend is not None and own_url is not None and not _agree(own_url, backend):
            del values["url"]
        url = values.get("url") if url is None else url
        backend = values.get("backend") if backend is None else backend


def _agree(url: Any, backend: Any) -> bool:
    """Return whether a URL may belong to a backend; what is no text, or not ours, is judged later."""
    if not isinstance(url, str) or not isinstance(backend, str) or backend not in BUILT_IN:
        return True
    return SCHEMES.get(url.partition("://")[0].strip().lower(), backend) == backend


def _check_section(
    path: tuple[str, ...], backend: str, section: Mapping[str, Any], registry: Registry, origin: Origin
) -> None:
    model: type[BaseModel] | None = SECTION_MODELS.get(backend)
    try:
        model = getattr(registry.find(backend), "settings_model", None) or model
    except ConfigurationError:
        # A backend that is configured and not used need not be installed; using it says what is missing.
        pass
    if model is None:
        return
    if model.model_config.get("extra") != "allow":
        known = keys_at(model, ())
        for key in section:
            if key not in known:
                where = f" ({place})" if (place := origin((*path, key))) else ""
                hint = did_you_mean(key, known) or f"; known here: {', '.join(sorted(known))}"
                raise ConfigurationError(f"configuration: unknown key {'.'.join((*path, key))!r}{where}{hint}")
    if issubclass(model, SettingsModel):
        model.checked(section, prefix=path, origin=origin)
        return
    try:
        model.model_validate(section)
        return
    except ValidationError as exc:
        error = explain(exc, model, prefix=path, origin=origin)
    # Outside the handler: the error of a backend's own model may show the values.
    raise error
