"""Java members and ours in one consumer group: who gets which queues, and what becomes of messages that fail."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.rocketmq.peers.process import Peer
from brokerkit import Delivery, ExportTask, Manager
from brokerkit.export_manager import ExportManager
from brokerkit.settings import Settings
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.backend import RocketMQBackend
from tests.interop.rocketmq_scene import LONG, Scene, receive, started_java

QUEUES = 8


@pytest.fixture
def scene(rocketmq: RocketMQControl, tmp_path: Path) -> Scene:
    return Scene(rocketmq, tmp_path)


@pytest.fixture
def java(scene: Scene) -> Iterator[Peer]:
    with started_java(scene) as peer:
        yield peer


class Ledger:
    """What was sent to a group, and which member got it from which queue."""

    def __init__(self, manager: Manager, topic: str) -> None:
        self._manager = manager
        self._topic = topic
        self._lock = threading.Lock()
        self._ours: list[tuple[str, int]] = []
        self._sent = 0

    def handle(self, body: str, delivery: Delivery) -> None:
        with self._lock:
            self._ours.append((body, delivery.native.queue_id))

    def round(self, members: list[Peer]) -> list[dict[str, int]]:
        """Send some messages for each queue; return who got which of them from which queue: ours, then the members.

        Each must come to somebody.  Raises `AssertionError` when one does not.
        """
        bodies = [f"m{number}" for number in range(self._sent, self._sent + 5 * QUEUES)]
        self._sent += len(bodies)
        # One after the other: each goes to the next queue, where a batch goes to one.
        for body in bodies:
            self._manager.send(self._topic, body)
        return eventually_sync(lambda: self._all(bodies, members), within=LONG, what="each message at some member")

    def _all(self, bodies: list[str], members: list[Peer]) -> list[dict[str, int]]:
        with self._lock:
            ours = list(self._ours)
        theirs = [[(one.body.decode(), one.queue or 0) for one in peer.seen()] for peer in members]
        wanted = set(bodies)
        found = [{body: queue for body, queue in one if body in wanted} for one in (ours, *theirs)]
        missing = wanted - {body for one in found for body in one}
        assert not missing, f"{len(missing)} messages came to nobody"
        return found


def settled(ledger: Ledger, members: list[Peer], shares: list[int]) -> None:
    """Wait until the queues are split like that (ours, then the members), each at one member and none at nobody."""

    def balanced() -> bool:
        found = ledger.round(members)
        queues = [set(one.values()) for one in found]
        told = [{number for _, number in peer.queues or ()} for peer in members]
        copies = Counter(body for one in found for body in one)
        return (
            sorted(len(one) for one in queues) == sorted(shares)
            and queues[1:] == told
            and sum(len(one) for one in queues) == len(set().union(*queues)) == QUEUES
            and set(copies.values()) == {1}
        )

    eventually_sync(balanced, within=2 * LONG, what=f"queues split {shares}")


def test_java_members_and_ours_split_the_queues_through_joins_and_leaves(scene: Scene, java: Peer) -> None:
    with scene.manager(queues=QUEUES) as manager:
        ledger = Ledger(manager, scene.topic)
        manager.add_handler(scene.topic, ledger.handle, group="billing")
        manager.start()
        settled(ledger, [], [8])

        java.consume(scene.topic, scene.group)
        settled(ledger, [java], [4, 4])

        second = started_java(scene)
        try:
            second.consume(scene.topic, scene.group)
            settled(ledger, [java, second], [2, 3, 3])

            java.stop()
            settled(ledger, [second], [4, 4])
        finally:
            # As a crash does: the brokers see its connection end.
            second.kill()
        settled(ledger, [], [8])


def test_java_gets_all_queues_when_our_member_leaves(scene: Scene, java: Peer) -> None:
    with scene.manager(queues=QUEUES) as manager:
        ledger = Ledger(manager, scene.topic)
        manager.add_handler(scene.topic, ledger.handle, group="billing")
        manager.start()
        java.consume(scene.topic, scene.group)
        settled(ledger, [java], [4, 4])

        manager.stop()
        settled(ledger, [java], [0, 8])


def test_a_java_member_joins_through_the_configured_consumer_group(scene: Scene, java: Peer) -> None:
    section = {
        "topic": scene.topic,
        "consumer_group": scene.group,
        "name_server": ";".join(scene.server.address.name_servers),
    }
    ours: list[str] = []

    def export(task: ExportTask) -> None:
        ours.append(task.task_id)

    with ExportManager(backend=RocketMQBackend(), settings=Settings.model_validate({"rocketmq": section})) as manager:
        manager.set_message_handler(export)
        manager.start()
        java.consume(scene.topic, scene.group)
        eventually_sync(lambda: (java.seen(), java.queues)[1], within=LONG, what="queues of the Java member")
        told: set[str] = set()

        def both_work() -> bool:
            told.update(manager.send_batch_export_tasks("invoice", [{"number": one} for one in range(40)], "pdf"))
            came = eventually_sync(lambda: _everywhere(told, ours, java), within=LONG, what="each task at some member")
            return bool(ours) and bool(came)

        eventually_sync(both_work, within=LONG, what="tasks at both members")


def _everywhere(told: set[str], ours: list[str], java: Peer) -> set[str] | None:
    theirs = {one.id for one in java.seen()}
    return theirs if told <= set(ours) | theirs else None


# --- what fails ---------------------------------------------------------------------------------------------------


def test_we_handle_what_a_java_member_gave_back_as_a_second_attempt(scene: Scene, java: Peer) -> None:
    with scene.manager() as manager:
        java.consume(scene.topic, scene.group, fail=99, level=1)
        manager.send(scene.topic, "again", message_id="id-1", tag="new", headers={"source": "web"})
        # By the second one the first has been given back.
        assert [one.reconsumed for one in java.take(2)] == [0, 1]
        java.stop()

        (came,) = receive(manager, scene.topic)
    message = came.message
    assert (message.topic, message.payload(str), message.message_id) == (scene.topic, "again", "id-1")
    assert message.attempt >= 2
    assert (message.tag, dict(message.headers)) == ("new", {"source": "web"})


def test_a_java_member_handles_what_we_gave_back(scene: Scene, java: Peer) -> None:
    with scene.manager() as manager:
        manager.send(scene.topic, "again", message_id="id-1", tag="new", headers={"source": "web"})
        with manager.consume(scene.topic, group="billing") as deliveries:
            next(iter(deliveries)).nack()

        java.consume(scene.topic, scene.group)
        (came,) = java.take()
    assert (came.topic, came.body, came.id, came.tag) == (scene.topic, b"again", "id-1", "new")
    assert (came.reconsumed, came.properties["source"]) == (1, "web")


def test_dead_letters_of_a_java_member_are_those_of_our_group(scene: Scene, java: Peer) -> None:
    with scene.manager() as manager:
        java.consume(scene.topic, scene.group, fail=99, level=-1)
        manager.send(scene.topic, "never", message_id="id-1")
        java.take()
        letters = eventually_sync(
            lambda: manager.admin.dead_letters(scene.topic, "billing"), within=LONG, what="the dead letter"
        )
        # Not before: what it has not sent back yet would wait for the next member.
        java.stop()
        assert [(one.message.message_id, one.message.payload(str)) for one in letters] == [("id-1", "never")]
        assert manager.admin.redrive(scene.topic, "billing", ["id-1"]) == 1
        (came,) = receive(manager, scene.topic)
        assert came.message.message_id == "id-1"
        assert eventually_sync(lambda: not manager.admin.dead_letters(scene.topic, "billing"), within=LONG)


def test_java_finds_our_dead_letters_where_it_looks_for_its_own(scene: Scene, java: Peer) -> None:
    with scene.manager() as manager:
        manager.send(scene.topic, "never", message_id="id-1")
        with manager.consume(scene.topic, group="billing") as deliveries:
            next(iter(deliveries)).reject("no good")

        java.consume(f"%DLQ%{scene.group}", scene.other)
        before = time.time()
        (came,) = java.take()
    assert (came.body, came.id, came.properties["RETRY_TOPIC"]) == (b"never", "id-1", scene.topic)
    assert came.properties["bk-dead-reason"] == "rejected" and came.time >= before - LONG
