"""Stores against a model that is simple enough to be right: random operations, the same answers.

What a store may decide for itself is left open: the place of a message that was delayed, and whether an ended
lease has been noticed before the next claim.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from brokerkit.clock import SystemClock
from brokerkit.embedded.memory import MemoryStore
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.sqlite import SqliteStore
from brokerkit.embedded.store import Claimant, Store
from brokerkit.spi import Destination, GroupSpec, Inbound, Outbound, ToDead, ToGroup, TopicSpec, ToTopic

T = TypeVar("T")


class ManualClock(SystemClock):
    """Wall time by hand; timers are real, and a store uses none."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


STORES: dict[str, Callable[[Path, ManualClock], Store]] = {
    "memory": lambda _, clock: MemoryStore(EmbeddedSettings(), clock),
    "sqlite": lambda path, clock: SqliteStore(path, settings=EmbeddedSettings(), clock=clock),
}

TOPIC = TopicSpec(name="t")
LEASE = 30.0
SPECS = {
    "plain": GroupSpec(name="plain"),
    "ordered": GroupSpec(name="ordered", ordered=True),
    "early": GroupSpec(name="early", start="earliest"),
}
OWNERS = ("one", "two")
groups = st.sampled_from(sorted(SPECS))
owners = st.sampled_from(OWNERS)
pick = st.integers(0, 1_000)


@dataclass(eq=False)
class Item:
    """One message in one group."""

    ident: str
    priority: int
    key: str
    #: Its place; None where the store decides, because it was delayed.
    order: int | None
    redelivered: bool = False
    started: bool = False
    until: float = 0.0
    owner: str = ""


@dataclass
class Members:
    """One group of the model."""

    ready: list[Item] = field(default_factory=list)
    leased: list[tuple[Inbound, Item]] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    delayed: list[tuple[float, Item]] = field(default_factory=list)
    #: Deliveries that hold no longer, and those whose lease ended since the last claim.
    stale: list[Inbound] = field(default_factory=list)
    ended: list[Inbound] = field(default_factory=list)


class StoreMachine(RuleBasedStateMachine):
    """Drives a store and the model with the same operations."""

    make: Callable[[Path, ManualClock], Store]

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.loop = asyncio.new_event_loop()
        self.number = 0
        self.log: list[tuple[int | None, Item]] = []
        self.delayed: list[tuple[float, Item]] = []
        self.groups: dict[str, Members] = {}
        self.store = type(self).make(Path(self.directory.name) / "model.db", self.clock)
        self.run(self.store.open())

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()
        self.directory.cleanup()

    @initialize()
    def declare_all_but_one(self) -> None:
        for name in ("plain", "ordered"):
            self.run(self.store.declare(TOPIC, SPECS[name]))
            self.groups[name] = Members()

    # --- sending ------------------------------------------------------------------------------------------------

    def outbound(self, to: Destination, priority: int, key: str, delay: float) -> tuple[Outbound, Item]:
        self.number += 1
        ident = f"m{self.number}"
        due = self.clock.time() + delay if delay else None
        message = Outbound(
            destination=to, body=ident.encode(), message_id=ident, priority=priority, key=key or None, due=due
        )
        return message, Item(ident, priority, key, None if delay else self.number)

    def stored(self, message: Outbound, item: Item) -> None:
        """Do in the model what the store did with ``message``."""
        to = message.destination
        if isinstance(to, ToDead):
            self.groups[to.group].dead.append(item.ident)
        elif isinstance(to, ToGroup):
            members = self.groups[to.group]
            if message.due is None:
                members.ready.append(item)
            else:
                members.delayed.append((message.due, item))
        elif message.due is None:
            self.fan_out(item)
        else:
            self.delayed.append((message.due, item))

    def fan_out(self, item: Item) -> None:
        self.log.append((item.order, item))
        for members in self.groups.values():
            members.ready.append(Item(item.ident, item.priority, item.key, item.order))

    def destination(self, kind: str, group: str) -> Destination:
        if kind == "topic" or group not in self.groups:
            return ToTopic("t")
        return ToGroup("t", group) if kind == "group" else ToDead("t", group)

    @rule(
        parts=st.lists(
            st.tuples(
                st.sampled_from(["topic", "topic", "group", "dead"]),
                groups,
                st.sampled_from([0, 0, 0, 5]),
                st.sampled_from(["", "a", "b"]),
                st.sampled_from([0, 0, 0, 10, 50]),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def send(self, parts: list[tuple[str, str, int, str, int]]) -> None:
        made = []
        for kind, group, priority, key, delay in parts:
            to = self.destination(kind, group)
            made.append(self.outbound(to, priority, key, 0 if isinstance(to, ToDead) else delay))
        assert self.run(self.store.send([message for message, _ in made])) == [None] * len(made)
        for message, item in made:
            self.stored(message, item)

    # --- consuming ----------------------------------------------------------------------------------------------

    def claimant(self, group: str, owner: str) -> Claimant:
        return Claimant(topic="t", group=group, owner=owner, ordered=SPECS[group].ordered, lease=LEASE)

    @precondition(lambda self: any(members.ready for members in self.groups.values()))
    @rule(number=pick, owner=owners, limit=st.integers(1, 5))
    def claim(self, number: int, owner: str, limit: int) -> None:
        waiting = [name for name, members in self.groups.items() if members.ready]
        group = waiting[number % len(waiting)]
        members = self.groups[group]
        taken = self.run(self.store.claim(self.claimant(group, owner), limit))
        members.stale += members.ended
        members.ended.clear()
        locked = {item.key for _, item in members.leased if item.owner != owner} if group == "ordered" else set()
        eligible = {item.ident: item for item in members.ready if item.key not in locked}
        assert len(taken) == min(limit, len(eligible))
        items = [eligible.pop(str(message.message_id)) for message in taken]
        ranks = [item.priority for item in items]
        assert ranks == sorted(ranks, reverse=True)
        assert all(item.priority <= ranks[-1] for item in eligible.values())
        for rank in set(ranks):
            orders = [item.order for item in items if item.priority == rank and item.order is not None]
            left = [item.order for item in eligible.values() if item.priority == rank and item.order is not None]
            assert orders == sorted(orders)
            assert not orders or not left or max(orders) < min(left)
        for message, item in zip(taken, items, strict=True):
            assert message.redelivered is item.redelivered
            assert message.started is item.started
            # From here on: whether this owner started it.
            item.started = False
            members.ready.remove(item)
            item.owner, item.until = owner, self.clock.time() + LEASE
            members.leased.append((message, item))

    @precondition(lambda self: any(members.leased for members in self.groups.values()))
    @rule(
        number=pick,
        verb=st.sampled_from(["ack", "ack", "release", "release", "start", "extend", "retry", "delay", "bury"]),
    )
    def settle(self, number: int, verb: str) -> None:
        held = [(name, *pair) for name, members in self.groups.items() for pair in members.leased]
        group, message, item = held[number % len(held)]
        members = self.groups[group]
        claimant = self.claimant(group, item.owner)
        if verb == "start":
            self.store.mark_started(claimant, message)
            item.started = True
            return
        if verb == "extend":
            item.until = self.clock.time() + 45
            assert self.run(self.store.extend(claimant, [message], item.until)) == 0
            return
        members.leased.remove((message, item))
        members.stale.append(message)
        if verb == "ack":
            assert self.run(self.store.ack(claimant, [message])) == 0
        elif verb == "release":
            assert self.run(self.store.release(claimant, [message])) == 0
            item.redelivered, item.started = True, False
            members.ready.append(item)
        else:
            to = ToDead("t", group) if verb == "bury" else ToGroup("t", group)
            sent, copy = self.outbound(to, item.priority, item.key, 10 if verb == "delay" else 0)
            self.run(self.store.settle_with(claimant, message, [sent]))
            self.stored(sent, copy)

    @precondition(lambda self: any(members.stale for members in self.groups.values()))
    @rule(group=groups, owner=owners, verb=st.sampled_from(["ack", "release", "settle_with"]))
    def settle_what_is_stale(self, group: str, owner: str, verb: str) -> None:
        members = self.groups.get(group)
        if members is None or not members.stale:
            return
        claimant = self.claimant(group, owner)
        if verb == "settle_with":
            sent, _ = self.outbound(ToTopic("t"), 0, "", 0)
            self.run(self.store.settle_with(claimant, members.stale[-1], [sent]))
        else:
            settle = self.store.ack if verb == "ack" else self.store.release
            assert self.run(settle(claimant, members.stale)) == len(members.stale)

    @precondition(lambda self: any(members.leased for members in self.groups.values()))
    @rule(owner=owners)
    def end_owner(self, owner: str) -> None:
        self.run(self.store.detach(owner))
        for members in self.groups.values():
            for message, item in [pair for pair in members.leased if pair[1].owner == owner]:
                members.leased.remove((message, item))
                members.stale.append(message)
                item.redelivered, item.started = True, False
                members.ready.append(item)

    @rule(seconds=st.sampled_from([1, 15, 60]))
    def advance(self, seconds: int) -> None:
        self.clock.now += seconds
        now = self.clock.time()
        for entry in [entry for entry in self.delayed if entry[0] <= now]:
            self.delayed.remove(entry)
            self.fan_out(entry[1])
        for members in self.groups.values():
            for entry in [entry for entry in members.delayed if entry[0] <= now]:
                members.delayed.remove(entry)
                members.ready.append(entry[1])
            for message, item in [pair for pair in members.leased if pair[1].until <= now]:
                members.leased.remove((message, item))
                members.ended.append(message)
                item.redelivered = True
                members.ready.append(item)

    # --- dead letters and management ------------------------------------------------------------------------------

    @precondition(lambda self: any(members.dead for members in self.groups.values()))
    @rule(group=groups, limit=st.integers(1, 3), number=pick, verb=st.sampled_from(["redrive", "discard", "release"]))
    def take_dead(self, group: str, limit: int, number: int, verb: str) -> None:
        members = self.groups.get(group)
        if members is None or not members.dead:
            return
        wanted = None if number % 2 else frozenset(members.dead[number % len(members.dead) :])
        claimant = self.claimant(group, "keeper")
        taken = self.run(self.store.claim_dead(claimant, limit, wanted))
        names = [str(message.message_id) for message in taken]
        assert names == [ident for ident in members.dead if wanted is None or ident in wanted][:limit]
        if verb == "release":
            assert self.run(self.store.release(claimant, taken)) == 0
            return
        if verb == "redrive":
            for message in taken:
                sent, item = self.outbound(ToGroup("t", group), message.priority, message.key or "", 0)
                self.run(self.store.settle_with(claimant, message, [sent]))
                self.stored(sent, item)
        else:
            assert self.run(self.store.ack(claimant, taken)) == 0
        members.stale += taken
        members.dead = [ident for ident in members.dead if ident not in names]

    @rule(group=groups)
    def purge(self, group: str) -> None:
        members = self.groups.get(group)
        # Whether an ended lease counts as ready before a claim noticed it is the store's affair.
        if members is None or members.ended:
            return
        assert self.run(self.store.purge("t", group)) == len(members.ready)
        members.ready.clear()

    @precondition(lambda self: "early" not in self.groups)
    @rule()
    def declare_from_the_start(self) -> None:
        self.run(self.store.declare(TOPIC, SPECS["early"]))
        items = [Item(item.ident, item.priority, item.key, order) for order, item in self.log]
        self.groups["early"] = Members(ready=items)

    @precondition(lambda self: "early" in self.groups)
    @rule()
    def delete(self) -> None:
        self.run(self.store.delete("t", "early"))
        del self.groups["early"]

    @invariant()
    def figures_agree(self) -> None:
        for name, members in self.groups.items():
            stats = self.run(self.store.stats("t", name))
            there = (stats.ready or 0) + (stats.unsettled or 0) + (stats.delayed or 0)
            assert there == len(members.ready) + len(members.leased) + len(members.delayed) + len(self.delayed)
            assert stats.dead == len(members.dead)
            letters = self.run(self.store.browse("t", name, 100))
            assert [letter.message_id for letter in letters] == members.dead


@pytest.mark.parametrize("store", list(STORES))
def test_a_store_answers_like_the_model(store: str) -> None:
    machine = type("Machine", (StoreMachine,), {"make": staticmethod(STORES[store])})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("kind", list(STORES))
async def test_crashes_are_the_leases_that_ended_after_a_start(kind: str, tmp_path: Path) -> None:
    clock = ManualClock()
    store = STORES[kind](tmp_path / "broker.db", clock)
    await store.open()
    await store.declare(TOPIC, GroupSpec(name="g"))
    await store.send([Outbound(destination=ToTopic("t"), body=b"", message_id="m")])
    claimant = Claimant(topic="t", group="g", owner="one", lease=LEASE)
    seen = []
    for start, end in [(True, "lease"), (False, "lease"), (True, "lease"), (True, "release"), (False, "lease")]:
        (item,) = await store.claim(claimant, 1)
        seen.append((item.crashes, item.started))
        if start:
            store.mark_started(claimant, item)
        if end == "release":
            await store.release(claimant, [item])
        else:
            clock.now += LEASE + 1
    (item,) = await store.claim(claimant, 1)
    seen.append((item.crashes, item.started))
    await store.close()
    assert seen == [(0, False), (1, True), (1, False), (2, True), (2, False), (2, False)]
