"""Many messages that are read, given back and taken again keep their order, on both types of queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from brokerkit.errors import TopicNotFound
from brokerkit.spi import ConnectOptions, ConsumerOptions, Destination, GroupSpec, Outbound, ToDead, TopicSpec, ToTopic
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from brokerkit_rabbitmq.backend import RabbitMQBackend
from brokerkit_rabbitmq.connection import RabbitMQConnection

TOPIC = "orders"
GROUP = GroupSpec(name="g", ordered=True)
SPEC = TopicSpec(name=TOPIC, ordered=True, groups={"g": GROUP})
#: More than one consumer of a quorum queue holds, and more than a small Erlang map.
MANY = 2500


@pytest.fixture(params=["quorum", "classic"])
async def connection(
    request: pytest.FixtureRequest, shared_node: RabbitMQControl, vhost: str
) -> AsyncIterator[RabbitMQConnection]:
    url = f"{shared_node.address.url(vhost)}?queue_type={request.param}"
    connection = await RabbitMQBackend().connect(ConnectOptions(url=url, topics={TOPIC: SPEC}))
    try:
        await connection.declare(SPEC, GROUP)
        yield connection
    finally:
        await connection.aclose()


async def fill(connection: RabbitMQConnection, destination: Destination, count: int) -> None:
    producer = await connection.open_producer()
    messages = [
        Outbound(destination=destination, body=b"%d" % number, message_id=str(number), ordered=True)
        for number in range(count)
    ]
    assert await producer.send(messages) == [None] * count


async def dead(connection: RabbitMQConnection) -> list[int]:
    return [int(str(message.message_id)) for message in await connection.browse(TOPIC, "g", 2 * MANY)]


async def test_browsing_thousands_of_dead_letters_changes_nothing(connection: RabbitMQConnection) -> None:
    await fill(connection, ToDead(TOPIC, "g"), MANY)

    for _ in range(2):
        assert await dead(connection) == list(range(MANY))
    assert (await connection.stats(TOPIC, "g")).dead == MANY


async def test_what_is_taken_goes_and_the_rest_keeps_its_order(connection: RabbitMQConnection) -> None:
    await fill(connection, ToDead(TOPIC, "g"), MANY)

    letters = await connection.take_dead(TOPIC, "g", ["3", "7", str(MANY - 1)])
    taken = await letters.receive(10, 1.0)
    assert [message.message_id for message in taken] == ["3", "7", str(MANY - 1)]
    assert await letters.receive(10, 1.0) == []
    await letters.ack([taken[0], taken[2]])
    await letters.aclose()

    assert await dead(connection) == [number for number in range(MANY - 1) if number != 3]


async def test_readers_wait_for_each_other(connection: RabbitMQConnection) -> None:
    await fill(connection, ToDead(TOPIC, "g"), 100)

    assert await asyncio.gather(*(dead(connection) for _ in range(4))) == [list(range(100))] * 4


async def test_a_reader_of_no_queue_says_so(connection: RabbitMQConnection) -> None:
    with pytest.raises(TopicNotFound):
        await connection.browse(TOPIC, "nobody", 1)


async def test_an_ordered_group_goes_on_in_order_after_a_consumer_with_much_in_its_hands(
    connection: RabbitMQConnection,
) -> None:
    await fill(connection, ToTopic(TOPIC), 1000)
    options = ConsumerOptions(topic=TOPIC, group="g", prefetch=200, ordered=True)
    first, second = await connection.open_consumer(options), await connection.open_consumer(options)
    taken = list(await first.receive(15, 20.0))
    while len(taken) < 15:
        taken += await first.receive(15 - len(taken), 20.0)
    await first.ack(taken[:10])
    await first.settled()

    await first.aclose()
    came: list[int] = []
    while len(came) < 990:
        messages = await second.receive(500, 20.0)
        assert messages, f"{len(came)} of 990 came"
        came += [int(str(message.message_id)) for message in messages]
        await second.ack(messages)

    assert came == list(range(10, 1000))
