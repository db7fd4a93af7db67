from __future__ import annotations

import logging

import pytest

from brokerkit.errors import ConfigurationError
from brokerkit.events import ErrorEvent, ErrorHooks

EVENT = ErrorEvent(kind="dead", topic="t", group="g", reason="exhausted")


def test_a_hook_that_fails_is_logged_and_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[ErrorEvent] = []

    def broken(event: ErrorEvent) -> None:
        raise ValueError("hook")

    hooks = ErrorHooks()
    assert not hooks
    hooks.add(broken)
    hooks.add(seen.append)
    assert hooks
    with caplog.at_level(logging.ERROR, "brokerkit"):
        hooks.tell(EVENT)
    assert seen == [EVENT]
    assert "broken" in caplog.text and "dead" in caplog.text


def test_a_hook_that_adds_a_hook_ends() -> None:
    hooks = ErrorHooks()
    calls: list[ErrorEvent] = []

    def adds(event: ErrorEvent) -> None:
        calls.append(event)
        if len(calls) < 10:
            hooks.add(adds)

    hooks.add(adds)
    hooks.tell(EVENT)
    assert len(calls) == 1


class AsyncHook:
    async def __call__(self, event: ErrorEvent) -> None: ...


async def async_hook(event: ErrorEvent) -> None: ...


@pytest.mark.parametrize("hook", [async_hook, AsyncHook()])
def test_a_coroutine_function_is_refused_as_nobody_would_await_it(hook: object) -> None:
    with pytest.raises(ConfigurationError, match="plain function"):
        ErrorHooks().add(hook)  # type: ignore[arg-type]


def test_what_cannot_be_called_is_no_hook() -> None:
    with pytest.raises(ConfigurationError, match="not int"):
        ErrorHooks().add(5)  # type: ignore[arg-type]
