from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.registry import Registry
from brokerkit.settings import load_settings
from brokerkit.spi import BrokerUrl, ConnectOptions
from brokerkit_rabbitmq.backend import RabbitMQBackend
from brokerkit_rabbitmq.settings import Address, RabbitMQSettings, parse_settings
from tests.planted import PLANTED


def parsed(url: str | None = None, **section: Any) -> tuple[RabbitMQSettings, tuple[Address, ...]]:
    return parse_settings(ConnectOptions(url=url, section=section))


def settings(url: str | None = None, **section: Any) -> RabbitMQSettings:
    return parsed(url, **section)[0]


def hosts(url: str | None = None, **section: Any) -> list[str]:
    return [str(address) for address in parsed(url, **section)[1]]


def password(found: RabbitMQSettings) -> str | None:
    return found.password.get_secret_value() if found.password is not None else None


# --- URLs -------------------------------------------------------------------------------------------------------


def test_the_url_of_system_e_with_a_raw_at_sign_in_its_password() -> None:
    found, addresses = parsed("amqp://user:p@ss@127.0.0.1:5672/")

    assert (found.user, password(found), found.vhost, found.tls) == ("user", "p@ss", None, False)
    assert addresses == (Address("127.0.0.1", 5672),)


@given(st.text(max_size=20), st.text(min_size=1, max_size=20))
def test_any_login_travels_in_a_url(user: str, secret: str) -> None:
    url = BrokerUrl(scheme="amqp", user=user, password=secret, hosts=(("h", None),)).reveal()
    found = settings(url)

    assert (found.user, password(found)) == (user, secret)


@pytest.mark.parametrize(
    ("path", "vhost"),
    [("", None), ("/", None), ("//", "/"), ("/%2F", "/"), ("/prod", "prod"), ("/a%2Fb", "a/b"), ("/%2Fprod", "/prod")],
)
def test_the_virtual_host_of_a_url(path: str, vhost: str | None) -> None:
    assert settings(f"amqp://h{path}").vhost == vhost
    # None leaves it to the section, and that to the default.
    assert settings(f"amqp://h{path}", vhost="from-section").vhost == (vhost or "from-section")


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("amqp://h", ["h:5672"]),
        ("amqps://h", ["h:5671"]),
        ("amqp://h?tls=true", ["h:5671"]),
        ("amqp://h:1234", ["h:1234"]),
        ("amqps://h1,h2:1234,[::1]:99,[fe80::1]", ["h1:5671", "h2:1234", "[::1]:99", "[fe80::1]:5671"]),
        ("amqp://h1,h2:2?port=7", ["h1:7", "h2:2"]),
        ("amqp://h1?hosts=h2:9,h3", ["h1:5672", "h2:9", "h3:5672"]),
        ("amqp://", ["127.0.0.1:5672"]),
    ],
)
def test_the_hosts_of_a_url_with_their_ports(url: str, addresses: list[str]) -> None:
    assert hosts(url) == addresses


def test_amqps_is_tls_with_verification() -> None:
    assert (settings("amqps://h").tls, settings("amqps://h").verify) == (True, True)
    assert not settings("amqp://h").tls


def test_options_of_a_url_are_keys_of_the_section() -> None:
    found = settings("amqp://h?queue_type=classic&window=50&delay=false&heartbeat=30&mechanism=EXTERNAL&verify=no")

    assert (found.queue_type, found.window, found.delay, found.heartbeat) == ("classic", 50, False, 30.0)
    assert (found.mechanism, found.verify) == ("EXTERNAL", False)


def test_what_the_url_names_wins_over_the_section() -> None:
    section = {
        "host": "h2",
        "user": "other",
        "vhost": "other",
        "password": "other",
        "queue_type": "quorum",
        "window": 7,
    }
    found, addresses = parsed("amqp://me:secret@h1/mine?queue_type=classic", **section)

    assert (found.user, password(found), found.vhost) == ("me", "secret", "mine")
    assert (found.queue_type, found.window) == ("classic", 7)
    assert addresses == (Address("h1", 5672),)


def test_the_section_completes_a_url() -> None:
    found, addresses = parsed("amqp://h1", user="me", password="secret", port=99, hosts=["elsewhere"])

    assert (found.user, password(found)) == ("me", "secret")
    # The hosts are those of one place.
    assert addresses == (Address("h1", 99),)


@pytest.mark.parametrize("url", ["http://h", "rocketmq://h", "sqlite:///x.db"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="RabbitMQ takes amqp:// and amqps:// URLs, not "):
        parsed(url)


# --- the section ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "addresses"),
    [
        ({}, ["127.0.0.1:5672"]),
        ({"host": "h"}, ["h:5672"]),
        ({"host": "h", "tls": True}, ["h:5671"]),
        ({"host": "h", "port": 99}, ["h:99"]),
        ({"host": " h1 , h2:7 ", "port": 99}, ["h1:99", "h2:7"]),
        ({"host": "h1", "hosts": ["h2:7", "h3"]}, ["h1:5672", "h2:7", "h3:5672"]),
        ({"hosts": "h1,h2:7"}, ["h1:5672", "h2:7"]),
        ({"host": "::1"}, ["[::1]:5672"]),
        ({"host": "[::1]:7", "hosts": ["fe80::1"]}, ["[::1]:7", "[fe80::1]:5672"]),
    ],
)
def test_the_hosts_of_a_section(section: dict[str, Any], addresses: list[str]) -> None:
    assert hosts(**section) == addresses


def test_a_key_that_is_null_is_not_there() -> None:
    found = settings(user=None, heartbeat=None, queue_type=None)

    assert (found.user, found.heartbeat, found.queue_type) == (None, 6.0, "quorum")


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"hearbeat": 5}, "unknown key 'hearbeat' in the rabbitmq section: did you mean 'heartbeat'"),
        ({"zzzzzz": 5}, "unknown key 'zzzzzz' in the rabbitmq section: known are host, port"),
        ({"port": "many"}, "'port' in the rabbitmq section: "),
        ({"port": 0}, "'port' in the rabbitmq section: .*greater"),
        ({"port": 65536}, "'port' in the rabbitmq section: .*less"),
        ({"heartbeat": -1}, "'heartbeat' in the rabbitmq section"),
        ({"heartbeat": 601}, "'heartbeat' in the rabbitmq section"),
        ({"queue_type": "stream"}, "'queue_type' in the rabbitmq section: .*quorum.*classic"),
        ({"frame_max": 4096}, "'frame_max' in the rabbitmq section: .*8192"),
        ({"window": 0}, "'window' in the rabbitmq section"),
        ({"connection_attempts": 0}, "'connection_attempts' in the rabbitmq section"),
        ({"mechanism": "AMQPLAIN"}, "'mechanism' in the rabbitmq section"),
        ({"host": "a b"}, "holds a character that no host name has"),
        ({"host": "h/vhost"}, "'host' and 'hosts' take host or host:port; a whole URL is the key url"),
        ({"host": "h:port"}, "port of host 1 is not a number"),
        ({"port": "x", "window": "y"}, "'port' in the rabbitmq section: .*; 'window' in the rabbitmq section: "),
    ],
)
def test_a_mistake_in_the_section_says_where_it_is(section: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        parsed(**section)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("amqp://h?hearbeat=5", "unknown key 'hearbeat' in the URL: did you mean 'heartbeat'"),
        ("amqp://h?window=x", "'window' in the URL: "),
        ("amqp://h:port", "the port of host 1 is not a number"),
    ],
)
def test_a_mistake_in_the_url_says_where_it_is(url: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        parsed(url)


# --- passwords --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "section"),
    [
        (f"amqp://user:{PLANTED}@h:port", {}),
        (f"amqp://user:{PLANTED}@h?nonsense=1", {}),
        (f"amqp://user:{PLANTED}@h?window=x", {}),
        (f"amqp://h?password={PLANTED}&window=x", {}),
        (f"http://user:{PLANTED}@h", {}),
        (None, {"password": PLANTED, "window": "x"}),
        (None, {"password": [PLANTED]}),
        (None, {"key_password": {"a": PLANTED}}),
        (None, {"host": f"amqp://user:{PLANTED}@h"}),
        (None, {"host": f"user:{PLANTED}@h"}),
        (None, {"hosts": [f"user:{PLANTED}@h/v"]}),
        (None, {"port": PLANTED, "tls": PLANTED}),
        (None, {"management_url": [f"http://user:{PLANTED}@h"]}),
    ],
    ids=itertools.count(),
)
def test_no_error_shows_a_password(url: str | None, section: dict[str, Any]) -> None:
    with pytest.raises(BrokerError) as caught:
        parsed(url, **section)

    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    # The lines of this test, which the traceback quotes, hold the name of the secret and not its text.
    assert PLANTED not in shown


def test_no_representation_shows_a_password() -> None:
    section = {
        "key_password": PLANTED,
        "management_url": f"http://user:{PLANTED}@h:15672",
        "prometheus_url": f"http://user:{PLANTED}@h:15692",
    }
    options = ConnectOptions(url=f"amqp://user:{PLANTED}@h", section=section)
    found, addresses = parse_settings(options)

    assert found.management_url == section["management_url"]
    for shown in (repr(found), str(found), repr(options), str(addresses), repr(addresses)):
        assert PLANTED not in shown


# --- the systems that brokerkit replaces ------------------------------------------------------------------------

Configured = Callable[[Mapping[str, str], Mapping[str, Any]], tuple[RabbitMQSettings, tuple[Address, ...]]]


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    """The settings that the backend gets when the application is configured so."""
    registry = Registry([])
    registry.add("rabbitmq", RabbitMQBackend)

    def configured(
        env: Mapping[str, str], arguments: Mapping[str, Any]
    ) -> tuple[RabbitMQSettings, tuple[Address, ...]]:
        found = load_settings(env=env, directory=tmp_path, registry=registry, **arguments)
        return parse_settings(ConnectOptions(url=found.url, section=found.backend_section()))

    return configured


def test_the_environment_of_system_a(configured: Configured) -> None:
    env = {
        "RABBITMQ_HOST": "broker",
        "RABBITMQ_PORT": "5673",
        "RABBITMQ_USER": "kc",
        "RABBITMQ_PASSWORD": "secret",
        "RABBITMQ_VHOST": "kc",
        "RABBITMQ_HEARTBEAT": "30",
    }
    found, addresses = configured(env, {"backend": "rabbitmq"})

    assert addresses == (Address("broker", 5673),)
    assert (found.user, password(found), found.vhost, found.heartbeat) == ("kc", "secret", "kc", 30.0)


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("RABBITMQ_VHOST", "/", "vhost", "/"),
        ("RABBITMQ_HEARTBEAT", "0", "heartbeat", 0.0),
        ("RABBITMQ_USER", "5", "user", "5"),
        ("RABBITMQ_PORT", "5672", "port", 5672),
        ("RABBITMQ_HOST", "::1", "host", "::1"),
    ],
)
def test_each_variable_of_system_a_counts_alone(
    configured: Configured, name: str, text: str, key: str, value: object
) -> None:
    found, addresses = configured({name: text}, {"backend": "rabbitmq"})

    assert getattr(found, key) == value
    assert addresses == (Address("::1" if key == "host" else "127.0.0.1", 5672),)


def test_the_constructor_arguments_of_system_a(configured: Configured) -> None:
    section = {
        "host": "h",
        "port": 5672,
        "user": "guest",
        "password": "guest",
        "vhost": "/",
        "heartbeat": 30,
        "blocked_connection_timeout": 300,
        "connection_attempts": 3,
        "retry_delay": 5,
    }
    found, addresses = configured(
        {"RABBITMQ_HOST": "weaker"}, {"backend": "rabbitmq", "settings": {"rabbitmq": section}}
    )

    assert addresses == (Address("h", 5672),)
    assert (found.blocked_connection_timeout, found.connection_attempts, found.retry_delay) == (300.0, 3, 5.0)
    assert (found.heartbeat, found.user, password(found), found.vhost) == (30.0, "guest", "guest", "/")


def test_the_yaml_of_system_c(configured: Configured) -> None:
    section = {"host": "mq.internal", "port": "5672", "name": "jm", "password": "secret", "vhost": "/"}
    found, addresses = configured({}, {"backend": "rabbitmq", "settings": {"rabbitmq": section}})

    assert addresses == (Address("mq.internal", 5672),)
    assert (found.port, found.user, password(found), found.vhost) == (5672, "jm", "secret", "/")
    # The backend takes it also where nothing has normalised it.
    assert parsed(**section) == (found, addresses)


def test_the_url_of_system_e_in_the_environment(configured: Configured) -> None:
    found, addresses = configured({"RABBITMQ_URL": "amqp://user:p@ss@127.0.0.1:5672/"}, {"backend": "rabbitmq"})

    assert (found.user, password(found), addresses) == ("user", "p@ss", (Address("127.0.0.1", 5672),))
