"""Broadcast consumers: each gets everything that is sent while it is connected, and no group notices."""

from __future__ import annotations

from brokerkit.testing.services.rocketmq import RocketMQControl, RocketMQOptions, RocketMQServer
from tests.rocketmq.consuming import bodies, consuming, take
from tests.rocketmq.servers import installation_or_skip


async def test_every_broadcast_consumer_gets_every_message_from_now_on(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        await scene.send(b"before")
        listeners = [await scene.consume(broadcast=True, group="watch") for _ in range(3)]
        for queue in range(4):
            await scene.put(queue, b"%d" % queue)
        for listener in listeners:
            got = await take(listener, 4)
            assert sorted(bodies(got)) == [b"0", b"1", b"2", b"3"]
            await listener.ack(got)
            assert await listener.receive(10, 0.3) == ()
        member = await scene.consume()
        assert len(await take(member, 5)) == 5


async def test_a_broadcast_consumer_is_no_member_and_commits_nothing(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        listener = await scene.consume(broadcast=True)
        await scene.send(b"1", b"2")
        await listener.ack(await take(listener, 2))
        await listener.settled()
        assert await scene.members() == frozenset()
        assert await scene.committed() in ([0] * 4, [None] * 4)
        await listener.aclose()
        again = await scene.consume(broadcast=True)
        assert await again.receive(10, 0.5) == ()


async def test_a_broadcast_consumer_goes_on_where_it_was_after_its_link_was_lost(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene, scene.proxy() as proxy:
        listener = await scene.consume(broadcast=True, through=proxy)
        await scene.put(0, b"before")
        (held,) = await take(listener, 1)
        proxy.refuse()
        proxy.reset()
        for queue in range(4):
            await scene.put(queue, b"%d" % queue)
        proxy.accept()
        assert sorted(bodies(await take(listener, 4))) == [b"0", b"1", b"2", b"3"]
        assert listener.live(held), "nobody else has it"
        assert await listener.receive(10, 0.3) == ()


async def test_a_broadcast_consumer_has_a_filter_of_its_own(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq) as scene:
        listener = await scene.consume(broadcast=True, tag="a||b")
        for tag in "abc":
            await scene.send(tag.encode(), tag=tag)
        assert sorted(bodies(await take(listener, 2))) == [b"a", b"b"]
        assert await listener.receive(10, 0.3) == ()


async def test_what_a_broadcast_consumer_gives_back_comes_again_to_it(rocketmq: RocketMQControl) -> None:
    async with consuming(rocketmq, queues=1) as scene:
        listener = await scene.consume(broadcast=True)
        await scene.put(0, b"1", b"2")
        got = await take(listener, 2)
        await listener.release(got)
        again = await take(listener, 2)
        assert bodies(again) == [b"1", b"2"]
        assert [message.redelivered for message in again] == [True, True]


async def test_a_broker_that_makes_no_groups_by_itself_is_told_of_it() -> None:
    options = RocketMQOptions(auto_create_groups=False)
    with RocketMQServer(options, installation=installation_or_skip()) as server:
        async with consuming(server) as scene:
            listener = await scene.consume(broadcast=True)
            await scene.send(b"x")
            assert bodies(await take(listener, 1)) == [b"x"]
