from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from brokerkit.message import Message
from brokerkit.results import ConsumeResult, MessageResult, Outcome, outcome_of

ONE, TWO = Message(body=b"1", topic="t"), Message(body=b"2", topic="t")


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (None, Outcome()),
        (ONE, Outcome(follow_ups=(ONE,))),
        ([ONE, TWO], Outcome(follow_ups=(ONE, TWO))),
        ((ONE, TWO), Outcome(follow_ups=(ONE, TWO))),
        ({"a": 1}, Outcome(reply={"a": 1}, has_reply=True)),
        (0, Outcome(reply=0, has_reply=True)),
        (False, Outcome(reply=False, has_reply=True)),
        ("", Outcome(reply="", has_reply=True)),
        ([], Outcome(reply=[], has_reply=True)),
        ([1, 2], Outcome(reply=[1, 2], has_reply=True)),
        (MessageResult(True), Outcome()),
        (MessageResult(True, 5, ONE), Outcome(reply=5, has_reply=True, follow_ups=(ONE,))),
        (MessageResult(True, None, (ONE, TWO)), Outcome(follow_ups=(ONE, TWO))),
        (MessageResult(True, None, []), Outcome()),
        (MessageResult(False, 5, ONE, "full"), Outcome(failure="full")),
        (MessageResult(False), Outcome(failure="the handler returned success=False")),
        (ConsumeResult(True, "t1"), Outcome(reply={"success": True, "task_id": "t1"}, has_reply=True)),
        (ConsumeResult(False, "t1", "no template"), Outcome(failure="no template")),
        (ConsumeResult(False, "t1"), Outcome(failure="task t1 returned success=False")),
    ],
    ids=repr,
)
def test_what_a_handler_returned_is_sorted_out(value: object, outcome: Outcome) -> None:
    assert outcome_of(value) == outcome


async def a_coroutine() -> None: ...


def a_generator() -> Iterator[Message]:
    yield ONE


async def an_async_generator() -> AsyncIterator[Message]:
    yield ONE


@pytest.mark.parametrize("make", [a_coroutine, a_generator, an_async_generator])
def test_work_that_did_not_run_is_a_failure_and_no_result(make: Any) -> None:
    failure = outcome_of(make()).failure
    assert failure is not None and "did not run" in failure


@pytest.mark.parametrize("value", [[ONE, None], [None, ONE], (ONE, "x")])
def test_messages_mixed_with_other_values_are_a_failure(value: object) -> None:
    failure = outcome_of(value).failure
    assert failure is not None and "mixed" in failure


@pytest.mark.parametrize("following", [5, [5], [ONE, None], "topic", {"a": ONE}, a_generator])
def test_a_next_message_that_is_none_is_a_failure_and_no_error(following: Any) -> None:
    failure = outcome_of(MessageResult(True, None, following)).failure
    assert failure is not None and "next_message is a Message" in failure
