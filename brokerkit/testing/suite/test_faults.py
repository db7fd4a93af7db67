"""Faults: links that fall silent, connections that are cut, brokers and workers that are killed.

Each case ends with the ledger: every message whose send returned was handled, or is a dead letter that says why.
"""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from contextlib import AsyncExitStack

from brokerkit.errors import BrokerError
from brokerkit.manager import AsyncManager
from brokerkit.message import Message
from brokerkit.spi import Capability
from brokerkit.testing.harness import Harness
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.suite._cases import case, eventually, needs, new_id, requires
from brokerkit.testing.suite.seen import Seen, all_settled, nothing_is_left, policy, quiet, started
from brokerkit.testing.suite.traffic import Traffic
from brokerkit.testing.suite.workers import POISON, Crew, job_for, work
from brokerkit.topic import Topic

#: Seconds within which new messages flow again on a silent link, with default settings (design §7).
NEW_MESSAGES = 20.0


def handling(harness: Harness, topic: Topic[bytes], ledger: Ledger) -> AsyncManager:
    """Return a manager whose handler of ``topic`` writes to the ledger."""
    manager = harness.manager()

    @manager.handler(topic, retry=policy(harness))
    async def work(message: Message) -> None:
        ledger.handled(message.message_id or "", message.attempt)

    return manager


async def handled(ledger: Ledger, count: int, within: float) -> None:
    """Return once ``count`` messages were handled."""
    await eventually(lambda: len(ledger.handled_ids) >= count, within=within, what=f"{count} handled messages")


async def balanced(ledger: Ledger, within: float) -> None:
    """Return once nothing is lost any more, or fail with the books."""
    try:
        await eventually(lambda: ledger.settled, within=within, what="every confirmed message handled")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{ledger}") from None
    ledger.assert_nothing_lost()
    ledger.assert_nothing_unknown()


# --- links ----------------------------------------------------------------------------------------------------


@case(timeout=300)
@needs("freeze", "thaw")
async def test_half_open_link_resumes(harness: Harness) -> None:
    """When links fall silent without a sign, new messages flow again within 20 s and those under way come back."""
    topic, ledger = harness.topic(), Ledger()
    async with (
        started(handling(harness, topic, ledger)),
        harness.manager() as sender,
        Traffic(harness, sender, topic, ledger) as traffic,
    ):
        await traffic.more(5, harness.timing.within(5))
        await balanced(ledger, harness.timing.within(5))
        await harness.freeze()
        try:
            before = len(ledger.handled_ids)
            await eventually(
                lambda: len(ledger.handled_ids) >= before + 10,
                within=NEW_MESSAGES * harness.timing.factor,
                what="new messages on a new link",
            )
        finally:
            await harness.thaw()
        await traffic.more(5, harness.timing.healed())
        await traffic.stop()
        await balanced(ledger, harness.timing.healed() + 5.0)
    assert all(error.retryable for error in traffic.failed), f"not retryable: {traffic.failed[:5]}"


@case(timeout=300)
@needs("cut")
async def test_reset_during_send(harness: Harness) -> None:
    """Cut at 50 random bytes, every send that returned is there, and every other one raised a retryable error."""
    topic, ledger, rng = harness.topic(), Ledger(), random.Random(50)
    failed: list[BrokerError] = []
    async with harness.manager(send_timeout=harness.timing.reconnect) as sender:
        await sender.connect()
        for number in range(50):
            message_id = new_id()
            ledger.sent(message_id)
            await harness.cut(rng.randrange(1, 2000))
            try:
                await sender.send(topic, b"%d " % number * 200, message_id=message_id)
            except BrokerError as error:
                failed.append(error)
            else:
                ledger.confirmed(message_id)
        await harness.cut(0)
    assert ledger.confirmed_ids, "not one send was confirmed"
    assert all(error.retryable for error in failed), f"not retryable: {failed[:5]}"
    async with started(handling(harness, topic, ledger)):
        await balanced(ledger, harness.timing.healed() + harness.timing.within(50))


@case(timeout=300)
@requires(Capability.DURABLE)
@needs("kill")
async def test_broker_killed(harness: Harness) -> None:
    """A broker that is killed under load and started again has lost nothing, and traffic goes on by itself."""
    topic, ledger = harness.topic(), Ledger()
    async with (
        started(handling(harness, topic, ledger)),
        harness.manager(send_timeout=harness.timing.reconnect) as sender,
        Traffic(harness, sender, topic, ledger) as traffic,
    ):
        for _ in range(2):
            await traffic.more(10, harness.timing.healed())
            await harness.kill()
        await traffic.more(10, harness.timing.healed())
        await traffic.stop()
        await balanced(ledger, harness.timing.healed() + harness.timing.within(len(ledger.confirmed_ids)))
    assert all(error.retryable for error in traffic.failed), f"not retryable: {traffic.failed[:5]}"


# --- workers --------------------------------------------------------------------------------------------------


@case(timeout=300)
@requires(Capability.DEAD_LETTER, Capability.BROWSE, Capability.MULTIPROCESS)
async def test_poison_message_is_capped(harness: Harness) -> None:
    """A message that kills its worker is started max_attempts times and buried; its neighbours are all handled."""
    topic, ledger = harness.topic(), Ledger()
    limit, count = 3, 32
    async with harness.manager() as manager, Crew() as crew:
        for number in range(count):
            body = POISON if number == 5 else b"%d" % number
            message_id = await manager.send(topic, body)
            ledger.confirmed(message_id)
            if body == POISON:
                poison = message_id
        worker = crew.start(work, job_for(harness, topic, prefetch=32, max_attempts=limit, pause=0.02))
        worker.supervise()

        async def buried() -> bool:
            return bool(await manager.admin.dead_letters(topic, "g"))

        within = limit * harness.timing.within(count)
        await eventually(buried, within=within, what=f"the dead letter of the poison; {crew.entries('start')}")
        await crew.covered("done", ledger.confirmed_ids - {poison}, within=within)
        await all_settled(harness, manager, topic)
        assert await worker.stop() == 0, worker.output
        letters = await manager.admin.dead_letters(topic, "g")
        shown = [(each.message.body, each.reason, each.attempts) for each in letters]
        assert len(letters) == 1, f"{shown}; {crew.entries('start')}"
        (letter,) = letters
        ledger.dead(letter.message.message_id or "", letter.reason or "")
        for entry in crew.entries("done"):
            ledger.handled(entry["id"], entry["attempt"])
        assert (letter.message.message_id, letter.reason) == (poison, "worker-crash")
        assert crew.ids("start").count(poison) == limit, f"starts of the poison: {crew.ids('start').count(poison)}"
    await balanced(ledger, 0.0)
    await nothing_is_left(harness, topic)


@case(timeout=300)
@requires(Capability.DEAD_LETTER, Capability.BROWSE)
async def test_graceful_restarts_kill_no_message(harness: Harness) -> None:
    """Messages that 25 workers in a row prefetched and gave back are all handled in the end, and none is dead."""
    topic, ledger = harness.topic(), Ledger()
    async with harness.manager() as sender:
        outcomes = await sender.send_many(topic, [b"%d" % number for number in range(60)])
    for outcome in outcomes:
        assert outcome.error is None
        ledger.confirmed(outcome.message_id)

    def make() -> AsyncManager:
        manager = harness.manager()

        @manager.handler(topic, concurrency=1, prefetch=32, retry=policy(harness))
        async def work(message: Message) -> None:
            await harness.clock.sleep(0.005)
            ledger.handled(message.message_id or "", message.attempt)

        return manager

    for _ in range(25):
        goal = min(len(ledger.handled_ids) + 1, len(outcomes))
        async with started(make()):
            await handled(ledger, goal, harness.timing.within())
    async with started(make()) as last:
        await balanced(ledger, harness.timing.within(60))
        assert await last.admin.dead_letters(topic, "g") == []
    await nothing_is_left(harness, topic)


@case(timeout=300)
@requires(Capability.MULTIPROCESS)
async def test_worker_killed(harness: Harness) -> None:
    """When one of three workers is killed, everything is handled; twice only what the dead one had in its hands."""
    topic, ledger = harness.topic(), Ledger()
    count, prefetch = 300, 20
    async with harness.manager() as manager, Crew() as crew:
        workers = [
            crew.start(work, job_for(harness, topic, prefetch=prefetch, concurrency=5, pause=0.02)) for _ in range(3)
        ]
        await crew.told("ready", 3, within=harness.timing.within())
        for outcome in await manager.send_many(topic, [b"%d" % number for number in range(count)]):
            assert outcome.error is None
            ledger.confirmed(outcome.message_id)
        await crew.told("done", count // 4, within=harness.timing.within(count))
        killed = workers[0].pid
        workers[0].kill()
        await crew.covered("done", ledger.confirmed_ids, within=harness.timing.within(count))
        for worker in workers[1:]:
            assert await worker.stop() == 0, worker.output
        for entry in crew.entries("done"):
            ledger.handled(entry["id"], entry["attempt"])
        touched = {entry["id"] for entry in crew.entries("start") if entry["pid"] == killed}
    await balanced(ledger, 0.0)
    assert set(ledger.doubled) <= touched, f"doubled, but never in the killed worker\n{ledger}"
    if Capability.SELECTIVE_ACK in harness.capabilities:
        assert len(ledger.doubled) <= prefetch, f"more came twice than the killed worker had in its hands\n{ledger}"
    await nothing_is_left(harness, topic)


@case(timeout=300)
async def test_slow_consumer_has_bounded_memory(harness: Harness) -> None:
    """With 100,000 waiting messages a slow handler's process holds no more than its prefetch and a native batch."""
    topic, seen = harness.topic(), Seen()
    count, size, prefetch = 100_000, 1000, 50
    allowed = 8 << 20
    manager = harness.manager()
    release = asyncio.Event()

    @manager.handler(topic, concurrency=1, prefetch=prefetch, retry=policy(harness))
    async def work(message: Message) -> None:
        seen(message)
        await release.wait()

    async with manager:
        body = b"x" * size
        for start in range(0, count, 10_000):
            outcomes = await manager.send_many(topic, [body] * min(10_000, count - start))
            assert not [outcome.error for outcome in outcomes if outcome.error is not None]
            del outcomes
        tracemalloc.start()
        try:
            await manager.start()
            await seen.reach(1, within=harness.timing.within())
            # As long as a consumer may need to fill every buffer it has.
            await harness.clock.sleep(quiet(harness))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak <= allowed, f"{peak:,} bytes for a prefetch of {prefetch} messages of {size:,} bytes"
        if Capability.STATS in harness.capabilities:
            unsettled = (await manager.monitor.stats(topic, "g")).unsettled
            assert unsettled is None or unsettled <= prefetch
        release.set()
        await manager.stop()


@case(timeout=300)
@requires(Capability.CONSUMER_GROUPS)
async def test_many_consumers_join_and_leave(harness: Harness) -> None:
    """Ten workers that join and leave under load, some by SIGKILL, lose nothing, and each key keeps its order."""
    keyed = Capability.ORDERED_BY_KEY in harness.capabilities
    topic, ledger = harness.topic(ordered=keyed), Ledger()
    begun: list[tuple[float, str]] = []
    keys: dict[str, list[str]] = {}

    def member() -> AsyncManager:
        manager = harness.manager()

        @manager.handler(topic, prefetch=10, concurrency=4, ordered=keyed or None, retry=policy(harness))
        async def work(message: Message) -> None:
            begun.append((harness.clock.time(), message.message_id or ""))
            await harness.clock.sleep(0.002)
            ledger.handled(message.message_id or "", message.attempt)

        return manager

    async with AsyncExitStack() as stack:
        sender = await stack.enter_async_context(harness.manager())
        crew = await stack.enter_async_context(Crew())
        traffic = await stack.enter_async_context(Traffic(harness, sender, topic, ledger, keys=8))
        await traffic.more(5, harness.timing.within(5))
        killable = Capability.MULTIPROCESS in harness.capabilities
        job = job_for(harness, topic, prefetch=10, concurrency=4, pause=0.002)
        victims = [crew.start(work, job) for _ in range(3)] if killable else []
        members = [await stack.enter_async_context(member()) for _ in range(10 - len(victims))]
        for joining in members:
            await joining.start()
            await traffic.more(5, harness.timing.within(5))
        if victims:
            await crew.told("ready", len(victims), within=harness.timing.within())
        for leaving in members[:-1]:
            await leaving.stop()
            await leaving.aclose()
            await traffic.more(5, harness.timing.within(5))
            if victims:
                victims.pop().kill()
        await traffic.stop()
        keys = traffic.by_key

        def handled() -> bool:
            # In the order of arrival: nothing is inserted before what was counted already.
            done = [event for event in tuple(crew.events) if event["step"] == "done"]
            for event in done[len(counted) :]:
                counted.append(event)
                ledger.handled(event["id"], event["attempt"])
            return ledger.settled

        counted: list[object] = []
        within = harness.timing.healed() + harness.timing.within(len(ledger.confirmed_ids))
        await eventually(handled, within=within, what=f"every confirmed message handled\n{ledger}")
        await members[-1].stop()
        begun += [(float(entry["at"]), str(entry["id"])) for entry in crew.entries("start")]
    await balanced(ledger, 0.0)
    if keyed:
        # A message may come again after a kill; what counts is when it was begun first.
        first: dict[str, float] = {}
        for at, message_id in sorted(begun):
            first.setdefault(message_id, at)
        for key, ids in keys.items():
            order = sorted(ids, key=lambda message_id: first[message_id])
            wrong = [(one, other) for one, other in zip(ids, order, strict=True) if one != other]
            assert not wrong, f"key {key} was handled out of order: {wrong[:5]}"
