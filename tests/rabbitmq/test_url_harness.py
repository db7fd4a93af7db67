"""What the conformance suite can do to a RabbitMQ of which it has nothing but the URL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from brokerkit.spi import BrokerUrl
from brokerkit.testing.conformance import harness_for
from brokerkit.testing.harness import HOOKS
from brokerkit.testing.rabbitmq import RabbitMQUrlHarness
from brokerkit.testing.services.rabbitmq import Certificates, RabbitMQControl, RabbitMQNode

ROOT = Path(__file__).parents[2]
#: One case for each way in which a hook gets at the broker.
CASES = (
    "test_wrong_credentials",
    "test_failover_url_list",
    "test_foreign_message_is_delivered",
    "test_refused_send_is_an_error",
    "test_unsettled_redelivered_after_connection_loss",
)


def made(url: str) -> RabbitMQUrlHarness:
    harness = harness_for(url)
    assert isinstance(harness, RabbitMQUrlHarness)
    return harness


def hosts(url: str | None) -> list[str]:
    return [f"{host}:{port}" for host, port in BrokerUrl.parse(url or "").hosts]


def test_only_a_node_of_ones_own_can_be_stopped_and_killed() -> None:
    harness = made("amqp://broker/shop")

    assert {hook for hook in HOOKS if not harness.offers(hook)} == {"restart", "kill"}


def test_the_urls_of_a_harness_differ_in_what_they_are_for_and_nothing_else() -> None:
    harness = made("amqp://me:s3cret@one,two:5673/shop?window=7&port=5670&max_message_size=1000")
    bad, dead = BrokerUrl.parse(harness.bad_url or ""), BrokerUrl.parse(harness.unreachable_url or "")
    failover = BrokerUrl.parse(harness.failover_url or "")

    assert hosts(harness.bad_url) == ["one:5670", "two:5673"]
    assert (bad.user, bad.path) == ("me", "shop")
    assert bad.password not in (None, "s3cret")
    assert hosts(harness.failover_url)[1:] == ["one:5670", "two:5673"]
    assert (failover.user, failover.password, failover.path) == ("me", "s3cret", "shop")
    assert [host for host, _ in dead.hosts] == ["127.0.0.1"]
    assert all(url.query == {"window": "7", "max_message_size": "1000"} for url in (bad, dead, failover))
    assert harness.max_bytes == 1000


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://", ["127.0.0.1:5672"]),
        ("amqps://broker", ["broker:5671"]),
        ("amqp://broker?tls=true", ["broker:5671"]),
        ("amqp:///?host=broker&port=99", ["broker:99"]),
        ("amqp://[::1]:99", ["::1:99"]),
    ],
)
def test_the_hosts_are_those_that_a_manager_connects_to(url: str, expected: list[str]) -> None:
    assert hosts(made(url).bad_url) == expected


@pytest.mark.parametrize("query", ["credentials=vault:login", "mechanism=EXTERNAL"])
def test_without_a_password_there_is_none_to_spoil(query: str) -> None:
    harness = made(f"amqps://broker?{query}")

    assert not harness.offers("bad_url")
    assert not harness.offers("inject_foreign")
    assert harness.offers("freeze")


def run_cases(url: str) -> str:
    """Run `CASES` in a process of their own, as the command does; return its output."""
    command = [sys.executable, "-m", "brokerkit", "conformance", url, "-k", " or ".join(CASES)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_url_is_enough_for_faults_and_nothing_of_them_stays(shared_node: RabbitMQControl, vhost: str) -> None:
    said = run_cases(f"{shared_node.address.url(vhost)}?management_url=")

    assert f"{len(CASES)} passed" in said
    left = {queue.name for queue in shared_node.list_queues(vhost)}
    assert {name for name in left if not name.startswith("bk.delay.")} == set()


def test_faults_of_a_link_with_tls_are_made_without_giving_up_to_verify(
    own_node: RabbitMQNode, own_vhost: str, certificates: Certificates
) -> None:
    said = run_cases(f"{own_node.address.url(own_vhost, tls=True)}?ca_file={certificates.authority}")

    assert f"{len(CASES)} passed" in said
