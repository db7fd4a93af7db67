"""A mark is one number, and nothing is lost in it."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from brokerkit_rocketmq.marks import Mark, Trial

_OFFSETS = st.integers(0, (1 << 40) - 1)


@given(high=st.integers(0, (1 << 62) - 1))
def test_without_a_trial_a_mark_is_the_offset(high: int) -> None:
    assert Mark(high).number == high
    assert Mark.of(high) == Mark(high)


@given(offset=_OFFSETS, span=st.integers(0, (1 << 14) - 1), starts=st.integers(1, 255))
def test_a_trial_and_its_mark_are_read_as_they_were_written(offset: int, span: int, starts: int) -> None:
    mark = Mark(offset + span, Trial(offset, starts))
    assert 0 <= mark.number < 1 << 63, "Java has it as a long"
    assert Mark.of(mark.number) == mark


def test_more_starts_than_can_be_written_are_many() -> None:
    assert Mark.of(Mark(8, Trial(5, 1000)).number) == Mark(8, Trial(5, 255))


@pytest.mark.parametrize("mark", [Mark(4, Trial(5, 2)), Mark(1 << 41, Trial(1 << 40, 2)), Mark(20_000, Trial(5, 2))])
def test_a_trial_that_does_not_fit_is_left_out(mark: Mark) -> None:
    assert mark.number == mark.high
