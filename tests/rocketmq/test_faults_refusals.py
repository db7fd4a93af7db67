"""Faults that a broker answers: busy, disk full, and an account that is taken away while it is in use."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator

import pytest

from brokerkit.errors import AccessRefused
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rocketmq import RocketMQAccount, RocketMQControl
from brokerkit_rocketmq.remoting.codes import ResponseCode
from brokerkit_rocketmq.remoting.frames import Frame
from tests.rocketmq.scene import GROUP, a_topic, manager_on
from tests.rocketmq.sending import refusing
from tests.traffic import CLOCK, LONG, Traffic, balanced, working

#: What a 4.9.4 says (``BrokerFastFailure``, ``SendMessageProcessor``).
BUSY = (
    ResponseCode.SYSTEM_BUSY,
    "[TIMEOUT_CLEAN_QUEUE]broker busy, start flow control for a while, period in queue: 205ms, size of queue: 32",
)
DISK_FULL = (
    ResponseCode.SERVICE_NOT_AVAILABLE,
    "service not available now. It may be caused by one of the following reasons: the broker's disk is full "
    "[CL:  0.96 CQ:  0.96 INDEX:  0.96], messages are put to the slave, message store has been shut down, etc.",
)


class Refusing:
    """Refuses sends while it is on."""

    def __init__(self, code: int, remark: str) -> None:
        self.on = False
        self.times = 0
        self._answer = (code, remark)

    def __call__(self, frame: Frame) -> tuple[int, str] | None:
        if not self.on:
            return None
        self.times += 1
        return self._answer


@pytest.mark.parametrize("answer", [pytest.param(BUSY, id="busy"), pytest.param(DISK_FULL, id="disk full")])
async def test_sends_that_a_broker_refuses_for_a_while_wait_for_it_and_consumers_go_on(
    rocketmq_old: RocketMQControl, answer: tuple[int, str], record_property: Callable[[str, object], None]
) -> None:
    topic, ledger, refusal = a_topic(), Ledger(), Refusing(*answer)
    async with refusing(rocketmq_old, refusal) as address_map:
        section = {"address_map": address_map}
        async with (
            working(manager_on(rocketmq_old.url, section), ledger, topic),
            manager_on(rocketmq_old.url, section, send_timeout=LONG) as sender,
            manager_on(rocketmq_old.url) as bystander,
            Traffic(sender, ledger, topic, at_once=8) as traffic,
        ):
            await traffic.more(10)
            refusal.on, began = True, CLOCK.monotonic()
            await eventually(lambda: refusal.times >= 10, LONG, "refusals")
            ledger.confirmed(await bystander.send(topic, b"to the consumer"))
            await balanced(ledger, doubled=0)
            seconds = CLOCK.monotonic() - began
            refusal.on = False
            # One try of each send at a time, with pauses that grow.
            assert refusal.times <= 8 * 10 * max(1.0, seconds)
            await traffic.more(20)
            await traffic.stop()
            assert not traffic.failed
            # A refused message is not stored.
            record_property("doubled", await balanced(ledger, doubled=0))
    record_property("refusals", refusal.times)


@pytest.fixture
def account(guarded_pair: RocketMQControl) -> Iterator[RocketMQAccount]:
    """An account that may do what an application needs; it is deleted at the end."""
    name = secrets.token_hex(5)
    account = RocketMQAccount(
        access_key=f"fault-{name}", secret_key="fault-secret", default_topic="PUB|SUB", default_group="SUB"
    )
    guarded_pair.set_account(account)
    yield account
    guarded_pair.delete_account(account.access_key)


async def test_an_account_that_is_taken_away_is_refused_and_works_again_when_it_is_given_back(
    guarded_pair: RocketMQControl, account: RocketMQAccount, record_property: Callable[[str, object], None]
) -> None:
    topic, ledger = a_topic(), Ledger()
    url = guarded_pair.address.url(account.login)
    async with manager_on(guarded_pair.url) as admin:
        await admin.admin.declare(topic, GROUP)
        async with (
            working(manager_on(url), ledger, topic, concurrency=5, prefetch=10) as worker,
            manager_on(url) as sender,
            Traffic(sender, ledger, topic, pause=0.05) as traffic,
        ):
            await traffic.more(10)
            await asyncio.to_thread(guarded_pair.delete_account, account.access_key)
            await eventually(lambda: len(traffic.failed) >= 3, LONG, "refused sends")
            for _ in range(10):
                ledger.confirmed(await admin.send(topic, b"while the account is away"))
            waiting = await admin.monitor.stats(topic, GROUP)
            await asyncio.to_thread(guarded_pair.set_account, account)

            async def works_again() -> bool:
                refused = len(traffic.failed)
                await traffic.more(20)
                return len(traffic.failed) == refused

            await eventually(works_again, LONG, "20 sends in a row that are taken")
            await traffic.stop()
            assert all(isinstance(error, AccessRefused) for error in traffic.failed), traffic.failed[:3]
            assert not any(error.retryable for error in traffic.failed)
            assert account.secret_key not in str(traffic.failed)
            # What was in hand could not be told to the broker.
            record_property("doubled", await balanced(ledger, doubled=10))
            assert (await worker.monitor.health()).healthy
        assert waiting.ready, "the consumer could read without its account"
