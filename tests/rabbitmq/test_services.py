"""Private RabbitMQ nodes as an independent client, pika, sees them."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
import pytest

from brokerkit.errors import BrokerError
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services import ExternalService, Missing, find_service
from brokerkit.testing.services.rabbitmq import (
    Certificate,
    Certificates,
    RabbitMQCluster,
    RabbitMQControl,
    RabbitMQNode,
    RabbitMQProvider,
    binary,
)
from tests.rabbitmq.nodes import installation_or_skip

LONG = 60.0
DURABLE = pika.BasicProperties(delivery_mode=2)
QUORUM = {"x-queue-type": "quorum"}


@contextlib.contextmanager
def channel(url: str, **changes: Any) -> Iterator[Any]:
    """A pika channel with confirms on a connection of its own."""
    parameters = pika.URLParameters(url)
    for name, value in changes.items():
        setattr(parameters, name, value)
    connection = pika.BlockingConnection(parameters)
    try:
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened
    finally:
        with contextlib.suppress(pika.exceptions.AMQPError):
            connection.close()


def refused(url: str, **changes: Any) -> bool:
    """Whether a connection cannot be made."""
    try:
        with channel(url, **changes):
            return False
    except (pika.exceptions.AMQPError, OSError):
        pass
    with warnings.catch_warnings():
        # pika leaves the sockets of a connection that was refused to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return True


def processes_of(directory: Path) -> list[str]:
    """The command lines of all processes that work in a directory or have it in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = os.readlink(process / "cwd")
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if place.startswith(str(directory)) or os.fsencode(directory) in environment:
            found.append(command)
    return found


# --- a node that is left whole ------------------------------------------------------------------------------------


def test_a_node_serves_amqp_on_both_kinds_of_queue(shared_node: RabbitMQControl, vhost: str) -> None:
    with channel(shared_node.address.url(vhost)) as ch:
        ch.queue_declare("classic", durable=True)
        ch.queue_declare("quorum", durable=True, arguments={**QUORUM, "x-delivery-limit": 7})
        for queue in ("classic", "quorum"):
            ch.basic_publish("", queue, b"hello", DURABLE)
        assert ch.basic_get("quorum")[2] == b"hello"
        assert ch.basic_get("classic")[2] == b"hello"
        ch.basic_publish("", "quorum", b"second", DURABLE)

        classic, quorum = shared_node.list_queues(vhost)
        assert (classic.name, classic.type, classic.ready) == ("classic", "classic", 0)
        assert (quorum.name, quorum.type, quorum.ready, quorum.durable) == ("quorum", "quorum", 1, True)
        assert quorum.arguments["x-delivery-limit"] == 7
        eventually_sync(lambda: _unacked(shared_node, "quorum", vhost) == 1, LONG, "the figure of unsettled messages")

        shared_node.delete_queue("quorum", vhost)
        assert shared_node.queue("quorum", vhost) is None


def _unacked(node: RabbitMQControl, queue: str, vhost: str) -> int | None:
    state = node.queue(queue, vhost)
    return None if state is None else state.unacked


def test_virtual_hosts_of_two_tests_do_not_see_each_other(shared_node: RabbitMQControl, vhost: str) -> None:
    other = f"{vhost}/é"
    shared_node.add_vhost(other)
    with channel(shared_node.address.url(vhost)) as ch:
        ch.queue_declare("orders", durable=True)
    with channel(shared_node.address.url(other)) as ch, pytest.raises(pika.exceptions.ChannelClosedByBroker):
        ch.queue_declare("orders", passive=True)
    shared_node.delete_vhost(other)
    assert refused(shared_node.address.url(other))


def test_a_user_may_do_what_it_was_permitted(shared_node: RabbitMQControl, vhost: str) -> None:
    user = f"{vhost}-user"
    url = shared_node.address.url(vhost, user=user, password="first@/")
    shared_node.add_user(user, "first@/", tags=["monitoring"])
    assert refused(url)

    shared_node.set_permissions(user, vhost, configure="^mine", write="^$")
    with channel(url) as ch:
        ch.queue_declare("mine", durable=True)
    with channel(url) as ch, pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
        ch.queue_declare("yours", durable=True)

    shared_node.set_password(user, "second")
    assert refused(url)
    with channel(shared_node.address.url(vhost, user=user, password="second")):
        pass
    shared_node.delete_user(user)
    assert refused(shared_node.address.url(vhost, user=user, password="second"))


def test_the_management_api_and_prometheus_answer(shared_node: RabbitMQControl, vhost: str) -> None:
    address = shared_node.address
    base = f"http://{address.host}:{address.management_port}"
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, base, address.user, address.password)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    with opener.open(f"{base}/api/vhosts", timeout=LONG) as answer:
        assert vhost in answer.read().decode()
    with urllib.request.urlopen(address.prometheus_url, timeout=LONG) as answer:
        assert b"rabbitmq_build_info" in answer.read()


def test_rabbitmqctl_and_expressions_reach_the_node(shared_node: RabbitMQControl) -> None:
    assert "guest" in shared_node.ctl("list_users")
    assert shared_node.evaluate(f"#{{sum => 1 + 1, text => {binary('é')}}}") == {"sum": 2, "text": "é"}
    with pytest.raises(BrokerError, match="no_such_user"):
        shared_node.set_password("nobody", "a secret")
    with pytest.raises(BrokerError, match="syntax error"):
        shared_node.evaluate("1 +")
    with pytest.raises(BrokerError, match=r"rabbitmqctl .* failed"):
        shared_node.ctl("no_such_command")


def test_the_version_is_that_of_the_server(shared_node: RabbitMQControl) -> None:
    running = shared_node.evaluate("list_to_binary(rabbit_misc:version())")
    assert running == shared_node.installation.version
    if os.environ.get("BROKERKIT_TEST_RABBITMQ4") == "1":
        assert shared_node.installation.major >= 4


# --- a node that is broken and repaired ---------------------------------------------------------------------------


def test_a_persistent_message_survives_a_kill(own_node: RabbitMQNode) -> None:
    with channel(own_node.url) as ch:
        for name, arguments in (("survivor.classic", {}), ("survivor.quorum", QUORUM)):
            ch.queue_declare(name, durable=True, arguments=arguments)
            ch.basic_publish("", name, b"still here", DURABLE)
    own_node.sync_queues()
    own_node.kill()
    assert refused(own_node.url)

    own_node.start()
    with channel(own_node.url) as ch:
        for name in ("survivor.classic", "survivor.quorum"):
            assert ch.basic_get(name, auto_ack=True)[2] == b"still here"


def test_a_stop_tells_the_clients_and_keeps_the_address(own_node: RabbitMQNode) -> None:
    url = own_node.url
    listener = pika.BlockingConnection(pika.URLParameters(url))
    own_node.stop()
    assert not own_node.alive
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="CONNECTION_FORCED"):
        listener.process_data_events(time_limit=LONG)

    own_node.start()
    assert own_node.url == url
    with channel(url):
        pass


def test_the_broker_alone_is_stopped_and_started_again(own_node: RabbitMQNode) -> None:
    own_node.stop_app()
    assert own_node.alive
    assert refused(own_node.url)
    own_node.start_app()
    with channel(own_node.url):
        pass


def test_a_suspended_node_is_silent_and_goes_on(own_node: RabbitMQNode) -> None:
    with socket.create_connection((own_node.host, own_node.port), timeout=0.5) as sock:
        own_node.suspend()
        sock.sendall(b"AMQP\x00\x00\x09\x01")
        with pytest.raises(TimeoutError):
            sock.recv(1)
        own_node.resume()
        sock.settimeout(LONG)
        assert sock.recv(1) == b"\x01"


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_an_alarm_blocks_publishers_until_it_ends(own_node: RabbitMQNode, kind: str) -> None:
    raise_alarm = own_node.set_memory_alarm if kind == "memory" else own_node.set_disk_alarm
    blocked: list[bool] = []
    connection = pika.BlockingConnection(pika.URLParameters(own_node.url))
    connection.add_on_connection_blocked_callback(lambda *_: blocked.append(True))
    connection.add_on_connection_unblocked_callback(lambda *_: blocked.append(False))
    ch = connection.channel()

    def heard(state: bool) -> bool:
        connection.process_data_events(time_limit=0.1)
        return blocked[-1:] == [state]

    raise_alarm(True)
    assert own_node.alarms() == {kind}
    ch.basic_publish("", "nowhere", b"the first publish makes it a publisher")
    eventually_sync(lambda: heard(True), LONG, "connection.blocked")
    raise_alarm(False)
    eventually_sync(lambda: heard(False), LONG, "connection.unblocked")
    connection.close()


def test_connections_are_closed_with_a_reason(own_node: RabbitMQNode) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(own_node.url))
    assert own_node.close_connections("maintenance") == 1
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="CONNECTION_FORCED - maintenance"):
        connection.process_data_events(time_limit=LONG)
    eventually_sync(lambda: own_node.connections() == 0, LONG, "the end of the connection")


def test_a_delivery_that_is_kept_too_long_closes_the_channel_within_seconds(own_node: RabbitMQNode) -> None:
    own_node.configure("consumer_timeout", 1000)
    connection = pika.BlockingConnection(pika.URLParameters(own_node.url))
    ch = connection.channel()
    ch.queue_declare("kept", exclusive=True)
    ch.basic_publish("", "kept", b"x")
    ch.basic_consume("kept", lambda *_: None)
    connection.call_later(LONG, ch.stop_consuming)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="timeout"):
        ch.start_consuming()
    connection.close()
    own_node.configure("consumer_timeout", 1_800_000)


# --- TLS ----------------------------------------------------------------------------------------------------------


def _tls(authority: Path, client: Certificate | None = None, host: str = "127.0.0.1") -> dict[str, Any]:
    context = ssl.create_default_context(cafile=str(authority))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return {"ssl_options": pika.SSLOptions(context, host), "connection_attempts": 1}


def test_tls_clients_accept_the_good_certificate_and_refuse_each_bad_one(
    own_node: RabbitMQNode, certificates: Certificates
) -> None:
    url = own_node.address.url(tls=True)
    for host in ("127.0.0.1", "localhost"):
        with channel(url, **_tls(certificates.authority, host=host)) as ch:
            ch.queue_declare("", exclusive=True)
    assert refused(url, **_tls(certificates.unknown_authority))

    for certificate, why in (
        (certificates.server_expired, "expired"),
        (certificates.server_of_other_host, "mismatch"),
        (certificates.server_of_unknown_authority, "unable to get local issuer|self.signed"),
    ):
        own_node.present_certificate(certificate)
        context = ssl.create_default_context(cafile=str(certificates.authority))
        with (
            socket.create_connection((own_node.host, own_node.address.tls_port or 0), timeout=LONG) as sock,
            pytest.raises(ssl.SSLCertVerificationError, match=why),
        ):
            context.wrap_socket(sock, server_hostname="127.0.0.1")
    own_node.present_certificate(certificates.server)
    with channel(url, **_tls(certificates.authority)):
        pass


def test_a_server_that_verifies_asks_clients_for_a_certificate(
    own_node: RabbitMQNode, certificates: Certificates
) -> None:
    own_node.options = dataclasses.replace(own_node.options, verify_peer=True)
    own_node.kill()
    own_node.start()
    url = own_node.address.url(tls=True)
    with channel(url, **_tls(certificates.authority, certificates.client)) as ch:
        ch.queue_declare("", exclusive=True)
    assert refused(url, **_tls(certificates.authority))
    assert refused(url, **_tls(certificates.authority, certificates.client_of_unknown_authority))


# --- a cluster ----------------------------------------------------------------------------------------------------


def test_a_quorum_queue_survives_the_death_of_its_leader() -> None:
    with RabbitMQCluster(3, installation=installation_or_skip()) as cluster:
        with channel(cluster.nodes[1].url) as ch:
            ch.queue_declare("orders", durable=True, arguments=QUORUM)
            for number in range(10):
                ch.basic_publish("", "orders", str(number).encode(), DURABLE)
        leader = cluster.leader_of("orders")
        leader.kill()

        survivor = next(node for node in cluster.nodes if node.alive)
        eventually_sync(lambda: cluster.leader_of("orders") is not leader, LONG, "a new leader")
        with channel(survivor.url) as ch:
            ch.basic_publish("", "orders", b"10", DURABLE)
            bodies = [int(ch.basic_get("orders", auto_ack=True)[2]) for _ in range(11)]
        assert bodies == list(range(11))

        cluster.start()
        assert all(node.alive for node in cluster.nodes)
        assert cluster.url.count(",") == 2


# --- processes ----------------------------------------------------------------------------------------------------

_STARTS_A_NODE = """
import sys
from brokerkit.testing.services.rabbitmq import RabbitMQNode, chosen_installation
node = RabbitMQNode(installation=chosen_installation())
node.start()
print(node.url, flush=True)
sys.stdin.readline()
node.close()
print("closed", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc to look for processes in")
@pytest.mark.parametrize("end", ["close", "kill"])
def test_no_process_is_left_behind(tmp_path: Path, end: str) -> None:
    installation_or_skip()
    program = subprocess.Popen(
        [sys.executable, "-c", _STARTS_A_NODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with program:
        assert program.stdin is not None and program.stdout is not None
        url = program.stdout.readline().strip()
        with channel(url):
            assert {"beam.smp", "epmd"} <= {_name(line) for line in processes_of(tmp_path)}
        if end == "close":
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "closed\n"
        program.send_signal(signal.SIGKILL)
    eventually_sync(lambda: not processes_of(tmp_path), LONG, "the end of all processes of the node")
    if end == "close":
        assert not list(tmp_path.iterdir())


def _name(command: str) -> str:
    return Path(command.partition(" ")[0]).name


# --- finding ------------------------------------------------------------------------------------------------------


def test_the_provider_takes_the_address_of_the_environment(shared_node: RabbitMQControl) -> None:
    address = shared_node.address
    url = f"amqp://guest:p@ss@[::1]:1,{address.host}:{address.port}/x"
    found = find_service("rabbitmq", providers=[RabbitMQProvider()], environ={"BROKERKIT_TEST_RABBITMQ_URL": url})
    assert isinstance(found, ExternalService)
    assert found.url == url


def test_the_provider_says_which_address_does_not_answer() -> None:
    url = "amqp://guest:the-secret@127.0.0.1:1"
    found = find_service("rabbitmq", providers=[RabbitMQProvider()], environ={"BROKERKIT_TEST_RABBITMQ_URL": url})
    assert isinstance(found, Missing)
    assert "127.0.0.1:1 does not answer" in found.reason
    assert "the-secret" not in found.reason
