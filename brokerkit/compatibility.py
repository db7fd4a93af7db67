"""The configuration keys that the systems before brokerkit use, in their own units, and what they mean here.

The ``rocketmq`` section takes the keys of the document export service, the ``rabbitmq`` section those of the
service client and of the worker groups.  A backend that brings its own ``settings_model`` must take these keys
too; the models here check a section as long as it brings none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from brokerkit.errors import ConfigurationError
from brokerkit.settings_schema import SettingsModel

__all__ = [
    "ATTEMPT_TIMEOUT",
    "RABBITMQ_VARIABLES",
    "SECTION_MODELS",
    "RabbitMQKeys",
    "RocketMQKeys",
    "meaning",
    "normalise",
]

#: Default of the top-level ``attempt_timeout``, in seconds.
ATTEMPT_TIMEOUT = 5.0

#: Environment variables of the service client, and the keys of the ``rabbitmq`` section that they set.
RABBITMQ_VARIABLES = {
    "RABBITMQ_HOST": "host",
    "RABBITMQ_PORT": "port",
    "RABBITMQ_USER": "user",
    "RABBITMQ_PASSWORD": "password",
    "RABBITMQ_VHOST": "vhost",
    "RABBITMQ_HEARTBEAT": "heartbeat",
}


class RabbitMQKeys(SettingsModel):
    """Where a RabbitMQ broker is and how to log in."""

    host: str | None = Field(None, description="Host name or address.")
    port: int | None = Field(None, ge=1, le=65535, description="Port; a number or a text with digits.")
    user: str | None = Field(None, description="User; `name` is accepted for it.")
    password: str | None = Field(None, description="Password of the user.")
    vhost: str | None = Field(None, description="Virtual host.")
    heartbeat: float | None = Field(None, ge=0, description="Seconds between heartbeats; 6 when not set.")


class RocketMQKeys(SettingsModel):
    """The keys of the document export service."""

    enabled: bool | None = Field(None, description="False: no connection, and every call raises. True when not set.")
    name_server: str | None = Field(None, description="Name servers, as host:port joined by `;` or `,`.")
    producer_group: str | None = Field(None, description="Producer group that the broker shows.")
    consumer_group: str | None = Field(
        None, description="Default for the top-level `consumer_group`; on `topic` the native group as it stands."
    )
    topic: str | None = Field(None, description="Default for the top-level `topic`.")
    tag: str | None = Field(None, description="Tag filter of the export tasks.")
    max_message_size: int | None = Field(None, ge=1, description="Bytes. Default for the top-level key.")
    send_timeout: int | None = Field(None, ge=1, description="Milliseconds. Default for `attempt_timeout`.")
    retry_times: int | None = Field(
        None,
        ge=0,
        description="n means that the top-level `send_timeout` is n + 1 times that of one attempt.",
    )
    consumer_thread_min: int | None = Field(
        None, ge=1, description="Accepted, without effect: threads are made when needed."
    )
    consumer_thread_max: int | None = Field(None, ge=1, description="Concurrency of the export task handler.")
    consume_message_batch_max_size: int | None = Field(
        None, ge=1, description="Accepted: a handler of tasks gets them one by one."
    )
    pull_batch_size: int | None = Field(None, ge=1, description="Messages to a pull request.")
    pull_interval: int | None = Field(None, ge=0, description="Milliseconds between pull requests.")
    consume_timeout: float | None = Field(None, gt=0, description="Minutes. Default for `handler_timeout`.")
    max_reconsume_times: int | None = Field(None, ge=0, description="n means `retry.max_attempts` n + 1.")
    suspend_current_queue_time: int | None = Field(
        None, ge=0, description="Most milliseconds until an ordered queue that could not be locked is tried again."
    )
    access_key: str | None = Field(None, description="ACL access key.")
    secret_key: str | None = Field(None, description="ACL secret key.")
    security_token: str | None = Field(None, description="ACL security token.")
    namespace: str | None = Field(None, description="Namespace of topics and groups.")


#: Checks the section of a backend that has no ``settings_model``.
SECTION_MODELS: dict[str, type[SettingsModel]] = {"rabbitmq": RabbitMQKeys, "rocketmq": RocketMQKeys}


def normalise(backend: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section with old spellings replaced: ``name`` for the user, and the port as a text.

    Raise ValueError when ``name`` and ``user`` contradict each other.
    """
    section = {key: value for key, value in section.items() if value is not None}
    if backend == "rabbitmq":
        if "name" in section:
            name = section.pop("name")
            if section.setdefault("user", name) != name:
                raise ValueError("`name` and `user` mean the same and differ; keep one")
        port = section.get("port")
        if isinstance(port, str) and port.isascii() and port.isdigit() and len(port) <= 5:
            section["port"] = int(port)
    return section


def meaning(backend: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the top-level settings that the section's compatibility keys stand for, in brokerkit's units.

    Keys with illegal values are left out: checking the section reports them.
    """
    if backend != "rocketmq":
        return {}
    keys = _lenient(RocketMQKeys, section)
    found: dict[str, Any] = {
        "topic": keys.get("topic"),
        "consumer_group": keys.get("consumer_group"),
        "max_message_size": keys.get("max_message_size"),
    }
    if "send_timeout" in keys:
        found["attempt_timeout"] = keys["send_timeout"] / 1000
    if "retry_times" in keys:
        # So many attempts on a broker that hangs; one that restarts is waited for just as long.
        found["send_timeout"] = (keys["retry_times"] + 1) * found.get("attempt_timeout", ATTEMPT_TIMEOUT)
    if "consume_timeout" in keys:
        found["handler_timeout"] = keys["consume_timeout"] * 60
    if "max_reconsume_times" in keys:
        found["retry"] = {"max_attempts": keys["max_reconsume_times"] + 1}
    return {key: value for key, value in found.items() if value is not None}


def _lenient(model: type[BaseModel], section: Mapping[str, Any]) -> dict[str, Any]:
    # A backend's own model may give a key more values than ours; what ours does not take has no meaning here.
    values: dict[str, Any] = {}
    for key in model.model_fields.keys() & section.keys():
        try:
            values[key] = getattr(model.model_validate({key: section[key]}), key)
        except ConfigurationError:
            continue
    return {key: value for key, value in values.items() if value is not None}
