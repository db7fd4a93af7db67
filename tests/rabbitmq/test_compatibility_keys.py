"""What the systems before brokerkit configure reaches the broker: each variable and each key on a real connection."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brokerkit import Manager
from brokerkit.clock import SystemClock
from brokerkit.errors import AccessRefused, BrokerUnavailable, ConfigurationError
from brokerkit.settings import Settings
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.services.ports import free_port
from brokerkit.testing.services.rabbitmq import Certificates, RabbitMQControl, RabbitMQNode, binary
from brokerkit_rabbitmq.backend import RabbitMQBackend
from tests.planted import PLANTED
from tests.rabbitmq.peers import LONG, take
from tests.rabbitmq.peers import peer as pika_peer

Section = dict[str, Any]


@pytest.fixture
def user(shared_node: RabbitMQControl, vhost: str) -> Iterator[str]:
    """A user whose password is `PLANTED` and who may do everything in `vhost`."""
    name = f"user-{secrets.token_hex(4)}"
    shared_node.add_user(name, PLANTED)
    shared_node.set_permissions(name, vhost)
    yield name
    shared_node.delete_user(name)


@pytest.fixture
def section(shared_node: RabbitMQControl, vhost: str, user: str) -> Section:
    """All that a connection to `vhost` needs, by the keys of system A."""
    address = shared_node.address
    return {"host": address.host, "port": address.port, "user": user, "password": PLANTED, "vhost": vhost}


def manager_on(section: Section, **settings: Any) -> Manager:
    """A manager that is configured by this section and nothing else."""
    made = Settings.model_validate({"rabbitmq": section, **settings})
    return Manager(backend=RabbitMQBackend(), settings=made)


def connections(node: RabbitMQControl, vhost: str) -> list[dict[str, Any]]:
    """User and heartbeat, in seconds, of the connections to a virtual host."""
    found: list[dict[str, Any]] = node.evaluate(
        "[#{user => U, heartbeat => T} || P <- rabbit_networking:local_connections(), "
        "[{user, U}, {vhost, V}, {timeout, T}] <- "
        f"[catch rabbit_networking:connection_info(P, [user, vhost, timeout])], V =:= {binary(vhost)}]"
    )
    return found


# --- RABBITMQ_* ---------------------------------------------------------------------------------------------------


@pytest.fixture
def variables(section: Section) -> dict[str, str]:
    return {f"RABBITMQ_{key.upper()}": str(value) for key, value in section.items()} | {"RABBITMQ_HEARTBEAT": "30"}


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: no configuration file in it, and no setting in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("BROKERKIT_URL", "BROKERKIT_CONFIG", "RABBITMQ_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("where", ["environment", ".env", "URL"])
def test_the_variables_of_system_a_lead_to_the_broker(
    shared_node: RabbitMQControl,
    vhost: str,
    user: str,
    variables: dict[str, str],
    empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    if where == "URL":
        url = shared_node.address.url(vhost, user=user, password=PLANTED) + "?heartbeat=30"
        variables = {"RABBITMQ_URL": url}
    if where == ".env":
        (empty_folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    else:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    with Manager(backend=RabbitMQBackend()) as manager:
        manager.admin.declare("orders", "billing")
        manager.send("orders", "text")
        assert connections(shared_node, vhost) == [{"user": user, "heartbeat": 30}] * 2
    with pika_peer(shared_node.address.url(vhost)) as channel:
        assert take(channel, "orders:billing").body == b"text"


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("RABBITMQ_HOST", "127.0.0.254", BrokerUnavailable, "127.0.0.254"),
        ("RABBITMQ_PORT", "<free>", BrokerUnavailable, "cannot connect"),
        ("RABBITMQ_USER", "nobody", AccessRefused, "nobody"),
        ("RABBITMQ_PASSWORD", "wrong", AccessRefused, "refused user"),
        ("RABBITMQ_VHOST", "elsewhere", AccessRefused, "vhost"),
        ("RABBITMQ_HEARTBEAT", "often", ConfigurationError, "RABBITMQ_HEARTBEAT"),
    ],
)
def test_each_variable_of_system_a_counts(
    variables: dict[str, str],
    empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    error: type[Exception],
    said: str,
) -> None:
    wrong = str(free_port()) if value == "<free>" else value
    for each, text in {**variables, name: wrong}.items():
        monkeypatch.setenv(each, text)

    manager = Manager(backend=RabbitMQBackend(), attempt_timeout=10.0)
    try:
        with pytest.raises(error, match=said) as caught:
            manager.connect()
    finally:
        manager.close()
    assert PLANTED not in str(caught.value)


# --- the constructor of A -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("heartbeat", [0, 1, 30, 600])
def test_the_heartbeat_is_the_one_that_is_asked_for(
    shared_node: RabbitMQControl, vhost: str, section: Section, heartbeat: int
) -> None:
    with manager_on({**section, "heartbeat": heartbeat}):
        assert {one["heartbeat"] for one in connections(shared_node, vhost)} == {heartbeat}


def test_the_heartbeat_is_6_seconds_when_nobody_asks(
    shared_node: RabbitMQControl, vhost: str, section: Section
) -> None:
    with manager_on(section):
        assert {one["heartbeat"] for one in connections(shared_node, vhost)} == {6}


@pytest.mark.parametrize("attempts", [1, 3])
def test_connection_attempts_and_retry_delay_rule_the_first_connecting(attempts: int) -> None:
    with RefusingPort() as port:
        began = SystemClock().monotonic()
        section = {
            "host": "127.0.0.1",
            "port": port.number,
            "connection_attempts": attempts,
            "retry_delay": 0.2,
            "retry_max_delay": 0.3,
        }
        manager = manager_on(section)
        try:
            with pytest.raises(BrokerUnavailable, match=str(port.number)):
                manager.connect()
        finally:
            manager.close()

    assert port.refused == attempts
    pauses = (0.2 + 0.3) if attempts == 3 else 0.0
    assert pauses <= SystemClock().monotonic() - began < pauses + LONG


class RefusingPort:
    """A port where nobody wants to talk: it counts who came."""

    def __init__(self) -> None:
        self.refused = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._refuse)

    def _refuse(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                if self._socket.fileno() < 0:
                    return
            self.refused += 1

    def __enter__(self) -> RefusingPort:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(LONG)


def test_blocked_connection_timeout_gives_up_a_connection_that_the_broker_blocks(
    own_node: RabbitMQNode, caplog: pytest.LogCaptureFixture
) -> None:
    address = own_node.address
    section = {"host": address.host, "port": address.port, "blocked_connection_timeout": 0.5}
    with manager_on(section, attempt_timeout=3.0, send_timeout=LONG) as manager, caplog.at_level(logging.WARNING):
        manager.admin.declare("orders", "billing")
        own_node.set_memory_alarm(True)
        sending = threading.Thread(target=lambda: manager.send("orders", "in the alarm"))
        sending.start()
        eventually_sync(lambda: "blocked the connection for 0.5 s" in caplog.text, within=LONG)
        own_node.set_memory_alarm(False)
        sending.join(LONG)

        assert not sending.is_alive()
        assert (manager.monitor.lag("orders", "billing").ready or 0) >= 1
        manager.admin.delete("orders")


# --- the YAML of C ------------------------------------------------------------------------------------------------


def test_the_yaml_of_system_c_leads_to_the_broker(
    shared_node: RabbitMQControl, vhost: str, user: str, empty_folder: Path
) -> None:
    address = shared_node.address
    (empty_folder / "brokerkit.yaml").write_text(
        f'rabbitmq: {{host: {address.host}, port: "{address.port}", name: {user}, password: "{PLANTED}", '
        f'vhost: "{vhost}"}}\n'
    )

    with Manager(backend=RabbitMQBackend()):
        assert {one["user"] for one in connections(shared_node, vhost)} == {user}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"host": "127.0.0.254"}, BrokerUnavailable),
        ({"name": "nobody"}, AccessRefused),
        ({"password": "wrong"}, AccessRefused),
        ({"vhost": "/"}, AccessRefused),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_key_of_system_c_counts(section: Section, changes: Section, error: type[Exception]) -> None:
    keys = {**section, "port": str(section["port"]), "name": section["user"]}
    del keys["user"]
    with manager_on(keys):
        pass

    manager = manager_on({**keys, **changes})
    try:
        with pytest.raises(error):
            manager.connect()
    finally:
        manager.close()


def test_the_url_of_system_e_with_a_raw_at_sign_leads_to_the_broker(shared_node: RabbitMQControl, vhost: str) -> None:
    name = f"user-{secrets.token_hex(4)}"
    shared_node.add_user(name, "p@ss")
    shared_node.set_permissions(name, vhost)
    try:
        url = f"amqp://{name}:p@ss@{shared_node.address.host}:{shared_node.address.port}/{vhost}"
        with Manager(url, backend=RabbitMQBackend(), settings=Settings()):
            assert {one["user"] for one in connections(shared_node, vhost)} == {name}
    finally:
        shared_node.delete_user(name)


# --- credentials --------------------------------------------------------------------------------------------------


def current_login() -> tuple[str, str]:
    """For ``credentials: module:function``."""
    return "nobody", "wrong"


def test_credentials_are_asked_for_each_connection(
    shared_node: RabbitMQControl, vhost: str, user: str, section: Section
) -> None:
    passwords = [PLANTED]

    async def login() -> tuple[str, str]:
        await asyncio.sleep(0)
        asked.append(passwords[-1])
        return user, passwords[-1]

    asked: list[str] = []
    with FaultProxy(section["host"], section["port"]) as proxy:
        given = {"host": "127.0.0.1", "port": proxy.port, "vhost": vhost, "credentials": login}
        with manager_on(given, send_timeout=LONG) as manager:
            manager.admin.declare("orders", "billing")
            assert len(asked) == 2
            passwords.append("new " + PLANTED)
            shared_node.set_password(user, passwords[-1])
            proxy.reset()
            manager.send("orders", "text")

            assert asked[-1] == passwords[-1]
            assert manager.monitor.lag("orders", "billing").ready == 1


def test_credentials_may_be_named_in_the_configuration(section: Section) -> None:
    keys = {"host": section["host"], "port": section["port"], "credentials": f"{__name__}:current_login"}
    manager = manager_on(keys)
    try:
        with pytest.raises(AccessRefused, match="'nobody'"):
            manager.connect()
    finally:
        manager.close()


# --- TLS ----------------------------------------------------------------------------------------------------------


def tls(node: RabbitMQNode, certificates: Certificates, **more: Any) -> Section:
    return {
        "host": "127.0.0.1",
        "port": node.address.tls_port,
        "tls": True,
        "ca_file": str(certificates.authority),
        **more,
    }


def refusal(section: Section) -> BrokerUnavailable:
    """Why no connection can be made; it will not get better by trying again."""
    manager = manager_on(section, send_timeout=LONG)
    try:
        with pytest.raises(BrokerUnavailable) as caught:
            manager.connect()
    finally:
        manager.close()
    assert not caught.value.retryable, caught.value
    return caught.value


def test_tls_checks_the_certificate_of_the_broker(own_node: RabbitMQNode, certificates: Certificates) -> None:
    with manager_on(tls(own_node, certificates)) as manager:
        assert manager.monitor.health().healthy
    with manager_on(tls(own_node, certificates, server_name="localhost")) as manager:
        assert manager.monitor.health().healthy

    assert "self-signed" in str(refusal(tls(own_node, certificates, ca_file=None)))
    unknown = str(certificates.unknown_authority)
    assert "ca_file" in str(refusal(tls(own_node, certificates, ca_file=unknown)))
    assert "elsewhere.example" in str(refusal(tls(own_node, certificates, server_name="elsewhere.example")))
    with manager_on(tls(own_node, certificates, ca_file=unknown, verify=False)) as manager:
        assert manager.monitor.health().healthy

    own_node.present_certificate(certificates.server_expired)
    assert "expired" in str(refusal(tls(own_node, certificates)))


def test_a_broker_that_wants_a_certificate_gets_ours(own_node: RabbitMQNode, certificates: Certificates) -> None:
    own_node.options = dataclasses.replace(own_node.options, verify_peer=True)
    own_node.kill()
    own_node.start()

    ours, others = certificates.client, certificates.client_of_unknown_authority
    files = {"cert_file": str(ours.certificate), "key_file": str(ours.key)}
    with manager_on(tls(own_node, certificates, **files)) as manager:
        assert manager.monitor.health().healthy
    # The broker has no plugin that takes the user from the certificate.
    assert "EXTERNAL" in str(refusal(tls(own_node, certificates, **files, mechanism="EXTERNAL")))
    files = {"cert_file": str(others.certificate), "key_file": str(others.key)}
    for wrong in (files, {}):
        manager = manager_on(tls(own_node, certificates, **wrong))
        try:
            with pytest.raises(BrokerUnavailable):
                manager.connect()
        finally:
            manager.close()


def test_tls_files_that_are_missing_are_named_before_anything_is_sent() -> None:
    manager = manager_on({"tls": True, "ca_file": "missing.pem"})
    try:
        with pytest.raises(ConfigurationError, match=r"missing\.pem"):
            manager.connect()
    finally:
        manager.close()
