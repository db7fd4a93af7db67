from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from brokerkit.lanes import Lanes
from brokerkit.spi import Inbound


def an_inbound(key: str | None) -> Inbound:
    return Inbound(topic="t", group="g", body=b"", message_id=None, key=key)


class LanesMachine(RuleBasedStateMachine):
    """Against a model: per key one queue, whose head is the only one that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.model: dict[str, deque[Inbound]] = {}
        #: Inbounds that may run; a dict, for its order.
        self.running: dict[Inbound, None] = {}

    @rule(key=st.sampled_from([None, "", "a", "b"]))
    def enter(self, key: str | None) -> None:
        inbound = an_inbound(key)
        lane = self.model.setdefault(key or "", deque())
        lane.append(inbound)
        if self.lanes.enter(inbound):
            self.running[inbound] = None

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        inbound = data.draw(st.sampled_from(list(self.running)))
        del self.running[inbound]
        lane = self.model[inbound.key or ""]
        assert lane.popleft() is inbound
        following = self.lanes.leave(inbound)
        assert following is (lane[0] if lane else None)
        if following is not None:
            self.running[following] = None

    @precondition(lambda self: any(len(lane) > 1 for lane in self.model.values()))
    @rule()
    def leave_from_behind(self) -> None:
        waiting = next(lane[1] for lane in self.model.values() if len(lane) > 1)
        assert self.lanes.leave(waiting) is None

    @rule()
    def leave_as_a_stranger(self) -> None:
        assert self.lanes.leave(an_inbound("a")) is None

    @rule()
    def clear(self) -> None:
        self.lanes.clear()
        self.model.clear()
        self.running.clear()

    @invariant()
    def one_head_runs_per_key_and_nothing_is_lost(self) -> None:
        assert set(self.running) == {lane[0] for lane in self.model.values() if lane}
        assert len(self.lanes) == sum(map(len, self.model.values()))


TestLanes = LanesMachine.TestCase
TestLanes.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_key_that_is_through_leaves_nothing_behind() -> None:
    lanes = Lanes()
    for number in range(50):
        inbound = an_inbound(str(number))
        assert lanes.enter(inbound)
        assert lanes.leave(inbound) is None
    assert len(lanes) == 0 and not lanes._lanes
