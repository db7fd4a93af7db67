"""What the error hook of a manager is told."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from brokerkit.errors import ConfigurationError
from brokerkit.message import Message

__all__ = ["ErrorEvent", "ErrorHook", "ErrorHooks"]

log = logging.getLogger("brokerkit")

EventKind = Literal["failed", "dead", "dropped", "receive", "policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEvent:
    """One thing that went wrong.

    kind: ``failed`` a handler failed and the message comes again; ``dead`` it became a dead letter; ``dropped`` it
    is gone: its ttl was over (``reason`` is then ``expired``), or the backend has no dead letters; ``receive`` a
    consumer has trouble; ``policy`` brokerkit failed.
    """

    kind: EventKind
    topic: str
    group: str
    reason: str
    error: BaseException | None = None
    message: Message | None = None
    attempt: int | None = None
    handler: str | None = None


ErrorHook = Callable[[ErrorEvent], object]


class ErrorHooks:
    """The hooks of one manager; a hook that fails is logged and hurts nobody."""

    def __init__(self) -> None:
        self._hooks: list[ErrorHook] = []

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def add(self, hook: ErrorHook) -> None:
        """Call ``hook`` with every `ErrorEvent`, on the manager's loop.

        Raise `ConfigurationError` for a coroutine function: nobody would await it.
        """
        if not callable(hook):
            raise ConfigurationError(f"an error hook is a function of one ErrorEvent, not {type(hook).__name__}")
        if inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__):
            raise ConfigurationError(
                f"the error hook {hook!r} is a coroutine function; give a plain function, which may create a task"
            )
        self._hooks.append(hook)

    def copy(self) -> ErrorHooks:
        """Return other hooks that begin with the same ones."""
        other = ErrorHooks()
        other._hooks = list(self._hooks)
        return other

    def tell(self, event: ErrorEvent) -> None:
        """Call all hooks."""
        for hook in tuple(self._hooks):
            try:
                hook(event)
            except Exception:
                log.exception("the error hook %r failed on %s", hook, event.kind)
