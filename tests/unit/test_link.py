"""One connection per manager, made on first use; errors with their context."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from brokerkit.embedded.producer import EmbeddedProducer
from brokerkit.errors import BrokerUnavailable, Closed
from brokerkit.manager import AsyncManager
from brokerkit.spi import GroupSpec, TopicSpec
from brokerkit.testing.interposed import InterposedBackend
from brokerkit.topic import Topic

from .rig import Rig, RiggedBackend, RiggedConnection

T = Topic("t", bytes, groups=["g"])


async def test_concurrent_first_uses_connect_once_and_declare_what_is_known() -> None:
    rig = Rig()
    await asyncio.gather(*(rig.manager.send(T, b"x") for _ in range(20)))
    assert (rig.layer.calls["connect"], rig.layer.calls["open_producer"]) == (1, 1)
    assert await rig.counts() == (20, 0, 0)
    await rig.manager.aclose()


async def test_a_broker_that_is_down_is_unavailable_and_the_next_use_connects() -> None:
    rig = Rig(send_timeout=1.0)
    async with rig.layer.stopped():
        sending = asyncio.create_task(rig.manager.send(T, b"x"))
        await rig.clock.advance(2)
        with pytest.raises(BrokerUnavailable, match="backend embedded"):
            await sending
        assert not rig.manager.is_connected
    await rig.manager.send(T, b"x")
    assert rig.manager.is_connected
    await rig.manager.aclose()
    with pytest.raises(Closed):
        await rig.manager.send(T, b"x")
    with pytest.raises(Closed):
        await rig.manager.send_many(T, [b"x"])


class Slow(RiggedConnection):
    """A connection on which others get their turn while something is declared."""

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        await asyncio.sleep(0)
        await super().declare(topic, group)


class SlowBackend(RiggedBackend):
    connection_class = Slow


async def test_what_is_being_declared_is_not_declared_by_others_meanwhile() -> None:
    watched = InterposedBackend(SlowBackend())
    async with AsyncManager(settings={"url": "memory://"}, backend=watched) as manager:
        await asyncio.gather(*(manager.send(T, b"x") for _ in range(20)))
    # A queue of RabbitMQ that is being declared looks as if it were there, and cannot be consumed yet.
    assert watched.calls["declare"] == 1


class Leaky(RiggedConnection):
    """A connection whose producer raises what the client library raises."""

    faults = 1

    async def open_producer(self) -> EmbeddedProducer:
        if self.faults:
            self.faults -= 1
            raise sqlite3.OperationalError("disk I/O error")
        return await super().open_producer()


class LeakyBackend(RiggedBackend):
    connection_class = Leaky


async def test_an_error_of_the_client_library_never_comes_out_bare() -> None:
    manager = AsyncManager(settings={"url": "memory://"}, backend=LeakyBackend())
    with pytest.raises(Exception, match="backend embedded") as failure:
        await manager._use().link.producer()
    assert isinstance(failure.value.__cause__, sqlite3.Error)
    await manager.send(T, b"x")
    await manager.aclose()
