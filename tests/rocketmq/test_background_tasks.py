"""Tasks that must never end: a fault of ours that they meet is logged, and they go on."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

import pytest

from brokerkit.testing import VirtualClock, eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.client import Client
from brokerkit_rocketmq.locks import Locks
from brokerkit_rocketmq.member import Loner
from brokerkit_rocketmq.name_servers import NameServers
from brokerkit_rocketmq.registrations import Registration
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.routes import MessageQueue, Route
from tests.rocketmq.clients import LONG, a_client, a_name, membership
from tests.rocketmq.consuming import CLOCK, Scene, consuming
from tests.rocketmq.test_client import members

LOGGER = "brokerkit.rocketmq"


def faults(caplog: pytest.LogCaptureFixture, beginning: str) -> int:
    """Return how many faults were logged with their traceback."""
    return sum(
        one.name == LOGGER and one.levelno == logging.ERROR and bool(one.exc_info) and one.message.startswith(beginning)
        for one in caplog.records
    )


async def test_heartbeats_go_on(rocketmq_old: RocketMQControl, caplog: pytest.LogCaptureFixture) -> None:
    topic, group = a_name(), a_name("g")
    rocketmq_old.create_topic(topic)
    async with a_client(rocketmq_old) as client:
        consumers = client.registrations.consumers
        consumers["broken"] = cast("Registration", None)
        client.register_producer(a_name("p"))
        await eventually(lambda: faults(caplog, "a heartbeat failed") >= 2, within=LONG)
        del consumers["broken"]
        # Only heartbeats tell of this.
        consumers[group] = membership(group, topic)

        async def is_member() -> bool:
            return await members(client, group) == [client.client_id]

        await eventually(is_member, within=LONG)


async def test_changes_of_routes_are_noticed_further_on(
    rocketmq_old: RocketMQControl, caplog: pytest.LogCaptureFixture
) -> None:
    topic = a_name()
    seen: list[int] = []

    def fail(route: Route) -> None:
        raise RuntimeError("one who watches has a fault")

    async with a_client(rocketmq_old) as client:
        client.routes.watch(topic, fail)
        client.routes.watch(topic, lambda route: seen.append(len(route.writable)))
        await asyncio.to_thread(rocketmq_old.create_topic, topic, queues=2)
        client.routes.invalidate(topic)
        await eventually(lambda: faults(caplog, "one who watches") == 1, within=LONG)
        assert seen == [2]
        await asyncio.to_thread(rocketmq_old.create_topic, topic, queues=3)
        client.routes.invalidate(topic)
        await eventually(lambda: seen == [2, 3], within=LONG)
        servers, client.routes._name_servers = client.routes._name_servers, cast("NameServers", None)
        client.routes.invalidate(topic)
        await eventually(lambda: faults(caplog, f"the route of {topic} was not read") >= 2, within=LONG)
        client.routes._name_servers = servers
        await asyncio.to_thread(rocketmq_old.create_topic, topic, queues=4)
        await eventually(lambda: seen == [2, 3, 4], within=LONG)


async def test_locks_are_renewed_further_on(rocketmq_old: RocketMQControl, caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    lost: list[MessageQueue] = []

    def fail(queue: MessageQueue) -> None:
        lost.append(queue)
        raise RuntimeError("one who is told has a fault")

    async with consuming(rocketmq_old, queues=1, ordered=True) as scene:
        client = Client(scene.client_options, CLOCK)
        locks = Locks(client, scene.source(ordered=True), clock, fail)
        try:
            await client.open()
            (queue,) = await scene.queues()
            for times in (1, 2):
                await locks.acquire(queue)
                await hand_over(scene, queue, client.client_id, "another")
                await clock.advance(20.0)
                await eventually(lambda: len(lost) == times, within=LONG)  # noqa: B023
                await eventually(lambda: faults(caplog, "locks on") == times, within=LONG)  # noqa: B023
                await hand_over(scene, queue, "another", client.client_id)
        finally:
            await locks.aclose()
            await client.aclose()


async def hand_over(scene: Scene, queue: MessageQueue, former: str, new: str) -> None:
    group = scene.names.group(scene.topic, "g")
    await scene.asking.locked(RequestCode.UNLOCK_BATCH_MQ, group, former, [queue])
    assert await scene.asking.locked(RequestCode.LOCK_BATCH_MQ, group, new, [queue]) == 1


async def test_queues_are_shared_out_further_on(
    rocketmq_old: RocketMQControl, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    async with consuming(rocketmq_old, queues=2) as scene:

        def assign(wanted: object, all_queues: frozenset[MessageQueue]) -> None:
            seen.append(len(all_queues))
            if len(seen) == 2:
                raise RuntimeError("one who reads has a fault")

        share = Loner(scene.client, scene.source(), CLOCK, assign, lambda error: None)
        await share.open()
        try:
            share.wake()
            await eventually(lambda: faults(caplog, "queues of") == 1, within=LONG)
            await eventually(lambda: len(seen) >= 3, within=LONG)
        finally:
            await share.stop()
