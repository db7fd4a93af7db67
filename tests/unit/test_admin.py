"""Dead letters: looked at, redriven, discarded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from brokerkit.errors import CapabilityNotSupported, ConfigurationError, TopicNotFound
from brokerkit.message import Message
from brokerkit.retry import RetryPolicy
from brokerkit.spi import Capability, ToGroup
from brokerkit.topic import Topic

from .rig import Rig

T = Topic("t", bytes, groups=["g", "other"])


async def bury(rig: Rig, count: int, **options: Any) -> list[str]:
    """Make ``count`` dead letters of group g; return their ids."""

    async def fail(message: Message) -> None:
        rig.start_of(message)
        raise ValueError(message.body.decode())

    rig.manager.add_handler(T, fail, group="g", retry=RetryPolicy(max_attempts=1), prefetch=200)
    await rig.manager.start()
    ids = [await rig.manager.send(T, b"%d" % number, **options) for number in range(count)]
    await rig.clock.advance(1)
    assert len(await rig.manager.admin.dead_letters("t", "g", limit=1000)) == count
    await rig.manager.stop(0)
    return ids


async def run(rig: Rig, coroutine: object, seconds: float = 5) -> int:
    """Return the result of a call that waits for virtual time."""
    task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
    await rig.clock.advance(seconds)
    found: int = await task
    return found


async def test_a_redrive_reaches_the_failing_group_only_with_attempt_1_and_what_the_message_had() -> None:
    async with Rig() as rig:
        (sent,) = await bury(rig, 1, headers={"shop": "42"}, key="k", ttl=2, tag="a", type="order", priority=3)
        before = await rig.counts("t", "other")
        await rig.clock.advance(100)
        assert await run(rig, rig.manager.admin.redrive("t", "g")) == 1
        assert await rig.counts("t", "other") == before
        async with rig.manager.consume("t", group="g") as deliveries:
            found = await deliveries.receive(1)
            assert found is not None
            message = found.message
            assert (message.message_id, message.attempt, message.headers) == (sent, 1, {"shop": "42"})
            assert (message.key, message.tag, message.type, message.priority) == ("k", "a", "order", 3)
            assert message.ttl is None
            await found.ack()
        assert await rig.dead() == []


async def test_a_redrive_that_is_refused_keeps_the_dead_letters() -> None:
    async with Rig() as rig:
        await bury(rig, 2)
        async with rig.layer.refusing(ToGroup("t", "g")):
            assert await run(rig, rig.manager.admin.redrive("t", "g"), 200) == 0
        assert len(await rig.dead()) == 2
        assert await run(rig, rig.manager.admin.redrive("t", "g")) == 2


@pytest.mark.parametrize("call", ["redrive", "discard"])
async def test_ids_and_limit_choose_and_hundreds_are_no_limit(call: str) -> None:
    async with Rig() as rig:
        ids = await bury(rig, 250)
        act = getattr(rig.manager.admin, call)
        assert await run(rig, act("t", "g", [ids[7], "unknown"])) == 1
        assert await run(rig, act("t", "g", limit=2)) == 2
        left = [letter.message.message_id for letter in await rig.manager.admin.dead_letters("t", "g", limit=1000)]
        assert left == [one for one in ids[2:] if one != ids[7]]
        assert await run(rig, act("t", "g")) == 247
        assert await rig.dead() == []
        ready, _, _ = await rig.counts()
        assert ready == (250 if call == "redrive" else 0)


async def test_what_is_missing_or_not_offered_is_said() -> None:
    async with Rig() as rig:
        for call in (rig.manager.admin.dead_letters, rig.manager.admin.redrive, rig.manager.monitor.stats):
            with pytest.raises(TopicNotFound, match="none"):
                await call("none", "g")
        with pytest.raises(TopicNotFound):
            await rig.manager.admin.verify("none")
        await rig.manager.admin.delete("none")
    async with Rig(Capability.DEAD_LETTER, Capability.BROWSE, Capability.MANAGE, Capability.STATS) as rig:
        with pytest.raises(CapabilityNotSupported, match="browse"):
            await rig.manager.admin.dead_letters("t", "g")
        with pytest.raises(CapabilityNotSupported, match="dead-letter"):
            await rig.manager.admin.discard("t", "g")
        with pytest.raises(CapabilityNotSupported, match="manage"):
            await rig.manager.admin.declare("t", "g")
        stats = await rig.manager.monitor.stats("t", "g")
        assert (stats.ready, stats.dead, stats.source) == (None, None, "unknown")


@pytest.mark.parametrize("call", ["redrive", "discard"])
async def test_dead_letters_choose_themselves_and_one_alone_is_refused(call: str) -> None:
    async with Rig() as rig:
        ids = await bury(rig, 3)
        act = getattr(rig.manager.admin, call)
        letters = await rig.manager.admin.dead_letters("t", "g")
        assert [letter.id for letter in letters] == ids
        for alone in (ids[0], letters[0]):
            with pytest.raises(ConfigurationError, match=f"{call} takes a list"):
                await act("t", "g", alone)
        assert await run(rig, act("t", "g", [])) == 0
        assert await run(rig, act("t", "g", (letters[0], ids[2]))) == 2
        assert [letter.id for letter in await rig.dead()] == [ids[1]]
