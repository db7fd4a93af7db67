"""The official Java client beside brokerkit on one broker, of the same version: each reads what the other sends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.rocketmq.peers.process import Peer
from brokerkit.testing.services.rocketmq import RocketMQControl
from tests.interop.rocketmq_scene import LONG, SENT, Scene, receive, started_java

#: More than the 4,096 bytes from which on the Java client compresses.
LARGE = b"compressible " * 1_000
BODIES = {
    "json": b'{"id":1}',
    "text": "grüße, 世界".encode(),
    "nul": b"a\x00b\x00",
    "binary": bytes(range(256)),
    "large": LARGE,
}


@pytest.fixture
def scene(rocketmq: RocketMQControl, tmp_path: Path) -> Scene:
    return Scene(rocketmq, tmp_path)


@pytest.fixture
def java(scene: Scene) -> Iterator[Peer]:
    with started_java(scene) as peer:
        yield peer


def is_new(scene: Scene) -> bool:
    return scene.server.address.major >= 5


# --- it reads what we send ----------------------------------------------------------------------------------------


def test_java_reads_what_we_send(scene: Scene, java: Peer) -> None:
    with scene.manager(section={"compress_over": 1_000}) as manager:
        for name, body in BODIES.items():
            manager.send(scene.topic, body, message_id=f"id-{name}", **SENT)

        java.consume(scene.topic, scene.other)
        came = {one.id: one for one in java.take(len(BODIES))}
    assert {one.id.removeprefix("id-"): one.body for one in came.values()} == BODIES
    for one in came.values():
        assert (one.topic, one.tag, one.keys, one.reconsumed) == (scene.topic, "new-eu", "customer-7", 0)
        properties = one.properties
        assert {name: properties[name] for name in ("source", "café")} == {"source": "web", "café": "münchen"}
        assert (properties["bk-type"], properties["CORRELATION_ID"], properties["bk-prio"]) == ("created", "c-1", "7")


def test_java_reads_a_batch_of_ours_and_filters_it_by_tag(scene: Scene, java: Peer) -> None:
    with scene.manager() as manager:
        # What is under way together goes out in native batches.
        for outcome in manager.send_many(scene.topic, [f"new {number}" for number in range(100)], tag="new"):
            assert outcome.error is None
        manager.send_many(scene.topic, [f"old {number}" for number in range(100)], tag="old")

        java.consume(scene.topic, scene.other, tag="new||other")
        came = java.take(100)
    assert {one.body.decode() for one in came} == {f"new {number}" for number in range(100)}
    assert len({one.id for one in came}) == 100
    assert java.seen() == []


def test_java_reads_an_empty_body_of_ours(scene: Scene, java: Peer) -> None:
    with scene.manager() as manager:
        manager.send(scene.topic, b"", message_id="empty")

        java.consume(scene.topic, scene.other)
        (came,) = java.take()
    # A broker of 5.x refuses an empty body, and a Java member of 4.9 never gets past one: a byte stands for it.
    assert (came.body, came.properties["bk-empty"]) == (b"\x00", "1")


def test_java_gets_a_delayed_message_of_ours_about_when_it_is_due(scene: Scene, java: Peer) -> None:
    with scene.manager() as manager:
        java.consume(scene.topic, scene.other)
        sent = time.time()
        manager.send(scene.topic, "later", delay=8)

        (came,) = java.take()
    # 4.9: the level of 5 s, the longest that fits.  5.x: a timer, set a second early, as timers are late.
    assert came.time - sent >= (6.9 if is_new(scene) else 4.9)
    assert float(came.properties["bk-due"]) == pytest.approx(sent + 8, abs=5)


def test_java_reads_an_ordered_topic_of_ours_in_order(scene: Scene, java: Peer) -> None:
    with scene.manager(ordered=True) as manager:
        manager.send_many(scene.topic, [str(number) for number in range(300)], key="one")

        java.consume(scene.topic, scene.other, ordered=1)
        came = java.take(300)
    assert [int(one.body) for one in came] == list(range(300))
    assert {one.keys for one in came} == {"one"}


# --- we read what it sends ----------------------------------------------------------------------------------------


def test_we_read_what_java_sends(scene: Scene, java: Peer) -> None:
    with scene.manager() as manager:
        ids = {}
        for name, body in BODIES.items():
            properties = {"source": "web", "größe": "5", "name": name}
            told = java.send(scene.topic, body, tag="new-eu", keys="k1 k2", properties=properties)
            ids[name] = told["id"]

        came = {one.message.headers["name"]: one for one in receive(manager, scene.topic, len(BODIES))}
    assert {name: one.message.body for name, one in came.items()} == BODIES
    for name, one in came.items():
        message = one.message
        assert (message.message_id, message.tag, message.key, message.attempt) == (ids[name], "new-eu", "k1 k2", 1)
        assert dict(message.headers) == {"source": "web", "größe": "5", "name": name}
        assert message.timestamp is not None and abs(message.timestamp - time.time()) < LONG


def test_we_read_a_batch_of_java_each_message_by_itself(scene: Scene, java: Peer) -> None:
    with scene.manager() as manager:
        java.send_batch(scene.topic, [(str(number).encode(), {"tag": f"t{number % 2}"}) for number in range(20)])

        came = [one.message for one in receive(manager, scene.topic, 20)]
    assert {(one.body, one.tag) for one in came} == {(str(number).encode(), f"t{number % 2}") for number in range(20)}
    assert len({one.message_id for one in came}) == 20


@pytest.mark.parametrize("compression", ["LZ4", "ZSTD"])
def test_we_read_what_java_compresses_in_other_ways(
    rocketmq_new: RocketMQControl, tmp_path: Path, compression: str
) -> None:
    scene = Scene(rocketmq_new, tmp_path)
    with started_java(scene, compression=compression) as java, scene.manager() as manager:
        java.send(scene.topic, LARGE)

        (came,) = receive(manager, scene.topic)
    assert came.message.body == LARGE


def test_we_get_a_delayed_message_of_java_when_its_level_ends(scene: Scene, java: Peer) -> None:
    with scene.manager() as manager:
        sent = time.time()
        java.send(scene.topic, b"later", level=2)

        (came,) = receive(manager, scene.topic)
    assert time.time() - sent >= 5
    assert came.message.body == b"later" and dict(came.message.headers) == {}


def test_we_get_a_message_with_a_timer_of_java_when_it_is_due(rocketmq_new: RocketMQControl, tmp_path: Path) -> None:
    scene = Scene(rocketmq_new, tmp_path)
    with started_java(scene) as java, scene.manager() as manager:
        due = time.time() + 3
        java.send(scene.topic, b"later", deliver=int(due * 1000))

        (came,) = receive(manager, scene.topic)
    assert time.time() >= due
    assert came.message.body == b"later" and dict(came.message.headers) == {}


def test_we_keep_the_order_in_which_java_sent(scene: Scene, java: Peer) -> None:
    with scene.manager(ordered=True) as manager:
        for number in range(200):
            java.send(scene.topic, str(number).encode(), shard="one")

        came = [int(one.message.body) for one in receive(manager, scene.topic, 200)]
    assert came == list(range(200))
