"""Health, lag and figures: unknown is None, and a broker that is down raises nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from brokerkit.embedded.connection import EmbeddedConnection
from brokerkit.errors import SendRefused
from brokerkit.manager import AsyncManager
from brokerkit.message import Message
from brokerkit.topic import Topic

from .rig import Rig, RiggedBackend

T = Topic("t", bytes, groups=["g"])


async def test_health_follows_the_broker_and_the_manager() -> None:
    rig = Rig()
    async with rig:
        health = await rig.manager.monitor.health()
        assert (health.healthy, health.status, health.problems) == (True, "up", ())
        assert health.latency is not None
        async with rig.layer.stopped():
            health = await rig.manager.monitor.health()
            assert (health.healthy, health.status, health.latency) == (False, "down", None)
            assert health.problems
        assert (await rig.manager.monitor.health()).status == "up"
    assert (await rig.manager.monitor.health()).status == "closed"


async def test_lag_and_queue_status_name_their_source_and_time() -> None:
    async with Rig() as rig:
        await rig.manager.send(T, b"x")
        await rig.manager.send(T, b"x", delay=100)
        await rig.clock.advance(7)
        lag = await rig.manager.monitor.lag(T, "g")
        assert (lag.ready, lag.unsettled, lag.delayed, lag.oldest_age) == (1, 0, 1, 7.0)
        assert (lag.source, lag.as_of) == ("memory", rig.clock.time())
        status = await rig.manager.monitor.queue_status(T, "g")
        assert status.to_dict()["stats"]["ready"] == 1
        assert status.metrics.totals["sent"] == 2


async def test_health_of_a_manager_that_is_switched_off_is_down_and_says_so() -> None:
    manager = AsyncManager(settings={"backend": "rocketmq", "rocketmq": {"name_server": "h:1", "enabled": False}})
    health = await manager.monitor.health()
    assert (health.healthy, health.status, health.connected) == (False, "down", False)
    assert health.problems == (
        "the backend rocketmq is switched off: its section says enabled: false (backend rocketmq)",
    )
    assert health.backend == "rocketmq"


class Broken(RiggedBackend):
    """Connects with an error that nobody knows, or never."""

    hangs = False

    async def connect(self, options: Any) -> EmbeddedConnection:
        if self.hangs:
            await options.clock.sleep(3600)
        raise LookupError("amqp://user:secret@host/")


async def test_health_maps_what_nobody_mapped_and_does_not_wait_for_ever() -> None:
    rig = Rig()
    backend = Broken()
    manager = AsyncManager(settings={"url": "memory://"}, backend=backend, clock=rig.clock)
    health = await manager.monitor.health()
    assert health.status == "down"
    assert health.problems == ("LookupError: amqp://user:***@host/",)
    backend.hangs = True
    asking = asyncio.create_task(manager.monitor.health(timeout=3))
    await rig.clock.advance(4)
    health = await asking
    assert (health.status, health.latency) == ("down", None)
    assert "3 s" in health.problems[0]
    await manager.aclose()


async def test_a_group_that_cannot_be_received_from_is_degraded_until_it_can() -> None:
    async with Rig(layered=False) as rig:

        @rig.manager.handler(T)
        async def work(message: Message) -> None: ...

        await rig.manager.start()
        rig.backend.receive_fault = SendRefused("no permission")
        await rig.clock.advance(1.05)
        health = await rig.manager.monitor.health()
        assert health.status == "degraded"
        assert "t:g" in health.problems[0] and "no permission" in health.problems[0]
        await rig.clock.advance(10)
        assert (await rig.manager.monitor.health()).status == "up"
