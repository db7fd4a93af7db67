from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from brokerkit.errors import ConfigurationError
from brokerkit.settings import RetrySettings, Settings, TopicSettings, load_settings

SECRET = "s3cr3t-wörd"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "brokerkit.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Settings]:
    """`load_settings` in an empty directory and an empty environment."""

    def load(env: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
        return load_settings(env=env or {}, directory=tmp_path, **arguments)

    return load


Load = Callable[..., Settings]
Write = Callable[..., Path]


# --- sources --------------------------------------------------------------------------------------------------


def test_the_order_of_the_sources(load: Load, write: Write) -> None:
    write("backend: rabbitmq\nrabbitmq: {host: file, user: file, vhost: file}\nsend_timeout: 1\ntopic: file\n")
    write("BROKERKIT_TOPIC=dotenv\nBROKERKIT_SEND_TIMEOUT=2\nRABBITMQ_HOST=dotenv\nRABBITMQ_USER=dotenv\n", ".env")
    env = {"RABBITMQ_HOST": "variable", "BROKERKIT_SEND_TIMEOUT": "3", "RABBITMQ_NODENAME": "not ours"}

    settings = load(env)
    assert settings.backend_section() == {"host": "variable", "user": "dotenv", "vhost": "file"}
    assert (settings.send_timeout, settings.topic) == (3.0, "dotenv")

    assert load({**env, "BROKERKIT_RABBITMQ__HOST": "stronger"}).backend_section()["host"] == "stronger"
    assert load(env, send_timeout=4).send_timeout == 4.0
    assert load(env, settings={"send_timeout": 5}).send_timeout == 5.0


def test_rabbitmq_variables_count_only_for_rabbitmq_without_a_url(load: Load) -> None:
    env = {
        "RABBITMQ_HOST": "h",
        "RABBITMQ_PORT": "5673",
        "RABBITMQ_USER": "u",
        "RABBITMQ_PASSWORD": "p",
        "RABBITMQ_VHOST": "/v",
        "RABBITMQ_HEARTBEAT": "30",
    }

    assert load(env).backend_name == "embedded"
    assert load(env, url="amqp://other").backend_section() == {}
    found = load(env, backend="rabbitmq").backend_section()
    assert found == {"host": "h", "port": 5673, "user": "u", "password": "p", "vhost": "/v", "heartbeat": "30"}


def test_rabbitmq_url_counts_where_no_other_url_is_set(load: Load) -> None:
    env = {"RABBITMQ_URL": "amqp://user:p@ss@h/", "RABBITMQ_HOST": "other"}

    assert load(env, backend="rabbitmq").backend_url() == "amqp://user:p@ss@h/"
    assert load(env, url="amqp://mine").backend_url() == "amqp://mine"
    assert load(env).nothing_configured


def test_a_variable_goes_one_level_down_with_each_double_underscore(load: Load) -> None:
    settings = load(
        {
            "BROKERKIT_RETRY__MAX_ATTEMPTS": "7",
            "BROKERKIT_TOPICS__ORDERS__GROUPS__BILLING__RABBITMQ__QUEUE": "jm.orders",
            "BROKERKIT_TOPICS__ORDERS__GROUPS__BILLING__RABBITMQ__BINDINGS": '["order.*"]',
            "BROKERKIT_TOPICS__Orders.Old__DECLARE": "never",
            "BROKERKIT_MANAGERS__AUDIT__URL": "memory://audit",
        }
    )

    assert settings.retry.max_attempts == 7
    assert settings.topics["orders"].groups["billing"].native("rabbitmq") == {
        "queue": "jm.orders",
        "bindings": ["order.*"],
    }
    assert settings.topics["Orders.Old"].declare == "never"
    assert settings.for_manager("audit").url == "memory://audit"


def test_a_variable_may_hold_a_mapping_as_json_and_a_single_key_overrides_it(load: Load) -> None:
    env = {"BROKERKIT_RETRY": '{"max_attempts": 6, "base_delay": 2}', "BROKERKIT_RETRY__BASE_DELAY": "3"}

    assert load(env).retry == RetrySettings(max_attempts=6, base_delay=3)


def test_a_variable_for_a_topic_of_the_file_keeps_its_capitals(load: Load, write: Write) -> None:
    write("topics:\n  Orders: {unroutable: drop}\n")

    settings = load({"BROKERKIT_TOPICS__ORDERS__DECLARE": "never"})

    assert settings.topics == {"Orders": TopicSettings(declare="never", unroutable="drop")}


def test_empty_variables_and_those_of_the_tests_are_no_settings(load: Load) -> None:
    env = {
        "BROKERKIT_URL": "",
        "BROKERKIT_TEST_RABBITMQ_URL": "amqp://h",
        "BROKERKIT_REQUIRE": "rabbitmq",
        "RABBITMQ_URL": "",
    }

    assert load(env).nothing_configured


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BROKERKIT_ULR", "did you mean 'BROKERKIT_URL'?"),
        ("BROKERKIT_RETRY__MAX_ATEMPTS", "did you mean 'BROKERKIT_RETRY__MAX_ATTEMPTS'?"),
        ("BROKERKIT_RETRY_MAX_ATTEMPTS", "did you mean 'BROKERKIT_RETRY__MAX_ATTEMPTS'?"),
        ("BROKERKIT_SEND_TIMEOUT__X", "did you mean 'BROKERKIT_SEND_TIMEOUT'?"),
        ("BROKERKIT_TOPICS__T__DECLAR", ""),
        ("BROKERKIT_CONFIGURATION", "did you mean 'BROKERKIT_CONFIG'?"),
        ("BROKERKIT_", ""),
        ("BROKERKIT_TOPICS__", ""),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_one(load: Load, write: Write, name: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no setting belongs to the variable {name}") as caught:
        load({name: SECRET})
    assert meant in str(caught.value)
    assert SECRET not in str(caught.value)
    write(f"{name}={SECRET}\n", ".env")
    with pytest.raises(ConfigurationError, match=rf"{name} in .*\.env"):
        load()


def test_variables_that_contradict_each_other_are_refused(load: Load) -> None:
    with pytest.raises(ConfigurationError, match="BROKERKIT_RABBITMQ__A__B contradicts another variable"):
        load({"BROKERKIT_RABBITMQ__A": "1", "BROKERKIT_RABBITMQ__A__B": "2"})
    with pytest.raises(ConfigurationError, match="BROKERKIT_RETRY takes a mapping as JSON"):
        load({"BROKERKIT_RETRY": "max_attempts=7"})


# --- the file -------------------------------------------------------------------------------------------------


def test_the_file_may_be_named_and_relative_paths_start_at_its_folder(load: Load, write: Write, tmp_path: Path) -> None:
    write("embedded: {path: data/x.db}\nidempotency: {store: sqlite, path: i.db}\n", "conf/my.yaml")

    settings = load({"BROKERKIT_CONFIG": "conf/my.yaml"})

    assert settings.embedded_path() == tmp_path / "conf" / "data" / "x.db"
    assert settings.backend_section()["path"] == str(tmp_path / "conf" / "data" / "x.db")
    assert settings.idempotency_path() == tmp_path / "conf" / "i.db"
    by_url = load({"BROKERKIT_CONFIG": "conf/my.yaml"}, url="sqlite:///y z.db?durability=normal")
    assert by_url.embedded_path() == tmp_path / "conf" / "y z.db"
    assert by_url.backend_url() == f"sqlite:///{tmp_path}/conf/y%20z.db?durability=normal"


def test_absolute_paths_stay_and_memory_has_none(load: Load) -> None:
    assert load(url="sqlite:////var/x.db").embedded_path() == Path("/var/x.db")
    assert load(url="sqlite:////var/x.db").backend_url() == "sqlite:////var/x.db"
    assert load(embedded={"path": "/var/y.db"}).embedded_path() == Path("/var/y.db")
    assert load(url="memory://x").embedded_path() is None
    assert load(url="sqlite://", embedded={"path": "/var/y.db"}).embedded_path() == Path("/var/y.db")
    assert load(url="amqp://h").embedded_path() is None


def test_the_configuration_variable_works_in_dotenv_and_names_a_file_that_must_exist(load: Load, write: Write) -> None:
    write("topic: t\n", "other.yaml")
    write("BROKERKIT_CONFIG=other.yaml\n", ".env")

    assert load().topic == "t"
    with pytest.raises(ConfigurationError, match=r"missing\.yaml does not exist; BROKERKIT_CONFIG names it"):
        load({"BROKERKIT_CONFIG": "missing.yaml"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"rabbitmq:\n  password: *{SECRET}\n", r"line 2, column \d+; values that begin with"),
        (f"rabbitmq:\n  password: !{SECRET} x\n", "line 2"),
        (f"rabbitmq: {{password: {SECRET}\n", "is not valid YAML"),
        (f"password: '{SECRET}\x01'\n", "is not valid YAML"),
        (f"- {SECRET}\n", "holds a list, not keys and values"),
        ("rabbitmq: &r {x: *r}\n", "nested more than 16 levels"),
        ("topic: 2024-01-01\n", "topic .*brokerkit.yaml.*valid string; put it in quotes"),
        (
            "backend: rabbitmq\nrabbitmq: {password: 0123}\n",
            r"rabbitmq\.password .*it should be a text; put it in quotes",
        ),
        ("1: 2\n", "unknown key '1'"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained_without_its_secrets(
    load: Load, write: Write, text: str, problem: str
) -> None:
    write(text)

    with pytest.raises(ConfigurationError, match=problem) as caught:
        load()
    assert "brokerkit.yaml" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_file_that_cannot_be_read_is_explained(load: Load, tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"topic: \xff\n")
    with pytest.raises(ConfigurationError, match="it is not UTF-8"):
        load({"BROKERKIT_CONFIG": "latin.yaml"})
    with pytest.raises(ConfigurationError, match="cannot be read: "):
        load({"BROKERKIT_CONFIG": str(tmp_path)})


def test_null_and_empty_sections_mean_not_set(load: Load, write: Write) -> None:
    write("url:\nretry:\ntopics:\n  orders:\n    groups:\n      billing:\nrocketmq:\nbackend: rocketmq\n")

    settings = load()

    assert settings.topics["orders"].groups["billing"].tag is None
    assert settings.backend_section() == {}
    write("")
    assert load().nothing_configured
