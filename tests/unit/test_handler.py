from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import pytest
from pydantic import BaseModel

from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, DecodeError
from brokerkit.handler import CallPlan
from brokerkit.message import Message
from brokerkit.spi import Inbound

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypes


class Order(BaseModel):
    id: int


BODY = b'{"id": 7}'
ORDER = Order(id=7)
MESSAGE = Message(body=BODY)
DELIVERY = cast(Delivery, object())


def call(function: Callable[..., Any], body: bytes = BODY) -> Any:
    """Call as the runner does; return the value."""
    plan = CallPlan(function, "app.handle")
    inbound = Inbound(topic="t", group="g", body=body, message_id="m")
    arguments = plan.arguments(inbound, DELIVERY if plan.needs_delivery else None, lambda: MESSAGE)
    value = function(*arguments)
    assert asyncio.iscoroutine(value) is plan.is_async
    return asyncio.run(value) if plan.is_async else value


def plain(order: Order) -> Any:
    return order


async def asynchronous(order: Order) -> Any:
    return order


def with_return_type(order: Order) -> OnlyForTypes:
    return order  # type: ignore[return-value]


def positional_only(order: Order, /) -> Any:
    return order


def quoted(order: "Order") -> Any:  # noqa: UP037
    return order


def trailing_defaults(order: Order, verbose: bool = False, *more: Any, flag: int = 3, **rest: Any) -> Any:
    assert (verbose, more, flag, rest) == (False, (), 3, {})
    return order


def with_database(database: str, order: Order) -> Any:
    assert database == "db"
    return order


def database_by_name(order: Order, database: str) -> Any:
    return with_database(database, order)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Service:
    def __call__(self, order: Order) -> Any:
        return order

    def method(self, order: Order) -> Any:
        return order

    async def async_method(self, order: Order) -> Any:
        return order

    @classmethod
    def of_class(cls, order: Order) -> Any:
        return order

    @staticmethod
    def static(order: Order) -> Any:
        return order


class AsyncService:
    async def __call__(self, order: Order) -> Any:
        return order


@pytest.mark.parametrize(
    "function",
    [
        plain,
        asynchronous,
        with_return_type,
        positional_only,
        quoted,
        trailing_defaults,
        functools.partial(with_database, "db"),
        functools.partial(database_by_name, database="db"),
        functools.partial(functools.partial(plain)),
        functools.partial(asynchronous),
        functools.partial(Service()),
        functools.partial(AsyncService()),
        functools.partial(Service().async_method),
        decorated(plain),
        functools.partial(decorated(plain)),
        Service(),
        AsyncService(),
        Service().method,
        Service().async_method,
        Service.of_class,
        Service.static,
    ],
    # No addresses: the ids must be the same in every process of xdist.
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)),
)
def test_every_kind_of_callable_gets_the_payload_in_its_type(function: Callable[..., Any]) -> None:
    value = call(function)
    assert value == ORDER and type(value) is Order


def test_a_lambda_and_a_bound_method_of_a_builtin_get_decoded_json() -> None:
    seen: list[Any] = []
    call(seen.append)
    assert seen == [{"id": 7}] == [call(lambda payload: payload)]


def test_arguments_in_any_place_are_found_by_annotation() -> None:
    def all_three(order: Order, delivery: Delivery, message: Message) -> Any:
        return order, delivery, message

    def message_first(message: Message) -> Any:
        return message

    def delivery_first(delivery: Delivery, message: Message) -> Any:
        return delivery, message

    assert call(all_three) == (ORDER, DELIVERY, MESSAGE)
    assert call(message_first) is MESSAGE
    assert call(delivery_first) == (DELIVERY, MESSAGE)


def test_a_default_between_the_payload_and_the_message_keeps_its_place() -> None:
    def handle(order: Order, verbose: bool = False, message: Any = None, real: Message = MESSAGE, last: int = 5) -> Any:
        return order, verbose, message, real, last

    other = Message(body=b"other")
    plan = CallPlan(handle, "app.handle")
    inbound = Inbound(topic="t", group="g", body=BODY, message_id="m")
    assert handle(*plan.arguments(inbound, None, lambda: other)) == (ORDER, False, None, other, 5)


def test_an_optional_or_annotated_message_is_filled_too() -> None:
    def handle(
        order: Order,
        one: Message | None = None,
        two: Optional[Message] = None,  # noqa: UP045
        three: Annotated[Message, "x"] | None = None,
        four: Annotated[Delivery | None, "x"] = None,
    ) -> Any:
        return one, two, three, four

    assert call(handle) == (MESSAGE, MESSAGE, MESSAGE, DELIVERY)


def test_a_wrapper_without_functools_wraps_gets_the_decoded_json() -> None:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert call(wrapper) == (({"id": 7},), {})


def test_a_class_is_called_with_the_payload() -> None:
    class Job:
        def __init__(self, order: Order) -> None:
            self.order = order

    assert call(Job).order == ORDER


def test_a_body_that_does_not_fit_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        call(plain, b"{}")


def no_parameter() -> None: ...
def only_keywords(*, order: Order) -> None: ...
def kwargs_only(**order: Any) -> None: ...
def keyword_message(order: Order, *, message: Message | None = None) -> None: ...
def second_payload(order: Order, other: int) -> None: ...
def unknown_type(order: OnlyForTypes) -> None: ...
def unknown_second(order: Order, message: OnlyForTypes) -> None: ...
def not_decodable(order: memoryview) -> None: ...
def generator(order: Order) -> Iterator[int]:
    yield 1


async def async_generator(order: Order) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_parameter, "takes no parameter"),
        (kwargs_only, "takes no parameter"),
        (only_keywords, "keyword-only parameter 'order' cannot be filled"),
        (keyword_message, "keyword-only parameter 'message' cannot be filled"),
        (second_payload, "parameter 'other': only the first parameter gets the payload"),
        (unknown_type, "parameter 'order' .*OnlyForTypes.*TYPE_CHECKING"),
        (unknown_second, "parameter 'message' .*OnlyForTypes.*TYPE_CHECKING"),
        (not_decodable, "parameter 'order': no body can be decoded"),
        (generator, "is a generator"),
        (async_generator, "is a generator"),
        (functools.partial(generator), "is a generator"),
        (functools.partial(plain, order=ORDER), "keyword|takes no parameter"),
        (min, "cannot be read"),
    ],
)
def test_a_signature_that_cannot_be_called_is_refused_by_handler_and_parameter(
    function: Callable[..., Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"app.handle.*{said}|{said}") as caught:
        CallPlan(function, "app.handle")
    assert "app.handle" in str(caught.value)
