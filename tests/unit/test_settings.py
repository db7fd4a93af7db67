from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.registry import Registry
from brokerkit.retry import RetryPolicy, resolve_policy
from brokerkit.settings import RetrySettings, Settings, TopicSettings, load_settings
from brokerkit.spi import Capability, Connection, ConnectOptions

SECRET = "s3cr3t-wörd"

#: The section of system D's sample file, in its spelling and units.
SYSTEM_D = """
rocketmq:
  enabled: true
  name_server: "localhost:9876"
  producer_group: "export_producer_group"
  consumer_group: "export_consumer_group"
  topic: "export_tasks"
  tag: "*"
  max_message_size: 4194304
  send_timeout: 3000
  retry_times: 3
  consumer_thread_min: 1
  consumer_thread_max: 5
  consume_message_batch_max_size: 1
  pull_batch_size: 32
  pull_interval: 0
  consume_timeout: 15
  max_reconsume_times: 16
  suspend_current_queue_time: 1000
  access_key: null
  secret_key: null
  security_token: null
  namespace: null
"""


class PaperSettings(BaseModel):
    colour: str = "white"
    size: int = 4
    pin: SecretStr | None = None


class Paper:
    """A backend that is installed nowhere."""

    name = "paper"
    schemes: tuple[str, ...] = ("paper",)
    capabilities: frozenset[Capability] = frozenset()
    settings_model = PaperSettings

    async def connect(self, options: ConnectOptions) -> Connection:
        raise ConfigurationError("paper cannot connect")

    def map_error(self, exc: BaseException) -> BrokerError | None:
        return None


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add("paper", Paper())
    return registry


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


# --- which broker ---------------------------------------------------------------------------------------------


def test_with_nothing_configured_the_embedded_broker_is_a_file_in_the_working_directory(
    load: Load, tmp_path: Path
) -> None:
    settings = load()

    assert settings.nothing_configured
    assert settings.backend_name == "embedded"
    assert settings.backend_url() is None
    assert settings.embedded_path() == tmp_path / "brokerkit.db"
    assert settings.backend_section() == {"path": str(tmp_path / "brokerkit.db")}
    assert (settings.send_timeout, settings.attempt_timeout, settings.stop_timeout) == (30.0, 5.0, 30.0)


@pytest.mark.parametrize(
    ("values", "backend"),
    [
        ({"url": "amqps://u:p@h"}, "rabbitmq"),
        ({"url": "rocketmq://h:9876"}, "rocketmq"),
        ({"url": "memory://x"}, "embedded"),
        ({"backend": "rocketmq"}, "rocketmq"),
        ({"rabbitmq": {"host": "h"}}, "rabbitmq"),
        ({"rocketmq": {}, "rabbitmq": {}, "backend": "rabbitmq"}, "rabbitmq"),
        ({"embedded": {"durability": "normal"}}, "embedded"),
    ],
)
def test_url_backend_or_the_only_section_choose_the_backend(load: Load, values: dict[str, Any], backend: str) -> None:
    settings = load(**values)

    assert settings.backend_name == backend
    assert not settings.nothing_configured


def test_sections_for_two_brokers_need_a_choice(load: Load) -> None:
    with pytest.raises(
        ConfigurationError, match="sections for rabbitmq and rocketmq; say which one with the key 'back"
    ):
        load(rabbitmq={"host": "h"}, rocketmq={"topic": "t"})


def test_one_source_must_not_name_two_brokers(load: Load) -> None:
    with pytest.raises(ConfigurationError, match="'rocketmq' contradicts url, which begins with amqp://"):
        load(backend="rocketmq", url="amqp://h")


def test_the_stronger_source_chooses_the_broker(load: Load, write: Write) -> None:
    write("backend: rocketmq\nrocketmq: {topic: t}\n")
    assert load({"BROKERKIT_URL": "amqp://h"}).backend_name == "rabbitmq"
    assert load(backend="embedded").backend_name == "embedded"

    write("url: amqp://file/v\n")
    assert load({"BROKERKIT_BACKEND": "rocketmq"}).backend_url() is None
    assert load({"BROKERKIT_BACKEND": "rabbitmq"}).backend_url() == "amqp://file/v"


def test_a_backend_of_another_distribution_has_its_section_everywhere(load: Load, registry: Registry) -> None:
    native = {"paper": {"tray": 2}}
    settings = load(
        paper={"colour": "red"},
        topics={"t": {**native, "groups": {"g": native}}},
        registry=registry,
    )

    assert settings.backend_name == "paper"
    assert settings.backend_section() == {"colour": "red"}
    assert settings.topics["t"].native("paper") == {"tray": 2}
    assert settings.topics["t"].groups["g"].native("paper") == {"tray": 2}
    assert settings.topics["t"].native("rabbitmq") == {}
    assert load(url="paper://desk", registry=registry).backend_name == "paper"
    assert load({"BROKERKIT_PAPER__COLOUR": "red"}, registry=registry).backend_section() == {"colour": "red"}


def test_the_section_is_checked_by_the_model_of_its_backend(load: Load, registry: Registry) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown key 'paper.color' \(an argument\); did you mean 'colour'\?"):
        load(paper={"color": "red"}, registry=registry)
    with pytest.raises(ConfigurationError, match=r"paper.size \(BROKERKIT_PAPER__SIZE\) is 'A4': .* valid integer"):
        load({"BROKERKIT_PAPER__SIZE": "A4"}, registry=registry)
    with pytest.raises(ConfigurationError, match="unknown key 'paper'"):
        load(paper={})
    with pytest.raises(ConfigurationError, match=r"unknown key 'embedded\.durabilty'.* did you mean 'durability'"):
        load(embedded={"durabilty": "full"})


# --- keys and values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"retri": {}}, "unknown key 'retri' (an argument); did you mean 'retry'?"),
        ({"max_attempts": 3}, "did you mean 'retry.max_attempts'?"),
        ({"retry": {"maxAttempts": 3}}, "unknown key 'retry.maxAttempts' (an argument); did you mean 'max_attempts'?"),
        ({"topics": {"t": {"grups": {}}}}, "unknown key 'topics.t.grups' (an argument); did you mean 'groups'?"),
        (
            {"topics": {"t": {"groups": {"g": {"tags": "a"}}}}},
            "'topics.t.groups.g.tags' (an argument); did you mean 'tag'?",
        ),
        ({"topics": {"t": {"zzz": 1}}}, "known here: declare, embedded, expired, groups"),
        ({"managers": {"a": {"idempotency": {"stor": "sqlite"}}}}, "'managers.a.idempotency.stor'"),
        ({"managers": {"a": {"managers": {}}}}, "unknown key 'managers.a.managers'"),
        ({"managers": {"default": {}}}, "the top level configures the manager 'default'"),
        (
            {"rocketmq": {"nameserver": "h"}},
            "unknown key 'rocketmq.nameserver' (an argument); did you mean 'name_server'?",
        ),
        ({"rocketmq": {"pull_batch_size": "many"}}, "rocketmq.pull_batch_size (an argument) is 'many'"),
        ({"rabbitmq": []}, "rabbitmq (an argument): it should be a mapping of keys to values"),
        ({"rabbitmq": {"user": "a", "name": "b"}}, "`name` and `user` mean the same and differ"),
        ({"rabbitmq": {"port": 70000}}, "less than or equal to 65535"),
        ({"idempotency": {"store": "redis"}}, "the redis store comes in a later release; use 'sqlite' or 'memory'"),
        (
            {"retry": {"max_attempts": 0}},
            "retry.max_attempts (an argument) is 0: it should be greater than or equal to 1",
        ),
        ({"send_timeout": float("nan")}, "send_timeout (an argument) is nan"),
        ({"attempt_timeout": -1}, "attempt_timeout (an argument) is -1"),
        ({"topics": {"t": {"declare": "verfy"}}}, "it should be 'auto', 'verify' or 'never'"),
        ({"topics": {"a b": {}}}, "illegal topic name 'a b'"),
        ({"topics": {"t": {"groups": {"bk.x": {}}}}}, "'bk.x' is reserved"),
        (
            {"topics": {"t": {"groups": {"g": {"tag": "a||"}}}}},
            "topics.t.groups.g.tag (an argument): malformed tag filter",
        ),
        ({"topic": "a..b"}, "illegal topic name"),
        ({"consumer_group": "a/b"}, "illegal group name"),
        ({"backend": "rabitmq"}, "unknown backend 'rabitmq'; did you mean 'rabbitmq'?"),
        ({"url": "amq://h"}, "did you mean 'amqp'?"),
        ({"url": "nonsense"}, "malformed broker URL"),
        ({"settings": 5}, "settings must be a Settings or a mapping, not int"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_a_cure(load: Load, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(**values)

    assert problem in str(caught.value)


def test_models_made_by_hand_raise_configuration_errors_with_the_whole_path() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown key 'topics.t.groups.g.tga'; did you mean 'tag'\?"):
        Settings(topics={"t": {"groups": {"g": {"tga": "x"}}}})
    with pytest.raises(ConfigurationError, match="declare is 'x': it should be 'auto', 'verify' or 'never'"):
        TopicSettings.model_validate({"declare": "x"})
    with pytest.raises(ConfigurationError, match="and 2 more"):
        Settings.model_validate(dict.fromkeys(["topic", "stop_timeout", "send_timeout", "url", "backend"], 0))


def test_settings_are_frozen_and_survive_pickling(load: Load) -> None:
    settings = load(url="sqlite:///x.db", topics={"t": {"retry": {"max_attempts": 2}}})

    with pytest.raises(ValueError, match="frozen"):
        settings.topic = "x"  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert copy.embedded_path() == settings.embedded_path()


def test_a_settings_object_replaces_every_source_but_the_arguments(load: Load, write: Write) -> None:
    write("topic: file\nconsumer_group: file\n")
    given = Settings(url="amqp://h", topics={"t": TopicSettings(declare="never")})

    settings = load(
        {"BROKERKIT_TOPIC": "variable"}, settings=given, send_timeout=2.0, topics={"t": {"expired": "dead"}}
    )

    assert (settings.topic, settings.url, settings.send_timeout) == (None, "amqp://h", 2.0)
    assert settings.topics["t"] == TopicSettings(declare="never", expired="dead")
    assert load(settings=given, url="memory://x").backend_name == "embedded"
    assert load(settings=settings) == settings


# --- managers -------------------------------------------------------------------------------------------------


def test_named_managers_inherit_nothing(load: Load, registry: Registry, tmp_path: Path) -> None:
    settings = load(
        url="amqp://h",
        topic="t",
        managers={"audit": {"url": "sqlite:///audit.db", "send_timeout": 3}, "desk": {"paper": {"size": 5}}},
        registry=registry,
    )

    audit = settings.for_manager("audit")
    assert (audit.topic, audit.send_timeout, audit.managers) == (None, 3.0, {})
    assert audit.embedded_path() == tmp_path / "audit.db"
    assert settings.for_manager("desk").backend_section() == {"size": 5}
    assert settings.for_manager() is settings
    with pytest.raises(
        ConfigurationError, match=r"no manager 'audti' is configured; did you mean 'audit'\?; known: audit"
    ):
        settings.for_manager("audti")
    with pytest.raises(ConfigurationError, match=r"managers\.desk\.paper\.size \(an argument\) is 'x'"):
        load(managers={"desk": {"paper": {"size": "x"}}}, registry=registry)


def test_arguments_belong_to_the_manager_that_is_asked_for(load: Load, tmp_path: Path) -> None:
    (tmp_path / "brokerkit.yaml").write_text(
        "url: amqp://h\nmanagers: {audit: {backend: rocketmq, topic: t}}\n", encoding="utf-8"
    )

    audit = load(name="audit", url="memory://x", send_timeout=2.0)
    assert (audit.backend_name, audit.topic, audit.send_timeout) == ("embedded", "t", 2.0)
    assert load(name="new", settings={"url": "memory://y"}).url == "memory://y"
    assert load(name="new", settings=Settings(topic="mine")).topic == "mine"
    assert load(name="a", settings=Settings(topic="mine", managers={"a": Settings(topic="its")})).topic == "its"
    with pytest.raises(ConfigurationError, match=r"no manager 'new' is configured; known: audit"):
        load(name="new")


# --- compatibility --------------------------------------------------------------------------------------------


def test_the_file_of_system_d_works_as_it_is(load: Load, write: Write) -> None:
    write(SYSTEM_D)

    settings = load()

    assert settings.backend_name == "rocketmq"
    assert settings.enabled
    assert (settings.topic, settings.consumer_group) == ("export_tasks", "export_consumer_group")
    assert (settings.max_message_size, settings.attempt_timeout, settings.handler_timeout) == (4194304, 3.0, 900.0)
    assert settings.send_timeout == 12.0
    assert resolve_policy(settings.retry) == RetryPolicy(max_attempts=17)
    assert settings.backend_section()["name_server"] == "localhost:9876"
    assert "access_key" not in settings.backend_section()


def test_keys_of_brokerkit_win_over_compatibility_keys(load: Load, write: Write) -> None:
    write(SYSTEM_D + "topic: mine\nretry: {base_delay: 2}\ntopics: {mine: {retry: {max_attempts: 3}}}\n")

    settings = load({"BROKERKIT_ATTEMPT_TIMEOUT": "1", "BROKERKIT_SEND_TIMEOUT": "20"})

    assert (settings.topic, settings.attempt_timeout, settings.send_timeout) == ("mine", 1.0, 20.0)
    assert settings.retry == RetrySettings(max_attempts=17, base_delay=2)
    mine = resolve_policy(settings.topics["mine"].retry, settings.retry)
    assert mine == RetryPolicy(max_attempts=3, base_delay=2)
    assert load(retry=RetrySettings(max_attempts=2)).retry.max_attempts == 2


def test_compatibility_keys_mean_nothing_on_another_backend(load: Load, write: Write) -> None:
    write(SYSTEM_D)

    settings = load(url="memory://x")

    assert (settings.topic, settings.retry.max_attempts, settings.attempt_timeout) == (None, None, 5.0)
    assert settings.enabled


@pytest.mark.parametrize("value", ["false", "False", "0", False])
def test_a_disabled_section_disables_the_manager(load: Load, value: Any) -> None:
    assert not load(rocketmq={"enabled": value}).enabled


def test_the_section_of_system_c_works_as_it_is(load: Load, write: Write) -> None:
    write('rabbitmq: {host: h, port: "5672", name: go, password: p, vhost: "/"}\n')

    assert load().backend_section() == {"host": "h", "port": 5672, "user": "go", "password": "p", "vhost": "/"}
    assert load({"RABBITMQ_USER": "other"}).backend_section()["user"] == "other"


# --- secrets --------------------------------------------------------------------------------------------------


def test_no_repr_shows_a_secret(load: Load) -> None:
    settings = load(
        url=f"amqp://user:{SECRET}@h/v?secret_key={SECRET}",
        rabbitmq={"password": SECRET},
        rocketmq={"access_key": SECRET, "secret_key": SECRET, "security_token": SECRET},
        managers={"audit": {"url": f"amqp://u:{SECRET}@h"}},
        topics={"t": {"rabbitmq": {"password": SECRET, "arguments": [{"uri": f"amqp://u:{SECRET}@h"}]}}},
    )

    for shown in (repr(settings), str(settings), f"{[settings.managers]}", json.dumps(settings.redacted())):
        assert SECRET not in shown
        assert "user:***@h" in shown or "u:***@h" in shown
    assert SECRET in (settings.backend_url() or "")
    assert settings.backend_section()["password"] == SECRET


@pytest.mark.parametrize(
    "values",
    [
        {"url": f"amqp://user:{SECRET}@h:port"},
        {"url": f"amqp://user:{SECRET}@h", "backend": "embedded"},
        {"topic": f"amqp://user:{SECRET}@h"},
        {"rabbitmq": {"password": [SECRET]}},
        {"rabbitmq": {"host": {"password": SECRET}}},
        {"rocketmq": {"secret_key": {SECRET: 1}}},
        {"retry": f"amqp://user:{SECRET}@h"},
        {"paper": {"pin": [SECRET]}},
        {"paper": {"pin": 770770}},
    ],
)
def test_no_error_shows_a_secret(load: Load, registry: Registry, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(registry=registry, **values)

    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r}"
        assert "770770" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


def test_the_configuration_of_a_whole_application_is_refused_with_the_call_that_is_meant(
    load: Load, write: Write
) -> None:
    others = {"server": {"port": 8080}, "minio": {"endpoint": "h:9000"}}
    cure = r'initialize\(\{"rocketmq": config\["rocketmq"\]\}\)$'

    with pytest.raises(ConfigurationError, match=rf"unknown sections 'minio', 'server' \(an argument\)\. .*{cure}"):
        load(settings={**others, "rocketmq": {"name_server": "h:1"}})
    with pytest.raises(ConfigurationError, match=rf"unknown sections 'server' \(.*brokerkit\.yaml\)\. .*{cure}"):
        write(SYSTEM_D + "server: {port: 8080}\n")
        load()
    write("")
    with pytest.raises(ConfigurationError, match=r"unknown key 'retri'.* did you mean 'retry'"):
        load(settings={"retri": {"max_attempts": 3}, "rocketmq": {"name_server": "h:1"}})
