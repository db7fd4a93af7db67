"""The fault proxy against real sockets: an echo server behind it, plain blocking clients in front of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.faults import Answer, FaultProxy

LONG = 10.0
#: How long silence is listened to before it counts as silence.
QUIET = 0.2


class EchoServer:
    """Sends back what it reads, and keeps it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.received = b""
        self.ends: list[str] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._echo, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.received += data
                    connection.sendall(data)
                self.ends.append("fin")
            except ConnectionError:
                self.ends.append("reset")

    def close(self) -> None:
        # shutdown() wakes the accept() of the other thread, close() alone does not.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in (self._accepting, *self._threads):
            thread.join(LONG)
            assert not thread.is_alive()


@pytest.fixture
def server() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy


def connect(proxy: FaultProxy) -> socket.socket:
    client = socket.create_connection((proxy.host, proxy.port), LONG)
    client.settimeout(LONG)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def read(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := client.recv(size - len(data))):
        data += piece
    return data


def read_until_reset(client: socket.socket) -> bytes:
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        return data
    pytest.fail(f"the connection ended by FIN, not by RST, after {len(data)} bytes")


def assert_silent(client: socket.socket) -> None:
    client.settimeout(QUIET)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(LONG)


def test_bytes_pass_both_ways_unchanged_and_are_counted(proxy: FaultProxy) -> None:
    body = bytes(range(256)) * 4096
    with connect(proxy) as client:
        sender = threading.Thread(target=client.sendall, args=(body,))
        sender.start()
        assert read(client, len(body)) == body
        sender.join()
        counters = proxy.counters
        assert (counters.connections, counters.open) == (1, 1)
        assert (counters.received_up, counters.forwarded_up) == (len(body), len(body))
        assert (counters.received_down, counters.forwarded_down) == (len(body), len(body))
    eventually_sync(lambda: proxy.counters.open == 0, LONG, "the link to be gone")
    assert proxy.counters.forwarded_up == len(body)


def test_a_half_closed_connection_still_gets_its_answer(server: EchoServer, proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert read(client, 100) == b"last words"
    eventually_sync(lambda: server.ends == ["fin"], LONG, "an orderly end at the server")


def test_reset_breaks_all_connections_on_both_sides(server: EchoServer, proxy: FaultProxy) -> None:
    with connect(proxy) as first, connect(proxy) as second:
        for client in (first, second):
            client.sendall(b"x")
            assert read(client, 1) == b"x"
        proxy.reset()
        assert proxy.counters.open == 0
        assert read_until_reset(first) == b""
        assert read_until_reset(second) == b""
    eventually_sync(lambda: server.ends == ["reset", "reset"], LONG, "resets at the server")
    with connect(proxy) as third:
        third.sendall(b"y")
        assert read(third, 1) == b"y"


def test_a_frozen_link_passes_neither_bytes_nor_fin_until_it_thaws(server: EchoServer, proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"before")
        assert read(client, 6) == b"before"
        proxy.freeze()
        client.sendall(b"during")
        client.shutdown(socket.SHUT_WR)
        assert_silent(client)
        assert (server.received, server.ends) == (b"before", [])
        with connect(proxy) as late:
            late.sendall(b"new")
            assert_silent(late)
            proxy.thaw()
            assert read(late, 3) == b"new"
        assert read(client, 100) == b"during"
    eventually_sync(lambda: "fin" in server.ends, LONG, "the FIN that was held back")


def test_new_connections_pass_when_only_existing_ones_are_frozen(proxy: FaultProxy) -> None:
    with connect(proxy) as old:
        old.sendall(b"x")
        assert read(old, 1) == b"x"
        proxy.freeze(existing_only=True)
        old.sendall(b"stuck")
        with connect(proxy) as new:
            new.sendall(b"y")
            assert read(new, 1) == b"y"
        assert_silent(old)
        proxy.thaw()
        assert read(old, 5) == b"stuck"


def test_delay_holds_each_way_and_keeps_order_under_jitter(proxy: FaultProxy) -> None:
    proxy.delay(0.1, jitter=0.05)
    with connect(proxy) as client:
        started = time.monotonic()
        for number in range(50):
            client.sendall(bytes([number]))
        assert read(client, 50) == bytes(range(50))
        assert time.monotonic() - started >= 0.2
        proxy.delay(0)
        client.sendall(b"fast")
        assert read(client, 4) == b"fast"


@pytest.mark.parametrize("offset", [1, 7, 4096, 65_537, 300_000])
def test_cut_up_delivers_exactly_the_bytes_before_the_offset(
    server: EchoServer, proxy: FaultProxy, offset: int
) -> None:
    body = bytes(range(251)) * 2000
    proxy.cut_at(offset, "up")
    with connect(proxy) as client:

        def send() -> None:
            try:
                client.sendall(body)
            except OSError:
                pass  # it was cut while it sent

        sender = threading.Thread(target=send)
        sender.start()
        read_until_reset(client)
        sender.join()
    eventually_sync(lambda: server.ends == ["reset"], LONG, "the reset at the server")
    assert server.received == body[:offset]
    with connect(proxy) as client:  # only the next connection was to be cut
        client.sendall(body[:10])
        assert read(client, 10) == body[:10]


def test_cut_down_delivers_exactly_the_bytes_before_the_offset(proxy: FaultProxy) -> None:
    proxy.cut_at(3, "down", on="every")
    for _ in range(2):
        with connect(proxy) as client:
            client.sendall(b"hello")
            assert read_until_reset(client) == b"hel"


def test_a_cut_waits_until_a_slow_reader_got_the_bytes_before_it(proxy: FaultProxy) -> None:
    offset = 400_000
    proxy.cut_at(offset, "down")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # most of it stays in the proxy's kernel buffer
        client.settimeout(LONG)
        client.connect((proxy.host, proxy.port))
        client.sendall(b"x" * offset)
        eventually_sync(lambda: proxy.counters.forwarded_down == offset, LONG, "the proxy to reach the offset")
        assert len(read_until_reset(client)) == offset


def test_cut_at_zero_forwards_nothing(server: EchoServer, proxy: FaultProxy) -> None:
    proxy.cut_at(0)
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert read_until_reset(client) == b""
    assert server.received == b""


def test_cut_of_current_connections_counts_from_now(server: EchoServer, proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"12345")
        assert read(client, 5) == b"12345"
        proxy.cut_at(2, "up", on="current")
        client.sendall(b"67890")
        read_until_reset(client)
    eventually_sync(lambda: server.ends == ["reset"], LONG, "the reset at the server")
    assert server.received == b"1234567"


def test_slices_arrive_one_by_one_and_complete(proxy: FaultProxy) -> None:
    proxy.slice(3, pause=0.02)
    with connect(proxy) as client:
        client.sendall(b"0123456789")
        first = client.recv(100)
        assert len(first) == 3
        assert first + read(client, 7) == b"0123456789"


def test_refused_connections_are_accepted_again_on_the_same_port(proxy: FaultProxy) -> None:
    port = proxy.port
    with connect(proxy) as existing:
        existing.sendall(b"x")
        assert read(existing, 1) == b"x"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        existing.sendall(b"still here")
        assert read(existing, 10) == b"still here"
        proxy.accept()
        assert proxy.port == port
        with connect(proxy) as client:
            client.sendall(b"y")
            assert read(client, 1) == b"y"


def test_a_swallowed_answer_was_received_by_the_server(server: EchoServer, proxy: FaultProxy) -> None:
    proxy.swallow("down")
    with connect(proxy) as client:
        client.sendall(b"lost answer")
        eventually_sync(lambda: proxy.counters.received_down == 11, LONG, "the answer at the proxy")
        assert_silent(client)
        assert server.received == b"lost answer"
        assert proxy.counters.forwarded_down == 0
        proxy.swallow(None)
        client.sendall(b"!")
        assert read(client, 1) == b"!"


class Refusal(Answer):
    """Answers "no" to every "a" in the server's stead, and shouts its answers."""

    def upstream(self, data: bytes) -> tuple[bytes, bytes]:
        return data.replace(b"a", b""), b"no" * data.count(b"a")

    def downstream(self, data: bytes) -> tuple[bytes, bytes]:
        return data.upper(), b""


def test_an_answer_stands_in_for_the_broker(server: EchoServer, proxy: FaultProxy) -> None:
    proxy.answer(Refusal)
    with connect(proxy) as client:
        client.sendall(b"a")
        assert read(client, 2) == b"no"
        client.sendall(b"xy")
        assert read(client, 2) == b"XY"
    assert server.received == b"xy"
    proxy.answer(None)
    with connect(proxy) as client:
        client.sendall(b"a")
        assert read(client, 1) == b"a"


class Broken(Answer):
    def upstream(self, data: bytes) -> tuple[bytes, bytes]:
        raise LookupError("a bug in the test's own answer")


def test_a_broken_answer_fails_the_test_that_uses_it(server: EchoServer) -> None:
    with pytest.raises(LookupError, match="own answer"), FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.answer(Broken)
        with connect(proxy) as client:
            client.sendall(b"x")
            assert read_until_reset(client) == b""


def test_heal_ends_every_fault(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"x")
        assert read(client, 1) == b"x"
        proxy.delay(60)
        proxy.swallow("both")
        proxy.cut_at(1, on="every")
        proxy.cut_at(1, on="current")
        proxy.slice(1, pause=60)
        proxy.answer(Refusal)
        proxy.freeze()
        proxy.refuse()
        proxy.heal()
        for healed in (client, connect(proxy)):
            with healed:
                healed.sendall(b"abc")
                assert read(healed, 3) == b"abc"


def test_a_dead_broker_shows_as_accepted_and_reset(server: EchoServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with (
            FaultProxy("127.0.0.1", unused.getsockname()[1]) as proxy,
            # The reset may be there before connect() has returned.
            pytest.raises(ConnectionResetError),
            connect(proxy) as client,
        ):
            assert client.recv(1) != b"", "the connection ended by FIN, not by RST"


async def test_it_forwards_while_the_loop_of_the_test_is_blocked(server: EchoServer) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        with connect(proxy) as client:  # blocks this loop on purpose
            client.sendall(b"blocking")
            assert read(client, 8) == b"blocking"


def test_control_without_a_running_proxy_says_so(server: EchoServer) -> None:
    proxy = FaultProxy("127.0.0.1", server.port)
    with pytest.raises(RuntimeError, match="not running"):
        proxy.freeze()
    with proxy:
        pass
    with pytest.raises(RuntimeError, match="not running"):
        proxy.freeze()
    proxy.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://host", "amqp://{}"),
        ("amqp://user:p@ss@h1:5672,h2/vhost?x=1", "amqp://user:p@ss@{}/vhost?x=1"),
        ("rocketmq://ns1:9876;ns2:9876", "rocketmq://{}"),
        ("amqp://[::1]:5672/", "amqp://{}/"),
    ],
)
def test_url_for_replaces_the_address_and_nothing_else(proxy: FaultProxy, url: str, expected: str) -> None:
    assert proxy.url_for(url) == expected.format(f"127.0.0.1:{proxy.port}")


def test_url_for_refuses_what_is_no_url(proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match="scheme://"):
        proxy.url_for("localhost:5672")
