"""From a handler's signature to the arguments of its call."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from brokerkit import codec
from brokerkit.blocking_delivery import BlockingDelivery
from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError
from brokerkit.message import Message
from brokerkit.spi import Inbound

__all__ = ["CallPlan"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class _Default:
    """Stands for a parameter that keeps its default but has one to be filled after it: calls are positional."""

    value: Any


class CallPlan:
    """How one function is called for a delivery.

    The first parameter gets the payload decoded into its annotation (bytes, str, `Message`, `Delivery`, any type
    that pydantic knows; none: decoded JSON); further ones must be annotated `Message` or `Delivery`, or have a
    default.  ``*args`` alone gets the payload.  A function that is no ``async def`` runs in a thread, and always
    gets a `BlockingDelivery`, whichever of the two it names.
    """

    __slots__ = ("decode", "extras", "is_async", "needs_delivery")

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        """Resolve the annotations; raise `ConfigurationError` that names the handler and the parameter."""
        target = _target(function)
        if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
            raise ConfigurationError(f"handler {name} is a generator: calling it would run none of its code; return")
        self.is_async = inspect.iscoroutinefunction(target)
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError) as exc:
            raise ConfigurationError(f"the parameters of handler {name} cannot be read: {exc}") from exc
        hints = _hints(target, name, signature.parameters)
        parameters = [one for one in signature.parameters.values() if one.kind in _POSITIONAL]
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and (
                parameter.default is parameter.empty or _special(hints.get(parameter.name)) is not None
            ):
                raise ConfigurationError(
                    f"handler {name}: keyword-only parameter {parameter.name!r} cannot be filled; "
                    f"arguments are passed by position"
                )
        if not parameters:
            parameters = [one for one in signature.parameters.values() if one.kind is one.VAR_POSITIONAL]
        if not parameters:
            raise ConfigurationError(f"handler {name} takes no parameter: its first one gets the payload")
        first, *rest = parameters
        annotation = hints.get(first.name, Any)
        special = _special(annotation)
        #: None where the first parameter is the Message or the Delivery itself.
        self.decode: Callable[[bytes], Any] | None = None
        self.extras: list[type | _Default] = []
        if special is not None:
            self.extras.append(special)
        else:
            try:
                self.decode = codec.Decoder(annotation).decode
            except ConfigurationError as error:
                raise ConfigurationError(f"handler {name}, parameter {first.name!r}: {error}") from error
        for parameter in rest:
            wanted = _special(hints.get(parameter.name))
            if wanted is not None:
                self.extras.append(wanted)
            elif parameter.default is not parameter.empty:
                self.extras.append(_Default(parameter.default))
            else:
                raise ConfigurationError(
                    f"handler {name}, parameter {parameter.name!r}: only the first parameter gets the payload; "
                    f"further ones are annotated Message or Delivery"
                )
        while self.extras and isinstance(self.extras[-1], _Default):
            self.extras.pop()
        if self.is_async and BlockingDelivery in self.extras:
            raise ConfigurationError(
                f"handler {name} is an `async def` and runs on the event loop, which a BlockingDelivery would block; "
                f"annotate Delivery"
            )
        self.needs_delivery = Delivery in self.extras or BlockingDelivery in self.extras

    def arguments(
        self, inbound: Inbound, delivery: Delivery | BlockingDelivery | None, message: Callable[[], Message]
    ) -> list[Any]:
        """Return the arguments; raise `DecodeError` when the body does not fit."""
        found = [self.decode(inbound.body)] if self.decode is not None else []
        for extra in self.extras:
            if isinstance(extra, _Default):
                found.append(extra.value)
            else:
                found.append(message() if extra is Message else delivery)
        return found


def _target(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what holds the annotations and the code: below partials, and ``__call__`` of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return _target(type(function).__call__)


def _hints(target: Callable[..., Any], name: str, parameters: typing.Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Resolve the annotations of the parameters; that of the result is nobody's business here."""
    if inspect.isclass(target):
        target = target.__init__
    # A decorator with functools.wraps copies the annotations; their names belong to the wrapped function's module.
    namespace = getattr(inspect.unwrap(target), "__globals__", {})
    hints: dict[str, Any] = {}
    for parameter, annotation in getattr(target, "__annotations__", {}).items():
        if parameter not in parameters:
            continue
        holder = types.SimpleNamespace(__annotations__={parameter: annotation})
        try:
            hints |= typing.get_type_hints(holder, globalns=namespace, include_extras=True)
        except (NameError, TypeError, ValueError, AttributeError, SyntaxError) as exc:
            raise ConfigurationError(
                f"the annotation of parameter {parameter!r} of handler {name} cannot be resolved: {exc}; types must "
                f"be importable from the handler's module, not only under TYPE_CHECKING"
            ) from exc
    return hints


def _special(annotation: Any) -> type | None:
    """Return which of ours an annotation is, perhaps optional or Annotated; None where it is none of them."""
    if annotation is Message or annotation is Delivery or annotation is BlockingDelivery:
        return typing.cast(type, annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _special(typing.get_args(annotation)[0])
    if origin is typing.Union or origin is types.UnionType:
        others = [one for one in typing.get_args(annotation) if one is not type(None)]
        return _special(others[0]) if len(others) == 1 else None
    return None
