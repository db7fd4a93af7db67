"""Promises that a user would quote, one test each."""

from __future__ import annotations

from pathlib import Path

import pytest

from brokerkit import AsyncManager, ConfigurationError, Message, RetryPolicy, Topic
from brokerkit.names import MAX_NAME
from brokerkit.testing.deadlines import eventually

LEGAL = ["a", "A-1_b", "orders.eu.new", "a" * MAX_NAME, "0", "-", "_._"]
ILLEGAL = ["", ".", "a.", ".a", "a..b", "a b", "a/b", "a:b", "ä", "a\n", "bk.x", "a*", "#", "a" * (MAX_NAME + 1)]


@pytest.mark.parametrize("name", LEGAL)
def test_name_grammar_accepts(name: str) -> None:
    assert Topic(name).name == name


@pytest.mark.parametrize("name", ILLEGAL)
async def test_name_grammar_refuses_before_any_io(name: str, tmp_path: Path) -> None:
    file = tmp_path / "untouched.db"
    manager = AsyncManager(settings={"url": f"sqlite:///{file}"})

    with pytest.raises(ConfigurationError):
        Topic(name)
    with pytest.raises(ConfigurationError):
        await manager.send(name, b"")
    with pytest.raises(ConfigurationError):
        Topic("topic", groups=[name])

    assert not file.exists()
    await manager.aclose()


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_priority_carried_everywhere(scheme: str, tmp_path: Path) -> None:
    """Through the first delivery, a retry, the dead letter, its redrive, and a follow-up's own priority."""
    url = "memory://" if scheme == "memory" else f"sqlite:///{tmp_path / 'priority.db'}"
    seen: list[tuple[int, int]] = []
    followed: list[int] = []
    healthy = False
    manager = AsyncManager(settings={"url": url})

    @manager.handler("jobs", group="g", retry=RetryPolicy(max_attempts=2, base_delay=0.01, max_delay=0.01))
    async def work(body: bytes, message: Message) -> Message:
        seen.append((message.attempt, message.priority))
        if not healthy:
            raise ValueError("not yet")
        return Message(body=b"next", topic="followed", priority=3)

    @manager.handler("followed", group="g")
    async def follow(body: bytes, message: Message) -> None:
        followed.append(message.priority)

    async with manager:
        await manager.send("jobs", b"", priority=7)
        await manager.start()
        letters = await eventually(lambda: manager.admin.dead_letters("jobs", "g"), what="the dead letter")
        assert letters[0].message.priority == 7
        healthy = True
        await manager.admin.redrive("jobs", "g")
        await eventually(lambda: followed, what="the follow-up")

    assert seen == [(1, 7), (2, 7), (1, 7)]
    assert followed == [3]
