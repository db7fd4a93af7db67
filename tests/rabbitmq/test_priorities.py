"""Priorities: by queues that have them, and never where an order or a delay is promised; on every version."""

from __future__ import annotations

import pytest

from brokerkit.spi import (
    Capability,
    ConsumerOptions,
    Destination,
    GroupSpec,
    Inbound,
    Outbound,
    ToDead,
    ToGroup,
    TopicSpec,
    ToTopic,
)
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from brokerkit_rabbitmq.connection import RabbitMQConnection
from tests.rabbitmq.scene import CLOCK, LONG, connected, outbound, take

GROUP = GroupSpec(name="work", ordered=True)
#: An ordered topic with one group.
ORDERED = TopicSpec(name="steps", ordered=True, groups={"work": GROUP})
#: Quorum queues from 4.0 on keep those above 4 apart from the others.
MIXED = [0, 9, 4, 5, 1, 7, 0, 9, 3, 5] * 4

both_kinds = pytest.mark.parametrize("kind", ["quorum", "classic"])


@pytest.fixture
def url(shared_node: RabbitMQControl, vhost: str) -> str:
    return shared_node.address.url(vhost)


async def send(connection: RabbitMQConnection, messages: list[Outbound]) -> None:
    producer = await connection.open_producer()
    assert await producer.send(messages) == [None] * len(messages)
    await producer.aclose()


def numbered(destination: Destination, due: float | None = None) -> list[Outbound]:
    """One message for each of `MIXED`, whose id is its number."""
    return [
        outbound(destination=destination, message_id=str(number), priority=priority, due=due)
        for number, priority in enumerate(MIXED)
    ]


def seen(messages: list[Inbound]) -> list[tuple[int, int]]:
    """The number and the priority of each message."""
    return [(int(message.message_id or -1), message.priority) for message in messages]


async def receive(connection: RabbitMQConnection, topic: str, count: int) -> list[Inbound]:
    options = ConsumerOptions(topic=topic, group="work", prefetch=1, ordered=topic == ORDERED.name)
    consumer = await connection.open_consumer(options)
    taken: list[Inbound] = []
    while len(taken) < count:
        one = await take(consumer, 1)
        await consumer.ack(one)
        taken += one
    await consumer.aclose()
    return taken


# --- where an order is promised ---------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("highest", [None, 9])
async def test_no_priority_overtakes_in_an_ordered_group(url: str, kind: str, highest: int | None) -> None:
    async with connected(url, topics=[ORDERED], queue_type=kind, max_priority=highest) as connection:
        await send(connection, numbered(ToTopic("steps")))
        assert seen(await receive(connection, "steps", len(MIXED))) == list(enumerate(MIXED))
        # Retries, which have one due time, go through the wheel; all must be there before it.
        await send(connection, numbered(ToGroup("steps", "work"), CLOCK.time() + 2.0))
        assert seen(await receive(connection, "steps", len(MIXED))) == list(enumerate(MIXED))
        assert Capability.STRICT_PRIORITY not in connection.capabilities("steps")


@both_kinds
async def test_dead_letters_stay_in_the_order_in_which_they_died_whatever_their_priority(url: str, kind: str) -> None:
    async with connected(url, queue_type=kind) as connection:
        await send(connection, numbered(ToDead("orders", "work")))

        assert seen(list(await connection.browse("orders", "work", 100))) == list(enumerate(MIXED))


# --- where they decide ------------------------------------------------------------------------------------------


@both_kinds
async def test_with_max_priority_the_highest_comes_first_also_when_it_was_delayed(url: str, kind: str) -> None:
    async with connected(url, queue_type=kind, max_priority=9) as connection:
        assert Capability.STRICT_PRIORITY in connection.capabilities("orders")
        await send(connection, numbered(ToTopic("orders"), CLOCK.time() + 0.5))

        async def all_due() -> bool:
            return (await connection.stats("orders", "work")).ready == len(MIXED)

        await eventually(all_due, LONG, "all messages due")
        came = seen(await receive(connection, "orders", len(MIXED)))
    assert [priority for _, priority in came] == sorted(MIXED, reverse=True)
    assert dict(came) == dict(enumerate(MIXED))


# --- where they must not decide ---------------------------------------------------------------------------------


async def test_a_high_priority_that_is_not_due_holds_up_no_low_one_that_is(url: str) -> None:
    """Quorum queues of 4.0 to 4.2 look for what is due among those of high priority first, and stop there."""
    delay = 3.2  # one digit: all of them wait in the same level
    async with connected(url) as connection:
        await send(connection, [outbound(message_id="first", due=CLOCK.time() + delay)])
        await send(connection, [outbound(message_id="low", due=CLOCK.time() + delay)])
        await CLOCK.sleep(delay - 0.7)
        await send(connection, [outbound(message_id="high", priority=9, due=CLOCK.time() + delay)])

        came = await receive(connection, "orders", 3)
    assert [message.message_id for message in came] == ["first", "low", "high"]
