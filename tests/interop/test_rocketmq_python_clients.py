"""The two official Python clients beside brokerkit, each in an environment of its own: what they can read and send."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.rocketmq.peers.environments import cpp_peer, grpc_peer
from benchmarks.rocketmq.peers.process import Peer
from brokerkit.testing.services.rocketmq import RocketMQControl, RocketMQOptions, RocketMQServer
from tests.interop.rocketmq_scene import LONG, SENT, Scene, peer_or_skip, receive
from tests.rocketmq.servers import NEW, installation_or_skip

TEXT = "grüße, 世界"

# --- the C++ client -----------------------------------------------------------------------------------------------


@pytest.fixture
def scene(rocketmq: RocketMQControl, tmp_path: Path) -> Scene:
    return Scene(rocketmq, tmp_path)


@pytest.fixture
def cpp(scene: Scene) -> Iterator[Peer]:
    if platform.machine() != "x86_64":
        pytest.skip("the wheel of the C++ client is for x86_64")
    with peer_or_skip(cpp_peer(scene.server.address, scene.folder)) as peer:
        yield peer


def test_the_cpp_client_reads_what_we_send(scene: Scene, cpp: Peer) -> None:
    with scene.manager() as manager:
        manager.send(scene.topic, TEXT, message_id="id-1", **SENT)
        cpp.consume(scene.topic, scene.other, want="source,café,bk-type,CORRELATION_ID")

        (came,) = cpp.take()
    assert (came.topic, came.body.decode(), came.id) == (scene.topic, TEXT, "id-1")
    assert (came.tag, came.keys, came.reconsumed) == ("new-eu", "customer-7", 0)
    assert came.properties == {
        "source": "web",
        "café": "münchen",
        "bk-type": "created",
        "CORRELATION_ID": "c-1",
    }


def test_the_cpp_client_gets_a_delayed_message_of_ours(scene: Scene, cpp: Peer) -> None:
    with scene.manager() as manager:
        cpp.consume(scene.topic, scene.other)
        sent = time.time()
        manager.send(scene.topic, "later", delay=8)

        (came,) = cpp.take()
    # 4.9: the level of 5 s, the longest that fits.  5.x: a timer, a second early.
    assert came.body == b"later"
    assert came.time - sent >= 4.9


def test_we_read_what_the_cpp_client_sends(scene: Scene, cpp: Peer) -> None:
    with scene.manager() as manager:
        properties = {"source": "web", "größe": "5"}
        told = cpp.send(scene.topic, TEXT.encode(), tag="new-eu", keys="k1", properties=properties)
        sent = time.time()
        cpp.send(scene.topic, b"later", level=2)

        first, second = (one.message for one in receive(manager, scene.topic, 2))
    assert (first.body.decode(), first.tag, first.key) == (TEXT, "new-eu", "k1")
    assert first.message_id == told["id"] and dict(first.headers) == properties
    assert second.body == b"later" and time.time() - sent >= 4.9


def test_the_cpp_client_cuts_bodies_at_the_first_nul(scene: Scene, cpp: Peer) -> None:
    # What docs/rocketmq.md says of it.
    with scene.manager() as manager:
        manager.send(scene.topic, b"a\x00b")
        cpp.consume(scene.topic, scene.other)
        assert cpp.take()[0].body == b"a"

        cpp.send(scene.topic, b"c\x00d")
        assert sorted(one.message.body for one in receive(manager, scene.topic, 2)) == [b"a\x00b", b"c"]


def test_the_cpp_client_acknowledges_what_its_handler_failed_on(scene: Scene, cpp: Peer) -> None:
    # What docs/rocketmq.md says of it: the message is gone, where ours would come back.
    with scene.manager() as manager:
        cpp.consume(scene.topic, scene.group, fail=99)
        manager.send(scene.topic, "lost")
        cpp.take()
        cpp.stop()
        manager.send(scene.topic, "next")

        (came,) = receive(manager, scene.topic)
        assert came.message.payload(str) == "next"


# --- the gRPC client ----------------------------------------------------------------------------------------------


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Scene]:
    """A server of its own: the others have no proxy."""
    installation = installation_or_skip(NEW)
    with RocketMQServer(RocketMQOptions(proxy=True), installation=installation) as server:
        yield Scene(server, tmp_path)


def test_the_grpc_client_and_brokerkit_read_each_other(proxied: Scene) -> None:
    scene = proxied
    with scene.manager() as manager, peer_or_skip(grpc_peer(scene.server.address, scene.folder)) as grpc:
        # The proxy makes no groups.
        scene.server.create_group(scene.other)
        manager.send(scene.topic, b"a\x00b", message_id="id-1", **SENT)
        manager.send(scene.topic, TEXT, message_id="id-2", **SENT)
        grpc.consume(scene.topic, scene.other)
        came = {one.id: one for one in grpc.take(2, within=LONG)}
        assert {one.body for one in came.values()} == {b"a\x00b", TEXT.encode()}
        for one in came.values():
            assert (one.topic, one.tag, one.keys) == (scene.topic, "new-eu", "customer-7")
            properties = {name: one.properties[name] for name in ("source", "café", "bk-type")}
            assert properties == {"source": "web", "café": "münchen", "bk-type": "created"}
        assert set(came) == {"id-1", "id-2"}
        grpc.stop()
        receive(manager, scene.topic, 2)

        told = grpc.send(scene.topic, b"c\x00d", tag="new-eu", keys="k1", properties={"größe": "5"})
        (message,) = (one.message for one in receive(manager, scene.topic))
        assert (message.body, message.tag, message.key) == (b"c\x00d", "new-eu", "k1")
        assert message.message_id == told["id"] and message.headers["größe"] == "5"
