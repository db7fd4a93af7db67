"""Who holds up the event loop is named, in real time."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from brokerkit.clock import SystemClock
from brokerkit.manager import AsyncManager
from brokerkit.message import Message
from brokerkit.testing.deadlines import eventually
from brokerkit.watchdog import LoopWatchdog


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "brokerkit-watchdog"]


async def test_a_blocking_call_in_an_async_handler_is_warned_of_with_its_name_and_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = AsyncManager(settings={"url": "memory://"})
    done = asyncio.Event()

    @manager.handler("t", group="g")
    async def slow(message: Message) -> None:
        time.sleep(2.0)  # noqa: ASYNC251 what the watchdog is for
        done.set()

    with caplog.at_level(logging.WARNING):
        async with manager:
            await manager.start()
            await manager.send("t", b"x")
            await done.wait()
            await manager.stop()
    warnings = [record.getMessage() for record in caplog.records if "held up" in record.getMessage()]
    assert warnings and "slow" in warnings[0] and "test_watchdog.py" in warnings[0]
    assert not threads()


async def test_code_outside_of_handlers_is_said_to_be_so_and_one_name_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dog = LoopWatchdog(lambda: [])
    dog.start()
    for _ in range(2):
        await SystemClock().sleep(0.3)
        time.sleep(2.0)  # noqa: ASYNC251 what the watchdog is for
    await eventually(lambda: dog.held_up >= 2)
    dog.stop()
    assert caplog.text.count("code outside of any handler") == 1
    assert not threads()


async def test_a_loop_that_turns_is_not_complained_about() -> None:
    dog = LoopWatchdog(lambda: [])
    dog.start()
    await SystemClock().sleep(1.0)
    dog.stop()
    assert dog.held_up == 0
