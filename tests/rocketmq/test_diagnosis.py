"""The doctor's findings about real brokers, each with the mistake that it is about."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from brokerkit.errors import BrokerUnavailable
from brokerkit.spi import Finding
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.services.rocketmq import RocketMQControl, RocketMQServer
from brokerkit.testing.services.rocketmq_wire import request
from brokerkit_rocketmq.admin_data import BrokerInfo
from brokerkit_rocketmq.client import Client
from brokerkit_rocketmq.diagnosis import unreachable_brokers
from brokerkit_rocketmq.registrations import Registration, Subscription
from tests.rocketmq.administration import LONG, Scene, a_topic, administering
from tests.rocketmq.servers import WORKER

#: ``RequestCode.UNREGISTER_BROKER``: a NameServer forgets a broker until that tells of itself again.
_UNREGISTER_BROKER = 104


def of_level(level: str, findings: Iterable[Finding], about: str = "") -> list[str]:
    return [f"{one.text} -> {one.cure}" for one in findings if one.level == level and one.about.startswith(about)]


async def join(client: Client, group: str, *subscriptions: Subscription) -> None:
    await client.register_consumer(Registration(group=group, subscriptions=subscriptions))
    client.answers.running_info[group] = lambda: {
        "subscriptionSet": [{"topic": one.topic, "subString": one.expression} for one in subscriptions]
    }


async def test_nothing_is_wrong_with_a_broker_and_a_group_that_are_well(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)

        async def ours() -> list[str]:
            # Other tests use the broker, too.
            every = [*await scene.admin.groups(), *await scene.admin.topics()]
            return [name for name in every if scene.names.topic(topic.name) in name]

        before = await ours()
        found = await scene.diagnosis.diagnose()
        assert before
        assert await ours() == before
        assert (await scene.figures.stats(topic.name, "work")).ready == 0
    assert of_level("wrong", found) == []
    well = of_level("ok", found)
    assert any(rocketmq.address.brokers[0].address in text for text in well)
    assert any("the disk of its messages is" in text for text in well)
    assert any("members, all with one subscription" in text for text in well)


async def test_creating_topics_by_accident_is_advised_against(rocketmq: RocketMQControl) -> None:
    async with administering(rocketmq) as scene:
        found = await scene.diagnosis.diagnose()
    assert any("autoCreateTopicEnable" in text for text in of_level("advice", found, "broker broker-a"))


async def test_a_registered_address_that_nobody_can_reach_is_told_with_its_cure(rocketmq: RocketMQControl) -> None:
    registered = rocketmq.address.brokers[0].address
    async with administering(rocketmq, timeout=2.0, address_map={registered: "127.0.0.1:1"}) as scene:
        (wrong,) = of_level("wrong", await scene.diagnosis.diagnose(), "broker broker-a")
    assert registered in wrong
    assert "brokerIP1" in wrong
    assert "address_map" in wrong


async def test_each_name_server_is_looked_at_by_itself(own_pair: RocketMQServer) -> None:
    second = own_pair.name_servers[1]
    async with administering(own_pair, url=f"{own_pair.url},nowhere.invalid:9876", timeout=10.0) as scene:
        found = await scene.diagnosis.diagnose()
        (wrong,) = of_level("wrong", found)
        assert "nowhere.invalid" in wrong
        for server in own_pair.name_servers:
            (well,) = of_level("ok", found, f"NameServer {server.address}")
            assert "broker-a at" in well and "broker-b at" in well

        broker = own_pair.broker("broker-b").describe()
        fields = {
            "brokerName": broker.name,
            "brokerAddr": broker.address,
            "clusterName": own_pair.address.cluster,
            "brokerId": "0",
        }

        async def is_told_of_the_missing_broker() -> bool:
            # The broker tells of itself every ten seconds.
            await asyncio.to_thread(request, second.address, _UNREGISTER_BROKER, fields)
            wrong = of_level("wrong", await scene.diagnosis.diagnose(), f"NameServer {second.address}")
            return (
                bool(wrong) and f"does not know broker-b at {broker.address}" in wrong[0] and "namesrvAddr" in wrong[0]
            )

        await eventually(is_told_of_the_missing_broker, LONG, "a finding")
        await asyncio.to_thread(second.kill)
        (wrong,) = of_level("wrong", await scene.diagnosis.diagnose(), f"NameServer {second.address}")
        assert "it does not answer" in wrong
        assert "take it off the list" in wrong


def test_a_connection_that_finds_no_broker_says_the_same() -> None:
    error = unreachable_brokers("ns:9876", {"broker-a at 172.17.0.2:10911": BrokerUnavailable("timed out")})
    assert "ns:9876" in str(error)
    assert "172.17.0.2:10911: timed out" in str(error)
    assert "brokerIP1" in str(error)
    assert error.retryable


async def test_unequal_filters_of_the_members_are_wrong(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene, administering(rocketmq) as one, administering(rocketmq) as other:
        await scene.declare(topic)
        group, native = scene.names.group(topic.name, "work"), scene.names.topic(topic.name)
        await join(one.client, group, Subscription(native, "a"))
        await join(other.client, group, Subscription(native, "a||b"))
        wrong = of_level("wrong", await scene.diagnosis.diagnose(), f"group {topic.name} / work")
    assert len(wrong) == 1
    assert "unequal filters" in wrong[0]
    assert one.client.client_id in wrong[0]
    assert other.client.client_id in wrong[0]


async def test_a_group_that_is_used_for_another_topic_too_is_wrong(rocketmq: RocketMQControl) -> None:
    topic, strange = a_topic("work"), a_topic()
    async with administering(rocketmq) as scene, administering(rocketmq) as one, administering(rocketmq) as other:
        await scene.declare(topic, strange)
        group = scene.names.group(topic.name, "work")
        await join(one.client, group, Subscription(scene.names.topic(topic.name)))
        await join(other.client, group, Subscription(scene.names.topic(strange.name)))
        wrong = of_level("wrong", await scene.diagnosis.diagnose(), f"group {topic.name} / work")
    assert len(wrong) == 1
    assert f"consume '{scene.names.topic(strange.name)}' too" in wrong[0]


async def test_groups_that_do_not_exist_yet_are_no_matter_of_the_doctor(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        scene.topics[topic.name] = topic
        found = await scene.diagnosis.diagnose()
    assert not [one for one in found if one.about.startswith("group")]


# --- the command ----------------------------------------------------------------------------------------------


def doctor(url: str, directory: Path) -> tuple[int, list[dict[str, str]]]:
    """Return the exit code and the findings of the command."""
    command = [sys.executable, "-m", "brokerkit", "doctor", "--json", "--url", url]
    done = subprocess.run(command, capture_output=True, cwd=directory, timeout=LONG, check=False)
    return done.returncode, json.loads(done.stdout)["findings"]


def test_the_doctor_shows_it(rocketmq: RocketMQControl, tmp_path: Path) -> None:
    code, found = doctor(rocketmq.url, tmp_path)
    assert code == 0, found
    assert any(one["about"] == "broker broker-a" and "autoCreateTopicEnable" in one["text"] for one in found)


def test_the_doctor_finds_an_address_that_nobody_can_reach(rocketmq_old: RocketMQControl, tmp_path: Path) -> None:
    registered = rocketmq_old.address.brokers[0].address
    code, found = doctor(f"{rocketmq_old.url}?address_map={quote(registered + '=127.0.0.1:1', safe='')}", tmp_path)
    assert code == 1
    (wrong,) = (one for one in found if one["level"] == "wrong")
    assert registered in wrong["text"]
    assert "brokerIP1" in wrong["text"]


# --- what no test can bring about: a full disk, a clock that is wrong -----------------------------------------


async def a_broker(scene: Scene, **info: str) -> BrokerInfo:
    (broker,) = await scene.admin.brokers()
    return replace(broker, info={**broker.info, **info})


@pytest.mark.parametrize(("ratio", "level"), [("0.74", "ok"), ("0.76", "advice"), ("0.86", "wrong")])
async def test_a_disk_that_fills_up_is_told_in_time(rocketmq_old: RocketMQControl, ratio: str, level: str) -> None:
    async with administering(rocketmq_old) as scene:
        found = scene.diagnosis._broker(await a_broker(scene, commitLogDiskRatio=ratio))
    assert any("disk" in text for text in of_level(level, found))


async def test_a_clock_that_differs_is_wrong(rocketmq: RocketMQControl) -> None:
    async with administering(rocketmq) as scene:
        broker = await a_broker(scene)
        assert broker.started is not None
        boot = str(int((broker.started - 3600) * 1000))
        late = scene.diagnosis._broker(await a_broker(scene, bootTimestamp=boot))
    (wrong,) = of_level("wrong", late)
    assert "behind the one of this host" in wrong


# --- permissions ----------------------------------------------------------------------------------------------


async def test_missing_permissions_are_named(guarded_pair: RocketMQControl) -> None:
    topic = a_topic("work")
    # An account of the test's own: while it is changed it does not exist.
    account = replace(WORKER, access_key=f"a{topic.name[2:]}")
    guarded_pair.set_account(account)
    url = guarded_pair.address.url(account.login)
    async with administering(guarded_pair) as admin, administering(guarded_pair, url=url) as one:
        await admin.declare(topic)
        one.topics[topic.name] = topic
        native, group = admin.names.topic(topic.name), admin.names.group(topic.name, "work")
        assert of_level("wrong", await one.diagnosis.diagnose()) == []
        guarded_pair.set_account(replace(account, topics={native: "SUB"}, groups={group: "DENY"}))

        async def findings() -> list[str]:
            return of_level("wrong", await one.diagnosis.diagnose(), "group")

        (wrong,) = await eventually(findings, LONG, "the permissions that were taken away")
        assert f"sending to '{native}'" in wrong
        assert f"reading '{native}' as group '{group}'" in wrong
        assert "worker-secret" not in wrong
        assert (await admin.figures.stats(topic.name, "work")).ready == 0
