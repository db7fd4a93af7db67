"""The queues of systems A, B, C and E: a pika peer declares them its own way, and both sides work them together."""

from __future__ import annotations

import threading
import time
from typing import Any

import pika
import pytest

from brokerkit import Capability, Message, Reject
from brokerkit.errors import CapabilityNotSupported
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from tests.rabbitmq.peers import LONG, connected, peer, publish, queues, take


@pytest.fixture
def url(shared_node: RabbitMQControl, vhost: str) -> str:
    return shared_node.address.url(vhost)


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
        outcomes = manager.send_many("event_tasks", ["nobody takes it"] * 40, delay=1.0)
        assert [outcome.error for outcome in outcomes if outcome.error is not None] == []
        manager.send("task_results", "result", delay=1.5)

        assert take(channel, "task_results").body == b"result"


def test_there_is_no_broadcast_behind_the_default_exchange(url: str) -> None:
    with connected(url, E) as manager:
        manager.connect()
        assert Capability.BROADCAST not in manager.capabilities("event_tasks")
        assert Capability.BROADCAST in manager.capabilities("other")

        manager.handler("event_tasks", broadcast=True)(print)
        with pytest.raises(CapabilityNotSupported, match="broadcast"):
            manager.start()
