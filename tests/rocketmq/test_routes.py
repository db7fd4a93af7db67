"""NameServers and routes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerUnavailable, Closed, ConfigurationError, TopicNotFound
from brokerkit.testing import FaultProxy, VirtualClock, eventually
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.addresses import Address, parse_address
from brokerkit_rocketmq.dialing import Dialer, DialOptions
from brokerkit_rocketmq.links import Links
from brokerkit_rocketmq.name_servers import NAME_SERVER_PROBE, NameServers
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.remoting.frames import Frame
from brokerkit_rocketmq.routes import MessageQueue, Route, Routes, parse_brokers, parse_route
from tests.rocketmq.clients import LONG, QUICK, a_name
from tests.rocketmq.test_connections import host_and_port
from tests.rocketmq.test_links import free_address

# --- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a:9877", ("a", 9877)),
        (" b ", ("b", 9876)),
        ("localhost", ("localhost", 9876)),
        ("[::1]:7", ("::1", 7)),
        ("::1", ("::1", 9876)),
        ("[fe80::2]", ("fe80::2", 9876)),
    ],
)
def test_an_address_of_a_name_server_may_go_without_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text, 9876) == Address(*address)


def test_an_address_of_a_broker_has_a_port_after_its_last_colon() -> None:
    assert parse_address("10.0.0.7:10911") == Address("10.0.0.7", 10911)
    assert parse_address("2001:db8::1:10911") == Address("2001:db8::1", 10911)
    assert str(parse_address("2001:db8::1:10911")) == "[2001:db8::1]:10911"


@pytest.mark.parametrize("text", ["a", "a:", "a:b", "a:0", "a:65536", "a b:1", "http://a:1", "::x:1", ":1", "a:٣"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="host:port"):
        parse_address(text)


# --- what NameServers write ---------------------------------------------------------------------------------------


def answer(body: object, code: int = 0, remark: str | None = None) -> Frame:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Frame(code, 1, 1, {}, data, remark, 401, "JAVA")


def queue_data(broker: str, perm: int, read: int, write: int) -> dict[str, object]:
    return {"brokerName": broker, "perm": perm, "readQueueNums": read, "writeQueueNums": write, "topicSysFlag": 0}


def test_a_route_names_what_can_be_read_and_written_in_javas_order() -> None:
    route = parse_route(
        "T",
        answer(
            {
                "brokerDatas": [
                    {"brokerName": "b-10", "brokerAddrs": {"0": "h:1", "1": "h:2"}, "cluster": "C"},
                    {"brokerName": "b-2", "brokerAddrs": {"1": "h:4"}, "cluster": "C"},
                    {"brokerName": "b-3", "brokerAddrs": {"0": "h:5"}, "cluster": "C"},
                ],
                "filterServerTable": {},
                "queueDatas": [
                    queue_data("b-2", 6, 1, 1),
                    queue_data("b-10", 6, 2, 3),
                    queue_data("b-3", 4, 1, 1),
                    queue_data("b-9", 6, 8, 8),
                ],
                "orderTopicConf": "b-10:2",
            }
        ),
    )
    assert route == Route(
        "T",
        {"b-10": {0: "h:1", 1: "h:2"}, "b-2": {1: "h:4"}, "b-3": {0: "h:5"}},
        (
            MessageQueue("T", "b-10", 0),
            MessageQueue("T", "b-10", 1),
            MessageQueue("T", "b-2", 0),
            MessageQueue("T", "b-3", 0),
        ),
        (MessageQueue("T", "b-10", 0), MessageQueue("T", "b-10", 1), MessageQueue("T", "b-10", 2)),
    )


def test_a_list_of_brokers_is_read_as_fastjson_writes_it() -> None:
    body = (
        b'{"brokerAddrTable":{"a":{"brokerAddrs":{0:"h:1",1:"h:2"},"brokerName":"a"}},"clusterAddrTable":{"C":["a"]}}'
    )
    assert parse_brokers(answer(body)) == {"a": {0: "h:1", 1: "h:2"}}
    assert parse_brokers(answer(b'{"brokerAddrTable":{},"clusterAddrTable":{}}')) == {}


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'"x"', b'{"brokerDatas":[{}]}', b'{"queueDatas":[5]}', b'{"brokerDatas":7}', b"\xff"]
)
def test_a_route_that_cannot_be_read_is_an_error_that_may_pass(body: bytes) -> None:
    with pytest.raises(BrokerUnavailable, match="cannot be read"):
        parse_route("T", answer(body))


def test_a_refusal_of_the_name_server_is_told() -> None:
    with pytest.raises(BrokerUnavailable, match="not ready"):
        parse_route("T", answer(b"", 1, "name server not ready"))


# --- asking NameServers -----------------------------------------------------------------------------------------


@asynccontextmanager
async def name_servers(*addresses: str, timeout: float = LONG) -> AsyncIterator[NameServers]:
    dialer = Dialer(DialOptions(timeout=timeout))
    clock = SystemClock()
    servers = NameServers(
        [parse_address(address) for address in addresses],
        Links(dialer, lambda: NAME_SERVER_PROBE, clock, QUICK),
        clock,
    )
    try:
        yield servers
    finally:
        await servers.aclose()


async def test_the_next_name_server_is_asked_when_one_is_away(rocketmq: RocketMQControl) -> None:
    real = rocketmq.address.name_servers[0]
    async with name_servers(free_address(), real) as servers:
        for _ in range(3):
            frame = await servers.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)
            assert "broker-a" in parse_brokers(frame)


async def test_a_name_server_that_froze_costs_its_share_of_the_time_once(rocketmq_old: RocketMQControl) -> None:
    real = rocketmq_old.address.name_servers[0]
    with FaultProxy(*host_and_port(real)) as proxy:
        async with name_servers(f"127.0.0.1:{proxy.port}", real) as servers:
            await servers.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)
            assert proxy.counters.connections == 1
            proxy.freeze()
            frame = await servers.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=4.0)
            assert frame.code == 0
            before = proxy.counters.received_up
            assert (await servers.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)).code == 0
            # The one that answered is asked now; what the other still gets are probes.
            assert proxy.counters.received_up - before < 1000
        proxy.reset()


async def test_a_host_name_stands_for_all_its_addresses(rocketmq: RocketMQControl) -> None:
    _, port = host_and_port(rocketmq.address.name_servers[0])
    # On most machines also ::1, where 5.x does not listen.
    async with name_servers(f"localhost:{port}") as servers:
        assert (await servers.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)).code == 0


async def test_when_all_are_away_the_error_names_each(rocketmq_old: RocketMQControl) -> None:
    first, second = free_address(), free_address()
    async with name_servers(first, second, "no-such-host.invalid:9876") as servers:
        with pytest.raises(BrokerUnavailable) as caught:
            await servers.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)
        for name in (first, second, "no-such-host.invalid"):
            assert name in str(caught.value)
        assert caught.value.retryable


async def test_the_others_are_asked_when_one_knows_nothing(rocketmq: RocketMQControl) -> None:
    real = rocketmq.address.name_servers[0]
    with FaultProxy(*host_and_port(real)) as proxy:
        async with name_servers(real, f"127.0.0.1:{proxy.port}") as servers:
            frame = await servers.call(
                RequestCode.GET_ROUTEINFO_BY_TOPIC,
                {"topic": a_name()},
                timeout=LONG,
                satisfied=lambda frame: frame.code == 0,
            )
            assert frame.code == 17 and proxy.counters.connections == 1
            assert len(await servers.call_each(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)) == 2


async def test_a_missing_topic_is_told_at_once_although_another_name_server_is_down(
    rocketmq_old: RocketMQControl,
) -> None:
    clock = SystemClock()
    real = rocketmq_old.address.name_servers[0]
    with FaultProxy(*host_and_port(real)) as proxy:
        proxy.freeze()
        async with name_servers(f"127.0.0.1:{proxy.port}", real, timeout=2.0) as servers:
            await servers.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)
            made = Routes(servers, clock, timeout=LONG)
            began = clock.monotonic()
            for _ in range(8):
                with pytest.raises(TopicNotFound):
                    await made.route(a_name())
            # Waiting for the one that is down would take two seconds each time.
            assert clock.monotonic() - began < 10
            await made.aclose()
        proxy.reset()
        proxy.thaw()


# --- routes -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def routes(*addresses: str, interval: float = LONG, virtual: VirtualClock | None = None) -> AsyncIterator[Routes]:
    async with name_servers(*addresses) as servers:
        made = Routes(servers, virtual or SystemClock(), timeout=LONG, interval=interval)
        try:
            yield made
        finally:
            await made.aclose()


async def test_a_route_is_read_once_and_remembered(rocketmq: RocketMQControl) -> None:
    topic = a_name()
    rocketmq.create_topic(topic, queues=3)
    with FaultProxy(*host_and_port(rocketmq.address.name_servers[0])) as proxy:
        async with routes(f"127.0.0.1:{proxy.port}") as made:
            assert made.known(topic) is None
            found = await asyncio.gather(*(made.route(topic) for _ in range(10)))
            assert all(route is found[0] for route in found) and made.known(topic) is found[0]
            asked = proxy.counters.received_up
            assert await made.route(topic) is found[0]
            assert proxy.counters.received_up == asked
    broker = rocketmq.address.brokers[0]
    assert found[0].writable == found[0].readable == tuple(MessageQueue(topic, broker.name, n) for n in range(3))
    assert made.brokers[broker.name][0] == broker.address


async def test_an_unknown_topic_is_not_found_until_it_exists(rocketmq: RocketMQControl) -> None:
    topic = a_name()
    async with routes(*rocketmq.address.name_servers) as made:
        for _ in range(2):
            with pytest.raises(TopicNotFound, match=topic):
                await made.route(topic)
        await asyncio.to_thread(rocketmq.create_topic, topic, queues=1)
        assert len((await made.route(topic)).writable) == 1
        await asyncio.to_thread(rocketmq.delete_topic, topic)
        with pytest.raises(TopicNotFound):
            await made.route(topic, refresh=True)
        assert made.known(topic) is None


async def test_watchers_see_what_changed_soon_after_it_was_called_in_question(rocketmq: RocketMQControl) -> None:
    topic = a_name()
    rocketmq.create_topic(topic, queues=2)
    seen: list[int] = []
    async with routes(*rocketmq.address.name_servers, interval=3600.0) as made:
        unwatch = made.watch(topic, lambda route: seen.append(len(route.writable)))
        await eventually(lambda: seen == [2], within=LONG)
        await asyncio.to_thread(rocketmq.create_topic, topic, queues=5)
        made.invalidate(topic)
        await eventually(lambda: seen == [2, 5], within=LONG)
        unwatch()
        await asyncio.to_thread(rocketmq.create_topic, topic, queues=6)
        assert len((await made.route(topic, refresh=True)).writable) == 6
        assert seen == [2, 5]


async def test_routes_in_use_are_read_again_by_themselves(rocketmq_old: RocketMQControl) -> None:
    topic = a_name()
    rocketmq_old.create_topic(topic, queues=2)
    async with routes(*rocketmq_old.address.name_servers, interval=0.2) as made:
        await made.route(topic)
        await asyncio.to_thread(rocketmq_old.create_topic, topic, queues=4)

        def grown() -> bool:
            route = made.known(topic)
            return route is not None and len(route.writable) == 4

        await eventually(grown, within=LONG)


async def test_topics_that_nobody_uses_any_more_are_forgotten(rocketmq_old: RocketMQControl) -> None:
    topic = a_name()
    rocketmq_old.create_topic(topic, queues=2)
    clock = VirtualClock()
    async with routes(*rocketmq_old.address.name_servers, interval=30.0, virtual=clock) as made:
        await made.route(topic)
        for _ in range(25):
            await clock.advance(30.0)
            # The looks of the watcher take real time.
            await asyncio.sleep(0.02)
        await eventually(lambda: made.known(topic) is None, within=LONG)


async def test_a_name_server_that_never_answers_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with name_servers(address, timeout=0.3) as servers:
            made = Routes(servers, SystemClock(), timeout=0.3)
            with pytest.raises(BrokerUnavailable):
                await made.route("T")
            await made.aclose()


async def test_a_closed_list_of_name_servers_says_so(rocketmq_old: RocketMQControl) -> None:
    async with name_servers(*rocketmq_old.address.name_servers) as servers:
        await servers.aclose()
        with pytest.raises(Closed):
            await servers.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)
