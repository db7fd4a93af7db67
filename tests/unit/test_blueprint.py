"""What an application configured, before anything connects."""

from __future__ import annotations

import pytest

from brokerkit import AsyncManager, ConfigurationError, Manager, Topic
from brokerkit.blueprint import Blueprint
from brokerkit.clock import SystemClock
from brokerkit.settings import TopicSettings

SWITCHED_OFF = {"backend": "rocketmq", "rocketmq": {"name_server": "h:1", "enabled": False}}


def test_a_backend_that_is_switched_off_is_not_looked_for() -> None:
    blueprint = Blueprint({"settings": SWITCHED_OFF}, None, "default", [])
    blueprint.configure_topic("t", TopicSettings())
    blueprint.enter(Topic("jobs", int, groups=["workers"]))

    with pytest.raises(ConfigurationError, match="the backend rocketmq is switched off"):
        blueprint.connect_options(SystemClock())

    assert blueprint.backend_name == "rocketmq"
    assert blueprint.describe() == "not used yet"


async def test_every_call_of_a_manager_that_is_switched_off_says_so() -> None:
    manager = AsyncManager(settings=SWITCHED_OFF)
    deliveries = manager.consume("t", group="g")

    for call in (manager.connect, manager.start, lambda: manager.send("t", b"x"), deliveries.receive):
        with pytest.raises(ConfigurationError, match="the backend rocketmq is switched off"):
            await call()
    await manager.aclose()
    with pytest.raises(ConfigurationError, match="the backend rocketmq is switched off"):
        await manager.connect()


def test_a_manager_says_what_it_is_before_and_after_it_is_used() -> None:
    manager = Manager("memory://", name="audit")
    assert repr(manager) == "<Manager 'audit', not used yet>"
    with manager:
        assert repr(manager) == "<Manager 'audit', on embedded>"


def test_one_attempt_gets_no_more_time_than_a_send_as_a_whole() -> None:
    def attempt_timeout(**settings: float) -> float:
        blueprint = Blueprint({"url": "memory://", "settings": settings}, None, "default", [])
        return blueprint.connect_options(SystemClock()).attempt_timeout

    assert attempt_timeout() == 5.0
    assert attempt_timeout(send_timeout=2.0) == 2.0
    assert attempt_timeout(send_timeout=2.0, attempt_timeout=1.0) == 1.0
