"""Faults 1 to 4, 6, 7 and 40 of the reference: links that break or fall silent, brokers that stop, stalls of ours."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

import pytest

from brokerkit.errors import BrokerUnavailable, SendTimeout
from brokerkit.spi import ConsumerOptions
from brokerkit.testing.deadlines import eventually, within
from brokerkit.testing.faults import Answer, FaultProxy
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rabbitmq import RabbitMQControl, RabbitMQNode
from brokerkit_rabbitmq.frames import content_frames, publish_frame
from brokerkit_rabbitmq.mapping import encode_message
from tests.rabbitmq.scene import (
    CLOCK,
    TOPIC,
    Traffic,
    balanced,
    connected,
    consuming_link,
    made,
    manager_on,
    outbound,
    publishing_link,
    send,
    state,
    take,
    working,
)

#: Seconds within which new messages flow again on a silent link, with default settings.
RESUMED = 20.0
#: More for a machine that is busy with other tests.
BUSY = 10.0


@pytest.fixture
def proxy(shared_node: RabbitMQControl) -> Iterator[FaultProxy]:
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        yield proxy


def sizes(body: bytes) -> list[int]:
    """Return where the frames of one message end on the wire: method, header, body."""
    message = outbound(body)
    method = len(publish_frame(1, "orders", "", True))
    whole = method + len(content_frames(1, encode_message(message, 1, ()), body, 131072))
    return [method, whole - len(body) - 8, whole]


# --- 1, 2: reset ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["in the method", "after the method", "in the header", "before the body", "in the body"]
)
async def test_a_reset_within_a_message_leaves_an_unknown_outcome_and_the_next_send_works(
    shared_node: RabbitMQControl, vhost: str, proxy: FaultProxy, place: str
) -> None:
    ledger = Ledger(place)
    method, header, whole = sizes(b"x" * 500)
    offset = {
        "in the method": 9,
        "after the method": method,
        "in the header": method + 10,
        "before the body": header,
        "in the body": whole - 20,
    }[place]
    direct = shared_node.address.url(vhost)
    async with connected(proxy.url_for(direct)) as connection, connected(direct) as reader:
        assert await send(connection, made(ledger, 1), ledger) == [None]
        producer = await connection.open_producer()
        await producer.send(made(Ledger(), 1, b"warm"))  # the channel is open: only the message travels now
        epoch = publishing_link(connection).epoch
        proxy.cut_at(offset, "up", on="current")
        (cut,) = made(ledger, 1, b"x" * 500)
        (outcome,) = await within(RESUMED, producer.send([cut]), "the outcome of the message that was cut")
        assert isinstance(outcome, SendTimeout), outcome
        assert outcome.retryable
        # What the core does then: the same id again.
        assert await producer.send([cut]) == [None]
        ledger.confirmed(cut.message_id)
        assert publishing_link(connection).epoch == epoch + 1
        consumer = await reader.open_consumer(ConsumerOptions(topic="orders", group="work"))
        received = await take(consumer, 3)
        await consumer.ack(received)
        assert await consumer.receive(10, 0.3) == (), "a half message was stored"
        for message in received:
            if message.body != b"warm":
                ledger.handled(message.message_id or "")
    await balanced(ledger, doubled=0)


async def test_a_send_whose_confirm_was_lost_is_sent_again_with_its_id_and_resolves_once(
    shared_node: RabbitMQControl, vhost: str, proxy: FaultProxy
) -> None:
    """Fault 2: the broker has stored the message when the link breaks."""
    ledger = Ledger()
    direct = shared_node.address.url(vhost)
    async with manager_on(proxy.url_for(direct)) as sender:
        await sender.send(TOPIC, b"first", message_id="first")
        ledger.confirmed("first")
        proxy.swallow("down")
        ledger.sent("lost")
        sending = asyncio.create_task(sender.send(TOPIC, b"second", message_id="lost"))
        await eventually(lambda: state(shared_node, vhost)[0] == 2, what="the stored message")
        assert not sending.done()
        proxy.swallow(None)
        proxy.reset()
        assert await within(RESUMED, sending, "the send on the new link") == "lost"
        ledger.confirmed("lost")
    async with working(manager_on(direct), ledger):
        await balanced(ledger, doubled=1)
        await eventually(lambda: ledger.doubled == {"lost": 2}, what="the counted duplicate")


async def test_resets_under_load_lose_nothing(shared_node: RabbitMQControl, vhost: str, proxy: FaultProxy) -> None:
    ledger = Ledger()
    url = proxy.url_for(shared_node.address.url(vhost))
    resets = 6
    async with (
        working(manager_on(url), ledger, concurrency=10, prefetch=20),
        manager_on(url) as sender,
        Traffic(sender, ledger, pause=0.001) as traffic,
    ):
        for _ in range(resets):
            await traffic.more(20)
            proxy.reset()
        await traffic.more(20)
        await traffic.stop()
        assert not traffic.failed
        # Each reset may double the send under way and what was handled and not yet acknowledged.
        await balanced(ledger, doubled=resets * 21)


# --- 3: half-open ---------------------------------------------------------------------------------------------


async def test_a_link_that_falls_silent_is_replaced_within_20_s_for_publishing_and_consuming(
    shared_node: RabbitMQControl, vhost: str, proxy: FaultProxy, record_property: Callable[[str, object], None]
) -> None:
    ledger = Ledger()
    direct = shared_node.address.url(vhost)
    url = proxy.url_for(direct)
    async with working(manager_on(url), ledger), manager_on(url) as sender, manager_on(direct) as bystander:
        async with Traffic(sender, ledger) as traffic:
            await traffic.more(5)
            await balanced(ledger, doubled=0)
            began = CLOCK.monotonic()
            proxy.freeze(existing_only=True)
            published = asyncio.create_task(traffic.more(3))
            # The consumer has a link that works only when it has made a new one: this sender is not frozen.
            await bystander.send(TOPIC, b"to the frozen consumer", message_id="probe")
            ledger.confirmed("probe")
            await within(RESUMED + BUSY, published, "publishing")
            publishing = CLOCK.monotonic() - began
            await eventually(lambda: "probe" in ledger.handled_ids, RESUMED + BUSY, "consuming")
            consuming = CLOCK.monotonic() - began
            record_property("publishing resumed", publishing)
            record_property("consuming resumed", consuming)
            proxy.thaw()
            await traffic.stop()
            assert not traffic.failed
        await balanced(ledger, doubled=25)
    assert publishing <= RESUMED
    assert consuming <= RESUMED


async def test_a_ping_on_a_silent_link_returns_in_its_own_time(
    shared_node: RabbitMQControl, vhost: str, proxy: FaultProxy
) -> None:
    async with connected(proxy.url_for(shared_node.address.url(vhost))) as connection:
        await connection.ping(RESUMED)
        proxy.freeze()
        began = CLOCK.monotonic()
        with pytest.raises(BrokerUnavailable):
            await connection.ping(0.5)
        assert CLOCK.monotonic() - began < 5.0
        proxy.thaw()
        await connection.ping(RESUMED)


# --- 4, 6, 7 --------------------------------------------------------------------------------------------------


async def test_a_frozen_broker_is_given_up_and_used_again_when_it_goes_on(
    own_node: RabbitMQNode, own_vhost: str
) -> None:
    """Fault 4: SIGSTOP for more than three heartbeats; the kernel takes what is written to it."""
    ledger = Ledger()
    fast = {"heartbeat": 1}
    worker = manager_on(own_node.address.url(own_vhost), fast)
    async with (
        working(worker, ledger, concurrency=5, prefetch=10),
        manager_on(own_node.address.url(own_vhost), fast, attempt_timeout=2.0, send_timeout=60.0) as sender,
        Traffic(sender, ledger) as traffic,
    ):
        await traffic.more(10)
        links = [publishing_link(await sender.connection()), consuming_link(await worker.connection())]
        await asyncio.to_thread(own_node.suspend)
        stopped = CLOCK.monotonic()
        await eventually(lambda: all(link.amqp is None for link in links), 20.0, "both links to be given up")
        assert CLOCK.monotonic() - stopped < 10.0
        assert (await sender.monitor.health(timeout=0.5)).status == "down"
        while CLOCK.monotonic() - stopped < 4.0:
            await CLOCK.sleep(0.1)
        await asyncio.to_thread(own_node.resume)
        await traffic.more(10)
        await traffic.stop()
        # The send under way and its repetitions while the broker slept, and what was in the worker's hands.
        await balanced(ledger, doubled=10 + 10)
        assert not traffic.failed


async def test_a_broker_that_stops_in_good_order_is_waited_for_quietly(
    own_node: RabbitMQNode, own_vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault 6: connection.close 320, then refused connections and handshakes that are cut while it boots."""
    ledger = Ledger()
    async with (
        working(manager_on(own_node.address.url(own_vhost)), ledger, concurrency=5, prefetch=10),
        manager_on(own_node.address.url(own_vhost), send_timeout=60.0) as sender,
        Traffic(sender, ledger) as traffic,
    ):
        await traffic.more(10)
        caplog.clear()
        await asyncio.to_thread(own_node.stop_app)
        await CLOCK.sleep(1.0)
        await asyncio.to_thread(own_node.start_app)
        await traffic.more(10)
        await traffic.stop()
        await balanced(ledger, doubled=1 + 10)
        assert not traffic.failed
    spoken = [record for record in caplog.records if record.name == "brokerkit.rabbitmq"]
    assert not [record for record in spoken if record.levelno >= logging.ERROR]
    assert len([record for record in spoken if record.levelno >= logging.WARNING]) < 40


class Booting(Answer):
    """A port that is taken already by something that is no broker yet: it says a few bytes, or hangs up."""

    def __init__(self, words: bytes) -> None:
        self._words = words

    def upstream(self, data: bytes) -> tuple[bytes, bytes]:
        if not self._words:
            raise ConnectionResetError
        return b"", self._words


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
        pytest.param(b"AMQP\x01\x01\x00\x0a", id="another version"),
        pytest.param(b"\x01\x00\x00\xff\xff\xff\xff" + b"x" * 99, id="a frame of 4 GiB"),
    ],
)
async def test_a_handshake_that_is_cut_or_no_amqp_is_an_error_in_time_and_tried_again(
    shared_node: RabbitMQControl, vhost: str, proxy: FaultProxy, words: bytes
) -> None:
    ledger = Ledger()
    url = proxy.url_for(shared_node.address.url(vhost))
    proxy.answer(lambda: Booting(words))
    began = CLOCK.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        await manager_on(url).connect()
    assert caught.value.retryable
    assert CLOCK.monotonic() - began < 15.0
    proxy.answer(None)
    async with working(manager_on(url), ledger) as manager:
        ledger.confirmed(await manager.send(TOPIC, b"x"))
        proxy.answer(lambda: Booting(words))
        proxy.reset()
        sending = asyncio.create_task(manager.send(TOPIC, b"x", message_id="while it boots"))
        await eventually(lambda: proxy.counters.connections >= 6, 20.0, "more tries")
        assert not sending.done()
        proxy.answer(None)
        ledger.confirmed(await within(30.0, sending, "the send"))
        await balanced(ledger, doubled=1)


async def test_a_port_that_flaps_is_tried_until_it_stays(
    shared_node: RabbitMQControl, vhost: str, proxy: FaultProxy
) -> None:
    ledger = Ledger()
    url = proxy.url_for(shared_node.address.url(vhost))
    proxy.refuse()
    with pytest.raises(BrokerUnavailable):
        await manager_on(url).connect()
    manager = manager_on(url, {"connection_attempts": 50})
    patient = asyncio.create_task(manager.connect())
    await CLOCK.sleep(0.3)
    assert not patient.done()
    proxy.accept()
    await within(30.0, patient, "a connection")
    await manager.aclose()
    async with (
        working(manager_on(url), ledger, concurrency=5, prefetch=10),
        manager_on(url) as sender,
        Traffic(sender, ledger) as traffic,
    ):
        for _ in range(3):
            await traffic.more(5)
            proxy.refuse()
            proxy.reset()
            await CLOCK.sleep(0.3)
            proxy.accept()
        await traffic.more(5)
        await traffic.stop()
        await balanced(ledger, doubled=3 * 11)
        assert not traffic.failed


# --- 40 -------------------------------------------------------------------------------------------------------


async def test_a_loop_that_stalls_for_more_than_two_heartbeats_loses_no_message(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger = Ledger()
    url = shared_node.address.url(vhost)
    async with (
        working(manager_on(url, {"heartbeat": 1}), ledger, concurrency=5, prefetch=10) as worker,
        Traffic(worker, ledger) as traffic,
    ):
        await traffic.more(10)
        time.sleep(4.5)  # noqa: ASYNC251  # the stall itself: the broker gives us up after two to three heartbeats
        await traffic.more(10)
        await traffic.stop()
        await balanced(ledger, doubled=1 + 10)
        link = publishing_link(await worker.connection())
        assert link.epoch >= 1
        assert (await worker.monitor.health()).healthy


async def test_cancelling_sends_receives_and_acknowledgements_anywhere_leaves_nothing_stuck(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    ledger = Ledger()
    options = ConsumerOptions(topic="orders", group="work", prefetch=50)
    async with connected(shared_node.address.url(vhost), window=20) as connection:
        producer = await connection.open_producer()
        consumer = await connection.open_consumer(options)
        cancelled: set[str] = set()

        async def sending(turns: int) -> None:
            messages = made(ledger, 3)
            task = asyncio.create_task(producer.send(messages))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                outcomes = await task
            except asyncio.CancelledError:
                cancelled.update(message.message_id for message in messages)
                return
            assert outcomes == [None] * 3
            for message in messages:
                ledger.confirmed(message.message_id)

        async def receiving() -> None:
            turns = 0
            while not done.is_set() or not ledger.settled:
                turns += 1
                task = asyncio.create_task(consumer.receive(7, 0.05))
                if turns % 2:
                    for _ in range(turns % 5):
                        await asyncio.sleep(0)
                    task.cancel()
                try:
                    messages = await task
                except asyncio.CancelledError:
                    continue
                acknowledging = asyncio.create_task(consumer.ack(messages))
                await asyncio.wait((acknowledging,))
                for message in messages:
                    ledger.handled(message.message_id or "")

        done = asyncio.Event()
        reader = asyncio.create_task(receiving())
        for round_ in range(60):
            await asyncio.gather(*(sending(turns) for turns in range(0, 40, 4)))
            # Delayed ones declare queues on the way.
            task = asyncio.create_task(producer.send([outbound(due=CLOCK.time() + 0.3 + round_)]))
            for _ in range(round_):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
        messages = made(ledger, 100)
        assert await within(30.0, producer.send(messages), "a send afterwards") == [None] * 100
        for message in messages:
            ledger.confirmed(message.message_id)
        done.set()
        await within(30.0, reader, "the reader")
        assert cancelled, "no send was cancelled in time"
        await eventually(lambda: all(lane.idle for lane in producer._lanes.values()), 30.0, "idle lanes")
        await eventually(lambda: not producer._preparing, 30.0, "the declarations to end")
        assert publishing_link(connection).epoch == consuming_link(connection).epoch == 1
    await balanced(ledger, doubled=0)
