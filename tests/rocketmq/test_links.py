"""Links: made when needed, kept alive, found dead, made again; over TLS and with signatures."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from brokerkit.clock import Clock, SystemClock
from brokerkit.errors import AccessRefused, BrokerError, BrokerUnavailable, Closed, ConfigurationError
from brokerkit.testing import FaultProxy, VirtualClock, eventually, within
from brokerkit.testing.services.rabbitmq import Certificates, make_certificates
from brokerkit.testing.services.rocketmq import RocketMQControl, RocketMQOptions, RocketMQServer
from brokerkit_rocketmq.dialing import Dialer, DialOptions, TlsOptions
from brokerkit_rocketmq.links import LinkOptions, Links, Probe
from brokerkit_rocketmq.name_servers import NAME_SERVER_PROBE
from brokerkit_rocketmq.remoting.codes import RequestCode
from brokerkit_rocketmq.remoting.errors import ConnectionLost, NotConnected
from brokerkit_rocketmq.remoting.frames import render_head
from brokerkit_rocketmq.remoting.signing import Signer
from tests.planted import PLANTED
from tests.rocketmq.servers import NEW, OLD, installation_or_skip
from tests.rocketmq.test_connections import host_and_port

#: Seconds; a machine that runs other tests too is slow.
LONG = 30.0

#: A question for a broker that needs no group and no topic of ours.
BROKER_PROBE = Probe(RequestCode.GET_MAX_OFFSET, {"topic": "TBW102", "queueId": "0"})
QUICK = LinkOptions(heartbeat=1.0, first_pause=0.01, longest_pause=0.1)


@asynccontextmanager
async def links(
    dial: DialOptions | None = None,
    options: LinkOptions = QUICK,
    *,
    probe: Probe = NAME_SERVER_PROBE,
    clock: Clock | None = None,
) -> AsyncIterator[Links]:
    made = Links(Dialer(dial or DialOptions(timeout=LONG)), lambda: probe, clock or SystemClock(), options)
    try:
        yield made
    finally:
        await made.aclose()


@pytest.fixture
def proxy(rocketmq_old: RocketMQControl) -> Iterator[FaultProxy]:
    """In front of a NameServer."""
    with FaultProxy(*host_and_port(rocketmq_old.address.name_servers[0])) as proxy:
        yield proxy


def free_address() -> str:
    """An address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


# --- coming up and coming back ----------------------------------------------------------------------------------


async def test_nothing_is_dialled_before_it_is_needed_and_all_who_need_it_share_one_attempt(proxy: FaultProxy) -> None:
    async with links() as made:
        link = made.get(f"127.0.0.1:{proxy.port}")
        assert not link.is_up and link.epoch == 0 and proxy.counters.connections == 0
        connections = await asyncio.gather(*(link.connected(LONG) for _ in range(20)))
        assert len(set(connections)) == 1 and link.current is connections[0]
        assert proxy.counters.connections == 1 and link.epoch == 1 and link.version == 401
        assert made.get(link.address) is link and made.up() == (link,)
        assert await link.connected(LONG) is link.current


async def test_a_lost_connection_is_made_again_and_the_epoch_grows(proxy: FaultProxy) -> None:
    changes: list[tuple[bool, int]] = []
    async with links() as made:
        made.listeners.append(lambda link: changes.append((link.is_up, link.epoch)))
        link = made.get(f"127.0.0.1:{proxy.port}")
        first = await link.connected(LONG)
        proxy.reset()
        await eventually(lambda: not link.is_up, within=LONG)
        second = await link.connected(LONG)
        assert second is not first and link.epoch == 2
        assert (await second.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)).code == 0
        assert changes == [(True, 1), (False, 1), (True, 2)]


async def test_a_call_makes_the_connection_it_needs(proxy: FaultProxy) -> None:
    async with links() as made:
        link = made.get(f"127.0.0.1:{proxy.port}")
        assert (await link.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)).code == 0
        proxy.refuse()
        proxy.reset()
        await eventually(lambda: not link.is_up, within=LONG)
        with pytest.raises(NotConnected, match="cannot connect"):
            await link.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)
        proxy.accept()
        assert (await link.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)).code == 0


async def test_why_there_is_no_connection_is_said_with_the_address() -> None:
    address = free_address()
    async with links() as made:
        link = made.get(address)
        errors = await asyncio.gather(*(link.connected(LONG) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(error, BrokerUnavailable) and error.retryable for error in errors)
        assert len({id(error) for error in errors}) == 3, "one error raised to several callers mixes their tracebacks"
        assert address in str(errors[0]) and isinstance(link.error, BrokerUnavailable)


async def test_attempts_become_rarer_while_they_fail() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    attempts = 0

    def drop() -> None:
        nonlocal attempts
        attempts += 1
        listener.accept()[0].close()

    loop = asyncio.get_running_loop()
    loop.add_reader(listener, drop)
    try:
        async with links(options=LinkOptions(first_pause=0.05, longest_pause=5.0)) as made:
            link = made.get(f"127.0.0.1:{listener.getsockname()[1]}")
            began = time.monotonic()
            while time.monotonic() - began < 2.0:
                with pytest.raises(BrokerUnavailable):
                    await link.connected(0.5)
            assert 2 <= attempts < 40
    finally:
        loop.remove_reader(listener)
        listener.close()


async def test_a_server_that_takes_connections_and_does_not_answer_counts_as_away(proxy: FaultProxy) -> None:
    proxy.freeze()
    async with links(DialOptions(timeout=3.0)) as made:
        link = made.get(f"127.0.0.1:{proxy.port}")
        with pytest.raises(BrokerUnavailable, match="no answer from"):
            await link.connected(LONG)
        assert not link.is_up
        proxy.thaw()


async def test_who_waits_no_longer_than_the_attempt_is_told_so(proxy: FaultProxy) -> None:
    proxy.freeze()
    async with links() as made:
        link = made.get(f"127.0.0.1:{proxy.port}")
        with pytest.raises(BrokerUnavailable, match=r"in 0\.1 s"):
            await link.connected(0.1)
        # The attempt goes on, for whoever comes next.
        proxy.thaw()
        assert (await link.connected(LONG)).error is None
        assert link.epoch == 1


async def test_closing_ends_an_attempt_and_those_who_wait_for_it(proxy: FaultProxy) -> None:
    proxy.freeze()
    async with links() as made:
        link = made.get(f"127.0.0.1:{proxy.port}")
        waiting = [asyncio.ensure_future(link.connected(LONG)) for _ in range(3)]
        await eventually(lambda: proxy.counters.connections == 1, within=LONG)
        await within(LONG, made.aclose())
        for waiter in waiting:
            with pytest.raises(Closed):
                await waiter
        with pytest.raises(Closed):
            await made.get("127.0.0.1:1").connected(LONG)
        proxy.thaw()
        await eventually(lambda: proxy.counters.open == 0, within=LONG)


async def test_a_cancelled_caller_does_not_end_the_attempt_of_the_others(proxy: FaultProxy) -> None:
    proxy.delay(0.2)
    async with links() as made:
        link = made.get(f"127.0.0.1:{proxy.port}")
        impatient, patient = (asyncio.ensure_future(link.connected(LONG)) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).error is None
        assert proxy.counters.connections == 1 and impatient.cancelled()


async def test_another_address_can_stand_for_the_registered_one(proxy: FaultProxy) -> None:
    real = f"127.0.0.1:{proxy.port}"
    for known in ({"broker.example:10911": real}, {"broker.example": real}):
        async with links(DialOptions(timeout=LONG, address_map=known)) as made:
            link = made.get("broker.example:10911")
            assert (await link.connected(LONG)).peer == "broker.example:10911"
    assert proxy.counters.connections == 2


# --- staying up -------------------------------------------------------------------------------------------------


async def test_a_half_open_link_is_found_within_fifteen_seconds(proxy: FaultProxy) -> None:
    clock = VirtualClock()
    async with links(options=LinkOptions(heartbeat=6.0), clock=clock) as made:
        link = made.get(f"127.0.0.1:{proxy.port}")
        connection = await link.connected(LONG)
        waiting = connection.request(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=10 * LONG)
        await waiting
        proxy.freeze()
        waiting = connection.request(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=10 * LONG)
        frozen = clock.monotonic()
        while link.is_up and clock.monotonic() - frozen < 60:
            await clock.advance(0.5)
        assert 12 <= clock.monotonic() - frozen <= 15
        with pytest.raises(ConnectionLost, match="nothing was heard"):
            await within(LONG, waiting)
        proxy.reset()
        proxy.thaw()


async def test_a_half_open_link_is_found_in_real_time_too(proxy: FaultProxy) -> None:
    async with links(options=QUICK) as made:
        link = made.get(f"127.0.0.1:{proxy.port}")
        connection = await link.connected(LONG)
        proxy.freeze()
        await within(LONG, connection.lost)
        assert "nothing was heard" in str(connection.error)


async def test_silence_is_broken_by_a_probe_and_the_link_stays(proxy: FaultProxy) -> None:
    clock = VirtualClock()
    async with links(options=LinkOptions(heartbeat=6.0), clock=clock) as made:
        link = made.get(f"127.0.0.1:{proxy.port}")
        connection = await link.connected(LONG)
        for _ in range(5):
            heard = connection.last_received
            await clock.advance(8.0)
            await eventually(lambda: connection.last_received > heard, within=LONG)  # noqa: B023
        assert link.current is connection and link.epoch == 1


async def test_a_stall_of_this_process_is_not_taken_for_silence(proxy: FaultProxy) -> None:
    async with links(options=replace(QUICK, heartbeat=0.3)) as made:
        link = made.get(f"127.0.0.1:{proxy.port}")
        connection = await link.connected(LONG)
        for _ in range(4):
            time.sleep(0.7)  # noqa: ASYNC251 - the loop stands still, as it does when a handler blocks it
            await asyncio.sleep(0.01)
        assert link.current is connection


# --- TLS and signatures -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=[OLD, NEW])
def guarded(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[RocketMQServer]:
    """A server with an ACL and TLS."""
    options = RocketMQOptions(acl=True, tls=certificates)
    with RocketMQServer(options, installation=installation_or_skip(request.param)) as server:
        yield server


def administrator(server: RocketMQServer) -> Signer:
    admin = server.address.admin
    assert admin is not None
    return Signer(admin.access_key, admin.secret_key)


async def test_a_signed_request_is_taken_also_when_it_was_rendered(guarded: RocketMQServer) -> None:
    options = DialOptions(timeout=LONG, signer=administrator(guarded))
    async with links(options, probe=BROKER_PROBE) as made:
        connection = await made.get(guarded.address.brokers[0].address).connected(LONG)
        frame = await connection.call(RequestCode.GET_BROKER_CONFIG, timeout=LONG)
        assert frame.code == 0, frame.remark
        head = render_head(RequestCode.GET_BROKER_CONFIG, {"some": "thing"})
        frame = await connection.request_rendered(*head, b"body", timeout=LONG)
        assert frame.code == 0, frame.remark


@pytest.mark.parametrize("wrong", ["nobody", "secret", "unsigned"])
async def test_a_wrong_login_is_access_refused(guarded: RocketMQServer, wrong: str) -> None:
    admin = guarded.address.admin
    assert admin is not None
    signer = {
        "nobody": Signer("nobody", PLANTED),
        "secret": Signer(admin.access_key, PLANTED),
        "unsigned": None,
    }[wrong]
    async with links(DialOptions(timeout=LONG, signer=signer), probe=BROKER_PROBE) as made:
        link = made.get(guarded.address.brokers[0].address)
        for _ in range(2):
            with pytest.raises(AccessRefused, match="access_key") as caught:
                await link.connected(LONG)
            assert not caught.value.retryable and PLANTED not in str(caught.value)
        assert not link.is_up


async def test_a_broker_is_reached_over_tls(guarded: RocketMQServer, certificates: Certificates) -> None:
    options = DialOptions(
        timeout=LONG, signer=administrator(guarded), tls=TlsOptions(ca_file=str(certificates.authority))
    )
    async with links(options, probe=BROKER_PROBE) as made:
        connection = await made.get(guarded.address.brokers[0].address).connected(LONG)
        assert connection.encrypted
        # Larger than one record of TLS and than a read of the socket.
        frame = await connection.call(RequestCode.GET_ALL_TOPIC_CONFIG, body=bytes(1 << 20), timeout=LONG)
        assert frame.code == 0 and len(frame.body) > 100
    async with links(options) as made:
        assert (await made.get(guarded.address.name_servers[0]).connected(LONG)).encrypted


async def refusal(address: str, tls: TlsOptions) -> BrokerError:
    async with links(DialOptions(timeout=LONG, tls=tls)) as made:
        with pytest.raises(BrokerUnavailable) as caught:
            await made.get(address).connected(LONG)
    return caught.value


async def test_a_certificate_that_is_not_trusted_is_refused_for_good(
    guarded: RocketMQServer, certificates: Certificates
) -> None:
    address = guarded.address.name_servers[0]
    for tls in (TlsOptions(), TlsOptions(ca_file=str(certificates.unknown_authority))):
        error = await refusal(address, tls)
        assert not error.retryable and "ca_file" in str(error) and address in str(error)
    named = TlsOptions(ca_file=str(certificates.authority), server_name="broker.example")
    error = await refusal(address, named)
    assert not error.retryable and "server_name" in str(error)


async def test_certificates_need_not_be_checked(guarded: RocketMQServer) -> None:
    async with links(DialOptions(timeout=LONG, tls=TlsOptions(verify=False))) as made:
        assert (await made.get(guarded.address.name_servers[0]).connected(LONG)).encrypted


def test_files_that_cannot_be_used_are_a_configuration_error(certificates: Certificates) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.pem"):
        Dialer(DialOptions(tls=TlsOptions(ca_file="missing.pem")))
    with pytest.raises(ConfigurationError, match="authority"):
        Dialer(DialOptions(tls=TlsOptions(cert_file=str(certificates.authority))))
