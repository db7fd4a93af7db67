"""Topics and groups as they are on real brokers after they were declared, verified and deleted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from brokerkit.errors import AccessRefused, BrokerUnavailable, TopicNotFound, TopologyConflict
from brokerkit.spi import GroupSpec, Outbound, TopicSpec, ToTopic
from brokerkit.testing.services.rocketmq import (
    RocketMQControl,
    RocketMQOptions,
    RocketMQServer,
)
from brokerkit_rocketmq.remoting.codes import RequestCode
from tests.rocketmq.administration import CLOCK, Scene, a_topic, administering
from tests.rocketmq.servers import NEW, SENDER, WORKER, installation_or_skip


async def group_config(scene: Scene, group: str) -> dict[str, object]:
    code = RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG
    table = await scene.making.asking.ask("broker-a", code, {}, "asking for the groups")
    return dict(table["subscriptionGroupTable"].get(group, {}))


async def committed(scene: Scene, topic: TopicSpec, group: str) -> list[int | None]:
    """Return what is committed in each queue of the topic."""
    route = await scene.making.route(scene.names.topic(topic.name))
    assert route is not None
    native = scene.names.group(topic.name, group)
    return [await scene.making.asking.committed(native, queue) for queue in route.readable]


def a_message(topic: TopicSpec, number: int = 0) -> Outbound:
    return Outbound(destination=ToTopic(topic.name), body=b"%d" % number, message_id=f"{topic.name}-{number}")


# --- declaring ------------------------------------------------------------------------------------------------


async def test_a_declared_group_has_its_queues_and_its_topics(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        names = scene.names
        route = await scene.client.routes.route(names.topic(topic.name))
        retry = await scene.client.routes.route(names.retry(topic.name, "work"))
        dead = await scene.client.routes.route(names.dead(topic.name, "work"))
        config = await group_config(scene, names.group(topic.name, "work"))
        shadow = await group_config(scene, names.shadow(topic.name, "work"))
    assert len(route.readable) == len(route.writable) == 8
    assert len(retry.writable) == 1
    assert (len(dead.readable), len(dead.writable)) == (1, 1)
    assert config["consumeEnable"] is True
    assert int(str(config["retryMaxTimes"])) >= 1_000_000
    assert shadow


async def test_declaring_twice_and_at_once_does_the_same_as_once(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as one, administering(rocketmq) as other:
        await asyncio.gather(*(scene.declare(topic) for scene in (one, other) for _ in range(3)))
        await one.store(a_message(topic), queue=3)
        await other.declare(topic)
        stats = await other.figures.stats(topic.name, "work")
        await other.topology.verify(topic, topic.groups["work"])
    assert stats.ready == 1


async def test_an_ordered_topic_has_one_queue_unless_more_are_asked_for(rocketmq: RocketMQControl) -> None:
    total, by_key = a_topic("work", ordered=True), a_topic("work", ordered=True, queues=5)
    async with administering(rocketmq) as scene:
        await scene.declare(total, by_key)
        for topic, count in ((total, 1), (by_key, 5)):
            route = await scene.client.routes.route(scene.names.topic(topic.name))
            assert len(route.writable) == count
            await scene.topology.verify(topic, topic.groups["work"])


async def test_an_ordered_declaration_of_a_topic_with_many_queues_is_a_conflict(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        ordered = replace(topic, ordered=True)
        for call in (scene.topology.declare, scene.topology.verify):
            with pytest.raises(TopologyConflict, match=rf"{topic.name}.*ordered.*8 queues") as caught:
                await call(ordered, None)
            assert not caught.value.retryable
        await scene.topology.declare(topic, topic.groups["work"])


async def test_fewer_queues_than_asked_for_are_a_conflict_and_more_are_kept(rocketmq: RocketMQControl) -> None:
    topic = a_topic(queues=4)
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        with pytest.raises(TopologyConflict, match="asks for 6 queues, and it has 4"):
            await scene.declare(replace(topic, native={"queues": 6}))
        await scene.declare(replace(topic, native={"queues": 2}))
        await scene.declare(replace(topic, native={}))
        route = await scene.client.routes.route(scene.names.topic(topic.name), refresh=True)
    assert len(route.writable) == 4


async def test_a_topic_that_may_not_be_written_is_a_conflict(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    rocketmq.create_topic(topic.name.replace(".", "|"), perm=4)
    async with administering(rocketmq) as scene:
        with pytest.raises(TopologyConflict, match="perm lets no queue be written"):
            await scene.declare(topic)


async def test_names_of_the_configuration_are_used_as_they_stand(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    native, group = f"legacy_{topic.name[2:]}", f"legacy_group_{topic.name[2:]}"
    adopted = replace(
        topic, native={"topic": native}, groups={"work": replace(topic.groups["work"], native={"group": group})}
    )
    rocketmq.create_topic(native, queues=3)
    async with administering(rocketmq) as scene:
        await scene.declare(adopted)
        assert await group_config(scene, group)
        route = await scene.client.routes.route(native, refresh=True)
        stats = await scene.figures.stats(topic.name, "work")
        await scene.topology.delete(topic.name, "work")
        assert not await group_config(scene, group)
    assert len(route.writable) == 3
    assert stats.ready == 0


async def test_a_topic_with_a_single_queue_stays_that_way(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    rocketmq.create_topic(topic.name.replace(".", "|"), queues=1)
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        route = await scene.client.routes.route(scene.names.topic(topic.name), refresh=True)
    assert len(route.writable) == 1


# --- where a group begins -------------------------------------------------------------------------------------


async def test_a_latest_group_is_pinned_behind_what_is_there(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        for number in range(3):
            await scene.store(a_message(topic, number), queue=2)
        late = replace(topic, groups={"late": GroupSpec(name="late")})
        await scene.declare(late)
        await scene.store(a_message(topic, 3), queue=2)
        assert (await committed(scene, late, "late"))[2] == 3
        assert (await scene.figures.stats(topic.name, "late")).ready == 1


async def test_an_earliest_group_gets_what_was_there_before(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        for number in range(3):
            await scene.store(a_message(topic, number), queue=number)
        early = replace(topic, groups={"early": GroupSpec(name="early", start="earliest")})
        await scene.declare(early)
        assert (await scene.figures.stats(topic.name, "early")).ready == 3


async def test_a_group_may_begin_at_an_instant(rocketmq: RocketMQControl) -> None:
    topic = a_topic()
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        await scene.store(a_message(topic, 0))
        await CLOCK.sleep(0.05)
        between = CLOCK.time()
        await CLOCK.sleep(0.05)
        await scene.store(a_message(topic, 1))
        instant = datetime.fromtimestamp(between + 0.03, UTC).isoformat()
        some = replace(topic, groups={"some": GroupSpec(name="some", native={"start_at": instant})})
        await scene.declare(some)
        assert (await scene.figures.stats(topic.name, "some")).ready == 1
        none = replace(topic, groups={"none": GroupSpec(name="none", native={"start_at": "2999-01-01T00:00:00Z"})})
        await scene.declare(none)
        assert (await scene.figures.stats(topic.name, "none")).ready == 0


async def test_declaring_again_moves_no_group(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        for number in range(4):
            await scene.store(a_message(topic, number), queue=1)
        await scene.commit(topic.name, "work", 1, queue=1)
        await scene.declare(topic)
        earliest = replace(topic, groups={"work": GroupSpec(name="work", start="earliest")})
        await scene.declare(earliest)
        assert (await committed(scene, topic, "work"))[1] == 1


async def test_offsets_of_a_deleted_topic_do_not_hide_the_messages_of_the_new_one(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        for number in range(3):
            await scene.store(a_message(topic, number))
        await scene.commit(topic.name, "work", 3)
        await scene.topology.delete(topic.name, None, ["work"])
        await scene.declare(topic)
        await scene.store(a_message(topic, 3))
        assert (await scene.figures.stats(topic.name, "work")).ready == 1


# --- verifying and deleting -----------------------------------------------------------------------------------


async def test_verifying_creates_nothing_and_says_what_is_missing(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        scene.topics[topic.name] = topic
        for _ in range(2):
            with pytest.raises(TopicNotFound, match=f"topic '{topic.name}' does not exist"):
                await scene.topology.verify(topic, None)
        await scene.declare(replace(topic, groups={}))
        scene.topics[topic.name] = topic
        for _ in range(2):
            with pytest.raises(TopicNotFound, match="group 'work'"):
                await scene.topology.verify(topic, topic.groups["work"])
        await scene.topology.verify(topic, None)


async def test_a_group_that_only_its_administrator_knows_is_there(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq) as scene:
        await scene.declare(replace(topic, groups={}))
        rocketmq.create_group(scene.names.group(topic.name, "work"))
        await scene.topology.verify(topic, topic.groups["work"])


async def test_a_deleted_group_takes_its_messages_along_and_leaves_the_others(rocketmq: RocketMQControl) -> None:
    topic = a_topic("one", "two")
    async with administering(rocketmq) as scene:
        await scene.declare(topic)
        await scene.store(a_message(topic))
        native = scene.names.group(topic.name, "one")
        await scene.topology.delete(topic.name, "one")
        with pytest.raises(TopicNotFound):
            await scene.topology.verify(topic, topic.groups["one"])
        assert not any(native in one for one in await scene.making.groups_on("broker-a"))
        for gone in (scene.names.retry(topic.name, "one"), scene.names.dead(topic.name, "one")):
            with pytest.raises(TopicNotFound):
                await scene.client.routes.route(gone, refresh=True)
        assert (await scene.figures.stats(topic.name, "two")).ready == 1
        await scene.topology.delete(topic.name, "one")
        await scene.declare(topic)
        assert (await scene.figures.stats(topic.name, "one")).ready == 0


async def test_a_deleted_topic_takes_groups_along_that_another_process_declared(rocketmq: RocketMQControl) -> None:
    topic = a_topic("here")
    elsewhere = replace(topic, groups={"there": GroupSpec(name="there")})
    async with administering(rocketmq) as scene, administering(rocketmq) as other:
        await scene.declare(topic)
        await other.declare(elsewhere)
        await scene.topology.delete(topic.name, None, ["here"])
        known = await scene.making.groups_on("broker-a")
        assert not [one for one in known if scene.names.topic(topic.name) in one]
        with pytest.raises(TopicNotFound):
            await scene.client.routes.route(scene.names.topic(topic.name), refresh=True)
        await scene.topology.delete(topic.name, None, ["here"])


async def test_only_the_brokers_of_the_configured_cluster_get_the_topic(rocketmq: RocketMQControl) -> None:
    topic = a_topic("work")
    async with administering(rocketmq, cluster="of-somebody-else") as scene:
        with pytest.raises(BrokerUnavailable, match="no master of the cluster 'of-somebody-else'"):
            await scene.declare(topic)
    async with administering(rocketmq, cluster=rocketmq.address.cluster) as scene:
        await scene.declare(topic)
        await scene.topology.verify(topic, topic.groups["work"])


# --- permissions ----------------------------------------------------------------------------------------------


async def test_who_may_not_create_is_told_what_to_ask_for(guarded_pair: RocketMQControl) -> None:
    topic = a_topic("work")
    url = guarded_pair.address.url(WORKER.login)
    async with administering(guarded_pair, url=url) as worker, administering(guarded_pair) as admin:
        with pytest.raises(AccessRefused, match=r"mqadmin updateTopic -t .*declare: verify") as caught:
            await worker.declare(topic)
        assert "worker-secret" not in str(caught.value)
        await admin.declare(replace(topic, groups={}))
        with pytest.raises(AccessRefused, match="mqadmin updateSubGroup -g 'work"):
            await worker.declare(topic)


async def test_who_may_not_create_declares_what_exists(guarded_pair: RocketMQControl) -> None:
    topic = a_topic("work")
    async with (
        administering(guarded_pair, url=guarded_pair.address.url(WORKER.login)) as worker,
        administering(guarded_pair) as admin,
    ):
        await admin.declare(topic)
        await worker.declare(topic)
        await worker.topology.verify(topic, topic.groups["work"])
        with pytest.raises(AccessRefused, match="administrator"):
            await worker.topology.delete(topic.name, "work")


@pytest.fixture(scope="module")
def guarded_new() -> Iterator[RocketMQServer]:
    options = RocketMQOptions(acl=True, accounts=(WORKER, SENDER))
    with RocketMQServer(options, installation=installation_or_skip(NEW)) as server:
        yield server


async def test_on_5_x_the_same_holds_for_who_may_not_create_and_for_who_may_only_send(
    guarded_new: RocketMQServer,
) -> None:
    topic, missing = a_topic("work"), a_topic("work")
    worker_url, sender_url = (guarded_new.address.url(account.login) for account in (WORKER, SENDER))
    async with (
        administering(guarded_new) as admin,
        administering(guarded_new, url=worker_url) as worker,
        administering(guarded_new, url=sender_url) as sender,
    ):
        await admin.declare(topic)
        for scene in (worker, sender):
            await scene.declare(topic)
            await scene.topology.verify(topic, topic.groups["work"])
            with pytest.raises(AccessRefused, match="mqadmin updateTopic"):
                await scene.declare(missing)
        await sender.store(a_message(topic))
        await admin.making.asking.caught_up(["broker-a"])
        assert (await admin.figures.stats(topic.name, "work")).ready == 1


# --- several brokers ------------------------------------------------------------------------------------------


async def test_a_topic_and_its_groups_are_on_every_broker_and_an_ordered_one_on_one(
    guarded_pair: RocketMQControl,
) -> None:
    topic, ordered = a_topic("work"), a_topic("work", ordered=True)
    async with administering(guarded_pair) as scene:
        await scene.declare(topic, ordered)
        names = scene.names
        route = await scene.client.routes.route(names.topic(topic.name))
        assert sorted(queue.broker for queue in route.writable) == ["broker-a"] * 8 + ["broker-b"] * 8
        dead = await scene.client.routes.route(names.dead(topic.name, "work"))
        assert [queue.broker for queue in dead.writable] == ["broker-a", "broker-b"]
        assert len((await scene.client.routes.route(names.topic(ordered.name))).writable) == 1
        await scene.store(a_message(topic, 1), broker="broker-a")
        await scene.store(a_message(topic, 2), broker="broker-b")
        assert (await scene.figures.stats(topic.name, "work")).ready == 2
        assert await scene.purging.purge(topic.name, "work") == 2
        await scene.topology.delete(topic.name, None, ["work"])
        for broker in ("broker-a", "broker-b"):
            assert not [one for one in await scene.making.groups_on(broker) if names.topic(topic.name) in one]


async def test_a_broker_that_was_added_gets_the_topic_and_the_group(guarded_pair: RocketMQControl) -> None:
    topic = a_topic("work")
    native = topic.name.replace(".", "|")
    config = json.dumps({"groupName": f"work||{native}"}).encode()
    async with administering(guarded_pair) as scene:
        scene.topics[topic.name] = topic
        make = scene.making
        # As it is when the second broker came later.
        from brokerkit_rocketmq.making import Make

        await make.topics([Make("broker-a", native, 8), Make("broker-a", f"%RETRY%work||{native}", 1)])
        code = RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP
        await make.asking.ask("broker-a", code, {}, "creating a group", body=config)
        await make.visible(native, ["broker-a"])
        await make.visible(f"%RETRY%work||{native}", ["broker-a"])
        await scene.declare(topic)
        route = await scene.client.routes.route(native, refresh=True)
        assert {queue.broker for queue in route.writable} == {"broker-a", "broker-b"}
        await scene.store(a_message(topic), broker="broker-b")
        assert (await scene.figures.stats(topic.name, "work")).ready == 1
