"""From a handler's signature to the arguments of its call."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from brokerkit import codec
from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError
from brokerkit.message import Message
from brokerkit.spi import Inbound

__all__ = ["CallPlan"]


class CallPlan:
    """How one function is called for a delivery.

    The first parameter gets the payload decoded into its annotation (bytes, str, `Message`, `Delivery`, any type
    that pydantic knows; none: decoded JSON); further ones must be annotated `Message` or `Delivery`.
    """

    __slots__ = ("decode", "extras", "is_async", "needs_delivery")

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        """Resolve the annotations; raise `ConfigurationError` that names the handler and the parameter."""
        target = function if inspect.isroutine(function) else type(function).__call__
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(target)
        try:
            signature = inspect.signature(function)
            hints = typing.get_type_hints(target, include_extras=True)
        except (NameError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigurationError(
                f"an annotation of handler {name} cannot be resolved: {exc}; types must be importable "
                f"from the handler's module, not only under TYPE_CHECKING"
            ) from exc
        parameters = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
                raise ConfigurationError(f"handler {name}: keyword-only parameter {parameter.name!r} cannot be filled")
        if not parameters:
            raise ConfigurationError(f"handler {name} takes no parameter: its first one gets the payload")
        first, *rest = parameters
        annotation = hints.get(first.name, Any)
        #: None where the first parameter is the Message or the Delivery itself.
        self.decode: Callable[[bytes], Any] | None = None
        self.extras: list[type] = []
        if annotation in (Message, Delivery):
            self.extras.append(annotation)
        else:
            try:
                self.decode = codec.Decoder(annotation).decode
            except ConfigurationError as error:
                raise ConfigurationError(f"handler {name}, parameter {first.name!r}: {error}") from error
        for parameter in rest:
            wanted = hints.get(parameter.name)
            if wanted in (Message, Delivery):
                self.extras.append(wanted)
            elif parameter.default is parameter.empty:
                raise ConfigurationError(
                    f"handler {name}, parameter {parameter.name!r}: only the first parameter gets the payload; "
                    f"further ones are annotated Message or Delivery"
                )
        self.needs_delivery = Delivery in self.extras

    def arguments(self, inbound: Inbound, delivery: Delivery | None, message: Callable[[], Message]) -> list[Any]:
        """Return the arguments; raise `DecodeError` when the body does not fit."""
        found = [self.decode(inbound.body)] if self.decode is not None else []
        return found + [delivery if extra is Delivery else message() for extra in self.extras]
