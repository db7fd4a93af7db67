from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from brokerkit.errors import ConfigurationError
from brokerkit.registry import Registry
from brokerkit.settings import load_settings

keys = st.sampled_from(
    [
        "url",
        "backend",
        "topic",
        "retry",
        "topics",
        "groups",
        "managers",
        "rabbitmq",
        "rocketmq",
        "embedded",
        "idempotency",
        "store",
        "max_attempts",
        "send_timeout",
        "tag",
        "declare",
        "ordered",
        "enabled",
        "path",
        "t",
        "consumer_group",
        "max_reconsume_times",
        "port",
        "name",
        "user",
        "password",
        "self",
        "model_config",
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4) | keys
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)
EMPTY = Path(__file__).parent / "no such directory"
REGISTRY = Registry()


@given(st.dictionaries(keys | st.text(max_size=8), trees, max_size=6))
def test_any_mapping_loads_or_is_a_configuration_error(values: dict[str, Any]) -> None:
    try:
        settings = load_settings(settings=values, env={}, directory=EMPTY, registry=REGISTRY)
    except ConfigurationError as exc:
        str(exc).encode()
    else:
        assert settings.backend_name
        assert load_settings(settings=settings, env={}, directory=EMPTY, registry=REGISTRY) == settings
        repr(settings).encode("utf-8", "backslashreplace")


variables = st.lists(keys | st.text("AZ_x", max_size=4), min_size=1, max_size=4)


@given(st.lists(st.tuples(variables, st.text(max_size=8) | st.just("{}")), max_size=4))
def test_any_environment_loads_or_is_a_configuration_error(items: list[tuple[list[str], str]]) -> None:
    env = {"BROKERKIT_" + "__".join(path).upper(): value for path, value in items}
    env.pop("BROKERKIT_CONFIG", None)
    try:
        load_settings(env=env, directory=EMPTY, registry=REGISTRY)
    except ConfigurationError as exc:
        str(exc).encode()


seconds = st.floats(0.001, 1e6)
retries = st.fixed_dictionaries(
    {},
    optional={
        "max_attempts": st.integers(1, 1000),
        "base_delay": seconds,
        "jitter": st.sampled_from(["full", "none"]),
        "exhausted": st.sampled_from(["dead", "requeue"]),
    },
)
names = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)?(\.[a-z0-9]+)?", fullmatch=True).filter(lambda name: len(name) < 40)
# In a section of a backend what looks like a JSON list or mapping is one, secrets aside.
words = st.text("abcXYZ09 @:/?=#'\"\\}]é", min_size=1, max_size=12)
secrets = st.text("abcXYZ09 @:/?=#'\"\\{}[]é", min_size=1, max_size=12)
configurations = st.fixed_dictionaries(
    {},
    optional={
        "topic": names,
        "consumer_group": names,
        "send_timeout": seconds,
        "max_message_size": st.integers(1, 1 << 40),
        "retry": retries,
        "idempotency": st.fixed_dictionaries(
            {}, optional={"store": st.sampled_from(["memory", "sqlite"]), "path": words}
        ),
        "rabbitmq": st.fixed_dictionaries(
            {}, optional={"host": words, "user": words, "password": secrets, "vhost": words}
        ),
        "topics": st.dictionaries(
            names,
            st.fixed_dictionaries(
                {},
                optional={
                    "declare": st.sampled_from(["auto", "verify", "never"]),
                    "ordered": st.booleans(),
                    "retry": retries,
                    "groups": st.dictionaries(
                        names,
                        st.fixed_dictionaries({}, optional={"start": st.sampled_from(["latest", "earliest"])}),
                        max_size=2,
                    ),
                },
            ),
            max_size=2,
        ),
    },
)


def as_variables(values: Mapping[str, Any], prefix: str = "BROKERKIT") -> dict[str, str]:
    env: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}_{key}" if prefix == "BROKERKIT" else f"{prefix}__{key}"
        if isinstance(value, Mapping) and value:
            env |= as_variables(value, name.upper())
        else:
            env[name.upper()] = json.dumps(value) if isinstance(value, dict | bool) else str(value)
    return env


@given(configurations)
def test_the_environment_says_the_same_as_arguments(values: dict[str, Any]) -> None:
    by_variables = load_settings(env=as_variables(values), directory=EMPTY, registry=REGISTRY)

    assert by_variables == load_settings(settings=values, env={}, directory=EMPTY, registry=REGISTRY)
