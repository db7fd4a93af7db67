"""`ExportTask`: one document to be made, and how a handler gets it."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from brokerkit.errors import ConfigurationError, PayloadError
from brokerkit.handler import CallPlan
from brokerkit.message import Message
from brokerkit.results import ConsumeResult

__all__ = ["ExportTask", "TaskAdapter", "TaskHandler", "handler_of_tasks", "new_task"]

#: What makes the documents.  None means the same as ``ConsumeResult(True, task.task_id)``.
TaskHandler: TypeAlias = "Callable[[ExportTask], ConsumeResult | Awaitable[ConsumeResult | None] | None]"

_VERSION = "1.0"


class ExportTask(BaseModel):
    """An export task as it travels: flat JSON.

    ``version`` may be missing and unknown fields are ignored, so that older and newer senders are understood.  A
    received task without a ``task_id`` has the id of its message.
    """

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    #: Made by the sender; also the id of the message and the name of the finished document.
    task_id: str = Field(default_factory=lambda: uuid.uuid4().hex, min_length=1)
    #: Which template renders the document.
    template_id: str = Field(min_length=1)
    #: What the template shows.
    data: dict[str, Any] = Field(default_factory=dict)
    #: For example docx, pdf, xlsx, csv or html.
    output_format: str = Field(min_length=1)
    #: 0 (lowest) to 9.
    priority: int = Field(default=0, ge=0, le=9)
    version: str = _VERSION

    @field_validator("version", mode="before")
    @classmethod
    def _null_is_missing(cls, version: object) -> object:
        return _VERSION if version is None else version


def new_task(template_id: str, data: Mapping[str, Any], output_format: str, priority: int = 0) -> ExportTask:
    """Return a task with a new id; raise `PayloadError` that names the arguments that cannot be."""
    try:
        return ExportTask(template_id=template_id, data=dict(data), output_format=output_format, priority=priority)
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in exc.errors(include_url=False, include_input=False)
        )
    except (TypeError, ValueError):
        problems = f"data: should be a mapping, not {type(data).__name__}"
    # Outside the handlers: the error of pydantic quotes the values, which are the user's.
    raise PayloadError(f"not an export task: {problems}")


def handler_of_tasks(function: TaskHandler) -> Callable[..., Any]:
    """Return ``function`` as a handler for `Manager.add_handler`; raise `ConfigurationError` when it cannot be one.

    Its only parameter gets an `ExportTask`, however it is annotated.
    """
    if not callable(function):
        raise ConfigurationError(f"a message handler is a function that takes an ExportTask, not {function!r}")
    name = getattr(function, "__qualname__", type(function).__qualname__)
    plan = CallPlan(function, name)
    if plan.decode is None or plan.extras:
        raise ConfigurationError(
            f"message handler {name} asks for the Message or the Delivery, but gets the task and nothing else; "
            f"register it with manager.handler(manager.topic)"
        )
    return _Async(function) if plan.is_async else _Blocking(function)


class TaskAdapter:
    """Calls a function with the task of a message; logs call it by the name of the function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        # For logs, and for the watchdog that names the handler which holds up the event loop.
        self.__module__ = getattr(function, "__module__", type(function).__module__)
        self.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)
        self.__code__ = getattr(function, "__code__", None)

    def __reduce__(self) -> tuple[Any, ...]:
        # executor="process" sends it to a child, which has the code.
        return (type(self), (self.function,))


class _Blocking(TaskAdapter):
    def __call__(self, task: ExportTask, message: Message) -> Any:
        return self.function(_with_id(task, message))


class _Async(TaskAdapter):
    async def __call__(self, task: ExportTask, message: Message) -> Any:
        return await self.function(_with_id(task, message))


def _with_id(task: ExportTask, message: Message) -> ExportTask:
    if "task_id" in task.model_fields_set or message.message_id is None:
        return task
    # The same in each attempt, so that a document which is there already is found again.
    return task.model_copy(update={"task_id": message.message_id})
