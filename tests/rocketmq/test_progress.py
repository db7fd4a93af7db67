"""`Progress` against a model that is too simple to be wrong."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from brokerkit_rocketmq.marks import Mark, Trial
from brokerkit_rocketmq.progress import Progress


class Model(RuleBasedStateMachine):
    """One entry an offset of the queue: what became of it, in words."""

    def __init__(self) -> None:
        super().__init__()
        self.start = 100
        self.progress: Progress[str] = Progress(self.start)
        #: Offsets that exist: every seventh is missing, as if it were deleted or filtered by the broker.
        self.state: dict[int, str] = {}
        self.position = self.start
        self.high = self.start

    def _with(self, state: str) -> list[int]:
        return sorted(offset for offset, each in self.state.items() if each == state)

    @rule(count=st.integers(0, 8), overlap=st.integers(0, 3))
    def fetch(self, count: int, overlap: int) -> None:
        end = self.position + count
        offsets = [offset for offset in range(self.position - overlap, end) if offset % 7]
        expected = []
        for offset in offsets:
            if offset >= self.position and self.state.get(offset) != "settled":
                self.state[offset] = "fetched"
                expected.append(offset)
        assert self.progress.fetch(offsets, end) == expected
        self.position = end

    @precondition(lambda self: self._with("fetched"))
    @rule(data=st.data())
    def hand_out(self, data: st.DataObject) -> None:
        waiting = self._with("fetched")
        offsets = waiting[: data.draw(st.integers(1, len(waiting)))]
        self.progress.hand_out({offset: f"message {offset}" for offset in offsets})
        for offset in offsets:
            self.state[offset] = "handed"
        self.high = max(self.high, offsets[-1] + 1)

    @precondition(lambda self: self._with("fetched"))
    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self._with("fetched")), unique=True))
        self.progress.skip(chosen)
        for offset in chosen:
            self.state[offset] = "settled"

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(self.start, self.position))
        assert self.progress.settle(offset) == (self.state.get(offset) == "handed")
        if self.state.get(offset) == "handed":
            self.state[offset] = "settled"

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(self.start, self.position))
        expected = f"message {offset}" if self.state.get(offset) == "handed" else None
        assert self.progress.give_back(offset) == expected
        if self.state.get(offset) == "handed":
            self.state[offset] = "fetched"

    @rule()
    def rewind(self) -> None:
        self.position = self._low()
        for offset, state in self.state.items():
            if state != "settled":
                self.state[offset] = "lost"
        self.progress.rewind()

    def _low(self) -> int:
        return min((offset for offset in self._open() if offset < self.position), default=self.position)

    def _open(self) -> list[int]:
        return sorted(self._with("fetched") + self._with("handed"))

    @invariant()
    def the_broker_is_told_the_smallest_unsettled_offset(self) -> None:
        assert self.progress.low == self._low()
        assert self.progress.next == self.position

    @invariant()
    def what_is_handed_out_is_known(self) -> None:
        assert sorted(self.progress.handed) == self._with("handed")
        assert self.progress.high == self.high

    @invariant()
    def holes_are_what_would_bring_settled_messages_again(self) -> None:
        settled = self._with("settled")
        assert self.progress.holes == [each for each in self._open() if settled and each < max(settled)]


TestProgress = Model.TestCase
TestProgress.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_below_the_mark_everything_was_handed_out_before() -> None:
    progress: Progress[str] = Progress(5, Mark(8))
    assert (progress.low, progress.high, progress.suspects) == (5, 8, True)
    earlier: Progress[str] = Progress(5, Mark(2))
    assert (earlier.high, earlier.suspects) == (5, False)


def _with_suspects(low: int = 5, high: int = 8, trial: Trial | None = None) -> Progress[str]:
    progress: Progress[str] = Progress(low, Mark(high, trial))
    progress.hand_out({offset: f"message {offset}" for offset in progress.fetch([*range(low, high)], high)})
    return progress


def test_the_start_of_a_suspect_counts_for_the_next_process_and_for_no_other_message() -> None:
    progress = _with_suspects()
    assert [progress.trials.starts(offset) for offset in (5, 6, 7)] == [1, 1, 1]
    progress.begin_trial(5)
    mark = progress.mark
    assert mark == Mark(8, Trial(5, 2)) == Mark.of(mark.number)
    after = _with_suspects(trial=mark.trial)
    assert [after.trials.starts(offset) for offset in (5, 6, 7)] == [2, 1, 1]
    after.begin_trial(5)
    assert after.mark.trial == Trial(5, 3)
    assert after.settle(5)
    assert after.mark == Mark(8), "who was tried is of no interest when it is settled"
    assert after.suspects
    after.settle(6)
    after.settle(7)
    assert not after.suspects


def test_a_start_that_ended_no_process_does_not_count() -> None:
    progress = _with_suspects()
    progress.begin_trial(6)
    assert not progress.trials.cancel(5), "another one was given back"
    assert progress.trials.starts(6) == 2
    assert progress.trials.cancel(6)
    assert not progress.trials.cancel(6)
    assert progress.mark == Mark(8)
    progress.begin_trial(6)
    progress.begin_trial(7)
    progress.trials.cancel_all()
    assert [progress.trials.starts(offset) for offset in (5, 6, 7)] == [1, 1, 1]
    assert progress.suspects


def test_of_suspects_that_are_tried_together_the_mark_has_the_worst() -> None:
    progress = _with_suspects(trial=Trial(6, 4))
    progress.begin_trial(6)
    progress.begin_trial(5)
    assert progress.mark.trial == Trial(6, 5)
    assert progress.trials.starts(5) == 2, "here it is known"
    progress.settle(5)
    progress.settle(6)
    progress.begin_trial(7)
    assert progress.mark.trial == Trial(7, 2)


def test_what_this_process_held_is_no_suspect_unless_another_one_had_it_meanwhile() -> None:
    def held() -> Progress[str]:
        progress: Progress[str] = Progress(5)
        progress.hand_out({offset: "message" for offset in progress.fetch([*range(5, 9)], 9)})
        return progress

    for mark in (Mark(9), Mark(7), Mark(8, Trial(4, 3))):
        mine = held()
        mine.meet(mark)
        assert not mine.suspects, mark
    for mark in (Mark(10), Mark(9, Trial(5, 2))):
        theirs = held()
        theirs.meet(mark)
        assert (theirs.suspects, theirs.suspected) == (True, mark.high), mark
        assert theirs.trials.starts(5) == (2 if mark.trial else 1)

    tried = _with_suspects()
    tried.begin_trial(5)
    tried.meet(tried.mark)
    tried.trials.cancel_all()
    assert tried.trials.starts(5) == 1, "the trial was our own, and this process lives"
    tried.begin_trial(5)
    tried.meet(Mark(8, Trial(5, 3)))
    tried.trials.cancel_all()
    assert tried.trials.starts(5) == 3, "another process tried it, too"


@pytest.mark.parametrize("count", [100_000])
def test_settling_backwards_costs_no_more_than_forwards(count: int) -> None:
    progress: Progress[str] = Progress(0)
    offsets = progress.fetch([*range(count)], count)
    progress.hand_out(dict.fromkeys(offsets, "message"))
    for offset in reversed(offsets):
        assert progress.settle(offset)
    assert progress.low == count
    assert not progress.handed
