"""The queues of systems A, B, C and E: a pika peer declares them its own way, and both sides work them together."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
import pytest
import yaml

from brokerkit import Capability, Delivery, Message, Reject
from brokerkit.errors import CapabilityNotSupported, TopicNotFound, TopologyConflict, Unroutable
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from tests.rabbitmq.peers import LONG, connected, peer, take

#: What the delays of a connection need, whatever its topics are.
LOST = "bk.delay.lost"

Declare = Callable[[Any], None]


@pytest.fixture
def url(shared_node: RabbitMQControl, vhost: str) -> str:
    return shared_node.address.url(vhost)


def queues(node: RabbitMQControl, vhost: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Type and arguments of the queues, by name; without those of delays that were used."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for queue in node.list_queues(vhost):
        if queue.name.startswith(("bk.delay.", "bk.due.")):
            continue
        arguments = dict(queue.arguments)
        if node.installation.major >= 4 and queue.type == "classic":
            # From 4.0 on the broker writes its default type into a queue that is declared without one.
            arguments.pop("x-queue-type", None)
        found[queue.name] = (queue.type, arguments)
    return found


def publish(channel: Any, exchange: str, key: str, body: bytes, **properties: Any) -> None:
    channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties), mandatory=True)


# --- C: queues without arguments, each bound to a direct exchange of its own name ---------------------------------

JM = ("jm.llm", "jm.coreRecordEvent", "jm.embed", "jm.sd", "jm.asr")
C = "topics:\n" + "".join(
    f"""
  {name}:
    retry: {{base_delay: 0.1, jitter: none}}
    rabbitmq: {{exchange: {name}, exchange_type: direct, routing_key: {name}}}
    groups:
      workers: {{rabbitmq: {{queue: {name}}}}}
"""
    for name in JM
)


def declare_c(channel: Any) -> None:
    for name in JM:
        channel.exchange_declare(name, "direct", durable=True)
        channel.queue_declare(name, durable=True)
        channel.queue_bind(name, name, name)


@pytest.mark.parametrize("first", ["peer", "brokerkit"])
def test_system_c_shares_its_queues(shared_node: RabbitMQControl, vhost: str, url: str, first: str) -> None:
    handled: list[tuple[str, str, str | None, str | None, int]] = []
    with peer(url) as channel, connected(url, C) as manager:
        if first == "peer":
            declare_c(channel)
        for name in JM:
            manager.send(name, f"from us to {name}", type="job")
        declare_c(channel)
        for name in JM:
            ours = take(channel, name)
            assert (ours.deliver.exchange, ours.deliver.routing_key) == (name, name)
            assert ours.body == f"from us to {name}".encode()
            assert (ours.properties.type, ours.properties.delivery_mode) == ("job", 2)
            assert ours.properties.content_type.startswith("text/plain")

        @manager.handler("jm.llm", group="workers")
        def work(text: str, message: Message) -> None:
            handled.append((text, message.topic or "", message.tag, message.type, message.attempt))
            if message.attempt == 1:
                raise ConnectionError("try again")

        manager.start()
        publish(channel, "jm.llm", "jm.llm", b"from them", content_type="text/plain", type="job", delivery_mode=2)
        eventually_sync(lambda: len(handled) == 2, within=LONG, what="both attempts")
        declare_c(channel)

    # The second attempt came back through a delay, to this queue and to no other.
    assert handled == [("from them", "jm.llm", None, "job", 1), ("from them", "jm.llm", None, "job", 2)]
    found = queues(shared_node, vhost)
    assert {name: found[name] for name in JM} == {name: ("classic", {}) for name in JM}
    # Beside them only our own queues for dead letters.
    assert set(found) == {*JM, *(f"{name}:workers:dead" for name in JM)}


def test_a_delayed_message_reaches_an_adopted_direct_exchange_when_it_is_due(url: str) -> None:
    with peer(url) as channel, connected(url, C) as manager:
        declare_c(channel)
        sent = time.time()
        manager.send("jm.asr", "later", delay=0.5)

        came = take(channel, "jm.asr")
        assert came.body == b"later" and time.time() - sent >= 0.5


# --- B: an exchange, a queue that knows its dead exchange, and the queue of the dead ------------------------------

B = """
topics:
  orders:
    rabbitmq: {exchange: orders, exchange_type: direct, routing_key: created}
    groups:
      billing:
        rabbitmq:
          queue: orders.billing
          arguments: {x-dead-letter-exchange: orders.dead}
          dead_queue: orders.dead
"""


def declare_b(channel: Any) -> None:
    channel.exchange_declare("orders", "direct", durable=True)
    channel.exchange_declare("orders.dead", "fanout", durable=True)
    channel.queue_declare("orders.billing", durable=True, arguments={"x-dead-letter-exchange": "orders.dead"})
    channel.queue_declare("orders.dead", durable=True)
    channel.queue_bind("orders.billing", "orders", "created")
    channel.queue_bind("orders.dead", "orders.dead", "")


@pytest.mark.parametrize("first", ["peer", "brokerkit"])
def test_system_b_shares_its_queues_and_its_dead_letters(
    shared_node: RabbitMQControl, vhost: str, url: str, first: str
) -> None:
    handled: list[str] = []
    with peer(url) as channel, connected(url, B) as manager:
        if first == "peer":
            declare_b(channel)
        manager.admin.declare("orders")
        declare_b(channel)
        manager.send("orders", "ours", parent="the-parent")
        ours = take(channel, "orders.billing")
        assert (ours.body, ours.deliver.routing_key, ours.headers["bk-parent"]) == (b"ours", "created", "the-parent")

        # One that expired, which the broker moves, and one that a handler gives up.
        publish(channel, "orders", "created", b"expired", expiration="1", message_id="expired", type="created")
        eventually_sync(lambda: channel.queue_declare("orders.dead", passive=True).method.message_count, within=LONG)

        @manager.handler("orders", group="billing")
        def bill(text: str) -> None:
            handled.append(text)
            if text == "bad":
                raise Reject("no customer")

        manager.start()
        publish(channel, "orders", "created", b"bad", message_id="bad")
        eventually_sync(lambda: len(manager.admin.dead_letters("orders", "billing")) == 2, within=LONG)
        letters = {letter.id: letter for letter in manager.admin.dead_letters("orders", "billing")}
        assert (letters["bad"].reason, letters["bad"].error) == ("rejected", "no customer")
        assert letters["expired"].reason is None and letters["expired"].message.type == "created"

        # The one of the broker can be redriven like ours; the other is there for the tools of the peer.
        assert manager.admin.redrive("orders", "billing", ["expired"]) == 1
        eventually_sync(lambda: handled == ["bad", "expired"], within=LONG)
        dead = take(channel, "orders.dead")
        assert (dead.body, dead.properties.message_id) == (b"bad", "bad")
        assert (dead.headers["bk-dead-reason"], dead.headers["bk-dead-text"]) == ("rejected", "no customer")
        declare_b(channel)

    assert queues(shared_node, vhost) == {
        "orders.billing": ("classic", {"x-dead-letter-exchange": "orders.dead"}),
        "orders.dead": ("classic", {}),
    }


# --- A: beats on a topic exchange, pings on the default exchange --------------------------------------------------

A = """
topics:
  kc.presence:
    unroutable: drop
    rabbitmq: {exchange: kc.presence}
    groups:
      watch: {rabbitmq: {queue: kc.presence.watch.us, bindings: ["heartbeat.*"], auto_delete: true}}
  ping-them:
    rabbitmq: {exchange: "", routing_key: kc.presence.ping.them}
  ping-us:
    rabbitmq: {exchange: "", routing_key: kc.presence.ping.us}
    groups:
      responder: {rabbitmq: {queue: kc.presence.ping.us}}
"""


def declare_a(channel: Any) -> None:
    channel.exchange_declare("kc.presence", "topic", durable=True)
    channel.queue_declare("kc.presence.watch.them", auto_delete=True, exclusive=True)
    channel.queue_bind("kc.presence.watch.them", "kc.presence", "heartbeat.*")
    channel.queue_declare("kc.presence.ping.us", durable=True)
    channel.queue_declare("kc.presence.ping.them", durable=True)


@pytest.mark.parametrize("first", ["peer", "brokerkit"])
def test_system_a_shares_its_beats_and_pings(shared_node: RabbitMQControl, vhost: str, url: str, first: str) -> None:
    beats: list[tuple[str | None, Any]] = []
    with peer(url) as channel, connected(url, A) as manager:

        @manager.handler("kc.presence", group="watch")
        def watch(beat: dict[str, Any], message: Message) -> None:
            beats.append((message.tag, beat))

        @manager.handler("ping-us", group="responder")
        async def answer(question: dict[str, Any]) -> dict[str, Any]:
            return {"pong": question["ping"]}

        if first == "peer":
            declare_a(channel)
        manager.start()
        declare_a(channel)

        # Theirs reaches both watchers, and ours too.
        publish(channel, "kc.presence", "heartbeat.them", b'{"at": 1}', expiration="15000", delivery_mode=1)
        eventually_sync(lambda: beats == [("heartbeat.them", {"at": 1})], within=LONG)
        assert take(channel, "kc.presence.watch.them").deliver.routing_key == "heartbeat.them"
        manager.send("kc.presence", {"at": 2}, tag="heartbeat.us", ttl=15, native={"persistent": False})
        ours = take(channel, "kc.presence.watch.them")
        assert (ours.deliver.routing_key, ours.body) == ("heartbeat.us", b'{"at":2}')
        assert (ours.properties.delivery_mode, ours.properties.content_type) == (1, "application/json")
        eventually_sync(lambda: beats[1:] == [("heartbeat.us", {"at": 2})], within=LONG)

        # They ping us.
        replies = channel.queue_declare("", exclusive=True).method.queue
        publish(channel, "", "kc.presence.ping.us", b'{"ping": 7}', reply_to=replies, correlation_id="c-7")
        pong = take(channel, replies)
        assert (pong.body, pong.properties.correlation_id) == (b'{"pong":7}', "c-7")
        declare_a(channel)

    found = queues(shared_node, vhost)
    assert found["kc.presence.ping.us"] == ("classic", {})
    assert "kc.presence.watch.us" not in found, "it is auto_delete"


def test_a_responder_of_system_a_answers_our_requests(url: str) -> None:
    with peer(url) as channel, connected(url, A) as manager:
        declare_a(channel)

        def respond(responding: Any, deliver: Any, properties: Any, body: bytes) -> None:
            answer = pika.BasicProperties(correlation_id=properties.correlation_id, content_type="application/json")
            responding.basic_publish("", properties.reply_to, b'{"answer": %b}' % body, answer)

        channel.basic_consume("kc.presence.ping.them", respond, auto_ack=True)
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(manager.request("ping-them", {"ping": 1}, reply=dict, timeout=LONG))
        )
        asking.start()
        while asking.is_alive():
            channel.connection.process_data_events(0.1)
        asking.join()

    assert answers == [{"answer": {"ping": 1}}]


# --- E: queues behind the default exchange ------------------------------------------------------------------------

DIAGNOSIS = ("diagnosis_tasks", "event_tasks", "ai_service_tasks", "task_results", "worker_heartbeats")
E = "topics:\n" + "".join(
    f"""
  {name}:
    rabbitmq: {{exchange: "", routing_key: {name}}}
    groups:
      workers: {{rabbitmq: {{queue: {name}}}}}
"""
    for name in DIAGNOSIS
)


def declare_e(channel: Any) -> None:
    for name in DIAGNOSIS:
        channel.queue_declare(name, durable=True)


@pytest.mark.parametrize("first", ["peer", "brokerkit"])
def test_system_e_shares_its_queues(shared_node: RabbitMQControl, vhost: str, url: str, first: str) -> None:
    with peer(url) as channel, connected(url, E) as manager:
        if first == "peer":
            declare_e(channel)
        for name in DIAGNOSIS:
            manager.send(name, {"to": name})
        declare_e(channel)
        for name in DIAGNOSIS:
            ours = take(channel, name)
            assert (ours.deliver.exchange, ours.deliver.routing_key) == ("", name)
            assert ours.properties.content_type == "application/json"

        @manager.handler("diagnosis_tasks", group="workers")
        def diagnose(task: dict[str, Any], message: Message) -> Message:
            assert message.tag is None
            return Message.of({"result": task["id"]}, topic="task_results", parent_id=message.message_id)

        manager.start()
        publish(channel, "", "diagnosis_tasks", b'{"id": 5}', delivery_mode=2)
        assert take(channel, "task_results").body == b'{"result":5}'
        manager.send("event_tasks", "later", delay=0.3)
        assert take(channel, "event_tasks").body == b"later"
        declare_e(channel)

    found = queues(shared_node, vhost)
    assert {name: found[name] for name in DIAGNOSIS} == {name: ("classic", {}) for name in DIAGNOSIS}
    assert set(found) == {*DIAGNOSIS, *(f"{name}:workers:dead" for name in DIAGNOSIS)}


def test_a_missing_queue_behind_the_default_exchange_holds_up_no_delay_of_the_others(url: str) -> None:
    # The worker of the broker that moves messages of a quorum queue stops at 32 that cannot be delivered.
    configuration = E.replace("  event_tasks:\n", "  event_tasks:\n    declare: never\n")
    with peer(url) as channel, connected(url, configuration) as manager:
        channel.queue_declare("task_results", durable=True)
        outcomes = manager.send_many("event_tasks", ["nobody takes it"] * 40, delay=0.1)
        assert [outcome.error for outcome in outcomes if outcome.error is not None] == []
        manager.send("task_results", "result", delay=0.5)

        assert take(channel, "task_results").body == b"result"


def test_there_is_no_broadcast_behind_the_default_exchange(url: str) -> None:
    with connected(url, E) as manager:
        manager.connect()
        assert Capability.BROADCAST not in manager.capabilities("event_tasks")
        assert Capability.BROADCAST in manager.capabilities("other")

        manager.handler("event_tasks", broadcast=True)(print)
        with pytest.raises(CapabilityNotSupported, match="broadcast"):
            manager.start()


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
