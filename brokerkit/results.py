"""What a handler may return besides None and follow-up messages."""

from __future__ import annotations

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
    """Sort out what a handler returned."""
    if isinstance(value, Message):
        return Outcome(follow_ups=(value,))
    if isinstance(value, list) and value and all(isinstance(item, Message) for item in value):
        return Outcome(follow_ups=tuple(value))
    if isinstance(value, MessageResult):
        if not value.success:
            return Outcome(failure=value.error or "the handler returned success=False")
        following = value.next_message
        messages = () if following is None else (following,) if isinstance(following, Message) else tuple(following)
        return Outcome(reply=value.result, has_reply=value.result is not None, follow_ups=messages)
    if isinstance(value, ConsumeResult):
        if not value.success:
            return Outcome(failure=value.error_message or f"task {value.task_id} returned success=False")
        return Outcome(reply={"success": True, "task_id": value.task_id}, has_reply=True)
    return Outcome(reply=value, has_reply=value is not None)
