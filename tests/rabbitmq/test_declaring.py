"""Adopted topologies as the configuration names them: what is made, what is refused, what is left alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
import pytest
import yaml

from brokerkit import Delivery, Reject
from brokerkit.errors import TopicNotFound, TopologyConflict, Unroutable
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from tests.rabbitmq.peers import LONG, connected, peer, publish, queues, take

#: What the delays of a connection need, whatever its topics are.
LOST = "bk.delay.lost"

Declare = Callable[[Any], None]


@pytest.fixture
def url(shared_node: RabbitMQControl, vhost: str) -> str:
    return shared_node.address.url(vhost)


# --- declare: auto | verify | never -------------------------------------------------------------------------------

JOBS = """
topics:
  jobs:
    declare: {declare}
    rabbitmq: {{exchange: jobs, exchange_type: direct, routing_key: jobs}}
    groups:
      workers: {{rabbitmq: {{queue: jobs}}}}
"""


def test_declare_auto_makes_what_is_missing(shared_node: RabbitMQControl, vhost: str, url: str) -> None:
    with connected(url, JOBS.format(declare="auto")) as manager:
        manager.send("jobs", "one")

    assert queues(shared_node, vhost)["jobs"] == ("classic", {})


@pytest.mark.parametrize("mode", ["verify", "never"])
def test_declare_verify_and_never_make_nothing(shared_node: RabbitMQControl, vhost: str, url: str, mode: str) -> None:
    with connected(url, JOBS.format(declare=mode) + "send_timeout: 2\n") as manager, pytest.raises(TopicNotFound):
        manager.send("jobs", "one")

    assert queues(shared_node, vhost) == {}


@pytest.mark.parametrize("mode", ["verify", "never"])
def test_declare_verify_and_never_take_what_exists_as_it_is(
    shared_node: RabbitMQControl, vhost: str, url: str, mode: str
) -> None:
    with peer(url) as channel, connected(url, JOBS.format(declare=mode)) as manager:
        channel.exchange_declare("jobs", "fanout", durable=False)
        channel.queue_declare("jobs", durable=True, arguments={"x-max-length": 1000})
        channel.queue_bind("jobs", "jobs", "another key")

        manager.send("jobs", "one")
        with manager.consume("jobs", group="workers") as deliveries:
            delivery = next(iter(deliveries))
            assert delivery.payload(str) == "one"
            delivery.ack()

    assert queues(shared_node, vhost) == {"jobs": ("classic", {"x-max-length": 1000})}


@pytest.mark.parametrize("mode", ["verify", "never"])
def test_a_dead_letter_without_a_queue_is_not_lost(url: str, mode: str) -> None:
    seen: list[int] = []
    with peer(url) as channel, connected(url, JOBS.format(declare=mode)) as manager:
        channel.exchange_declare("jobs", "direct", durable=True)
        channel.queue_declare("jobs", durable=True)
        channel.queue_bind("jobs", "jobs", "jobs")

        @manager.handler("jobs", group="workers")
        def refuse(text: str, delivery: Delivery) -> None:
            seen.append(delivery.attempt)
            raise Reject("no")

        manager.start()
        manager.send("jobs", "one")
        eventually_sync(lambda: len(seen) >= 2, within=LONG, what="the message comes again")

        # As soon as somebody makes the queue, with whatever arguments, the letter is stored.
        channel.queue_declare("jobs:workers:dead", durable=True)
        letter = take(channel, "jobs:workers:dead")
        assert (letter.body, letter.headers["bk-dead-reason"]) == (b"one", "rejected")


def test_verify_names_the_queue_that_is_missing(url: str) -> None:
    with peer(url) as channel, connected(url, JOBS.format(declare="verify")) as manager:
        channel.exchange_declare("jobs", "direct", durable=True)

        with pytest.raises(TopicNotFound, match="no queue 'jobs'"):
            manager.send("jobs", "one")


# --- publish-only -------------------------------------------------------------------------------------------------

PUBLISHER = "topics: {jm.llm: {rabbitmq: {exchange: jm.llm, exchange_type: direct, routing_key: jm.llm}}}\n"


def test_a_publisher_declares_the_exchange_and_no_queue(shared_node: RabbitMQControl, vhost: str, url: str) -> None:
    with peer(url) as channel, connected(url, PUBLISHER) as manager:
        with pytest.raises(Unroutable):
            manager.send("jm.llm", "nobody is there")
        assert [queue.name for queue in shared_node.list_queues(vhost)] == [LOST]

        channel.queue_declare("jm.llm", durable=True)
        channel.queue_bind("jm.llm", "jm.llm", "jm.llm")
        manager.send("jm.llm", "somebody is there")
        assert take(channel, "jm.llm").body == b"somebody is there"


def test_without_delays_a_connection_declares_nothing_of_its_own(
    shared_node: RabbitMQControl, vhost: str, url: str
) -> None:
    with peer(url) as channel, connected(f"{url}?delay=false", PUBLISHER) as manager:
        manager.admin.declare("jm.llm")

        channel.exchange_declare("jm.llm", passive=True)
        assert shared_node.list_queues(vhost) == []
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="no exchange 'bk"):
            channel.exchange_declare("bk.delay.out", passive=True)


def test_a_publisher_may_drop_what_nobody_takes(url: str) -> None:
    with connected(url, PUBLISHER.replace("{rabbitmq", "{unroutable: drop, rabbitmq")) as manager:
        assert manager.send("jm.llm", "nobody is there")


# --- conflicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exists", "configured", "argument"),
    [
        (lambda ch: ch.queue_declare("q", durable=True), {"arguments": {"x-max-priority": 5}}, "x-max-priority"),
        (lambda ch: ch.queue_declare("q", durable=True), {"queue_type": "quorum"}, "x-queue-type"),
        (lambda ch: ch.queue_declare("q", durable=True, arguments={"x-max-length": 9}), {}, "x-max-length"),
        (lambda ch: ch.queue_declare("q", durable=True, arguments={"x-message-ttl": 9}), {}, "x-message-ttl"),
        (lambda ch: ch.queue_declare("q", durable=False), {}, "durable"),
        (lambda ch: ch.queue_declare("q", durable=True), {"auto_delete": True}, "auto_delete"),
        (lambda ch: ch.exchange_declare("e", "fanout", durable=True), {}, "type"),
        (lambda ch: ch.exchange_declare("e", "direct", durable=False), {}, "durable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_conflict_names_the_argument_that_differs(
    url: str, exists: Declare, configured: dict[str, Any], argument: str
) -> None:
    section = {"queue": "q", **configured}
    configuration = f"""
topics:
  t:
    rabbitmq: {{exchange: e, exchange_type: direct, routing_key: k}}
    groups: {{g: {{rabbitmq: {section}}}}}
"""
    with peer(url) as channel, connected(url, configuration) as manager:
        exists(channel)

        with pytest.raises(TopologyConflict, match=f"exists with another '{argument}'") as caught:
            manager.send("t", "text")
        assert (caught.value.topic, caught.value.retryable) == ("t", False)


def test_a_queue_that_has_our_name_and_other_arguments_is_a_conflict(url: str) -> None:
    with peer(url) as channel, connected(url) as manager:
        channel.queue_declare("orders:billing", durable=True)

        with pytest.raises(TopologyConflict, match="queue 'orders:billing' exists with another 'x-"):
            manager.admin.declare("orders", "billing")


# --- the documentation --------------------------------------------------------------------------------------------


def examples() -> list[str]:
    """The configurations of docs/rabbitmq.md that declare topics."""
    page = Path(__file__).parents[2] / "docs" / "rabbitmq.md"
    found = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for text in found if "topics:" in text]


@pytest.mark.parametrize("configuration", examples(), ids=lambda text: ",".join(yaml.safe_load(text)["topics"]))
def test_the_examples_of_the_page_about_rabbitmq_can_be_declared(url: str, configuration: str) -> None:
    with connected(url, configuration) as manager:
        for topic in yaml.safe_load(configuration)["topics"]:
            manager.admin.declare(topic)
            manager.admin.verify(topic)


# --- queues that go with their consumer, as the pods of system B have them ------------------------------------------


@pytest.mark.parametrize("kind", ["exclusive", "auto_delete"])
def test_a_queue_of_one_consumer_is_made_again_after_a_loss_and_goes_with_it(
    shared_node: RabbitMQControl, vhost: str, url: str, kind: str
) -> None:
    configuration = f"""
topics:
  orders:
    rabbitmq: {{exchange: orders, exchange_type: direct, routing_key: created}}
    groups:
      pod-1: {{rabbitmq: {{queue: orders.pod-1, durable: false, {kind}: true}}}}
"""
    handled: list[str] = []
    address = shared_node.address
    with peer(url) as channel, FaultProxy(address.host, address.port) as proxy:
        with connected(proxy.url_for(url), configuration) as manager:

            @manager.handler("orders", group="pod-1")
            def bill(text: str) -> None:
                handled.append(text)

            manager.start()
            publish(channel, "orders", "created", b"one")
            eventually_sync(lambda: handled == ["one"], within=LONG)
            proxy.reset()

            # Until the broker has seen the loss, the old queue may still take a message, and lose it.
            eventually_sync(
                lambda: reaches(channel, "orders", "created", b"two") and "two" in handled,
                within=LONG,
                what="it is back",
            )
        eventually_sync(lambda: shared_node.queue("orders.pod-1", vhost) is None, within=LONG)


def reaches(channel: Any, exchange: str, key: str, body: bytes) -> bool:
    """Whether a message that is sent now gets into a queue."""
    try:
        publish(channel, exchange, key, body)
    except pika.exceptions.UnroutableError:
        return False
    return True
