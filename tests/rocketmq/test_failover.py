"""What clients notice when servers die and come back: a master with a slave, and two NameServers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from brokerkit.errors import BrokerUnavailable, TopicNotFound
from brokerkit.testing import eventually, within
from brokerkit.testing.services.rocketmq import RocketMQOptions, RocketMQServer
from brokerkit_rocketmq.remoting.bodies import parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.routes import Route
from tests.rocketmq.clients import a_client, a_name, membership
from tests.rocketmq.servers import installation_or_skip

#: Seconds; servers that start while other tests run are slow.
LONG = 90.0

MASTER, SLAVE = 0, 1


@pytest.fixture(scope="module")
def breakable() -> Iterator[RocketMQServer]:
    options = RocketMQOptions(slaves=1, name_servers=2)
    with RocketMQServer(options, installation=installation_or_skip()) as server:
        yield server


@pytest.fixture
def server(breakable: RocketMQServer) -> Iterator[RocketMQServer]:
    """A server to break; it is repaired for the next test."""
    breakable.resume()
    breakable.start()
    breakable.register()
    breakable.wait_until_registered()
    yield breakable


def ids_of(route: Route | None) -> set[int]:
    return set(route.brokers.get("broker-a", {})) if route is not None else set()


async def test_a_lost_master_leaves_what_its_slave_can_be_read_and_comes_back(server: RocketMQServer) -> None:
    topic = a_name()
    await asyncio.to_thread(server.create_topic, topic, queues=2)
    await asyncio.to_thread(server.wait_until_copied)
    async with a_client(server) as client:
        seen: list[Route] = []
        client.routes.watch(topic, seen.append)
        await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO)
        await eventually(lambda: ids_of(client.routes.known(topic)) == {MASTER, SLAVE}, within=LONG)

        await asyncio.to_thread(server.broker("broker-a", MASTER).kill)
        await eventually(lambda: ids_of(client.routes.known(topic)) == {SLAVE}, within=LONG)
        assert len(seen[-1].readable) == 2 and seen[-1].writable == ()
        with pytest.raises(BrokerUnavailable):
            await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO)
        frame = await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO, slaves=True)
        assert frame.code == 0
        link = await client.link("broker-a", slaves=True)
        assert link.address == server.broker("broker-a", SLAVE).describe().address

        await asyncio.to_thread(server.broker("broker-a", MASTER).start)
        await eventually(lambda: ids_of(client.routes.known(topic)) == {MASTER, SLAVE}, within=LONG)
        assert len(seen[-1].writable) == 2

        async def answers() -> bool:
            try:
                return (await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO)).code == 0
            except BrokerUnavailable:
                return False

        await eventually(answers, within=LONG)


async def test_a_topic_whose_brokers_are_away_is_unavailable_and_not_missing(server: RocketMQServer) -> None:
    topic = a_name()
    await asyncio.to_thread(server.create_topic, topic, queues=2)
    async with a_client(server) as client:
        await client.routes.route(topic)
        for broker in server.brokers:
            await asyncio.to_thread(broker.kill)

        async def refused() -> str:
            try:
                await client.routes.route(topic, refresh=True)
            except BrokerUnavailable as error:
                return str(error)
            return ""

        # The NameServers notice it a moment later.
        text = await eventually(refused, within=LONG)
        assert "knows no broker" in text and topic in text
        assert ids_of(client.routes.known(topic)), "what is remembered is still where it will be found again"
        with pytest.raises(BrokerUnavailable):
            await client.routes.route(a_name())

        await asyncio.to_thread(server.start)

        async def found() -> bool:
            try:
                return len((await client.routes.route(topic, refresh=True)).writable) == 2
            except BrokerUnavailable:
                return False

        await eventually(found, within=LONG)
        with pytest.raises(TopicNotFound):
            await client.routes.route(a_name())


async def test_a_name_server_that_dies_is_replaced_by_the_other(server: RocketMQServer) -> None:
    topic = a_name()
    await asyncio.to_thread(server.create_topic, topic, queues=2)
    async with a_client(server) as client:
        for name_server in server.name_servers:
            await asyncio.to_thread(name_server.kill)
            route = await within(LONG, client.routes.route(topic, refresh=True))
            assert len(route.writable) == 2
            await asyncio.to_thread(name_server.start)
            # Nobody has told it of its brokers yet: what it does not know does not count while the other knows it.
            route = await within(LONG, client.routes.route(topic, refresh=True))
            assert len(route.writable) == 2
            await asyncio.to_thread(server.register)
            await asyncio.to_thread(server.wait_until_registered)


async def test_a_frozen_broker_counts_as_away_until_it_goes_on(server: RocketMQServer) -> None:
    topic, group = a_name(), a_name("g")
    await asyncio.to_thread(server.create_topic, topic, queues=2)
    async with a_client(server) as client:
        await client.register_consumer(membership(group, topic))
        link = await client.link("broker-a")
        epoch = link.epoch
        server.broker("broker-a", MASTER).suspend()
        await eventually(lambda: link.error is not None, within=LONG)
        assert "nothing was heard" in str(link.error) and not link.is_up
        server.broker("broker-a", MASTER).resume()
        await eventually(lambda: link.is_up and link.epoch > epoch, within=LONG)

        async def is_member() -> bool:
            frame = await client.call("broker-a", RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": group})
            # Maybe twice: the broker has not noticed the end of the first connection.
            return frame.code == 0 and client.client_id in parse_body(frame.body)["consumerIdList"]

        await eventually(is_member, within=LONG)
