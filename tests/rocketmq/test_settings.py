from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from brokerkit.compatibility import RocketMQKeys, meaning
from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.settings import load_settings
from brokerkit.spi import BrokerUrl, ConnectOptions
from brokerkit_rocketmq.addresses import Address
from brokerkit_rocketmq.settings import RocketMQSettings, parse_settings
from tests.planted import PLANTED

#: ``config.dev.yaml`` of the document export service.
SYSTEM_D: dict[str, Any] = {
    "enabled": True, "name_server": "localhost:9876", "producer_group": "export_producer_group",
    "consumer_group": "export_consumer_group", "topic": "export_tasks", "tag": "*", "max_message_size": 4194304,
    "send_timeout": 3000, "retry_times": 3, "consumer_thread_min": 1, "consumer_thread_max": 5,
    "consume_message_batch_max_size": 1, "pull_batch_size": 32, "pull_interval": 0, "consume_timeout": 15,
    "max_reconsume_times": 16, "suspend_current_queue_time": 1000, "access_key": None, "secret_key": None,
    "security_token": None, "namespace": None,
}  # fmt: skip


def parsed(url: str | None = None, **section: Any) -> tuple[RocketMQSettings, tuple[Address, ...]]:
    return parse_settings(ConnectOptions(url=url, section=section))


def settings(url: str | None = None, **section: Any) -> RocketMQSettings:
    return parsed(url, **section)[0]


def servers(url: str | None = None, **section: Any) -> list[str]:
    return [str(address) for address in parsed(url, **section)[1]]


def shown(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


# --- the section --------------------------------------------------------------------------------------------------


def test_the_section_of_system_d_is_taken_with_its_units() -> None:
    found, addresses = parsed(**SYSTEM_D)

    assert addresses == (Address("localhost", 9876),)
    for key, value in SYSTEM_D.items():
        assert getattr(found, key) == value, key


def test_every_key_of_system_d_is_known_and_described_here_and_in_the_core() -> None:
    fields = RocketMQSettings.model_fields

    assert set(RocketMQKeys.model_fields) == set(SYSTEM_D)
    assert set(SYSTEM_D) < set(fields)
    assert [name for name, field in fields.items() if not field.description] == []


def test_what_system_d_means_at_the_top_level(tmp_path: Path) -> None:
    assert meaning("rocketmq", SYSTEM_D) == {
        "topic": "export_tasks",
        "consumer_group": "export_consumer_group",
        "max_message_size": 4194304,
        "attempt_timeout": 3.0,
        "send_timeout": 12.0,
        "handler_timeout": 900.0,
        "retry": {"max_attempts": 17},
    }
    section = {"backend": "rocketmq", "rocketmq": {"send_timeout": 2500, "max_reconsume_times": 3}}
    found = load_settings(settings=section, env={}, directory=tmp_path)
    assert found.attempt_timeout == 2.5
    assert found.retry.max_attempts == 4


def test_nothing_configured_is_a_name_server_on_this_machine() -> None:
    found, addresses = parsed()

    assert addresses == (Address("localhost", 9876),)
    assert (found.enabled, found.heartbeat, found.route_refresh, found.queues) == (True, 6.0, 30.0, 8)
    assert (found.timers, found.shadow, found.compress_over, found.access_key) == ("auto", "auto", None, None)


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("ns1:9876;ns2:9877", ["ns1:9876", "ns2:9877"]),
        ("ns1, ns2:1 ;ns3", ["ns1:9876", "ns2:1", "ns3:9876"]),
        ("[::1]:9876;[fe80::2]", ["[::1]:9876", "[fe80::2]:9876"]),
        ("10.0.0.1", ["10.0.0.1:9876"]),
    ],
)
def test_name_servers_are_joined_by_commas_or_semicolons(text: str, addresses: list[str]) -> None:
    assert servers(name_server=text) == addresses


@pytest.mark.parametrize("text", [" ", ";", "a b", "h:0", "h:70000", "h:x", "rocketmq://h:9876", "user:pw@h", "[::1"])
def test_a_name_server_that_is_none_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ConfigurationError, match="'name_server'") as caught:
        parsed(name_server=text)

    assert "pw" not in str(caught.value)


# --- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("rocketmq://ns1:9876,ns2:9877", ["ns1:9876", "ns2:9877"]),
        ("rocketmq://ns1;ns2:9877", ["ns1:9876", "ns2:9877"]),
        ("rocketmq://ak:sk@[::1]", ["[::1]:9876"]),
        ("rocketmq://", ["localhost:9876"]),
        ("ROCKETMQ://h/", ["h:9876"]),
    ],
)
def test_the_hosts_of_a_url_are_name_servers(url: str, addresses: list[str]) -> None:
    assert servers(url) == addresses


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_any_access_key_and_secret_travel_in_a_url(access_key: str, secret_key: str) -> None:
    url = BrokerUrl(scheme="rocketmq", user=access_key, password=secret_key, hosts=(("h", None),)).reveal()
    found = settings(url)

    assert (shown(found.access_key), shown(found.secret_key)) == (access_key, secret_key)


def test_options_of_a_url_win_over_the_section_and_have_its_names() -> None:
    found = settings(
        "rocketmq://h?namespace=prod&queues=4&tls=true&compress_over=4096&timers=off&address_map=10.0.0.1:10911=localhost:1,b=c",
        namespace="dev", queues=16,
    )  # fmt: skip

    assert (found.namespace, found.queues, found.tls, found.compress_over, found.timers) == (
        "prod",
        4,
        True,
        4096,
        "off",
    )
    assert found.address_map == {"10.0.0.1:10911": "localhost:1", "b": "c"}


def test_the_url_wins_over_the_name_server_of_the_section() -> None:
    assert servers("rocketmq://ns1", name_server="ns2") == ["ns1:9876"]
    assert servers("rocketmq://?namespace=x", name_server="ns2") == ["ns2:9876"]
    assert servers("rocketmq://?name_server=ns3:1", name_server="ns2") == ["ns3:1"]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("amqp://h", "RocketMQ takes rocketmq:// URLs, not amqp://"),
        ("rocketmq://h/prod", "has no path: a namespace is the option"),
        ("rocketmq://h?name_server=x", "names name servers twice"),
        ("rocketmq://h?queue=4", "unknown key 'queue' in the URL: did you mean 'queues'"),
        ("rocketmq://h?queues=none", "'queues' in the URL"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        parsed(url)


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"heartbeat": 0}, "heartbeat"),
        ({"pull_batch_size": 0}, "pull_batch_size"),
        ({"pull_interval": -1}, "pull_interval"),
        ({"max_message_size": 0}, "max_message_size"),
        ({"namespace": "a%b"}, "namespace"),
        ({"instance_name": "a@b"}, "instance_name"),
        ({"timers": "on"}, "timers"),
        ({"shadow": 1.5}, "shadow"),
        ({"delay_levels": "1s 5x"}, "delay_levels"),
        ({"address_map": {"a b": "c"}}, "address_map"),
        ({"address_map": "a"}, "address_map"),
        ({"compress_over": "much"}, "compress_over"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_key(section: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{key}' in the rocketmq section"):
        parsed(**section)


def test_off_in_yaml_is_a_boolean() -> None:
    found = settings(timers=False, shadow=True)

    assert (found.timers, found.shadow) == ("off", "auto")


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"access_key": "a"}, "'secret_key' is missing"),
        ({"secret_key": "s"}, "'access_key' is missing"),
        ({"security_token": "t"}, "'security_token' stands beside access_key and secret_key"),
    ],
)
def test_half_of_a_login_is_refused(section: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        parsed(**section)


# --- secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["access_key", "secret_key", "security_token", "key_password"])
def test_no_secret_is_in_a_text(key: str) -> None:
    section = {"access_key": "a", "secret_key": "s", key: PLANTED}
    found = settings(**section)

    assert PLANTED not in repr(found) + str(found) + found.model_dump_json()
    assert shown(getattr(found, key)) == PLANTED


@pytest.mark.parametrize("key", [name for name in RocketMQSettings.model_fields if name != "address_map"])
@pytest.mark.parametrize("where", ["section", "URL"])
def test_no_secret_at_a_wrong_key_is_in_an_error(key: str, where: str) -> None:
    for value in (PLANTED, f"rocketmq://ak:{PLANTED}@h:9876", f"{PLANTED} {PLANTED}\x00"):
        try:
            if where == "section":
                parsed(**{key: value})
            else:
                parsed(BrokerUrl(scheme="rocketmq", query={key: value}).reveal())
        except BrokerError as error:
            assert PLANTED not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("value", [f"a={PLANTED} x", f"{PLANTED}://", {"a": f"rocketmq://{PLANTED}@h"}, [PLANTED]])
def test_no_secret_in_a_map_of_addresses_is_in_an_error(value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(address_map=value)

    assert PLANTED not in "".join(traceback.format_exception(caught.value))
