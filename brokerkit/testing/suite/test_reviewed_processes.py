"""Found by review of the design: several processes, the blocking manager, forks."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import traceback
import warnings
from typing import TYPE_CHECKING

from brokerkit.message import Message
from brokerkit.spi import Capability
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import case, receive_exactly, receive_nothing, requires
from brokerkit.testing.suite.seen import blocking, nothing_is_left, policy, quiet
from brokerkit.testing.suite.workers import Crew, hold, job_for, produce, work

if TYPE_CHECKING:
    from brokerkit.blocking import Manager

# --- several processes ----------------------------------------------------------------------------------------


@case
@requires(Capability.SELECTIVE_ACK, Capability.MULTIPROCESS)
async def test_acked_above_unsettled_stays_gone(harness: Harness) -> None:
    """When a process is killed after it acknowledged messages above an open one, only the open one comes again."""
    topic, count = harness.topic(), 10
    within = harness.timing.within(count)
    async with harness.manager() as manager, Crew() as crew:
        sent = [await manager.send(topic, b"%d" % number) for number in range(count)]
        holder = crew.start(hold, job_for(harness, topic, count=count))
        await crew.told("held", 1, within)
        await harness.clock.sleep(harness.timing.settle)
        holder.kill()
        first, *others = crew.ids("got")
        assert sorted([first, *others]) == sorted(sent)
        async with manager.consume(topic) as deliveries:
            (delivery,) = await receive_exactly(deliveries, [first], within=within)
            await receive_nothing(deliveries, quiet(harness))
        assert delivery.message.redelivered in (True, None)


@case
@requires(Capability.MULTIPROCESS)
async def test_send_before_worker_ever_ran(harness: Harness) -> None:
    """What a fresh producer process sends to a group that it knows waits for the first worker of that group."""
    topic, count = harness.topic(), 20
    async with Crew() as crew:
        producer = crew.start(produce, job_for(harness, topic, count=count))
        assert await producer.ended(within=harness.timing.within(count)) == 0, producer.output
        sent = crew.ids("sent")
        assert len(sent) == count
        worker = crew.start(work, job_for(harness, topic))
        await crew.covered("done", sent, within=harness.timing.within(count))
        assert await worker.stop() == 0, worker.output
    assert sorted(crew.ids("done")) == sorted(sent)
    await nothing_is_left(harness, topic)


@case
@requires(Capability.CONSUMER_GROUPS, Capability.MULTIPROCESS)
async def test_same_group_name_on_two_topics(harness: Harness) -> None:
    """Two processes that use one group name on two topics each handle all messages of their topic and no other."""
    one, two = harness.topic("one"), harness.topic("two")
    count = 40
    async with harness.manager() as manager, Crew() as crew:
        workers = [crew.start(work, job_for(harness, topic)) for topic in (one, two)]
        await crew.told("ready", 2, within=harness.timing.within())
        sent = {one.name: set[str](), two.name: set[str]()}
        for number in range(count):
            for topic in (one, two):
                sent[topic.name].add(await manager.send(topic, b"%d" % number))
        await crew.covered("done", sent[one.name] | sent[two.name], within=harness.timing.within(2 * count))
        handled: dict[str, list[str]] = {one.name: [], two.name: []}
        for entry in crew.entries("done"):
            handled[entry["topic"]].append(entry["id"])
        for worker in workers:
            assert await worker.stop() == 0, worker.output
    for name, ids in sent.items():
        assert sorted(handled[name]) == sorted(ids)
    for topic in (one, two):
        await nothing_is_left(harness, topic)


# --- the blocking manager -------------------------------------------------------------------------------------


@case
async def test_blocking_call_on_the_loop_raises(harness: Harness) -> None:
    """A blocking call in an async handler raises a `RuntimeError` that names ``manager.aio`` instead of a deadlock."""
    topic = harness.topic()
    raised: list[BaseException] = []

    def use() -> None:
        with blocking(harness) as manager:
            done = threading.Event()

            @manager.handler(topic, retry=policy(harness))
            async def work(message: Message) -> None:
                try:
                    manager.send(topic, b"again")
                except RuntimeError as error:
                    raised.append(error)
                done.set()

            manager.start()
            manager.send(topic, b"x")
            assert done.wait(harness.timing.within()), "the handler did not end"
            manager.stop()

    await asyncio.to_thread(use)
    assert len(raised) == 1
    assert "manager.aio" in str(raised[0])
    await nothing_is_left(harness, topic)


@case
async def test_use_after_fork(harness: Harness) -> None:
    """After a fork parent and child each send and receive with the same manager object, and share no connection."""
    topics = {"parent": harness.topic("parent"), "child": harness.topic("child")}

    def use(manager: Manager, who: str) -> None:
        topic = topics[who]
        sent = [manager.send(topic, who.encode()) for _ in range(3)]
        with manager.consume(topic) as deliveries:
            came: list[str | None] = []
            while len(came) < len(sent):
                delivery = deliveries.receive(harness.timing.within(3))
                assert delivery is not None, f"only {len(came)} of {len(sent)} came"
                delivery.ack()
                came.append(delivery.message.message_id)
        assert set(came) == set(sent)

    def fork() -> tuple[int, str]:
        with blocking(harness) as manager:
            use(manager, "parent")
            reading, writing = os.pipe()
            with warnings.catch_warnings():
                # A fork of a process with threads is what is tested; Python 3.12 warns of it.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    use(manager, "child")
                    code = 0
                except BaseException:
                    os.write(writing, traceback.format_exc().encode())
                finally:
                    os._exit(code)
            os.close(writing)
            use(manager, "parent")
            text = _read_until(reading, harness.timing.within(10) + harness.clock.monotonic(), harness, pid)
            os.close(reading)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text

    code, text = await asyncio.to_thread(fork)
    assert code == 0, f"the child failed: {text}"


def _read_until(descriptor: int, deadline: float, harness: Harness, pid: int) -> str:
    """Return what is written until the other end closes; kill the process that holds it at the deadline."""
    text = b""
    while True:
        left = deadline - harness.clock.monotonic()
        if left <= 0:
            os.kill(pid, signal.SIGKILL)
            return f"it hung; {text.decode()}"
        if select.select([descriptor], [], [], left)[0]:
            piece = os.read(descriptor, 65536)
            if not piece:
                return text.decode()
            text += piece
