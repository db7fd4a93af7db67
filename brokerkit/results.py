"""What a handler may return besides None and follow-up messages."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from brokerkit.message import Message

__all__ = ["ConsumeResult", "MessageResult", "Outcome", "outcome_of"]


@dataclass(frozen=True, slots=True)
class MessageResult:
    """A verdict with a result and follow-ups.

    ``success=False`` means again, as the retry policy says; ``error`` is then the reason.
    """

    success: bool
    result: Any = None
    next_message: Message | Sequence[Message] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ConsumeResult:
    """The verdict on an export task."""

    success: bool
    task_id: str
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A handler's return value, sorted out."""

    #: None: it succeeded.  Else the text of the failure.
    failure: str | None = None
    reply: Any = None
    has_reply: bool = False
    follow_ups: tuple[Message, ...] = ()


def outcome_of(value: object) -> Outcome:
    """Sort out what a handler returned.  What would lose work in silence is a failure; nothing is raised."""
    if isinstance(value, Message):
        return Outcome(follow_ups=(value,))
    if isinstance(value, list | tuple) and any(isinstance(item, Message) for item in value):
        if not all(isinstance(item, Message) for item in value):
            return Outcome(failure="the handler returned messages mixed with other values; return messages only")
        return Outcome(follow_ups=tuple(value))
    if isinstance(value, MessageResult):
        return _of_result(value)
    if isinstance(value, ConsumeResult):
        if not value.success:
            return Outcome(failure=value.error_message or f"task {value.task_id} returned success=False")
        return Outcome(reply={"success": True, "task_id": value.task_id}, has_reply=True)
    if inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
        if inspect.iscoroutine(value):
            value.close()
        return Outcome(failure=f"the handler returned a {type(value).__name__}, whose code did not run; await it")
    return Outcome(reply=value, has_reply=value is not None)


def _of_result(value: MessageResult) -> Outcome:
    if not value.success:
        return Outcome(failure=value.error or "the handler returned success=False")
    following = value.next_message
    if following is None:
        messages: tuple[Message, ...] = ()
    elif isinstance(following, Message):
        messages = (following,)
    elif isinstance(following, Sequence) and all(isinstance(item, Message) for item in following):
        messages = tuple(following)
    else:
        return Outcome(failure=f"next_message is a Message or a list of them, not a {type(following).__name__}")
    return Outcome(reply=value.result, has_reply=value.result is not None, follow_ups=messages)
