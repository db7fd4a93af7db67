"""Health, lag and figures: unknown is None, and a broker that is down raises nothing."""

from __future__ import annotations

from brokerkit.topic import Topic

from .rig import Rig

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
