"""Request and reply."""

from __future__ import annotations

import asyncio

import pytest

from brokerkit.embedded.consumer import EmbeddedInbox
from brokerkit.errors import (
    BrokerUnavailable,
    Closed,
    DecodeError,
    PayloadError,
    RemoteError,
    ReplyTimeout,
    SendRefused,
)
from brokerkit.message import Message
from brokerkit.retry import RetryPolicy
from brokerkit.spi import ToTopic
from brokerkit.topic import Topic

from .rig import Rig, RiggedConnection

T = Topic("t", int, groups=["g"])


async def test_many_requests_at_once_get_each_its_own_answer() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, concurrency=50)
        async def double(number: int) -> int:
            await rig.clock.sleep(1 / (1 + number))
            return 2 * number

        await rig.manager.start()
        asking = [asyncio.create_task(rig.manager.request(T, number, reply=int)) for number in range(50)]
        await rig.clock.advance(2)
        assert await asyncio.gather(*asking) == [2 * number for number in range(50)]
        assert rig.layer.calls["open_inbox"] == 1


async def test_a_reply_that_comes_too_late_is_dropped_and_the_next_request_works() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def slow(number: int) -> int:
            await rig.clock.sleep(number)
            return number

        await rig.manager.start()
        late = asyncio.create_task(rig.manager.request(T, 5, reply=int, timeout=2))
        await rig.clock.advance(2.5)
        with pytest.raises(ReplyTimeout, match="2 s"):
            await late
        asking = asyncio.create_task(rig.manager.request(T, 3, reply=int, timeout=10))
        await rig.clock.advance(5)
        assert await asking == 3


@pytest.mark.parametrize("text", ["no space", "x" * 100_000, "\udcff"])
async def test_a_final_failure_is_a_remote_error_and_a_retry_is_not(text: str) -> None:
    async with Rig() as rig:

        @rig.manager.handler(T, retry=RetryPolicy(max_attempts=2, jitter="none"))
        async def fail(message: Message) -> int:
            if rig.start_of(message) < 3:
                raise ValueError(text)
            return 1

        await rig.manager.start()
        asking = asyncio.create_task(rig.manager.request(T, 5, reply=int))
        await rig.clock.advance(0.5)
        assert not asking.done()
        await rig.clock.advance(5)
        with pytest.raises(RemoteError) as failure:
            await asking
        assert failure.value.message == text[:1000].replace("\udcff", "?")


async def test_an_answer_of_the_wrong_type_is_a_decode_error() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def answer(number: int) -> str:
            return "text"

        await rig.manager.start()
        asking = asyncio.create_task(rig.manager.request(T, 5, reply=int))
        await rig.clock.advance(1)
        with pytest.raises(DecodeError):
            await asking
        with pytest.raises(PayloadError, match="reply_to"):
            await rig.manager.request(T, 5, reply=int, reply_to="mine")


async def test_a_request_that_cannot_be_sent_ends_with_its_own_timeout() -> None:
    async with Rig() as rig, rig.layer.refusing(ToTopic("t")):
        asking = asyncio.create_task(rig.manager.request(T, 5, reply=int, timeout=2))
        await rig.clock.advance(2.5)
        assert asking.done()
        with pytest.raises((SendRefused, ReplyTimeout)):
            await asking


async def test_closing_the_manager_ends_the_requests_that_wait_or_are_being_sent() -> None:
    async with Rig() as rig:
        waiting = asyncio.create_task(rig.manager.request(T, 5, reply=int))
        await rig.clock.advance(1)
        async with rig.layer.refusing(ToTopic("t")):
            sending = asyncio.create_task(rig.manager.request(T, 6, reply=int))
            await rig.clock.advance(0.1)
            await rig.manager.aclose()
            await rig.clock.advance(10)
        for task in (waiting, sending):
            with pytest.raises(Closed):
                await task


async def test_an_inbox_that_was_closed_is_opened_again_by_the_next_request() -> None:
    async with Rig() as rig:

        @rig.manager.handler(T)
        async def double(number: int) -> int:
            return 2 * number

        await rig.manager.start()
        first = asyncio.create_task(rig.manager.request(T, 1, reply=int))
        await rig.clock.advance(1)
        assert await first == 2
        session = rig.manager._session
        assert session is not None and session.requests._inbox is not None
        await session.requests._inbox.aclose()
        await rig.clock.advance(2)
        second = asyncio.create_task(rig.manager.request(T, 2, reply=int))
        await rig.clock.advance(2)
        assert await second == 4


async def test_a_request_ends_with_its_own_timeout_while_the_inbox_cannot_be_opened_and_others_wait_on() -> None:
    class Slow(RiggedConnection):
        async def open_inbox(self) -> EmbeddedInbox:
            await rig.clock.sleep(5)
            return await super().open_inbox()

    rig = Rig(layered=False)
    rig.backend.connection_class = Slow  # type: ignore[misc]
    async with rig:

        @rig.manager.handler(T)
        async def double(number: int) -> int:
            return 2 * number

        await rig.manager.start()
        hasty = asyncio.create_task(rig.manager.request(T, 1, reply=int, timeout=2))
        patient = asyncio.create_task(rig.manager.request(T, 2, reply=int, timeout=20))
        await rig.clock.advance(2.5)
        with pytest.raises(BrokerUnavailable, match="nothing was sent"):
            await hasty
        await rig.clock.advance(5)
        assert await patient == 4


async def test_closing_ends_the_requests_whose_inbox_is_being_opened() -> None:
    class Stuck(RiggedConnection):
        async def open_inbox(self) -> EmbeddedInbox:
            await rig.clock.sleep(500)
            return await super().open_inbox()

    rig = Rig(layered=False)
    rig.backend.connection_class = Stuck  # type: ignore[misc]
    async with rig:
        asking = asyncio.create_task(rig.manager.request(T, 1, reply=int))
        await rig.clock.advance(1)
        await rig.manager.aclose()
        with pytest.raises(Closed):
            await asking
