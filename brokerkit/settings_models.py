"""The settings as pydantic models: what can be configured, its defaults and its limits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from brokerkit.compatibility import ATTEMPT_TIMEOUT, meaning, normalise
from brokerkit.errors import ConfigurationError
from brokerkit.names import TagFilter, check_group, check_topic
from brokerkit.registry import BUILT_IN, SCHEMES, Registry
from brokerkit.settings_schema import UNKNOWN_KEY, SettingsModel, hide
from brokerkit.suggest import did_you_mean
from brokerkit.url import BrokerUrl

__all__ = [
    "DEFAULT_PATH",
    "GroupSettings",
    "IdempotencySettings",
    "ManagerSettings",
    "RetrySettings",
    "Settings",
    "TopicSettings",
]

#: File of the embedded broker where none is configured.
DEFAULT_PATH = "brokerkit.db"

Section = dict[str, Any]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RetrySettings(SettingsModel):
    """How failed messages are tried again.  What is not set is decided by the next source.

    The order is: handler, topic, top level, compatibility key, default.
    """

    max_attempts: int | None = Field(
        None, ge=1, le=1_000_000, description="Starts of a handler, the first included; 4 when nothing sets it."
    )
    base_delay: SecondsOrZero | None = Field(
        None, description="Seconds before the second attempt; 1 when nothing sets it."
    )
    max_delay: SecondsOrZero | None = Field(
        None, description="Most seconds between two attempts; 30 when nothing sets it."
    )
    multiplier: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = Field(
        None, description="Growth of the delay from one attempt to the next; 2 when nothing sets it."
    )
    jitter: Literal["full", "none"] | None = Field(
        None, description="`full` (when nothing sets it): a random part of the delay; `none`: always the whole."
    )
    exhausted: Literal["dead", "requeue"] | None = Field(
        None, description="After the last attempt: a dead letter (when nothing sets it), or the queue again, for ever."
    )


class IdempotencySettings(SettingsModel):
    """Where handlers with ``idempotent=True`` remember what they have done."""

    store: Literal["memory", "sqlite", "redis"] | None = Field(
        None, description="`memory` (this process only), `sqlite`; `redis` comes in a later release."
    )
    path: str | None = Field(
        None, min_length=1, description="File of the sqlite store; `brokerkit-idempotency.db` when not set."
    )
    lease: Seconds = Field(60.0, description="Seconds after which the claim of a dead worker can be taken over.")
    retention: Seconds = Field(604800.0, description="Seconds that a completed message is remembered.")

    @field_validator("store")
    @classmethod
    def _redis_comes_later(cls, store: str | None) -> str | None:
        if store == "redis":
            raise ValueError("the redis store comes in a later release; use 'sqlite' or 'memory'")
        return store


class _WithSections(SettingsModel, extra="allow"):
    """A model that has, besides its fields, one free mapping for each backend."""

    embedded: Section | None = Field(None, description="Options for the embedded broker.")
    rabbitmq: Section | None = Field(None, description="Options for RabbitMQ.")
    rocketmq: Section | None = Field(None, description="Options for RocketMQ.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = {key: {} if value is None and key in BUILT_IN else value for key, value in data.items()}
        extra = [key for key in data if key not in cls.model_fields]
        if extra:
            known = (info.context or {}).get("backends") or Registry().known()
            for key in extra:
                if key not in known:
                    raise PydanticCustomError(UNKNOWN_KEY, "unknown key", {"key": key, "known": known})
                if data[key] is None:
                    data[key] = {}
                if not isinstance(data[key], Mapping) or not all(isinstance(name, str) for name in data[key]):
                    raise ValueError(f"{key} should be a mapping with texts as keys")
        return data

    def sections(self) -> dict[str, Section]:
        """Return the mappings for the backends that have one, by backend name."""
        found = {name: getattr(self, name) for name in BUILT_IN}
        found.update(self.__pydantic_extra__ or {})
        return {name: dict(section) for name, section in found.items() if section is not None}

    def native(self, backend: str) -> Section:
        """Return the mapping for one backend; empty where nothing is configured."""
        return self.sections().get(backend, {})


class GroupSettings(_WithSections):
    """A group of a topic.  What is not set is as the code declares it."""

    tag: str | None = Field(None, description="Tags that the group receives: `*` or `a||b`.")
    ordered: bool | None = Field(None, description="Whether messages of one key are handled in order.")
    start: Literal["latest", "earliest"] | None = Field(None, description="Where a new group begins.")

    @field_validator("tag")
    @classmethod
    def _normal_form(cls, tag: str | None) -> str | None:
        return None if tag is None else _legal(lambda: TagFilter(tag).expression)


class TopicSettings(_WithSections):
    """A topic: how it is declared, and what happens to its messages."""

    declare: Literal["auto", "verify", "never"] = Field(
        "auto", description="Before the first send: declare the topic and its groups, only check them, or neither."
    )
    unroutable: Literal["raise", "drop"] = Field("raise", description="For a message that no group would receive.")
    ordered: bool | None = Field(None, description="Whether the topic and all its groups are ordered.")
    expired: Literal["drop", "dead"] = Field("drop", description="For a message that outlived its ttl.")
    retry: RetrySettings = Field(default_factory=RetrySettings, description="Retries of this topic's messages.")
    groups: dict[str, GroupSettings] = Field(default_factory=dict, description="The groups, by name.")


class ManagerSettings(_WithSections):
    """All that one manager needs to know."""

    url: str | None = Field(None, description="URL of the broker; it chooses the backend.")
    backend: str | None = Field(
        None, min_length=1, description="`embedded`, `rabbitmq`, `rocketmq` or the name of an installed backend."
    )
    topic: str | None = Field(None, description="Topic of the export tasks.")
    consumer_group: str | None = Field(None, description="Group of handlers that name none.")
    client_id: str = Field("brokerkit", min_length=1, description="Name that the broker shows for the connection.")
    retry: RetrySettings = Field(default_factory=RetrySettings, description="Retries of all topics.")
    idempotency: IdempotencySettings = Field(
        default_factory=IdempotencySettings, description="Memory of idempotent handlers."
    )
    topics: dict[str, TopicSettings] = Field(default_factory=dict, description="The topics, by name.")
    send_timeout: Seconds = Field(30.0, description="Seconds until a send gives up, all attempts included.")
    attempt_timeout: Seconds = Field(
        ATTEMPT_TIMEOUT,
        description="Seconds until one attempt of a send or a call gives up; at most `send_timeout` counts.",
    )
    stop_timeout: Seconds = Field(30.0, description="Seconds that work in flight has to finish when a worker stops.")
    handler_timeout: Seconds | None = Field(
        None, description="Seconds that a handler may take when it sets none itself; not set: no limit."
    )
    max_message_size: int | None = Field(None, ge=1, description="Most bytes of a body; not set: the broker's limit.")

    _directory: Path | None = PrivateAttr(None)
    _scheme_backend: str | None = PrivateAttr(None)

    @field_validator("url")
    @classmethod
    def _well_formed(cls, url: str | None) -> str | None:
        if url is not None:
            _legal(lambda: str(BrokerUrl.parse(url)))
        return url

    @field_validator("topic")
    @classmethod
    def _legal_topic(cls, name: str | None) -> str | None:
        return None if name is None else _legal(lambda: check_topic(name))

    @field_validator("consumer_group")
    @classmethod
    def _legal_group(cls, name: str | None) -> str | None:
        return None if name is None else _legal(lambda: check_group("", name))

    @field_validator("topics")
    @classmethod
    def _legal_names(cls, topics: dict[str, TopicSettings]) -> dict[str, TopicSettings]:
        for topic, settings in topics.items():
            _legal(lambda topic=topic: check_topic(topic))
            for group in settings.groups:
                _legal(lambda topic=topic, group=group: check_group(topic, group))
        return topics

    @model_validator(mode="before")
    @classmethod
    def _read_compatibility_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        for name in BUILT_IN:
            if isinstance(data.get(name), Mapping):
                data[name] = normalise(name, data[name])
        url = data.get("url")
        scheme = url.partition("://")[0].strip().lower() if isinstance(url, str) else ""
        if not (data.get("backend") == "rocketmq" or scheme == "rocketmq" or (not url and not data.get("backend"))):
            return data
        section = data.get("rocketmq")
        if isinstance(section, Mapping):
            for key, value in meaning("rocketmq", section).items():
                if key != "retry":
                    data.setdefault(key, value)
                    continue
                retry = data.get("retry")
                if isinstance(retry, SettingsModel):
                    retry = retry.model_dump(exclude_unset=True)
                if retry is None or isinstance(retry, Mapping):
                    given = {name: item for name, item in (retry or {}).items() if item is not None}
                    data["retry"] = {**value, **given}
        return data

    @model_validator(mode="after")
    def _one_broker(self) -> Self:
        if self.url is not None and self.backend in BUILT_IN:
            scheme = BrokerUrl.parse(self.url).scheme
            if SCHEMES.get(scheme, self.backend) != self.backend:
                raise ValueError(f"backend {self.backend!r} contradicts url, which begins with {scheme}://; keep one")
        sections = sorted(self.sections())
        if self.url is None and self.backend is None and len(sections) > 1:
            raise ValueError(f"there are sections for {' and '.join(sections)}; say which one with the key 'backend'")
        return self

    def place(self, directory: Path, registry: Registry) -> None:
        """Fix where relative paths start, and which backend of ``registry`` the URL belongs to.

        `load_settings` calls it; settings made by hand start at the working directory of the moment.
        """
        self._directory = directory
        if self.url is not None and self.backend is None:
            self._scheme_backend = registry.name_for_url(self.url)

    @property
    def directory(self) -> Path | None:
        """Where relative paths start; None: at the working directory."""
        return self._directory

    @property
    def nothing_configured(self) -> bool:
        """Whether no broker was named at all, so that the embedded one is used by default."""
        return self.url is None and self.backend is None and not self.sections()

    @property
    def backend_name(self) -> str:
        """The backend: as configured, by the scheme of the URL, by the only section, else ``embedded``.

        Raise `ConfigurationError` when no installed backend serves the URL.
        """
        if self.backend is not None:
            return self.backend
        if self.url is not None:
            return self._scheme_backend or Registry().name_for_url(self.url)
        return next(iter(self.sections()), "embedded")

    @property
    def enabled(self) -> bool:
        """False when the backend's section says ``enabled: false``: no connection, every call raises."""
        value = self.native(self.backend_name).get("enabled", True)
        return value.strip().lower() not in ("false", "0", "no", "off") if isinstance(value, str) else bool(value)

    def backend_url(self) -> str | None:
        """Return the URL for `ConnectOptions`, password included; a file path in it is absolute."""
        if self.url is None or not self.url.strip().lower().startswith("sqlite:"):
            return self.url
        url = BrokerUrl.parse(self.url)
        # Without a path the section says which file.
        return replace(url, path=str(self._absolute(url.path))).reveal() if url.path else self.url

    def backend_section(self) -> Section:
        """Return the section for `ConnectOptions`; the path of the embedded broker is absolute."""
        name = self.backend_name
        section = self.native(name)
        if name == "embedded":
            path = section.get("path", DEFAULT_PATH)
            section["path"] = str(self._absolute(path)) if isinstance(path, str) and path else path
        return section

    def embedded_path(self) -> Path | None:
        """Return the absolute path of the embedded broker's file; None for memory and for other brokers."""
        if self.backend_name != "embedded":
            return None
        if self.url is not None:
            url = BrokerUrl.parse(self.url)
            if url.scheme != "sqlite":
                return None
            if url.path:
                return self._absolute(url.path)
        return Path(self.backend_section()["path"])

    def idempotency_path(self) -> Path:
        """Return the absolute path of the sqlite idempotency store."""
        return self._absolute(self.idempotency.path or "brokerkit-idempotency.db")

    def redacted(self) -> dict[str, Any]:
        """Return what is set as plain data without secrets, for people to read."""
        shown: dict[str, Any] = hide(self.model_dump(exclude_unset=True))
        return shown

    def _absolute(self, path: str) -> Path:
        return Path(os.path.abspath((self._directory or Path.cwd()) / os.path.expanduser(path)))


class Settings(ManagerSettings):
    """The settings of the default manager, and of the named ones below ``managers``.

    Made by hand it holds exactly what it is given; `brokerkit.settings.load_settings` reads every source.
    """

    managers: dict[str, ManagerSettings] = Field(
        default_factory=dict, description="Further brokers, by the name that the code asks for; they inherit nothing."
    )

    @field_validator("managers")
    @classmethod
    def _no_second_default(cls, managers: dict[str, ManagerSettings]) -> dict[str, ManagerSettings]:
        if "default" in managers:
            raise ValueError("the top level configures the manager 'default'; move its keys there")
        return managers

    def for_manager(self, name: str = "default") -> Settings:
        """Return the settings of one manager; raise `ConfigurationError` when nothing is configured for it."""
        if name == "default":
            return self
        found = self.managers.get(name)
        if found is None:
            known = ", ".join(sorted(self.managers)) or "none"
            raise ConfigurationError(
                f"no manager {name!r} is configured{did_you_mean(name, self.managers)}; known: {known}. "
                f"Add managers.{name} to the configuration"
            )
        values = {key: getattr(found, key) for key in found.model_fields_set}
        values |= found.__pydantic_extra__ or {}
        settings = Settings.model_validate(values, context={"backends": tuple(found.sections())})
        settings._directory = found._directory or self._directory
        settings._scheme_backend = found._scheme_backend
        return settings


def _legal(check: Any) -> str:
    # pydantic keeps the path of a ValueError only.
    try:
        result: str = check()
    except ConfigurationError as exc:
        raise ValueError(str(exc)) from None
    return result
