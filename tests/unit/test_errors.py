from __future__ import annotations

import inspect
import pickle
import re

import pytest

from brokerkit import errors
from brokerkit.errors import BrokerError, Reject, Retry

TREE = sorted(
    (one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, BrokerError)),
    key=lambda one: one.__name__,
)


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    drawn = re.findall(r"^[├└]── (\w+) .*?(retryable)?$", errors.__doc__ or "", re.MULTILINE)
    real = [(one.__name__, one.default_retryable) for one in TREE if one is not BrokerError]
    assert sorted((name, bool(mark)) for name, mark in drawn) == real
    assert all(one.__bases__ == (BrokerError,) for one in TREE if one is not BrokerError)


def test_every_error_is_exported() -> None:
    assert {*errors.__all__} == {one.__name__ for one in TREE} | {"Reject", "Retry"}


@pytest.mark.parametrize("kind", TREE)
def test_an_error_names_its_topic_and_backend_and_says_whether_to_try_again(kind: type[BrokerError]) -> None:
    error = kind("it broke", topic="orders", backend="embedded")
    assert str(error) == "it broke (topic 'orders', backend embedded)"
    assert error.retryable is kind.default_retryable
    assert kind("x", retryable=not kind.default_retryable).retryable is not kind.default_retryable
    assert kind.__doc__


@pytest.mark.parametrize("kind", TREE)
def test_an_error_is_pickled_with_its_state(kind: type[BrokerError]) -> None:
    error = kind("it broke", topic="orders", retryable=not kind.default_retryable).with_context(backend="embedded")
    error.add_note("seen at noon")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind and str(copy) == str(error) and copy.args == error.args
    assert (copy.topic, copy.backend, copy.retryable) == ("orders", "embedded", error.retryable)
    assert copy.__notes__ == ["seen at noon"]


def test_context_fills_in_and_never_replaces() -> None:
    error = BrokerError("x", topic="a").with_context(topic="b", backend="one").with_context(backend="two")
    assert (error.topic, error.backend) == ("a", "one")


def test_a_topic_that_the_text_names_already_is_not_repeated() -> None:
    assert str(BrokerError("topic 'a' is gone", topic="a")) == "topic 'a' is gone"


def test_reject_and_retry_are_pickled_too_and_no_broker_errors() -> None:
    assert pickle.loads(pickle.dumps(Reject("too old"))).reason == "too old"
    assert pickle.loads(pickle.dumps(Retry(2.5))).delay == 2.5
    assert not issubclass(Reject, BrokerError) and not issubclass(Retry, BrokerError)
