"""One client of real brokers: calls by name, groups, and what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

import pytest

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerUnavailable, Closed, TopicNotFound
from brokerkit.testing import FaultProxy, eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.addresses import Address, parse_address
from brokerkit_rocketmq.client import Client, ClientOptions
from brokerkit_rocketmq.dialing import DialOptions
from brokerkit_rocketmq.registrations import Registration, Subscription
from brokerkit_rocketmq.remoting.bodies import parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.frames import Frame
from brokerkit_rocketmq.routes import MessageQueue
from tests.rocketmq.clients import LONG, QUICK, a_client, a_name, membership, options_for, send
from tests.rocketmq.test_connections import host_and_port
from tests.rocketmq.test_links import free_address

#: INVOKE_BROKER_TO_GET_CONSUMER_STATUS, an administrator's question that the broker passes on as 221.
ASK_MEMBERS_FOR_OFFSETS = 223


async def members(client: Client, group: str) -> list[str]:
    """The client ids that the broker has for a group, those of dead connections too."""
    frame = await client.call("broker-a", RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": group})
    return sorted(parse_body(frame.body)["consumerIdList"]) if frame.code == ResponseCode.SUCCESS else []


# --- beginning and ending ---------------------------------------------------------------------------------------


async def test_a_client_leaves_neither_tasks_nor_connections_nor_memberships(rocketmq: RocketMQControl) -> None:
    topic, group = a_name(), a_name("g")
    rocketmq.create_topic(topic)
    before = asyncio.all_tasks()
    with FaultProxy(*host_and_port(rocketmq.address.name_servers[0])) as proxy:
        options = ClientOptions(
            name_servers=(Address("127.0.0.1", proxy.port),), dial=DialOptions(timeout=LONG), links=QUICK, timeout=LONG
        )
        client = Client(options, SystemClock())
        await client.open()
        client.register_producer("brokerkit-test")
        await client.register_consumer(membership(group, topic))
        assert await members(client, group) == [client.client_id]
        await client.aclose()
        await client.aclose()
        assert asyncio.all_tasks() == before
        await eventually(lambda: proxy.counters.open == 0, within=LONG)
    async with a_client(rocketmq) as other:
        assert await members(other, group) == []
    with pytest.raises(Closed):
        await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO)


async def test_a_close_that_is_cancelled_leaves_no_connection_either(rocketmq_old: RocketMQControl) -> None:
    with FaultProxy(*host_and_port(rocketmq_old.address.masters[0].address)) as proxy:
        mapped = {rocketmq_old.address.masters[0].address: f"127.0.0.1:{proxy.port}"}
        before = asyncio.all_tasks()
        client = Client(options_for(rocketmq_old, address_map=mapped), SystemClock())
        await client.open()
        client.register_producer("brokerkit-test")
        await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO)
        proxy.freeze()
        closing = asyncio.create_task(client.aclose())
        # Its farewell is under way now, and not answered.
        await asyncio.sleep(0.1)
        assert not closing.done()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert client.links.up() == ()
        assert asyncio.all_tasks() == before


async def test_opening_says_when_no_name_server_is_there() -> None:
    address = free_address()
    client = Client(ClientOptions(name_servers=(parse_address(address),), timeout=2.0), SystemClock())
    before = asyncio.all_tasks()
    with pytest.raises(BrokerUnavailable, match=address):
        await client.open()
    assert asyncio.all_tasks() == before


async def test_two_clients_have_different_ids(rocketmq_old: RocketMQControl) -> None:
    async with a_client(rocketmq_old) as one, a_client(rocketmq_old) as other:
        assert one.client_id != other.client_id


# --- calling ----------------------------------------------------------------------------------------------------


async def test_a_broker_is_called_by_its_name(rocketmq: RocketMQControl) -> None:
    async with a_client(rocketmq) as client:
        assert client.version("broker-a") is None
        frame = await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO)
        assert frame.code == 0 and b"brokerVersionDesc" in frame.body
        assert client.version("broker-a") == frame.version
        assert client.is_five("broker-a") == (rocketmq.address.major >= 5)
        # Any response code is an answer.
        frame = await client.call("broker-a", RequestCode.GET_MAX_OFFSET, {"topic": a_name(), "queueId": "0"})
        assert frame.code in (0, ResponseCode.SYSTEM_ERROR, ResponseCode.TOPIC_NOT_EXIST)


async def test_a_broker_that_nobody_knows_is_unavailable(rocketmq_old: RocketMQControl) -> None:
    async with a_client(rocketmq_old) as client:
        with pytest.raises(BrokerUnavailable, match="'broker-z'"):
            await client.call("broker-z", RequestCode.GET_BROKER_RUNTIME_INFO)
        with pytest.raises(BrokerUnavailable, match="the id 7"):
            await client.link("broker-a", broker_id=7)


async def test_brokers_and_name_servers_can_be_asked_for(rocketmq: RocketMQControl) -> None:
    expected = {"broker-a": {0: rocketmq.address.brokers[0].address}}
    async with a_client(rocketmq) as client:
        assert await client.brokers() == expected
        assert await client.brokers(refresh=True) == expected
        frame = await client.call_name_server(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
        assert "TBW102" in parse_body(frame.body)["topicList"]


async def test_a_call_that_is_not_answered_in_time_is_unavailable(rocketmq_old: RocketMQControl) -> None:
    address = rocketmq_old.address.brokers[0].address
    with FaultProxy(*host_and_port(address)) as proxy:
        known = {address: f"127.0.0.1:{proxy.port}"}
        async with a_client(rocketmq_old, address_map=known) as client:
            await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO)
            proxy.freeze()
            with pytest.raises(BrokerUnavailable, match="no answer"):
                await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO, timeout=0.3)
            link = await client.link("broker-a")
            proxy.reset()
            await eventually(lambda: not link.is_up, within=LONG)
            proxy.thaw()
            assert (await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO)).code == 0


# --- groups -------------------------------------------------------------------------------------------------------


async def test_a_member_is_known_when_registering_returns(rocketmq: RocketMQControl) -> None:
    topic, group = a_name(), a_name("g")
    rocketmq.create_topic(topic)
    async with a_client(rocketmq) as client:
        await client.register_consumer(membership(group, topic, "a || b"))
        assert await members(client, group) == [client.client_id]
        frame = await client.call("broker-a", RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": group})
        known = parse_body(frame.body)
        assert [one["clientId"] for one in known["connectionSet"]] == [client.client_id]
        assert known["connectionSet"][0]["language"] == "PYTHON"
        assert known["messageModel"] == "CLUSTERING"
        subscription = known["subscriptionTable"][topic]
        assert sorted(subscription["tagsSet"]) == ["a", "b"] and sorted(subscription["codeSet"]) == [97, 98]
        await client.unregister_consumer(group)
        await client.unregister_consumer(group)
        assert await members(client, group) == []


async def test_members_are_told_of_each_other(rocketmq: RocketMQControl) -> None:
    topic, group = a_name(), a_name("g")
    rocketmq.create_topic(topic)
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    async with a_client(rocketmq) as first:
        first.answers.on_members_changed[group] = changed
        await first.register_consumer(membership(group, topic))
        await eventually(lambda: changes, within=LONG)
        changes = 0
        async with a_client(rocketmq) as second:
            await second.register_consumer(membership(group, topic))
            await eventually(lambda: changes, within=LONG)
            assert await members(first, group) == sorted([first.client_id, second.client_id])
            changes = 0
        await eventually(lambda: changes, within=LONG)
        assert await members(first, group) == [first.client_id]


async def test_producer_groups_are_told_too(rocketmq: RocketMQControl) -> None:
    group = a_name("p")
    async with a_client(rocketmq) as client:
        await client.call("broker-a", RequestCode.GET_BROKER_RUNTIME_INFO)
        client.register_producer(group)

        async def known() -> bool:
            frame = await client.call("broker-a", RequestCode.GET_PRODUCER_CONNECTION_LIST, {"producerGroup": group})
            return frame.code == 0 and client.client_id.encode() in frame.body

        await eventually(known, within=LONG)


async def test_a_member_whose_connection_broke_comes_back_by_itself(rocketmq: RocketMQControl) -> None:
    topic, group = a_name(), a_name("g")
    rocketmq.create_topic(topic)
    address = rocketmq.address.brokers[0].address
    with FaultProxy(*host_and_port(address)) as proxy:
        async with (
            a_client(rocketmq, address_map={address: f"127.0.0.1:{proxy.port}"}) as client,
            a_client(rocketmq) as watcher,
        ):
            await client.register_consumer(membership(group, topic))
            seen = await addresses(watcher, group, client.client_id)
            assert len(seen) == 1
            for _ in range(3):
                proxy.reset()
                # Nobody asks it to.  The address of a dead connection may stay for two minutes: a heartbeat that the
                # broker takes up after the end of its connection enters it again.
                fresh = await eventually(partial(fresh_address, watcher, group, client.client_id, seen), within=LONG)
                seen |= fresh


async def addresses(watcher: Client, group: str, client_id: str) -> set[str]:
    """Where the broker has that member from."""
    frame = await watcher.call("broker-a", RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": group})
    found = parse_body(frame.body)["connectionSet"] if frame.code == ResponseCode.SUCCESS else []
    return {connection["clientAddr"] for connection in found if connection["clientId"] == client_id}


async def fresh_address(watcher: Client, group: str, client_id: str, seen: set[str]) -> set[str]:
    return await addresses(watcher, group, client_id) - seen


async def test_registering_on_a_topic_that_does_not_exist_is_told(rocketmq_old: RocketMQControl) -> None:
    async with a_client(rocketmq_old) as client:
        with pytest.raises(TopicNotFound):
            await client.register_consumer(membership(a_name("g"), a_name()))


async def test_a_subscription_can_change(rocketmq: RocketMQControl) -> None:
    topic, group = a_name(), a_name("g")
    rocketmq.create_topic(topic)
    async with a_client(rocketmq) as client:
        await client.register_consumer(membership(group, topic, "a"))
        newer = membership(group, topic, "b")
        newer = type(newer)(group=group, subscriptions=(Subscription(topic, "b", 2), newer.subscriptions[1]))
        await client.register_consumer(newer)
        frame = await client.call("broker-a", RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": group})
        assert parse_body(frame.body)["subscriptionTable"][topic]["subString"] == "b"


# --- what a client is asked ---------------------------------------------------------------------------------------


async def ask_member(asker: Client, code: int, group: str, member: Client, **more: str) -> Frame:
    """Ask a broker for what it passes on to a member."""
    fields = {"consumerGroup": group, "clientId": member.client_id, **more}
    return await asker.call("broker-a", code, fields)


async def test_tools_can_look_into_a_member(rocketmq: RocketMQControl) -> None:
    topic, group = a_name(), a_name("g")
    rocketmq.create_topic(topic, queues=1)
    queue = MessageQueue(topic, "broker-a", 0)
    async with a_client(rocketmq) as client, a_client(rocketmq) as tool:
        await client.register_consumer(membership(group, topic))
        frame = await ask_member(tool, RequestCode.GET_CONSUMER_RUNNING_INFO, group, client, jstackEnable="false")
        assert frame.code == ResponseCode.SYSTEM_ERROR and "no member" in (frame.remark or "")
        client.answers.running_info[group] = lambda: {
            "properties": {"PROP_CONSUME_TYPE": "CONSUME_PASSIVELY"},
            "mqTable": {queue: {"commitOffset": 7, "cachedMsgCount": 2}},
        }
        frame = await ask_member(tool, RequestCode.GET_CONSUMER_RUNNING_INFO, group, client, jstackEnable="false")
        assert frame.code == 0, frame.remark
        info = parse_body(frame.body)
        assert info["properties"] == {"PROP_CONSUME_TYPE": "CONSUME_PASSIVELY"}
        ((key, value),) = info["mqTable"].items()
        assert dict(key) == {"topic": topic, "brokerName": "broker-a", "queueId": 0} and value["commitOffset"] == 7


async def test_a_member_handles_no_message_on_request(rocketmq: RocketMQControl) -> None:
    topic, group = a_name(), a_name("g")
    rocketmq.create_topic(topic, queues=1)
    async with a_client(rocketmq) as client, a_client(rocketmq) as tool:
        await client.register_consumer(membership(group, topic))
        sent = await send(tool, topic)
        frame = await ask_member(
            tool,
            RequestCode.CONSUME_MESSAGE_DIRECTLY,
            group,
            client,
            msgId=sent.fields["msgId"],
            brokerName="broker-a",
            topic=topic,
        )
        assert frame.code == ResponseCode.SYSTEM_ERROR and "handles no message on request" in (frame.remark or "")


async def test_offsets_that_an_administrator_sets_reach_the_members_of_4_9(rocketmq_old: RocketMQControl) -> None:
    topic, group = a_name(), a_name("g")
    rocketmq_old.create_topic(topic, queues=1)
    queue = MessageQueue(topic, "broker-a", 0)
    resets: list[tuple[str, Mapping[MessageQueue, int]]] = []
    async with a_client(rocketmq_old) as client, a_client(rocketmq_old) as tool:
        await client.register_consumer(membership(group, topic))
        client.answers.on_reset[group] = lambda name, offsets: resets.append((name, offsets))
        for _ in range(3):
            await send(client, topic)
        offset = {"consumerGroup": group, "topic": topic, "queueId": "0", "commitOffset": "3"}
        assert (await tool.call("broker-a", RequestCode.UPDATE_CONSUMER_OFFSET, offset)).code == 0
        reset = {"topic": topic, "group": group, "timestamp": "0", "isForce": "true"}
        frame = await tool.call("broker-a", RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, reset)
        assert frame.code == 0, frame.remark
        await eventually(lambda: resets, within=LONG)
        assert resets == [(topic, {queue: 0})]


async def test_members_tell_their_offsets(rocketmq_old: RocketMQControl) -> None:
    topic, group = a_name(), a_name("g")
    rocketmq_old.create_topic(topic, queues=1)
    queue = MessageQueue(topic, "broker-a", 0)
    async with a_client(rocketmq_old) as client, a_client(rocketmq_old) as tool:
        await client.register_consumer(membership(group, topic))
        client.answers.offsets[group] = lambda name: {queue: 5} if name == topic else {}
        frame = await tool.call("broker-a", ASK_MEMBERS_FOR_OFFSETS, {"topic": topic, "group": group})
        assert frame.code == 0, frame.remark
        table = parse_body(frame.body)["consumerTable"]
        ((key, value),) = table[client.client_id].items()
        assert dict(key) == {"topic": topic, "brokerName": "broker-a", "queueId": 0} and value == 5


async def test_a_membership_that_no_broker_is_told_of_is_refused(rocketmq: RocketMQControl) -> None:
    async with a_client(rocketmq) as client:
        with pytest.raises(BrokerUnavailable, match="no broker has a topic of group"):
            await client.register_consumer(Registration(group=a_name("g"), subscriptions=()))
