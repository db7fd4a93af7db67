from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.errors import ConfigurationError, DecodeError, Reject, Retry, SendRefused
from brokerkit.retry import RetryLayer, RetryPolicy, resolve_policy


def test_the_longest_delay_doubles_up_to_the_cap() -> None:
    policy = RetryPolicy(jitter="none")
    assert [policy.delay(attempt, random.random) for attempt in (1, 2, 3, 4, 5, 6, 7)] == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("jitter", ["none", "full"])
def test_ten_thousand_attempts_do_not_overflow(jitter: Any) -> None:
    assert 0 < RetryPolicy(jitter=jitter).delay(10_000, lambda: 0.5) <= 30
    assert RetryPolicy(base_delay=0, jitter=jitter).delay(10_000, lambda: 0.5) == 0


@given(attempt=st.integers(1, 50), drawn=st.floats(0, 1, exclude_max=True), base=st.floats(0.001, 100))
def test_full_jitter_draws_a_real_delay_up_to_the_longest(attempt: int, drawn: float, base: float) -> None:
    policy = RetryPolicy(base_delay=base, max_delay=100)
    longest = RetryPolicy(base_delay=base, max_delay=100, jitter="none").delay(attempt, random.random)
    assert min(longest, 0.01) <= policy.delay(attempt, lambda: drawn) <= longest


def test_full_jitter_reaches_both_ends() -> None:
    policy = RetryPolicy(base_delay=10, max_delay=10)
    assert policy.delay(1, lambda: 0.0) == 10
    assert policy.delay(1, lambda: 0.5) == 5
    assert policy.delay(1, lambda: 1 - 1e-12) == 0.01


def test_failures_are_retryable_unless_the_policy_or_their_type_says_no() -> None:
    policy = RetryPolicy(retryable=(OSError, ValueError), fatal=(FileNotFoundError, UnicodeError))
    assert policy.is_retryable(OSError())
    assert policy.is_retryable(ValueError())
    assert not policy.is_retryable(KeyError())
    assert not policy.is_retryable(FileNotFoundError())
    assert not policy.is_retryable(UnicodeError())


def test_what_a_handler_asks_for_goes_before_the_policy() -> None:
    assert RetryPolicy(retryable=(), fatal=(Exception,)).is_retryable(Retry())
    assert not RetryPolicy(retryable=(BaseException,)).is_retryable(Reject())
    assert not RetryPolicy(retryable=(BaseException,)).is_retryable(DecodeError("no JSON"))


def test_an_error_of_brokerkit_in_a_handler_is_retried_like_any_other() -> None:
    assert RetryPolicy().is_retryable(ConfigurationError("x"))
    assert RetryPolicy().is_retryable(SendRefused("x"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", 2.5),
        ("max_attempts", True),
        ("base_delay", -1),
        ("base_delay", float("nan")),
        ("base_delay", "1"),
        ("max_delay", float("inf")),
        ("max_delay", 0.5),
        ("multiplier", 0.9),
        ("jitter", "some"),
        ("exhausted", "drop"),
        ("retryable", ValueError),
        ("retryable", ("ValueError",)),
        ("fatal", [ValueError]),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(field: str, value: object) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(ConfigurationError) as caught:
        RetryPolicy(**arguments)
    assert f"{field} is {value!r}" in str(caught.value)


def test_without_layers_the_defaults_hold() -> None:
    assert resolve_policy(None, None) == RetryPolicy()


def test_a_complete_policy_wins_over_all_weaker_layers() -> None:
    handler = RetryPolicy(max_attempts=7)
    assert resolve_policy(handler, RetryPolicy(max_attempts=2), RetryLayer(max_delay=99)) is handler


def test_partial_layers_fill_in_what_stronger_ones_left_open() -> None:
    topic = RetryLayer(max_attempts=2)
    settings = SimpleNamespace(max_attempts=9, base_delay=5.0, max_delay=None, jitter="none")
    compatibility = RetryLayer(max_attempts=17, max_delay=60.0)
    assert resolve_policy(None, topic, settings, compatibility) == RetryPolicy(
        max_attempts=2, base_delay=5.0, max_delay=60.0, jitter="none"
    )


def test_a_complete_policy_fills_in_a_partial_one_and_ends_the_search() -> None:
    merged = resolve_policy(RetryLayer(max_attempts=2), RetryPolicy(base_delay=3), RetryLayer(max_delay=90))
    assert merged == RetryPolicy(max_attempts=2, base_delay=3)


def test_layers_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"max_delay is 30\.0"):
        resolve_policy(RetryLayer(base_delay=60))
