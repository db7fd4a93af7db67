"""Policy on this backend: retries, backoff, idempotency, draining."""

from __future__ import annotations

import asyncio

from brokerkit.admin import DeadLetter
from brokerkit.errors import Reject
from brokerkit.idempotency import MemoryIdempotencyStore
from brokerkit.message import Message
from brokerkit.spi import Capability, ToGroup
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import case, eventually, needs, receive_exactly, receive_nothing, requires
from brokerkit.testing.suite.seen import Seen, late, nothing_is_left, policy, started

# --- retries --------------------------------------------------------------------------------------------------


@case
async def test_retry_then_success(harness: Harness) -> None:
    """A handler that fails twice and then succeeds is started three times, and its message is gone afterwards."""
    topic, seen, manager = harness.topic(), Seen(), harness.manager()

    @manager.handler(topic, retry=policy(harness, max_attempts=5))
    async def work(message: Message) -> None:
        if seen(message) < 3:
            raise ValueError("not yet")

    async with started(manager):
        sent = await manager.send(topic, b"x")
        await seen.reach(3, within=harness.timing.within(3, delay=0.3))
        await seen.stay(3, harness.timing.quiet)
    assert seen.attempts(sent) == [1, 2, 3]
    await nothing_is_left(harness, topic)


@case
@requires(Capability.DEAD_LETTER, Capability.BROWSE)
async def test_retry_gives_up_to_dead_letter(harness: Harness) -> None:
    """After exactly max_attempts starts the message is a dead letter that says what happened, when and where."""
    topic, seen, manager = harness.topic(), Seen(), harness.manager()

    @manager.handler(topic, retry=policy(harness, max_attempts=3))
    async def work(message: Message) -> None:
        seen(message)
        raise ValueError("the shop is closed")

    async with started(manager):
        sent = await manager.send(topic, b"body\0", headers={"shop": "42"}, key="k")
        await seen.reach(3, within=harness.timing.within(3, delay=0.3))
        letters = await eventually(
            lambda: manager.admin.dead_letters(topic.name, "g"),
            within=harness.timing.within(),
            what="a dead letter after the third failure",
        )
        await seen.stay(3, harness.timing.quiet)
    assert seen.attempts(sent) == [1, 2, 3]
    (letter,) = letters
    assert (letter.message.message_id, letter.message.body) == (sent, b"body\0")
    assert (letter.message.headers, letter.message.key) == ({"shop": "42"}, "k")
    assert (letter.reason, letter.error_type, letter.attempts) == ("exhausted", "ValueError", 3)
    assert (letter.topic, letter.group) == (topic.name, "g")
    assert "the shop is closed" in (letter.error or "")
    assert "work" in (letter.traceback or "")
    assert (letter.first_failure or 0) < (letter.last_failure or 0)
    assert letter.host
    await nothing_is_left(harness, topic)


@case
@requires(Capability.DEAD_LETTER, Capability.BROWSE)
async def test_non_retryable_skips_retries(harness: Harness) -> None:
    """A fatal error, an error outside ``retryable`` and a Reject make a dead letter at the first attempt."""
    topic, seen, manager = harness.topic(), Seen(), harness.manager()
    raised = {b"fatal": KeyError("no such order"), b"other": OSError("disk"), b"reject": Reject("negative total")}

    @manager.handler(topic, retry=policy(harness, max_attempts=5, retryable=(LookupError,), fatal=(KeyError,)))
    async def work(message: Message) -> None:
        seen(message)
        raise raised[message.body]

    async with started(manager):
        for body in raised:
            await manager.send(topic, body)
        await seen.reach(3, within=harness.timing.within(3))

        async def all_dead() -> list[DeadLetter] | None:
            letters = await manager.admin.dead_letters(topic.name, "g")
            return letters if len(letters) == 3 else None

        letters = await eventually(all_dead, within=harness.timing.within(3), what="three dead letters")
        await seen.stay(3, harness.timing.quiet)
    reasons = {letter.message.body: letter.reason for letter in letters}
    assert reasons == {b"fatal": "not-retryable", b"other": "not-retryable", b"reject": "rejected"}
    assert all(letter.attempts == 1 for letter in letters)
    assert any("negative total" in (letter.error or "") for letter in letters)


@case
async def test_backoff_delays_grow(harness: Harness) -> None:
    """The pauses between the attempts are those of the policy: none shorter, none longer than the broker's grain."""
    topic, seen, manager = harness.topic(), Seen(), harness.manager()
    delays = [0.3, 0.9, 2.7]

    @manager.handler(topic, retry=policy(harness, max_attempts=6, base_delay=0.3, multiplier=3.0, max_delay=2.7))
    async def work(message: Message) -> None:
        if seen(message) <= len(delays):
            raise ValueError("not yet")

    async with started(manager):
        await manager.send(topic, b"x")
        await seen.reach(4, within=harness.timing.within(4, delay=sum(delays)))
    times = [start.at for start in seen.starts]
    for before, after, delay in zip(times, times[1:], delays, strict=False):
        assert after - before >= delay * 0.99, f"a retry after {after - before:.2f} s instead of {delay} s"
        assert after - before <= delay * 1.07 + late(harness), (
            f"a retry after {after - before:.2f} s instead of {delay} s"
        )


@case
@needs("refuse_sends")
async def test_failed_reschedule_keeps_message(harness: Harness) -> None:
    """When the broker refuses the copy for the next attempt, the message is not lost but tried again later."""
    topic, seen, manager = harness.topic(), Seen(), harness.manager(send_timeout=2.0)
    sender = harness.manager()
    broken = True

    @manager.handler(topic, retry=policy(harness, max_attempts=1000, max_delay=0.1))
    async def work(message: Message) -> None:
        seen(message)
        if broken:
            raise ValueError("not yet")

    async with started(manager), sender:
        async with harness.refuse_sends(ToGroup(topic.name, "g")):
            sent = await sender.send(topic, b"x")
            await seen.reach(1, within=harness.timing.within())
            await harness.clock.sleep(harness.timing.quiet)
            failed = len(seen.starts)
            broken = False
        # 30 s: how long the core insists on the copy before it gives the original back (design §6).
        await seen.reach(failed + 1, within=harness.timing.within() + 30.0)
    assert set(seen.ids) == {sent}
    await nothing_is_left(harness, topic)


@case
@requires(Capability.DELAYED_SEND)
async def test_retry_state_survives_restart(harness: Harness) -> None:
    """A worker that starts while a retry waits for its time runs the next attempt, not the first one again."""
    topic, seen = harness.topic(), Seen()
    retry = policy(harness, max_attempts=5, base_delay=1.0)

    async def work(message: Message) -> None:
        if seen(message) < 2:
            raise ValueError("not yet")

    first = harness.manager()
    first.add_handler(topic, work, retry=retry)
    async with started(first):
        sent = await first.send(topic, b"x")
        await seen.reach(1, within=harness.timing.within())
    second = harness.manager()
    second.add_handler(topic, work, retry=retry)
    async with started(second):
        await seen.reach(2, within=harness.timing.within(2, delay=1.0))
    assert seen.attempts(sent) == [1, 2]
    await nothing_is_left(harness, topic)


# --- idempotency ----------------------------------------------------------------------------------------------


class DiesBeforeAck(MemoryIdempotencyStore):
    """A store whose worker hangs at the worst moment: the completion is recorded, the message not acknowledged."""

    def __init__(self, harness: Harness) -> None:
        super().__init__(harness.clock)
        self.hangs = True
        self.completed = 0

    async def complete(self, key: str, owner: str, result: bytes | None, follow_ups: bytes | None) -> bool:
        ours = await super().complete(key, owner, result, follow_ups)
        self.completed += 1
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        return ours


@case
async def test_duplicate_is_skipped_and_acked(harness: Harness) -> None:
    """A message that was sent twice with one id is handled once, and neither copy waits in the group afterwards."""
    topic, seen = harness.topic(), Seen()
    manager = harness.manager(idempotency=MemoryIdempotencyStore(harness.clock))

    @manager.handler(topic, idempotent=True, retry=policy(harness))
    async def work(message: Message) -> None:
        seen(message)

    async with started(manager):
        first = await manager.send(topic, b"x", message_id="order-1")
        await seen.reach(1, within=harness.timing.within())
        assert await manager.send(topic, b"x", message_id="order-1") == first == "order-1"
        other = await manager.send(topic, b"y", message_id="order-2")
        await seen.cover({other}, within=harness.timing.within())
        await seen.stay(2, harness.timing.quiet)
    assert seen.ids == [first, other]
    await nothing_is_left(harness, topic)


@case
async def test_failed_attempt_is_not_a_duplicate(harness: Harness) -> None:
    """With an idempotency store a failed attempt is tried again, and only the success counts as done."""
    topic, seen = harness.topic(), Seen()
    manager = harness.manager(idempotency=MemoryIdempotencyStore(harness.clock))

    @manager.handler(topic, idempotent=True, retry=policy(harness))
    async def work(message: Message) -> None:
        if seen(message) < 3:
            raise ValueError("not yet")

    async with started(manager):
        sent = await manager.send(topic, b"x")
        await seen.reach(3, within=harness.timing.within(3, delay=0.3))
        await manager.send(topic, b"x", message_id=sent)
        await seen.stay(3, harness.timing.quiet)
    assert seen.attempts(sent) == [1, 2, 3]
    await nothing_is_left(harness, topic)


@case
async def test_lost_ack_does_not_rerun_handler(harness: Harness) -> None:
    """A worker that dies between recording the completion and the acknowledgement causes no second run."""
    topic, seen = harness.topic(), Seen()
    store = DiesBeforeAck(harness)

    async def work(message: Message) -> None:
        seen(message)

    first = harness.manager(idempotency=store)
    first.add_handler(topic, work, idempotent=True, retry=policy(harness))
    async with first:
        await first.start()
        sent = await first.send(topic, b"x")
        await eventually(lambda: store.completed, within=harness.timing.within(), what="the completion of the message")
        await first.stop(timeout=0.1)
    store.hangs = False
    second = harness.manager(idempotency=store)
    second.add_handler(topic, work, idempotent=True, retry=policy(harness))
    async with started(second):
        other = await second.send(topic, b"y")
        await seen.cover({other}, within=harness.timing.within(2))
        await seen.stay(2, harness.timing.quiet)
    assert seen.ids == [sent, other]
    await nothing_is_left(harness, topic)


@case
async def test_concurrent_duplicates_run_once(harness: Harness) -> None:
    """Two workers that get the same id at the same time run it once; the other copy ends done, not lost."""
    topic, seen = harness.topic(), Seen()
    store = MemoryIdempotencyStore(harness.clock)
    count = 10

    async def work(message: Message) -> None:
        seen(message)
        await harness.clock.sleep(0.3)

    workers = [harness.manager(idempotency=store) for _ in range(2)]
    for worker in workers:
        worker.add_handler(topic, work, idempotent=True, prefetch=10, retry=policy(harness))
    async with started(workers[0]), started(workers[1]), harness.manager() as sender:
        ids = {f"order-{number}" for number in range(count)}
        await asyncio.gather(*(sender.send(topic, b"x", message_id=message_id) for message_id in ids for _ in range(3)))
        await seen.cover(ids, within=harness.timing.within(3 * count))
        # The loser of a claim comes again within 2 s (design §7).
        await seen.stay(count, harness.timing.quiet + 2.0)
    assert {seen.ids.count(message_id) for message_id in ids} == {1}
    await nothing_is_left(harness, topic)


# --- draining -------------------------------------------------------------------------------------------------


@case
async def test_worker_shutdown_drains(harness: Harness) -> None:
    """A worker that stops finishes what it handles; what it only prefetched goes back to the others as it was."""
    topic, seen, manager = harness.topic(), Seen(), harness.manager()
    finished: list[str | None] = []

    @manager.handler(topic, concurrency=2, prefetch=20, retry=policy(harness))
    async def work(message: Message) -> None:
        seen(message)
        await harness.clock.sleep(0.5)
        finished.append(message.message_id)

    async with manager:
        sent = [await manager.send(topic, b"%d" % number) for number in range(12)]
        await manager.start()
        await seen.reach(2, within=harness.timing.within(2))
        await manager.stop(timeout=harness.timing.deadline)
    assert 2 <= len(finished) < len(sent)
    assert finished == seen.ids, "a handler was started and not finished"
    rest = set(sent) - set(finished)
    async with harness.manager() as other, other.consume(topic) as deliveries:
        came = await receive_exactly(deliveries, rest, within=harness.timing.within(len(rest)))
        await receive_nothing(deliveries, harness.timing.quiet)
    assert {delivery.attempt for delivery in came} == {1}
