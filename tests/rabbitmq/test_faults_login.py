"""Faults 8 to 10, 37 and 38 of the reference: credentials, virtual hosts, limits, TLS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokerkit.errors import AccessRefused, BrokerError, BrokerUnavailable
from brokerkit.spi import ConsumerOptions
from brokerkit.testing.deadlines import eventually, within
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.ledger import Ledger
from brokerkit.testing.services.rabbitmq import Certificates, RabbitMQControl, RabbitMQNode, RabbitMQOptions
from brokerkit.testing.services.rabbitmq_erlang import binary
from tests.planted import PLANTED
from tests.rabbitmq.scene import (
    CLOCK,
    LONG,
    TOPIC,
    Traffic,
    balanced,
    connected,
    consuming_link,
    made,
    manager_on,
    publishing_link,
    send,
    take,
    working,
)

#: Seconds; a refusal is an answer, not a silence.
AT_ONCE = 15.0


@pytest.fixture
def user(shared_node: RabbitMQControl, vhost: str) -> Iterator[str]:
    name = f"user-{vhost}"
    shared_node.add_user(name, "first")
    shared_node.set_permissions(name, vhost)
    yield name
    shared_node.delete_user(name)


async def refused(url: str, kind: type[BrokerError] = AccessRefused, **section: object) -> BrokerError:
    """Return the error of connecting; it comes at once, and holds no password."""
    manager = manager_on(url, section)
    began = CLOCK.monotonic()
    with pytest.raises(kind) as caught:
        await manager.connect()
    assert CLOCK.monotonic() - began < AT_ONCE
    assert PLANTED not in str(caught.value)
    return caught.value


# --- 8, 37 ----------------------------------------------------------------------------------------------------


async def test_wrong_credentials_fail_at_once_and_are_not_tried_again(
    shared_node: RabbitMQControl, vhost: str, user: str
) -> None:
    error = await refused(shared_node.address.url(vhost, user=user, password=PLANTED), connection_attempts=20)
    assert not error.retryable
    assert user in str(error)
    error = await refused(shared_node.address.url(vhost, user="nobody", password="x"))
    assert not error.retryable


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_password_that_changes_while_connected_is_asked_for_again(
    shared_node: RabbitMQControl, vhost: str, user: str, asynchronous: bool
) -> None:
    """Fault 37; the function may fail for a while too, which is no end of the link."""
    ledger = Ledger()
    now, broken = ["first"], [False]

    def credentials() -> tuple[str, str]:
        if broken[0]:
            raise KeyError(PLANTED)
        return user, now[0]

    async def later() -> tuple[str, str]:
        return credentials()

    section = {"credentials": later if asynchronous else credentials}
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        url = proxy.url_for(shared_node.address.url(vhost, user=user, password="wrong"))
        async with (
            working(manager_on(url, section), ledger, prefetch=5) as worker,
            manager_on(url, section) as sender,
            Traffic(sender, ledger) as traffic,
        ):
            await traffic.more(5)
            await asyncio.to_thread(shared_node.set_password, user, "second")
            await traffic.more(5)  # open connections stay
            broken[0] = True
            proxy.reset()
            link = publishing_link(await sender.connection())
            await eventually(lambda: "KeyError" in str(link.error), LONG, "the failure of the function")
            broken[0] = False
            await eventually(lambda: isinstance(link.error, AccessRefused), LONG, "the refusal of the old password")
            now[0] = "second"
            await traffic.more(5)
            await traffic.stop()
            await balanced(ledger, doubled=1 + 5)
            assert consuming_link(await worker.connection()).epoch == 2


async def test_credentials_that_fail_at_the_first_connecting_are_the_senders_error(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    def credentials() -> tuple[str, str]:
        raise ValueError(PLANTED)

    error = await refused(shared_node.address.url(vhost), BrokerUnavailable, credentials=credentials)
    assert "ValueError" in str(error)


# --- 9 --------------------------------------------------------------------------------------------------------


async def test_a_virtual_host_that_is_missing_or_forbidden_is_refused_at_once(
    shared_node: RabbitMQControl, vhost: str, user: str
) -> None:
    assert "virtual host" in str(await refused(shared_node.address.url("missing")))
    assert "virtual host" in str(await refused(shared_node.address.url("/", user=user, password="first")))


async def test_a_virtual_host_deleted_under_a_worker_is_waited_for(
    shared_node: RabbitMQControl, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, name = Ledger(), "comes-and-goes"
    shared_node.add_vhost(name)
    try:
        url = shared_node.address.url(name)
        async with working(manager_on(url, {"retry_max_delay": 0.5}), ledger) as worker:
            ledger.confirmed(await worker.send(TOPIC, b"x"))
            await eventually(lambda: ledger.settled, LONG, "the first message")
            await asyncio.to_thread(shared_node.delete_vhost, name)
            link = publishing_link(await worker.connection())
            await eventually(lambda: isinstance(link.error, AccessRefused), LONG, "the refusal")
            assert (await worker.monitor.health(timeout=0.5)).status == "down"
            with pytest.raises(BrokerError):
                async with manager_on(url) as other:
                    await other.send(TOPIC, b"x")
            await asyncio.to_thread(shared_node.add_vhost, name)
            await eventually(lambda: link.amqp is not None, LONG, "the new connection")

            async def sent() -> bool:
                try:
                    ledger.confirmed(await worker.send(TOPIC, b"x"))
                except BrokerError:
                    return False
                return True

            await eventually(sent, LONG, "a send to the new virtual host")
            await balanced(ledger, doubled=0)
    finally:
        shared_node.delete_vhost(name)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) < 60


# --- 10 -------------------------------------------------------------------------------------------------------


async def test_a_connection_limit_is_retryable_and_not_hammered(shared_node: RabbitMQControl, vhost: str) -> None:
    ledger = Ledger()
    limit = 'ok = rabbit_vhost_limit:set({}, [{{<<"max-connections">>, {}}}], <<"tests">>)'
    shared_node.evaluate(limit.format(binary(vhost), 2))
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        url = proxy.url_for(shared_node.address.url(vhost))
        async with connected(url) as connection:
            error = await refused(url, BrokerUnavailable)
            assert error.retryable
            assert "limit" in str(error)
            # Beyond the limit after a reset: what is tried again has pauses that grow.
            shared_node.evaluate(limit.format(binary(vhost), 0))
            proxy.reset()
            before = proxy.counters.connections
            await CLOCK.sleep(3.0)
            assert proxy.counters.connections - before < 40
            shared_node.evaluate(limit.format(binary(vhost), 5))
            await eventually(lambda: publishing_link(connection).amqp and consuming_link(connection).amqp, LONG)
            assert await send(connection, made(ledger, 3), ledger) == [None] * 3
            await take(await connection.open_consumer(ConsumerOptions(topic="orders", group="work")), 3, ledger)
    await balanced(ledger, doubled=0)


async def test_a_connection_that_the_broker_ends_as_soon_as_it_is_used_is_not_made_anew_in_a_hot_loop(
    shared_node: RabbitMQControl, vhost: str, user: str
) -> None:
    """A limit of channels for the user ends the whole connection (530) at the first channel too many."""
    limit = 'ok = rabbit_auth_backend_internal:set_user_limits({}, #{{<<"max-channels">> => {}}}, <<"tests">>)'
    with FaultProxy(shared_node.address.host, shared_node.address.port) as proxy:
        url = proxy.url_for(shared_node.address.url(vhost, user=user, password="first"))
        async with manager_on(url, send_timeout=60.0) as manager:
            await manager.send(TOPIC, b"x")
            shared_node.evaluate(limit.format(binary(user), 0))
            proxy.reset()
            before = proxy.counters.connections
            sending = asyncio.create_task(manager.send(TOPIC, b"x", message_id="late"))
            await CLOCK.sleep(4.0)
            tried = proxy.counters.connections - before
            assert 2 <= tried < 30, f"{tried} connections in 4 s"
            assert not sending.done()
            shared_node.evaluate(limit.format(binary(user), 100))
            assert await within(LONG, sending, "the send") == "late"


# --- 38 -------------------------------------------------------------------------------------------------------


async def test_tls_works_with_a_good_certificate_and_carries_messages(
    own_node: RabbitMQNode, own_vhost: str, certificates: Certificates
) -> None:
    ledger = Ledger()
    url = own_node.address.url(own_vhost, tls=True)
    async with working(manager_on(url, {"ca_file": str(certificates.authority)}), ledger) as worker:
        for outcome in await worker.send_many(TOPIC, [b"x" * 200_000] * 20):
            assert outcome.error is None
            ledger.confirmed(outcome.message_id)
        await balanced(ledger, doubled=0)


@pytest.mark.parametrize("certificate", ["server_expired", "server_of_other_host", "server_of_unknown_authority"])
async def test_a_bad_certificate_is_refused_at_once_and_not_tried_again(
    own_node: RabbitMQNode, certificates: Certificates, certificate: str
) -> None:
    own_node.present_certificate(getattr(certificates, certificate))
    url = own_node.address.url(tls=True)
    ca = {"ca_file": str(certificates.authority), "connection_attempts": 20}
    error = await refused(url, BrokerUnavailable, **ca)
    assert not error.retryable
    assert "TLS" in str(error)
    async with manager_on(url, {**ca, "verify": False}) as trusting:
        await trusting.connect()


async def test_tls_is_verified_by_default_and_plain_clients_get_no_further(own_node: RabbitMQNode) -> None:
    error = await refused(own_node.address.url(tls=True), BrokerUnavailable)
    assert not error.retryable
    tls_port, port = own_node.address.tls_port, own_node.address.port
    await refused(own_node.address.url().replace(f":{port}/", f":{tls_port}/"), BrokerUnavailable)
    error = await refused(own_node.address.url(tls=True).replace(f":{tls_port}/", f":{port}/"), BrokerUnavailable)
    assert not error.retryable


async def test_a_broker_that_wants_a_certificate_gets_ours_and_refuses_none(
    own_node: RabbitMQNode, certificates: Certificates, tmp_path: Path
) -> None:
    own_node.stop()
    own_node.options = RabbitMQOptions(tls=certificates, verify_peer=True)
    own_node.start()
    url = own_node.address.url(tls=True)
    ca = {"ca_file": str(certificates.authority)}
    await refused(url, BrokerUnavailable, **ca)
    wrong = certificates.client_of_unknown_authority
    await refused(url, BrokerUnavailable, cert_file=str(wrong.certificate), key_file=str(wrong.key), **ca)
    good = certificates.client
    async with manager_on(url, {"cert_file": str(good.certificate), "key_file": str(good.key), **ca}) as manager:
        await manager.connect()
