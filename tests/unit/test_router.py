from __future__ import annotations

import functools
from typing import Any

import pytest

from brokerkit.errors import ConfigurationError
from brokerkit.router import HandlerSpec, Router
from brokerkit.topic import Topic


def handle(order: Any, secret: str = "") -> None: ...


def other(order: Any) -> None: ...


class Callable_:
    def __call__(self, order: Any) -> None: ...

    def method(self, order: Any) -> None: ...


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("topic", "no topic"),
        ("group", "no group"),
        ("group", "g" * 100),
        ("function", "handle"),
        ("tag", "||"),
        ("concurrency", 0),
        ("concurrency", True),
        ("concurrency", 1.5),
        ("concurrency", "10"),
        ("prefetch", 0),
        ("timeout", 0),
        ("timeout", -1.0),
        ("timeout", float("nan")),
        ("timeout", "30"),
        ("timeout", True),
        ("executor", "fork"),
        ("type", dict),
        ("retry", 3),
        ("dedup_key", "id"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_when_the_handler_is_registered(field: str, value: object) -> None:
    arguments: dict[str, Any] = {"topic": "orders", "function": handle, field: value}
    with pytest.raises(ConfigurationError) as caught:
        HandlerSpec(**arguments)
    assert field in str(caught.value) or "handler is a function" in str(caught.value)


def test_the_decorator_returns_the_function_unchanged() -> None:
    router = Router()
    assert router.handler("orders", group="g")(handle) is handle
    assert [(spec.topic, spec.group, spec.function) for spec in router.specs] == [("orders", "g", handle)]


def test_a_topic_object_and_its_name_are_the_same_topic() -> None:
    router = Router()
    router.add_handler(Topic("orders", groups=["g"]), handle)
    with pytest.raises(ConfigurationError, match=r"two handlers .*test_router\.handle and .*test_router\.other"):
        router.add_handler("orders", other)
    assert len(router.specs) == 1


def test_handlers_of_other_types_groups_or_topics_are_no_duplicates() -> None:
    router = Router()
    for topic, group, type_ in [
        ("a", None, None),
        ("a", None, "x"),
        ("a", "g", None),
        ("a", "g", "x"),
        ("b", "g", "x"),
    ]:
        router.add_handler(topic, handle, group=group, type=type_)
    assert len(router.specs) == 5


def test_included_handlers_keep_their_options_and_clash_as_their_own_do() -> None:
    inner, outer = Router(), Router()
    inner.add_handler("orders", handle, group="g", timeout=3, type="x", native={"a": 1})
    outer.include(inner)
    assert outer.specs == inner.specs
    inner.add_handler("late", handle)
    assert len(outer.specs) == 1
    with pytest.raises(ConfigurationError, match="two handlers"):
        outer.include(inner)
    with pytest.raises(ConfigurationError, match="two handlers"):
        inner.include(inner)


def test_prefetch_is_twice_the_concurrency_and_at_least_twenty() -> None:
    def prefetch(**options: Any) -> int:
        return HandlerSpec(topic="t", function=handle, **options).effective_prefetch

    assert [prefetch(), prefetch(concurrency=1), prefetch(concurrency=50), prefetch(prefetch=3)] == [20, 20, 100, 3]


def test_a_resolved_group_is_checked_with_the_topic() -> None:
    spec = HandlerSpec(topic="t" * 60, function=handle)
    assert spec.in_group("g" * 40).group == "g" * 40 and spec.group is None
    with pytest.raises(ConfigurationError, match="at most 100"):
        spec.in_group("g" * 41)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (handle, "handle"),
        (functools.partial(functools.partial(handle, secret="hunter2"), secret="hunter3"), "handle"),
        (Callable_(), "Callable_"),
        (functools.partial(Callable_()), "Callable_"),
        (Callable_().method, "Callable_.method"),
    ],
)
def test_a_handler_is_called_by_its_name_and_never_by_its_repr(function: Any, name: str) -> None:
    assert HandlerSpec(topic="t", function=function).name == f"{__name__}.{name}"
