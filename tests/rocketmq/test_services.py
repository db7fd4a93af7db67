"""Private RocketMQ servers, asked by single requests of the protocol; the clients have tests of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brokerkit.errors import BrokerError, BrokerUnavailable, ConfigurationError
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services import Controllable, ExternalService, Missing, find_service
from brokerkit.testing.services.rabbitmq_certificates import Certificate, Certificates, make_certificates
from brokerkit.testing.services.rocketmq import (
    Answer,
    Login,
    RocketMQAccount,
    RocketMQAddress,
    RocketMQControl,
    RocketMQOptions,
    RocketMQProvider,
    RocketMQServer,
    ask,
    find_rocketmq,
    registered_brokers,
)
from tests.rocketmq.servers import NEW, OLD, installation_or_skip

LONG = 120.0

#: Request codes.
SEND, PULL, FIGURES = 310, 11, 28

FOUND = 0


def send(address: str, topic: str, body: bytes = b"hello", login: Login | None = None) -> Answer:
    """Send to the first queue of a topic that exists."""
    fields = {"a": "tests", "b": topic, "c": "", "d": "1", "e": "0", "f": "0", "g": "0", "h": "0", "i": ""}
    return ask(address, SEND, fields, body, login=login)


def pull(address: str, topic: str, group: str) -> Answer:
    """Pull what the first queue of a topic holds."""
    fields = {
        "consumerGroup": group,
        "topic": topic,
        "queueId": "0",
        "queueOffset": "0",
        "maxMsgNums": "32",
        "sysFlag": "4",  # the subscription is in the request
        "commitOffset": "0",
        "suspendTimeoutMillis": "0",
        "subscription": "*",
        "subVersion": "0",
        "expressionType": "TAG",
    }
    return ask(address, PULL, fields)


def processes_of(directory: Path) -> list[str]:
    """The command lines of all processes that work below a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = os.readlink(process / "cwd")
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if place.startswith(str(directory)):
            found.append(command)
    return found


# --- a server that is left whole ----------------------------------------------------------------------------------


def test_a_server_stores_messages_and_gives_them_out(rocketmq: RocketMQControl) -> None:
    [broker] = rocketmq.address.brokers
    rocketmq.create_topic("services-whole", queues=1)
    rocketmq.create_group("services-whole-group")
    assert rocketmq.brokers_of("services-whole") == {"broker-a"}
    assert send(broker.address, "services-whole").code == 0

    def arrived() -> bool:
        pulled = pull(broker.address, "services-whole", "services-whole-group")
        return pulled.code == FOUND and b"hello" in pulled.body

    eventually_sync(arrived, LONG, "the message")
    rocketmq.delete_group("services-whole-group")
    rocketmq.delete_topic("services-whole")
    assert rocketmq.brokers_of("services-whole") == frozenset()


def test_the_version_is_that_of_the_jars(rocketmq: RocketMQControl) -> None:
    assert rocketmq.runtime()["brokerVersionDesc"] == f"V{rocketmq.address.version.replace('.', '_')}"


def test_an_operator_changes_settings_and_sees_them(rocketmq: RocketMQControl) -> None:
    before = rocketmq.settings()["shortPollingTimeMills"]
    rocketmq.configure({"shortPollingTimeMills": 1234})
    assert rocketmq.settings()["shortPollingTimeMills"] == "1234"
    rocketmq.configure({"shortPollingTimeMills": before})


def test_a_refusal_says_who_refused_what(rocketmq: RocketMQControl) -> None:
    with pytest.raises(BrokerError, match=rf"{rocketmq.address.brokers[0].address} refused request 17: "):
        rocketmq.create_topic("no.dots.please")


def test_another_process_is_told_the_address_with_its_secrets(rocketmq: RocketMQControl) -> None:
    assert RocketMQAddress.read(rocketmq.address.describe()) == rocketmq.address
    guarded = replace(rocketmq.address, admin=Login("me@here", "a/secret"))
    assert RocketMQAddress.read(guarded.describe()) == guarded
    assert guarded.url() == f"rocketmq://me%40here:a%2Fsecret@{guarded.name_servers[0]}"
    assert guarded.url(Login("other", "x")) == f"rocketmq://other:x@{guarded.name_servers[0]}"
    assert "a/secret" not in repr(guarded)


# --- servers of several parts that are broken and repaired ----------------------------------------------------------


@pytest.fixture(scope="module")
def two_masters() -> Iterator[RocketMQServer]:
    options = RocketMQOptions(masters=2, name_servers=2)
    with RocketMQServer(options, installation=installation_or_skip(OLD)) as server:
        yield server


def test_a_topic_has_queues_on_all_masters(two_masters: RocketMQServer) -> None:
    assert isinstance(two_masters, Controllable)
    assert two_masters.url == "rocketmq://" + ",".join(two_masters.address.name_servers)
    two_masters.create_topic("services-two", queues=1)
    for server in two_masters.address.name_servers:
        assert two_masters.brokers_of("services-two", name_server=server) == {"broker-a", "broker-b"}
    assert [send(master.address, "services-two").code for master in two_masters.address.masters] == [0, 0]
    with pytest.raises(LookupError, match="broker-c"):
        two_masters.broker("broker-c")


def test_a_killed_broker_leaves_the_route_and_comes_back_with_its_messages(two_masters: RocketMQServer) -> None:
    two_masters.create_topic("services-kill", queues=1)
    victim, survivor = two_masters.brokers
    assert send(victim.address, "services-kill", b"still here").code == 0
    victim.kill()
    eventually_sync(lambda: two_masters.brokers_of("services-kill") == {"broker-b"}, LONG, "a route without it")
    assert send(survivor.address, "services-kill").code == 0
    with pytest.raises(BrokerUnavailable, match=victim.address):
        send(victim.address, "services-kill")

    two_masters.start()
    two_masters.wait_until_registered()
    assert b"still here" in pull(victim.address, "services-kill", "services-kill-group").body


def test_a_broker_that_is_stopped_leaves_in_good_order(two_masters: RocketMQServer) -> None:
    broker = two_masters.broker("broker-b")
    broker.stop()
    assert not two_masters.alive
    for server in two_masters.address.name_servers:
        assert ("broker-b", 0) not in registered_brokers(server)
    broker.start()
    assert two_masters.alive


def test_a_frozen_broker_keeps_connections_open_and_answers_later(two_masters: RocketMQServer) -> None:
    broker = two_masters.brokers[0]
    broker.suspend()
    try:
        with (
            socket.create_connection((broker.host, broker.port), timeout=LONG),
            pytest.raises(BrokerUnavailable, match="timed out"),
        ):
            ask(broker.address, FIGURES, timeout=0.5)
    finally:
        broker.resume()
    assert ask(broker.address, FIGURES, timeout=LONG).code == 0


def test_a_name_server_that_came_back_knows_all_brokers_after_register(two_masters: RocketMQServer) -> None:
    two_masters.create_topic("services-names", queues=1)
    lost, other = two_masters.name_servers
    lost.kill()
    assert len(registered_brokers(other.address)) == 2
    with pytest.raises(BrokerUnavailable, match=lost.address):
        registered_brokers(lost.address)
    lost.start()
    two_masters.register()
    assert two_masters.brokers_of("services-names", name_server=lost.address) == {"broker-a", "broker-b"}


def test_a_slave_gives_out_what_its_dead_master_has_confirmed() -> None:
    options = RocketMQOptions(slaves=1, sync_flush=True, sync_replication=True)
    with RocketMQServer(options, installation=installation_or_skip(OLD)) as server:
        master, slave = server.brokers
        server.create_topic("services-copied", queues=1)
        server.create_group("services-copied-group")
        assert send(master.address, "services-copied", b"in two places").code == 0
        server.wait_until_copied()
        master.kill()
        eventually_sync(
            lambda: registered_brokers(server.address.name_servers[0]) == {("broker-a", 1): slave.address},
            LONG,
            "the master's end",
        )
        assert server.brokers_of("services-copied") == {"broker-a"}
        assert b"in two places" in pull(slave.address, "services-copied", "services-copied-group").body
        assert send(slave.address, "services-copied").code != 0


# --- a server that is guarded ---------------------------------------------------------------------------------------

USER = RocketMQAccount(
    access_key="someone", secret_key="some-secret", default_topic="PUB", default_group="SUB", topics={"closed": ""}
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=[OLD, NEW])
def guarded(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[RocketMQServer]:
    """Asks for signatures, and clients with TLS for a certificate."""
    options = RocketMQOptions(acl=True, accounts=(USER,), tls=certificates, verify_peer=True)
    with RocketMQServer(options, installation=installation_or_skip(request.param)) as server:
        for topic in ("open", "closed"):
            server.create_topic(topic, queues=1)
        yield server


def test_accounts_may_do_what_they_were_permitted(guarded: RocketMQServer) -> None:
    broker = guarded.brokers[0].address
    admin = guarded.address.admin
    assert admin is not None and guarded.url.startswith(f"rocketmq://{admin.access_key}:{admin.secret_key}@")
    assert [send(broker, topic, login=admin).code for topic in ("open", "closed")] == [0, 0]
    assert send(broker, "open", login=USER.login).code == 0
    assert send(broker, "closed", login=USER.login).code != 0
    assert send(broker, "open").code != 0
    assert send(broker, "open", login=Login("someone", "another-secret")).code != 0
    assert "some-secret" not in repr(guarded.options)


def test_accounts_change_at_run_time(guarded: RocketMQServer) -> None:
    broker = guarded.brokers[0].address

    def may_send(topic: str, account: RocketMQAccount, *, allowed: bool = True) -> None:
        def sends() -> bool:
            return (send(broker, topic, login=account.login).code == 0) is allowed

        eventually_sync(sends, LONG, f"sending to {topic!r} is {'allowed' if allowed else 'refused'}")

    other = RocketMQAccount(access_key="other-user", secret_key="first-secret")
    assert send(broker, "open", login=other.login).code != 0
    guarded.set_account(other)
    assert send(broker, "open", login=other.login).code != 0
    guarded.set_account(replace(other, topics={"open": "PUB|SUB|GET"}))
    may_send("open", other)
    may_send("closed", other, allowed=False)

    changed = replace(other, secret_key="second-secret", topics={"closed": "PUB"})
    guarded.set_account(changed)
    may_send("closed", changed)
    may_send("closed", other, allowed=False)
    may_send("open", changed, allowed=False)

    guarded.delete_account("other-user")
    may_send("closed", changed, allowed=False)
    guarded.delete_account("other-user")


def test_accounts_outlive_a_crash(guarded: RocketMQServer) -> None:
    guarded.set_account(replace(USER, default_topic=""))
    guarded.kill()
    guarded.start()
    assert send(guarded.brokers[0].address, "open", login=USER.login).code != 0
    guarded.set_account(USER)
    eventually_sync(lambda: send(guarded.brokers[0].address, "open", login=USER.login).code == 0, LONG, "sending")


def test_a_server_without_acl_has_no_accounts(rocketmq_old: RocketMQControl) -> None:
    with pytest.raises(ConfigurationError, match=r"acl=True"):
        rocketmq_old.set_account(USER)


def shaken_hands(address: str, certificates: Certificates, client: Certificate | None) -> bool:
    """Whether a request is answered through TLS; an error that the client's own check finds is raised."""
    context = ssl.create_default_context(cafile=str(certificates.authority))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    host, _, port = address.rpartition(":")
    header = b'{"code":105,"version":401,"opaque":1,"flag":0,"extFields":{"topic":"open"}}'
    try:
        with (
            socket.create_connection((host, int(port)), timeout=LONG) as plain,
            context.wrap_socket(plain, server_hostname=host) as sock,
        ):
            sock.sendall((len(header) + 4).to_bytes(4, "big") + len(header).to_bytes(4, "big") + header)
            return bool(sock.recv(4))
    except ssl.SSLCertVerificationError:
        raise
    except OSError:
        return False


def test_tls_clients_are_checked_and_check(guarded: RocketMQServer, certificates: Certificates) -> None:
    for node in (*guarded.brokers, *guarded.name_servers):
        assert shaken_hands(node.address, certificates, certificates.client)
        assert not shaken_hands(node.address, certificates, None)
        assert not shaken_hands(node.address, certificates, certificates.client_of_unknown_authority)
        for bad, why in (
            (certificates.server_expired, "expired"),
            (certificates.server_of_other_host, "mismatch"),
            (certificates.server_of_unknown_authority, "unable to get local issuer|self.signed"),
        ):
            node.present_certificate(bad)
            with pytest.raises(ssl.SSLCertVerificationError, match=why):
                shaken_hands(node.address, certificates, certificates.client)
        node.present_certificate(certificates.server)
        assert shaken_hands(node.address, certificates, certificates.client)


# --- options --------------------------------------------------------------------------------------------------------


def test_options_reach_the_broker_and_the_proxy_listens() -> None:
    options = RocketMQOptions(
        proxy=True,
        sync_flush=True,
        delay_levels=("1s", "2s"),
        auto_create_topics=False,
        auto_create_groups=False,
        settings={"maxMessageSize": "70000"},
    )
    with RocketMQServer(options, installation=installation_or_skip("5.3.3")) as server:
        settings = server.settings()
        expected = {
            "flushDiskType": "SYNC_FLUSH",
            "messageDelayLevel": "1s 2s",
            "autoCreateTopicEnable": "false",
            "autoCreateSubscriptionGroup": "false",
            "maxMessageSize": "70000",
            "brokerIP1": "127.0.0.1",
        }
        assert settings.items() >= expected.items()
        grpc = server.address.brokers[0].grpc
        assert grpc is not None
        with socket.create_connection((server.brokers[0].host, int(grpc.rpartition(":")[2])), timeout=LONG):
            pass
        assert server.runtime()["brokerVersionDesc"] == "V5_3_3"


def test_an_old_version_has_no_proxy() -> None:
    with pytest.raises(ConfigurationError, match=r"4\.9\.4 has no gRPC proxy"):
        RocketMQServer(RocketMQOptions(proxy=True), installation=installation_or_skip(OLD))


def test_a_broker_that_does_not_start_shows_what_it_said() -> None:
    options = RocketMQOptions(java_options=("-Xmx1k",))
    with pytest.raises(BrokerUnavailable, match=r"(?s)rocketmq-broker node ended with .* ends with:.*maximum heap"):
        RocketMQServer(options, installation=installation_or_skip(OLD)).__enter__()


# --- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="there is no /proc to look for processes in")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_by_hand_leaves_no_process_behind(tmp_path: Path, end: signal.Signals) -> None:
    installation_or_skip("4.9.7")
    program = subprocess.Popen(
        [sys.executable, "-m", "brokerkit.testing.services.rocketmq", "--version", "4.9.7"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with program:
        assert program.stdout is not None
        try:
            scheme, _, name_server = program.stdout.readline().strip().partition("://")
            assert scheme == "rocketmq"
            assert [name for name, _ in registered_brokers(name_server)] == ["broker-a"]
            assert len(processes_of(tmp_path)) == 2
        finally:
            program.send_signal(end)
    assert program.returncode == (0 if end == signal.SIGTERM else -signal.SIGKILL)
    eventually_sync(lambda: not processes_of(tmp_path), LONG, "the end of all processes of the server")
    if end == signal.SIGTERM:
        assert not list(tmp_path.glob("brokerkit-*"))


# --- jars and Java --------------------------------------------------------------------------------------------------

#: In Maven's place; it writes a line for each call.
_MAVEN = """#!/bin/sh
echo called >> "{log}"
for each; do case $each in -DoutputDirectory=*) folder=${{each#*=}}; esac; done
{then}
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing but Java and what scripts need, where a test puts its Maven."""
    java = installation_or_skip(OLD).java
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "java").symlink_to(java)
    for name in ("mkdir", "touch", "sleep"):
        (folder / name).symlink_to(shutil.which(name) or pytest.fail(f"no {name}"))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return folder


def maven(programs: Path, then: str) -> Path:
    log = programs.parent / "calls"
    (programs / "mvn").write_text(_MAVEN.format(log=log, then=then))
    (programs / "mvn").chmod(0o755)
    return log


def test_without_maven_the_reason_says_what_to_install(programs: Path, tmp_path: Path) -> None:
    found = find_rocketmq(OLD, cache=tmp_path / "cache")
    assert isinstance(found, Missing)
    assert "apt-get install maven" in found.reason


def test_without_java_the_reason_says_what_to_install(programs: Path) -> None:
    (programs / "java").unlink()
    found = find_rocketmq(OLD)
    assert isinstance(found, Missing)
    assert "there is no Java: apt-get install" in found.reason


def test_an_old_java_is_not_taken(programs: Path) -> None:
    (programs / "java").unlink()
    (programs / "java").write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    (programs / "java").chmod(0o755)
    found = find_rocketmq(OLD)
    assert isinstance(found, Missing)
    assert "no Java 11 or newer" in found.reason and "1.8.0_402" in found.reason


def test_a_failing_maven_is_quoted_without_its_addresses(programs: Path, tmp_path: Path) -> None:
    maven(programs, 'mkdir "$folder"; echo "[ERROR] cannot reach https://user:pw@repo.example/x: timed out"; exit 1')
    with pytest.raises(
        BrokerUnavailable, match=r"could not fetch RocketMQ 4\.9\.4: cannot reach <repository>"
    ) as raised:
        find_rocketmq(OLD, cache=tmp_path / "cache")
    assert "repo.example" not in str(raised.value)
    assert not (tmp_path / "cache" / OLD).exists()


def test_processes_that_need_the_jars_at_once_fetch_them_once(programs: Path, tmp_path: Path) -> None:
    log = maven(programs, 'sleep 0.3; mkdir "$folder"; touch "$folder/rocketmq.jar"')
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(find_rocketmq(OLD, cache=tmp_path / "cache"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    folder = tmp_path / "cache" / OLD
    assert [one.jars for one in found] == [str(folder)] * 3
    assert [jar.name for jar in folder.iterdir()] == ["rocketmq.jar"]
    assert log.read_text() == "called\n"


def test_a_version_is_not_a_path() -> None:
    found = find_rocketmq("../5.5.0")
    assert isinstance(found, Missing)
    assert "'../5.5.0' is no version" in found.reason


# --- finding --------------------------------------------------------------------------------------------------------


def search(environ: Mapping[str, str]) -> object:
    return find_service("rocketmq", providers=[RocketMQProvider()], environ=environ)


def test_the_provider_takes_the_address_of_the_environment(rocketmq_old: RocketMQControl) -> None:
    [name_server] = rocketmq_old.address.name_servers
    url = f"rocketmq://me:p@ss@[::1]:1;{name_server}?x=y"
    found = search({"BROKERKIT_TEST_ROCKETMQ_URL": url})
    assert isinstance(found, ExternalService)
    assert found.url == url


def test_the_provider_says_which_address_does_not_answer() -> None:
    found = search({"BROKERKIT_TEST_ROCKETMQ_URL": "rocketmq://me:the-secret@127.0.0.1:1"})
    assert isinstance(found, Missing)
    assert "127.0.0.1:1 does not answer" in found.reason
    assert "the-secret" not in found.reason


def test_the_provider_takes_the_version_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKERKIT_TEST_ROCKETMQ_VERSION", "newest")
    found = RocketMQProvider().local()
    assert isinstance(found, Missing)
    assert "'newest' is no version: say one like 4.9.4" in found.reason
