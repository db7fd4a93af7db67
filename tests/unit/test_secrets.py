"""Nothing secret in a log line, repr, exception, metric or answer (guarantee 8)."""

from __future__ import annotations

import json
import logging
import traceback
from dataclasses import asdict
from pathlib import Path

import pytest

from brokerkit import AsyncManager, BrokerError
from brokerkit.settings import Settings, load_settings
from brokerkit.spi import ConnectOptions
from brokerkit.url import BrokerUrl
from tests.planted import PLANTED

URLS = [
    f"amqp://user:{PLANTED}@localhost:5672/",
    f"amqp://user:{PLANTED}@local@host/",
    f"amqps://user:{PLANTED}@h1,h2:5673/vhost?queue_type=classic",
    f"rocketmq://key:{PLANTED}@ns1:9876;ns2:9876",
    f"amqp://user:{PLANTED}@[::1:5672/",
    f"amqp://user:{PLANTED}@localhost:notaport/",
    f"amqp:/user:{PLANTED}@localhost/",
    f"nosuchbroker://user:{PLANTED}@localhost/",
    f"sqlite://user:{PLANTED}@/x.db",
    f"memory://user:{PLANTED}@name",
]


def everything_shown(error: BaseException) -> str:
    """Return what a log file or a terminal would show of an error, its causes included."""
    return "".join(traceback.format_exception(error)) + repr(error)


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
async def test_no_url_shows_its_password(url: str) -> None:
    shown: list[str] = []
    try:
        shown.append(repr(BrokerUrl.parse(url)) + str(BrokerUrl.parse(url)))
    except BrokerError as error:
        shown.append(str(error) + repr(error))
    manager = AsyncManager(settings={"url": url})
    shown.append(repr(manager))
    try:
        await manager.connect()
    except BrokerError as error:
        shown.append(str(error) + repr(error))
    finally:
        await manager.aclose()
    assert PLANTED not in "\n".join(shown)


@pytest.mark.parametrize(
    "section",
    [
        {"backend": "rabbitmq", "rabbitmq": {"host": "h", "password": PLANTED}},
        {"backend": "rocketmq", "rocketmq": {"name_server": "h:1", "secret_key": PLANTED, "access_key": PLANTED}},
        {"backend": "rocketmq", "rocketmq": {"name_server": "h:1", "security_token": PLANTED}},
    ],
)
def test_settings_hide_credentials(section: dict[str, object]) -> None:
    settings = load_settings(settings=section, env={})
    shown = repr(settings) + str(settings) + json.dumps(settings.redacted())
    assert PLANTED not in shown


@pytest.mark.parametrize(
    "section",
    [
        {"backend": "rabbitmq", "rabbitmq": {"passwort": PLANTED}},
        {"backend": "rabbitmq", "rabbitmq": {"port": "x", "password": PLANTED}},
        {"url": f"amqp://u:{PLANTED}@h/", "retries": 3},
        {"url": f"amqp://u:{PLANTED}@h/", "backend": "rocketmq"},
        {"rabbitmq": PLANTED},
    ],
)
def test_a_refused_configuration_does_not_show_its_values(section: dict[str, object]) -> None:
    with pytest.raises(BrokerError) as caught:
        load_settings(settings=section, env={})
    assert PLANTED not in everything_shown(caught.value)


def test_the_environment_is_not_shown(tmp_path: Path) -> None:
    env = {"BROKERKIT_URL": f"amqp://u:{PLANTED}@h/", "BROKERKIT_SEND_TIMEOUT": "soon"}
    with pytest.raises(BrokerError) as caught:
        load_settings(env=env, directory=tmp_path)
    assert PLANTED not in everything_shown(caught.value)


def test_connect_options_hide_the_url() -> None:
    options = ConnectOptions(url=f"amqp://u:{PLANTED}@h/", section={"password": PLANTED})
    assert PLANTED not in repr(options)


async def test_health_and_status_are_clean(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with AsyncManager(settings=Settings(url="memory://", rabbitmq={"password": PLANTED})) as manager:
            await manager.admin.declare("orders", "billing")
            status = await manager.monitor.queue_status("orders", "billing")
            shown = json.dumps(asdict(status), default=str) + repr(status) + repr(manager.settings)
    assert PLANTED not in shown + caplog.text
