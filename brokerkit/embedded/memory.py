"""The store in memory: ``memory://name`` is shared by the whole process, ``memory://`` belongs to one connection."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from itertools import count
from math import inf
from typing import ClassVar

from brokerkit.embedded.audience import Audience, Subscriber
from brokerkit.embedded.ready import Record, inbound
from brokerkit.embedded.refusals import check_shape, fault_of, no_group, no_topic, parse_tags, verify_shape
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.store import Claimant
from brokerkit.embedded.topics import Group, Topic
from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.spi import (
    Clock,
    GroupSpec,
    GroupStats,
    Inbound,
    Outbound,
    SystemClock,
    ToDead,
    ToGroup,
    ToInbox,
    TopicSpec,
    ToTopic,
)

__all__ = ["MemoryStore"]

#: The topic whose groups are the inboxes.  No application can name it: names that begin with "bk." are refused.
_INBOXES = "bk.inboxes"


class MemoryStore:
    """A `Store` in plain data structures, usable from several event loops in several threads.

    Every operation holds one lock for its short time and wakes consumers afterwards.
    """

    persistent = False

    #: By (process id, name): after a fork the child finds none and begins with an empty store.
    _named: ClassVar[dict[tuple[int, str], MemoryStore]] = {}

    def __init__(self, settings: EmbeddedSettings, clock: Clock, *, name: str = "") -> None:
        self._settings = settings
        self._clock = clock
        self._name = name
        self._lock = threading.Lock()
        self._opened = 0
        self._numbers = count(1)
        self._tokens = count(1)
        self._topics: dict[str, Topic] = {_INBOXES: self._topic(_INBOXES, ordered=False)}
        self._audiences: dict[tuple[str, str], Audience] = {}

    @classmethod
    def named(cls, name: str, settings: EmbeddedSettings, clock: Clock) -> MemoryStore:
        """Return this process' store ``name``; make it, with these settings, when there is none.

        It lives until the process ends or `forget`.  Raise `ConfigurationError` when a connection with another
        clock has it open: the two would not agree on what is due.
        """
        process = os.getpid()
        for key in list(cls._named):
            if key[0] != process:
                cls._named.pop(key, None)
        store = cls._named.setdefault((process, name), cls(settings, clock, name=name))
        with store._lock:
            if store._clock is not clock and not (type(clock) is type(store._clock) is SystemClock):
                if store._opened:
                    raise ConfigurationError(
                        f"memory://{name} is open with another clock in this process: "
                        "use the same clock or another name",
                        backend="embedded",
                    )
                store._clock = clock
        return store

    @classmethod
    def forget(cls, name: str) -> None:
        """Let the next connection to ``name`` begin with an empty store.  Those that are open keep theirs."""
        cls._named.pop((os.getpid(), name), None)

    async def open(self) -> None:
        with self._lock:
            self._opened += 1

    async def close(self) -> None:
        with self._lock:
            self._opened -= 1
            if self._opened == 0 and not self._name:
                self._topics = {_INBOXES: self._topic(_INBOXES, ordered=False)}

    async def ping(self, timeout: float) -> None:
        """Return at once: nobody keeps a store in memory locked."""

    # --- sending ----------------------------------------------------------------------------------------------

    async def send(self, messages: Sequence[Outbound]) -> list[BrokerError | None]:
        now = self._clock.time()
        woken: set[Audience] = set()
        outcomes: list[BrokerError | None] = []
        with self._lock:
            for message in messages:
                fault = self._fault(message)
                if fault is None:
                    self._put(message, now, woken)
                outcomes.append(fault)
        for audience in woken:
            audience.call()
        return outcomes

    def _fault(self, message: Outbound) -> BrokerError | None:
        """Return why ``message`` cannot be stored."""
        return fault_of(message, self._topics, self._settings.max_message_size)

    def _put(self, message: Outbound, now: float, woken: set[Audience]) -> None:
        destination = message.destination
        if type(destination) is ToTopic:
            self._topics[destination.topic].put(Record(message, True), None, now, woken)
        elif isinstance(destination, ToGroup):
            topic = self._topics[destination.topic]
            topic.put(Record(message, False), topic.groups[destination.group], now, woken)
        elif isinstance(destination, ToDead):
            group = self._topics[destination.topic].groups[destination.group]
            group.keep_dead(Record(message, False), next(self._numbers), now)
        elif isinstance(destination, ToInbox):
            inbox = self._topics[_INBOXES].groups.get(destination.address)
            if inbox is not None:
                inbox.enter(Record(message, False), next(self._numbers), now, woken)

    # --- claiming and settling ----------------------------------------------------------------------------------

    async def claim(self, claimant: Claimant, limit: int) -> list[Inbound]:
        now = self._clock.time()
        woken: set[Audience] = set()
        with self._lock:
            topic, group = self._find(claimant.topic, claimant.group)
            if topic.later and topic.later[0][0] <= now:
                topic.ripen(now, woken)
            if group.lease_end <= now:
                group.expire(now, woken)
            if claimant.ordered:
                group.keep_order()
            leased = group.lease(limit, claimant.owner, now + claimant.lease, self._tokens)
            name, within = group.name, topic.name
            claimed = [inbound(entry, within, name, token) for token, entry in leased]
        for audience in woken:
            audience.call()
        return claimed

    def next_event(self, topic: str, group: str) -> float | None:
        with self._lock:
            found = self._topics.get(topic)
            if found is None or group not in found.groups:
                return None
            event = found.groups[group].lease_end
            if found.later:
                event = min(event, found.later[0][0])
        return None if event == inf else event

    async def ack(self, claimant: Claimant, messages: Sequence[Inbound]) -> int:
        stale = 0
        wake = False
        with self._lock:
            topic, group = self._look(claimant)
            if topic is None or group is None:
                return len(messages)
            leases = group.leases
            for message in messages:
                entry = leases.pop(message.token, None)
                if entry is None:
                    stale += group.bury(message.token)
                    continue
                record = entry.record
                record.pending -= 1
                if not record.pending and record.logged:
                    topic.retain(record)
                if group.ready.settle(entry):
                    wake = True
            if not leases and not group.taken:
                group.lease_end = inf
        if wake:
            group.audience.call()
        return stale

    async def release(self, claimant: Claimant, messages: Sequence[Inbound]) -> int:
        stale = 0
        with self._lock:
            _, group = self._look(claimant)
            if group is None:
                return len(messages)
            for message in messages:
                if not group.give_back(message.token, started=False):
                    stale += 1
        group.audience.call()
        return stale

    async def extend(self, claimant: Claimant, messages: Sequence[Inbound], until: float) -> int:
        stale = 0
        with self._lock:
            _, group = self._look(claimant)
            if group is None:
                return len(messages)
            for message in messages:
                if not group.extend(message.token, until):
                    stale += 1
        group.audience.call()
        return stale

    async def settle_with(self, claimant: Claimant, message: Inbound, outbounds: Sequence[Outbound]) -> None:
        now = self._clock.time()
        woken: set[Audience] = set()
        with self._lock:
            topic, group = self._look(claimant)
            token = message.token
            if topic is None or group is None or (token not in group.leases and token not in group.taken):
                return
            for outbound in outbounds:
                fault = self._fault(outbound)
                if fault is not None:
                    raise fault
            for outbound in outbounds:
                self._put(outbound, now, woken)
            entry = group.leases.pop(token, None)
            if entry is None:
                group.bury(token)
            else:
                topic.settle(entry.record)
                if group.ready.settle(entry):
                    woken.add(group.audience)
        for audience in woken:
            audience.call()

    def mark_started(self, claimant: Claimant, message: Inbound) -> None:
        with self._lock:
            _, group = self._look(claimant)
            entry = group.leases.get(message.token) if group is not None else None
            if entry is not None:
                entry.marked = True

    # --- consumers ----------------------------------------------------------------------------------------------

    def subscribe(self, topic: str, group: str, wake: Callable[[], None]) -> Callable[[], None]:
        subscriber = Subscriber(wake)
        with self._lock:
            audience = self._audience(topic, group)
            audience.members = (*audience.members, subscriber)

        def unsubscribe() -> None:
            with self._lock:
                audience.members = tuple(member for member in audience.members if member is not subscriber)

        return unsubscribe

    async def attach(self, topic: str | None, owner: str) -> tuple[str, str]:
        with self._lock:
            place = _INBOXES if topic is None else topic
            found = self._topics.get(place)
            if found is None:
                raise no_topic(place)
            name = f"bk.{'inbox' if topic is None else 'broadcast'}.{owner}"
            group = found.groups[name] = Group(name, self._audience(place, name), ordered=False, tags=None)
            group.owner = owner
        return place, name

    async def detach(self, owner: str) -> None:
        woken: set[Audience] = set()
        with self._lock:
            for topic in self._topics.values():
                for group in list(topic.groups.values()):
                    if group.owner == owner:
                        topic.remove(group)
                        self._audiences.pop((topic.name, group.name), None)
                        continue
                    for token, entry in group.leased():
                        if entry.owner == owner:
                            group.give_back(token, started=False)
                            woken.add(group.audience)
        for audience in woken:
            audience.call()

    # --- management ---------------------------------------------------------------------------------------------

    async def declare(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        now = self._clock.time()
        woken: set[Audience] = set()
        with self._lock:
            check_shape(self._topics, topic, group)
            found = self._topics.get(topic.name)
            if found is None:
                found = self._topics[topic.name] = self._topic(topic.name, ordered=topic.ordered)
            found.ripen(now, woken)
            if group is not None:
                tags = parse_tags(group.tag)
                existing = found.groups.get(group.name)
                if existing is None:
                    audience = self._audience(topic.name, group.name)
                    woken.add(audience)
                    made = Group(group.name, audience, ordered=group.ordered, tags=tags)
                    if group.start == "earliest":
                        found.fill(made, now - self._settings.retention_age)
                    found.groups[group.name] = made
                else:
                    # Never narrowed: other processes may still rely on the tags that they declared.
                    existing.tags = None if tags is None or existing.tags is None else existing.tags | tags
        for audience in woken:
            audience.call()

    async def verify(self, topic: TopicSpec, group: GroupSpec | None) -> None:
        with self._lock:
            verify_shape(self._topics, topic, group)

    async def delete(self, topic: str, group: str | None) -> None:
        woken = []
        with self._lock:
            found = self._topics.get(topic)
            if found is None:
                return
            for existing in list(found.groups.values()):
                if group is None or existing.name == group:
                    found.remove(existing)
                    woken.append(existing.audience)
            if group is None:
                del self._topics[topic]
        for audience in woken:
            audience.call()

    async def purge(self, topic: str, group: str) -> int:
        now = self._clock.time()
        woken: set[Audience] = set()
        with self._lock:
            found, existing = self._refresh(topic, group, now, woken)
            records = list(existing.ready.records())
            existing.ready.clear()
            for record in records:
                found.settle(record)
        for audience in woken:
            audience.call()
        return len(records)

    async def stats(self, topic: str, group: str) -> GroupStats:
        now = self._clock.time()
        woken: set[Audience] = set()
        with self._lock:
            found, existing = self._refresh(topic, group, now, woken)
            oldest = existing.ready.oldest()
            stats = GroupStats(
                topic=topic,
                group=group,
                ready=len(existing.ready),
                unsettled=len(existing.leases),
                # What is scheduled for the whole topic will be in this group, as far as its tags match.
                delayed=found.delayed + existing.delayed,
                dead=len(existing.dead),
                consumers=len(existing.audience.members),
                oldest_age=None if oldest is None else max(0.0, now - oldest),
                source="memory",
                as_of=now,
            )
        for audience in woken:
            audience.call()
        return stats

    async def browse(self, topic: str, group: str, limit: int) -> list[Inbound]:
        with self._lock:
            found, existing = self._find(topic, group)
            letters = zip(existing.dead.values(), range(limit), strict=False)
            return [inbound(entry, found.name, existing.name, None) for entry, _ in letters]

    async def claim_dead(self, claimant: Claimant, limit: int, ids: frozenset[str] | None) -> list[Inbound]:
        now = self._clock.time()
        woken: set[Audience] = set()
        with self._lock:
            topic, group = self._refresh(claimant.topic, claimant.group, now, woken)
            leased = group.lease_dead(limit, ids, claimant.owner, now + claimant.lease, self._tokens)
            claimed = [inbound(entry, topic.name, group.name, token) for token, entry in leased]
        for audience in woken:
            audience.call()
        return claimed

    # --- looking up ---------------------------------------------------------------------------------------------

    def _find(self, topic: str, group: str) -> tuple[Topic, Group]:
        found = self._topics.get(topic)
        if found is None:
            raise no_topic(topic)
        existing = found.groups.get(group)
        if existing is None:
            raise no_group(topic, group)
        return found, existing

    def _look(self, claimant: Claimant) -> tuple[Topic | None, Group | None]:
        topic = self._topics.get(claimant.topic)
        return topic, None if topic is None else topic.groups.get(claimant.group)

    def _refresh(self, topic: str, group: str, now: float, woken: set[Audience]) -> tuple[Topic, Group]:
        found, existing = self._find(topic, group)
        found.ripen(now, woken)
        if existing.lease_end <= now:
            existing.expire(now, woken)
        return found, existing

    def _topic(self, name: str, *, ordered: bool) -> Topic:
        return Topic(name, ordered=ordered, settings=self._settings, numbers=self._numbers)

    def _audience(self, topic: str, group: str) -> Audience:
        return self._audiences.setdefault((topic, group), Audience())
