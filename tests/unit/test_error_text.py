"""What a dead letter shows of the error that a handler failed with."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import pytest

from brokerkit import AsyncManager, BrokerUnavailable, DeadLetter, RetryPolicy, Topic
from brokerkit.error_text import clean_traceback, handler_traceback
from brokerkit.settlement import failure_headers
from brokerkit.testing import eventually

T = Topic("jobs", int, groups=["workers"])


def divide(number: int) -> float:
    return deeper(number)


async def divide_on_the_loop(number: int) -> float:
    return deeper(number)


async def divide_in_time(number: int) -> float:
    await asyncio.sleep(0)
    return deeper(number)


def deeper(number: int) -> float:
    return 1 / number


def chained(number: int) -> None:
    try:
        deeper(number)
    except ZeroDivisionError as error:
        raise ValueError("no such share") from error


async def hang(number: int) -> None:
    await asyncio.Event().wait()


async def refused(number: int) -> None:
    raise BrokerUnavailable("the other broker is away")


async def dead_letter_of(work: Any, **options: Any) -> DeadLetter:
    async with AsyncManager(f"memory://{uuid.uuid4().hex}") as manager:
        manager.add_handler(T, work, retry=RetryPolicy(max_attempts=1), **options)
        await manager.start()
        await manager.send(T, 0)
        await eventually(lambda: manager.monitor.metrics().totals["dead"] == 1, within=60)
        (letter,) = await manager.admin.dead_letters(T, "workers")
        return letter


def functions(trace: str | None) -> list[str]:
    """Return the functions of a printed traceback, outermost first."""
    return re.findall(r"^  File .*, in (\S+)$", trace or "", re.MULTILINE)


@pytest.mark.parametrize(
    ("work", "options"),
    [
        (divide_on_the_loop, {}),
        (divide_in_time, {"timeout": 60}),
        (divide, {}),
        (divide, {"timeout": 60}),
        (divide, {"executor": "process"}),
        (divide_in_time, {"executor": "process"}),
    ],
    ids=["async", "async-timeout", "thread", "thread-timeout", "process", "process-async"],
)
async def test_the_traceback_of_a_dead_letter_begins_with_the_handler(work: Any, options: dict[str, Any]) -> None:
    letter = await dead_letter_of(work, **options)

    assert functions(letter.traceback) == [work.__name__, "deeper"]
    assert letter.traceback is not None
    assert letter.traceback.startswith("Traceback (most recent call last):\n")
    assert letter.traceback.endswith("ZeroDivisionError: division by zero\n")


async def test_the_causes_of_an_error_are_shown_too() -> None:
    letter = await dead_letter_of(chained)

    assert functions(letter.traceback) == ["chained", "deeper", "chained"]
    assert "ZeroDivisionError: division by zero" in (letter.traceback or "")


async def test_a_timeout_shows_no_frame_of_brokerkit() -> None:
    letter = await dead_letter_of(hang, timeout=0.05)

    assert letter.traceback == "TimeoutError: the handler ran longer than its timeout of 0.05 s\n"


async def test_an_error_of_brokerkit_that_a_handler_raises_shows_where() -> None:
    letter = await dead_letter_of(refused)

    assert functions(letter.traceback) == ["refused"]


def test_of_a_fault_of_brokerkit_the_place_is_shown() -> None:
    with pytest.raises(AttributeError) as caught:
        failure_headers(3)  # type: ignore[arg-type]

    fault = caught.value
    assert fault.__traceback__ is not None
    fault.__traceback__ = fault.__traceback__.tb_next
    assert functions(clean_traceback(fault)) == ["failure_headers", "handler_traceback"]
    assert functions(handler_traceback(fault)) == ["handler_traceback"]
