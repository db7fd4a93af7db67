"""What becomes of a delivery: acknowledged, given back, rejected, or left alone."""

from __future__ import annotations

from typing import cast

import pytest

from brokerkit.admin import DeadLetter
from brokerkit.errors import AlreadySettled, Reject
from brokerkit.spi import Capability, Inbound, Lease, ToDead
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.harness import Harness
from brokerkit.testing.suite._cases import (
    case,
    collect,
    id_of,
    needs,
    outbound,
    receive_exactly,
    receive_nothing,
    requires,
    send,
)

__all__ = [
    "test_ack_twice_is_noop",
    "test_acked_message_stays_gone",
    "test_attempt_counts_up",
    "test_conflicting_settlement_raises",
    "test_dead_letter_failure_keeps_original",
    "test_delayed_nack",
    "test_extend_keeps_lease",
    "test_lease_expiry_redelivers",
    "test_nack_redelivers",
    "test_nack_repeatedly",
    "test_partial_batch_settlement",
    "test_prefetch_limits_unsettled",
    "test_reject_goes_to_dead_letter",
    "test_stale_token_never_settles_another_message",
    "test_unsettled_redelivered_after_connection_loss",
]


@case
async def test_acked_message_stays_gone(harness: Harness) -> None:
    """What was acknowledged does not come again after everything was closed and opened anew."""
    topic = harness.topic()
    async with harness.manager() as manager:
        outcomes = await manager.send_many(topic, [b"x"] * 20)
        async with manager.consume(topic) as deliveries:
            ids = [outcome.message_id for outcome in outcomes]
            await receive_exactly(deliveries, ids, within=harness.timing.within(20))
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        await receive_nothing(deliveries, harness.timing.redelivery + harness.timing.quiet)


@case
async def test_nack_redelivers(harness: Harness) -> None:
    """Every message that was given back comes again."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        ids = [outcome.message_id for outcome in await manager.send_many(topic, [b"x"] * 10)]
        for delivery in await receive_exactly(deliveries, ids, within=harness.timing.within(10), ack=False):
            await delivery.nack()
        again = await receive_exactly(deliveries, ids, within=harness.timing.within(10))
        assert {delivery.attempt for delivery in again} == {2}
        await receive_nothing(deliveries, harness.timing.quiet)


@case(timeout=600)
async def test_nack_repeatedly(harness: Harness) -> None:
    """A hundred releases are not counted and lose nothing; twenty nacks are counted one by one."""
    topic = harness.topic()
    async with harness.connection() as connection:
        await harness.declare(connection, topic.name)
        producer = await connection.open_producer()
        (sent,) = await send(producer, outbound(topic.name))
        consumer = await harness.consumer(connection, topic.name)
        for _ in range(100):
            (inbound,) = await receive_exactly(consumer, [sent], within=harness.timing.within(), ack=False)
            await consumer.release([inbound])
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        for attempt in range(1, 21):
            (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within(), ack=False)
            assert delivery.attempt == attempt
            await delivery.nack()
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within())
        assert delivery.attempt == 21


@case
@needs("drop_connection")
async def test_unsettled_redelivered_after_connection_loss(harness: Harness) -> None:
    """What was not settled when the connection broke comes again on the next one."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        ids = [outcome.message_id for outcome in await manager.send_many(topic, [b"x"] * 5)]
        held = await receive_exactly(deliveries, ids, within=harness.timing.within(), ack=False)
        await harness.drop_connection()
        await receive_exactly(deliveries, ids, within=harness.timing.healed())
        assert all(delivery.stale for delivery in held)


@case
async def test_prefetch_limits_unsettled(harness: Harness) -> None:
    """With prefetch 1 nothing more is delivered until the one is settled, and another consumer gets its share."""
    topic = harness.topic()
    async with harness.manager() as manager:
        ids = {outcome.message_id for outcome in await manager.send_many(topic, [b"x"] * 16)}
        async with manager.consume(topic, prefetch=1) as one, manager.consume(topic, prefetch=1) as other:
            (first,) = await collect(one, 1, within=harness.timing.within(), ack=False)
            await receive_nothing(one, harness.timing.quiet)
            (second,) = await collect(other, 1, within=harness.timing.within(), ack=False)
            assert id_of(first) != id_of(second)
            await first.ack()
            (third,) = await collect(one, 1, within=harness.timing.within(), ack=False)
            assert len({id_of(first), id_of(second), id_of(third)} & ids) == 3


@case
async def test_ack_twice_is_noop(harness: Harness) -> None:
    """A second acknowledgement of one message settles no other one."""
    name = harness.name("spi")
    async with harness.connection() as connection:
        await harness.declare(connection, name)
        producer = await connection.open_producer()
        ids = await send(producer, *(outbound(name) for _ in range(3)))
        consumer = await harness.consumer(connection, name)
        first, *rest = await receive_exactly(consumer, ids, within=harness.timing.within(), ack=False)
        await consumer.ack([first])
        await consumer.ack([first])
        await consumer.ack([first, first])
        await consumer.aclose()
        left = [each.message_id for each in rest]
        again = await harness.consumer(connection, name)
        await receive_exactly(again, left, within=harness.timing.within(), duplicates=True)
        await receive_nothing(again, harness.timing.quiet)
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        ids = [await manager.send(topic, b"x") for _ in range(2)]
        one, other = await receive_exactly(deliveries, ids, within=harness.timing.within(), ack=False)
        for _ in range(2):
            await one.ack()
        await other.nack()
        await receive_exactly(deliveries, [id_of(other) or ""], within=harness.timing.within())


@case
async def test_conflicting_settlement_raises(harness: Harness) -> None:
    """A delivery that was settled one way cannot be settled another way: `AlreadySettled`, and the first holds."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        acked = await manager.send(topic, b"x")
        (delivery,) = await receive_exactly(deliveries, [acked], within=harness.timing.within(), ack=False)
        await delivery.ack()
        with pytest.raises(AlreadySettled):
            await delivery.nack()
        with pytest.raises(AlreadySettled):
            await delivery.reject("no")
        await receive_nothing(deliveries, harness.timing.quiet)
        nacked = await manager.send(topic, b"x")
        (delivery,) = await receive_exactly(deliveries, [nacked], within=harness.timing.within(), ack=False)
        await delivery.nack()
        with pytest.raises(AlreadySettled):
            await delivery.ack()
        await receive_exactly(deliveries, [nacked], within=harness.timing.within())


@case
@needs("drop_connection")
async def test_stale_token_never_settles_another_message(harness: Harness) -> None:
    """An acknowledgement with a token of a lost connection settles nothing, least of all the new first message."""
    name = harness.name()
    async with harness.connection() as connection:
        await harness.declare(connection, name)
        producer = await connection.open_producer()
        ids = await send(producer, *(outbound(name) for _ in range(3)))
        consumer = await harness.consumer(connection, name)
        old = await receive_exactly(consumer, ids, within=harness.timing.within(), ack=False)
        await harness.drop_connection()
        new = await receive_exactly(consumer, ids, within=harness.timing.healed(), ack=False)
        await consumer.ack(old)
        await consumer.release(old)
        assert not any(consumer.live(each) for each in old)
        assert all(consumer.live(each) for each in new)
        await consumer.aclose()
        last = await harness.consumer(connection, name)
        await receive_exactly(last, ids, within=harness.timing.within(), duplicates=True)


@case
async def test_partial_batch_settlement(harness: Harness) -> None:
    """Of five received messages four are acknowledged and one is given back: that one comes again, alone."""
    topic = harness.topic()
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        ids = [outcome.message_id for outcome in await manager.send_many(topic, [b"x"] * 5)]
        received = await receive_exactly(deliveries, ids, within=harness.timing.within(5), ack=False)
        for delivery in (*received[:2], *received[3:]):
            await delivery.ack()
        # The acknowledgements above it reach the broker first: they must not settle it, too.
        await harness.clock.sleep(harness.timing.settle)
        await received[2].nack()
        await receive_exactly(deliveries, [id_of(received[2]) or ""], within=harness.timing.within())
        await receive_nothing(deliveries, harness.timing.redelivery + harness.timing.quiet)


@case
async def test_attempt_counts_up(harness: Harness) -> None:
    """A message that fails comes as attempt 1, 2, 3, and only to the group in which it failed."""
    several = Capability.CONSUMER_GROUPS in harness.capabilities
    topic = harness.topic(groups=["failing", "fine"] if several else ["failing"])
    async with harness.manager() as manager:
        sent = await manager.send(topic, b"x")
        async with manager.consume(topic, group="failing") as deliveries:
            for attempt in (1, 2, 3):
                (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within(), ack=False)
                assert (delivery.attempt, delivery.message.attempt) == (attempt, attempt)
                await (delivery.ack() if attempt == 3 else delivery.nack())
            await receive_nothing(deliveries, harness.timing.quiet)
        if several:
            async with manager.consume(topic, group="fine") as deliveries:
                (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within())
                assert delivery.attempt == 1
                await receive_nothing(deliveries, harness.timing.quiet)


@case
@requires(Capability.DEAD_LETTER)
async def test_reject_goes_to_dead_letter(harness: Harness) -> None:
    """A rejected message becomes a dead letter that is the message as it was, and says why, where and how often."""
    topic = harness.topic(type=bytes)
    async with harness.manager() as manager:
        headers = {"colour": "blue"}
        rejected = await manager.send(topic, b"\x00original", headers=headers, key="k", tag="t", type="kind")
        hopeless = await manager.send(topic, b"hopeless")

        async def handle(body: bytes) -> None:
            if body == b"hopeless":
                raise LookupError("no such order")
            raise Reject("negative total")

        manager.add_handler(topic, handle, retry=harness.retry(max_attempts=5, fatal=(LookupError,)))
        await manager.start()

        async def both() -> list[DeadLetter]:
            letters = await manager.admin.dead_letters(topic, "g")
            return letters if len(letters) == 2 else []

        letters = await eventually(both, within=harness.timing.within(), what="two dead letters")
        await manager.stop()
        by_id = {letter.message.message_id: letter for letter in letters}
        assert set(by_id) == {rejected, hopeless}
        for letter in letters:
            assert (letter.topic, letter.group, letter.attempts) == (topic.name, "g", 1)
        message = by_id[rejected].message
        assert (message.body, dict(message.headers)) == (b"\x00original", headers)
        assert (message.key, message.tag, message.type) == ("k", "t", "kind")
        assert by_id[rejected].reason == "rejected"
        assert "negative total" in (by_id[rejected].error or "")
        assert by_id[hopeless].message.body == b"hopeless"
        assert (by_id[hopeless].reason, by_id[hopeless].error_type) == ("not-retryable", "LookupError")
        assert "no such order" in (by_id[hopeless].error or "")
        async with manager.consume(topic) as deliveries:
            await receive_nothing(deliveries, harness.timing.quiet)


@case
@requires(Capability.DEAD_LETTER)
@needs("refuse_sends")
async def test_dead_letter_failure_keeps_original(harness: Harness) -> None:
    """While dead letters cannot be stored, the rejected message stays in its group instead of being lost."""
    topic = harness.topic()
    started: list[bytes] = []

    async def handle(body: bytes) -> None:
        started.append(body)
        raise Reject("no")

    manager = harness.manager(send_timeout=1.0)
    async with manager, harness.manager() as sender:
        manager.add_handler(topic, handle, retry=harness.retry())
        sent = await sender.send(topic, b"kept")
        async with harness.refuse_sends(ToDead(topic.name, "g")):
            await manager.start()
            await eventually(lambda: started, within=harness.timing.within(), what="the handler ran")
            await manager.stop(timeout=0.5)
        assert not await manager.admin.dead_letters(topic, "g")
    async with harness.manager() as other, other.consume(topic) as deliveries:
        await receive_exactly(deliveries, [sent], within=harness.timing.within())


@case
async def test_delayed_nack(harness: Harness) -> None:
    """A message that is given back with a delay comes again not before it, and not much later."""
    topic = harness.topic()
    delay = 2.0
    async with harness.manager() as manager, manager.consume(topic) as deliveries:
        sent = await manager.send(topic, b"x")
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within(), ack=False)
        given_back = harness.clock.time()
        await delivery.nack(delay=delay)
        (delivery,) = await receive_exactly(deliveries, [sent], within=harness.timing.within(delay=delay))
        took = harness.clock.time() - given_back
        timing = harness.timing
        assert delay <= took, f"{delay - took:.3f} s early"
        # A driver may round a retry by 7 % of its delay (design 6).
        latest = delay * 1.07 + (timing.delay_grain + timing.delay_tolerance) * timing.factor
        assert took <= latest, f"{took - delay:.3f} s late"
        assert delivery.attempt == 2


@case
@requires(Capability.LEASE)
async def test_lease_expiry_redelivers(harness: Harness) -> None:
    """What a consumer neither settles nor extends comes to another one when its lease has ended."""
    name = harness.name()
    async with harness.connection() as connection, harness.connection() as elsewhere:
        await harness.declare(connection, name)
        (sent,) = await send(await connection.open_producer(), outbound(name))
        holder = await harness.consumer(connection, name)
        (held,) = await receive_exactly(holder, [sent], within=harness.timing.within(), ack=False)
        lease = cast(Lease, holder).lease
        other = await harness.consumer(elsewhere, name)
        await receive_nothing(other, lease / 3)
        (inbound,) = await receive_exactly(other, [sent], within=lease + harness.timing.within(), ack=False)
        if Capability.REDELIVERED in harness.capabilities:
            assert cast(Inbound, inbound).redelivered is True
        await holder.ack([held])  # stale by now: it must not take the message from its new holder
        await other.aclose()
        third = await harness.consumer(elsewhere, name)
        await receive_exactly(third, [sent], within=harness.timing.within())


@case
@requires(Capability.LEASE)
async def test_extend_keeps_lease(harness: Harness) -> None:
    """A handler that runs for three leases keeps its message: it is started once, and nobody else gets it."""
    topic = harness.topic(type=bytes)
    started: list[bytes] = []
    finished: list[bytes] = []
    async with harness.manager() as manager, harness.manager() as rival:
        async with harness.connection() as connection:
            await harness.declare(connection, topic.name)
            lease = cast(Lease, await harness.consumer(connection, topic.name)).lease

        async def handle(body: bytes) -> None:
            started.append(body)
            await harness.clock.sleep(3 * lease)
            finished.append(body)

        manager.add_handler(topic, handle, retry=harness.retry())
        await manager.start()
        await manager.send(topic, b"slow")
        await eventually(lambda: started, within=harness.timing.within(), what="the handler started")
        async with rival.consume(topic) as deliveries:
            await receive_nothing(deliveries, 3 * lease)
            await eventually(lambda: finished, within=harness.timing.within(), what="the handler ended")
            await receive_nothing(deliveries, harness.timing.quiet)
        await manager.stop()
    assert (started, finished) == ([b"slow"], [b"slow"])
