"""Inboxes on real brokers: private, prompt, and there again after the link was lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from brokerkit.errors import AccessRefused, Closed
from brokerkit.spi import Inbound, Outbound, ToInbox
from brokerkit.testing.services.rocketmq import (
    RocketMQControl,
)
from brokerkit_rocketmq.client import Client
from brokerkit_rocketmq.inbox import RocketMQInbox
from tests.rocketmq.administration import CLOCK, LONG, Scene, administering
from tests.rocketmq.servers import WORKER


@asynccontextmanager
async def an_inbox(scene: Scene) -> AsyncIterator[RocketMQInbox]:
    client = Client(scene.client.options, CLOCK)
    inbox = RocketMQInbox(client, scene.making, scene.names, scene.codec, clock=CLOCK)
    try:
        await inbox.open()
        yield inbox
    finally:
        await inbox.aclose()
        await client.aclose()


def a_reply(inbox: RocketMQInbox, number: int, tag: str | None = None) -> Outbound:
    return Outbound(destination=ToInbox(inbox.address), body=b"%d" % number, message_id=f"r-{number}", tag=tag)


async def received(inbox: RocketMQInbox, count: int) -> list[Inbound]:
    found: list[Inbound] = []
    deadline = CLOCK.monotonic() + LONG
    while len(found) < count and CLOCK.monotonic() < deadline:
        batch = await inbox.receive(100, 1.0)
        await inbox.ack(batch)
        found += batch
    return found


async def test_each_inbox_receives_what_is_sent_to_its_address(rocketmq: RocketMQControl) -> None:
    async with administering(rocketmq) as scene, an_inbox(scene) as one, an_inbox(scene) as other:
        assert one.address != other.address
        for number in range(20):
            await scene.store(a_reply(one if number % 2 else other, number, tag="urgent"), queue=number % 4)
        for inbox, numbers in ((one, range(1, 20, 2)), (other, range(0, 20, 2))):
            found = await received(inbox, 10)
            assert sorted(message.message_id or "" for message in found) == sorted(f"r-{number}" for number in numbers)
            assert {message.tag for message in found} == {"urgent"}
            assert {message.topic for message in found} == {inbox.address}
            assert {message.redelivered for message in found} <= {False, None}
        assert await one.receive(10, 0.3) == ()


async def test_what_was_sent_before_is_not_read_and_an_answer_comes_promptly(rocketmq: RocketMQControl) -> None:
    async with administering(rocketmq) as scene:
        async with an_inbox(scene) as gone:
            for number in range(50):
                await scene.store(a_reply(gone, number), queue=number % 4)
        async with an_inbox(scene) as inbox:
            waiting = asyncio.ensure_future(inbox.receive(10, LONG))
            await CLOCK.sleep(0.3)
            began = CLOCK.monotonic()
            await scene.store(a_reply(inbox, 1), queue=2)
            (reply,) = await waiting
            # A held pull is woken; without that it would take 5 s and more.
            assert CLOCK.monotonic() - began < 4.0
    assert reply.message_id == "r-1"


async def test_an_inbox_outlives_its_connections(rocketmq: RocketMQControl) -> None:
    async with administering(rocketmq) as scene, an_inbox(scene) as inbox:
        await scene.store(a_reply(inbox, 0))
        assert len(await received(inbox, 1)) == 1
        for link in inbox._client.links.up():
            assert link.current is not None
            link.current.abort()
        await scene.store(a_reply(inbox, 1))
        await scene.store(a_reply(inbox, 2), queue=1)
        assert sorted(message.message_id or "" for message in await received(inbox, 2)) == ["r-1", "r-2"]


async def test_a_reply_that_is_given_back_comes_again(rocketmq: RocketMQControl) -> None:
    async with administering(rocketmq) as scene, an_inbox(scene) as inbox:
        await scene.store(a_reply(inbox, 0))
        (first,) = await inbox.receive(1, LONG)
        assert inbox.live(first)
        await inbox.release([first])
        (again,) = await inbox.receive(1, LONG)
        assert again.message_id == first.message_id
        await inbox.ack([again])
        assert not inbox.live(again)


async def test_a_closed_inbox_says_so(rocketmq: RocketMQControl) -> None:
    async with administering(rocketmq) as scene:
        async with an_inbox(scene) as inbox:
            waiting = asyncio.ensure_future(inbox.receive(1, LONG))
            await asyncio.sleep(0)
        with pytest.raises(Closed):
            await waiting


async def test_replies_come_from_every_broker_to_whom_may_read_them(guarded_pair: RocketMQControl) -> None:
    url = guarded_pair.address.url(WORKER.login)
    async with administering(guarded_pair, url=url) as worker:
        with pytest.raises(AccessRefused, match=r"bk\|inbox"):
            async with an_inbox(worker):
                pass
        async with administering(guarded_pair) as admin, an_inbox(admin):
            pass
        async with an_inbox(worker) as inbox:
            await worker.store(a_reply(inbox, 0), broker="broker-a")
            await worker.store(a_reply(inbox, 1), broker="broker-b", queue=3)
            assert len(await received(inbox, 2)) == 2
