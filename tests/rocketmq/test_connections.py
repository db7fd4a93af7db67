"""One connection: requests and answers, deadlines, ends; and requests in the other direction."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from brokerkit.testing import FaultProxy, eventually, within
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.remoting.codes import VERSION_5, RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.connection import Answer, RemotingConnection, dial
from brokerkit_rocketmq.remoting.errors import (
    ConnectionLost,
    FrameError,
    NotConnected,
    Oversized,
    RemotingError,
    RequestTimeout,
)
from brokerkit_rocketmq.remoting.frames import FRAME_MAX, Frame, FrameParser, encode_response, render_head

#: Seconds; a machine that runs other tests too is slow.
LONG = 30.0


def host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[RemotingConnection]:
    connection = await dial(*host_and_port(address), timeout=LONG)
    try:
        yield connection
    finally:
        await connection.aclose()


class Peer:
    """A socket that takes one connection and does with it what the test says."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepted: socket.socket | None = None

    async def accepted(self) -> socket.socket:
        if self._accepted is not None:
            return self._accepted
        loop = asyncio.get_running_loop()
        accepted, _ = await within(LONG, loop.sock_accept(self._listener), what="a connection")
        self._accepted = accepted
        return accepted

    async def read(self, size: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(await self.accepted(), size)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(await self.accepted(), data)

    def close(self) -> None:
        self._listener.close()
        if self._accepted is not None:
            self._accepted.close()


@pytest.fixture
async def silent() -> AsyncIterator[Peer]:
    """A peer that answers nothing by itself."""
    peer = Peer()
    yield peer
    peer.close()


@asynccontextmanager
async def pair(on_request: object) -> AsyncIterator[tuple[RemotingConnection, RemotingConnection]]:
    """Two connections that talk to each other; the second answers with ``on_request``."""
    loop = asyncio.get_running_loop()
    made: list[RemotingConnection] = []

    def make() -> RemotingConnection:
        made.append(RemotingConnection(loop, peer="the other end", on_request=on_request))  # type: ignore[arg-type]
        return made[-1]

    server = await loop.create_server(make, "127.0.0.1", 0)
    async with connected(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as ours:
        await eventually(lambda: made, within=LONG)
        yield ours, made[0]
        await made[0].aclose()
    server.close()
    await server.wait_closed()


# --- asking -----------------------------------------------------------------------------------------------------


async def test_a_broker_answers_and_tells_its_version(rocketmq: RocketMQControl) -> None:
    async with connected(rocketmq.address.brokers[0].address) as connection:
        assert connection.server_version is None
        frame = await connection.call(RequestCode.GET_MAX_OFFSET, {"topic": "TBW102", "queueId": "0"}, timeout=LONG)
        assert frame.code == ResponseCode.SUCCESS and frame.fields["offset"].isdigit()
        assert connection.server_version is not None
        assert (connection.server_version >= VERSION_5) == (rocketmq.address.major >= 5)


async def test_any_response_code_is_an_answer(rocketmq: RocketMQControl) -> None:
    async with connected(rocketmq.address.name_servers[0]) as connection:
        frame = await connection.call(
            RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": f"t{secrets.token_hex(4)}"}, timeout=LONG
        )
        assert frame.code == ResponseCode.TOPIC_NOT_EXIST and frame.remark


async def test_answers_find_their_requests_in_whatever_order_they_come(rocketmq_old: RocketMQControl) -> None:
    topic = f"t{secrets.token_hex(4)}"
    rocketmq_old.create_topic(topic, queues=1)
    async with connected(rocketmq_old.address.brokers[0].address) as connection:
        held = connection.request(
            RequestCode.PULL_MESSAGE,
            {
                "consumerGroup": f"g{secrets.token_hex(4)}",
                "topic": topic,
                "queueId": "0",
                "queueOffset": "0",
                "maxMsgNums": "1",
                "sysFlag": "6",
                "commitOffset": "0",
                "suspendTimeoutMillis": "10000",
                "subscription": "*",
                "subVersion": "0",
                "expressionType": "TAG",
            },
            timeout=2 * LONG,
        )
        questions = [
            connection.request(RequestCode.GET_MAX_OFFSET, {"topic": topic, "queueId": "0"}, timeout=LONG)
            for _ in range(50)
        ]
        await asyncio.wait(questions)
        assert not held.done()
        busy = ResponseCode.SYSTEM_BUSY
        while (
            busy
            == (
                sent := await connection.call(RequestCode.SEND_MESSAGE_V2, send_fields(topic), b"hello\0", timeout=LONG)
            ).code
        ):
            # Other tests keep this broker busy.
            await asyncio.sleep(0.05)
        assert sent.code == ResponseCode.SUCCESS, sent.remark
        frame = await held
        assert frame.code == ResponseCode.SUCCESS and b"hello\0" in frame.body
        assert {question.result().code for question in questions} == {0}


def send_fields(topic: str) -> dict[str, str]:
    return {
        "a": "brokerkit", "b": topic, "c": "TBW102", "d": "4", "e": "0", "f": "0", "g": "1700000000000", "h": "0",
        "i": "", "j": "0", "k": "false", "l": "16", "m": "false",
    }  # fmt: skip


async def test_a_rendered_request_is_stored_like_any_other(rocketmq: RocketMQControl) -> None:
    topic = f"t{secrets.token_hex(4)}"
    rocketmq.create_topic(topic, queues=1)
    before, after = render_head(RequestCode.SEND_MESSAGE_V2, send_fields(topic))
    async with connected(rocketmq.address.brokers[0].address) as connection:
        for offset in range(20):
            frame = await connection.request_rendered(before, after, b"x" * 512, timeout=LONG)
            while frame.code == ResponseCode.SYSTEM_BUSY:
                # Other tests keep this broker busy.
                frame = await connection.request_rendered(before, after, b"x" * 512, timeout=LONG)
            assert frame.code == 0, frame.remark
            assert frame.fields["queueOffset"] == str(offset)


async def test_what_is_asked_in_one_turn_of_the_loop_leaves_in_one_piece(silent: Peer) -> None:
    async with connected(silent.address) as connection:
        futures = [connection.request(30, {"n": str(n)}, b"x", timeout=LONG) for n in range(100)]
        data = await silent.read(1 << 20)
        frames = FrameParser().feed(data)
        assert [frame.fields["n"] for frame in frames] == [str(n) for n in range(100)]
        assert connection.in_flight == 100
        connection.abort()
        await asyncio.wait(futures)


async def test_a_request_that_no_server_reads_is_refused_and_the_connection_goes_on(
    rocketmq_old: RocketMQControl,
) -> None:
    async with connected(rocketmq_old.address.brokers[0].address) as connection:
        with pytest.raises(Oversized):
            await connection.call(RequestCode.SEND_MESSAGE_V2, {}, bytes(FRAME_MAX), timeout=LONG)
        with pytest.raises(Oversized):
            connection.send_oneway(RequestCode.SEND_MESSAGE_V2, {}, bytes(FRAME_MAX))
        frame = await connection.call(RequestCode.GET_MAX_OFFSET, {"topic": "TBW102", "queueId": "0"}, timeout=LONG)
        assert frame.code == 0 and connection.in_flight == 0


# --- answers that are told at once ------------------------------------------------------------------------------


def _answers(*opaques: int) -> bytes:
    return b"".join(encode_response(0, opaque) for opaque in opaques)


async def test_who_is_told_of_an_answer_may_raise_ask_again_and_end_the_connection(
    silent: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(silent.address) as connection:
        told: list[Frame | RemotingError] = []

        def raises(outcome: Frame | RemotingError) -> None:
            told.append(outcome)
            raise ValueError("a fault of who asked")

        def asks_again(outcome: Frame | RemotingError) -> None:
            told.append(outcome)
            if len(told) == 2:
                connection.ask(30, {"again": "1"}, b"", asks_again, timeout=LONG)

        def ends(outcome: Frame | RemotingError) -> None:
            told.append(outcome)
            connection.abort()

        for answered in (raises, asks_again, ends, told.append, told.append):
            connection.ask(30, None, b"", answered, timeout=LONG)
        frames = FrameParser().feed(await silent.read(1 << 16))
        # Four of five in one piece: the third ends the connection, and the fourth is not looked at any more.
        await silent.write(_answers(*(frame.opaque for frame in frames[:4])))
        await eventually(lambda: len(told) == 6, within=LONG)
        assert all(isinstance(outcome, Frame) for outcome in told[:3])
        # What was asked again had not left yet.
        assert [type(outcome) for outcome in told[3:]] == [ConnectionLost, ConnectionLost, NotConnected]
        assert connection.in_flight == 0 and "could not be taken" in caplog.text


async def test_failures_are_told_once_and_not_before_the_request_returned(silent: Peer) -> None:
    told: list[Frame | RemotingError] = []
    async with connected(silent.address) as connection:
        connection.ask(30, None, bytes(FRAME_MAX), told.append, timeout=LONG)
        connection.ask(30, None, b"", told.append, timeout=0.1)
        assert not told
        await eventually(lambda: len(told) == 2, within=LONG)
        connection.ask(30, None, b"", told.append, timeout=LONG)
        await silent.read(1 << 16)
        silent.close()
        await eventually(lambda: len(told) == 3, within=LONG)
        connection.ask(30, None, b"", told.append, timeout=LONG)
        assert len(told) == 3
        await eventually(lambda: len(told) == 4, within=LONG)
    assert [type(outcome) for outcome in told] == [Oversized, RequestTimeout, ConnectionLost, NotConnected]


# --- deadlines --------------------------------------------------------------------------------------------------


async def test_each_request_fails_when_its_own_time_is_up(silent: Peer) -> None:
    async with connected(silent.address) as connection:
        began = time.monotonic()
        patient = connection.request(30, timeout=LONG)
        slow, fast = connection.request(30, timeout=0.6), connection.request(30, timeout=0.2)
        with pytest.raises(RequestTimeout, match=silent.address):
            await within(LONG, fast)
        assert time.monotonic() - began >= 0.2 and not slow.done()
        with pytest.raises(RequestTimeout):
            await within(LONG, slow)
        assert time.monotonic() - began >= 0.6
        assert not patient.done() and connection.in_flight == 1 and connection.error is None


async def test_an_answer_that_comes_too_late_is_dropped(rocketmq_old: RocketMQControl) -> None:
    with FaultProxy(*host_and_port(rocketmq_old.address.name_servers[0])) as proxy:
        async with connected(f"127.0.0.1:{proxy.port}") as connection:
            await connection.call(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "TBW102"}, timeout=LONG)
            proxy.freeze()
            with pytest.raises(RequestTimeout):
                await connection.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=0.3)
            given_up = connection.request(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)
            given_up.cancel()
            heard = connection.last_received
            proxy.thaw()
            await eventually(lambda: connection.last_received > heard, within=LONG)
            frame = await connection.call(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "no|topic"}, timeout=LONG)
            assert frame.code == ResponseCode.TOPIC_NOT_EXIST and connection.in_flight == 0


# --- ends -------------------------------------------------------------------------------------------------------


async def test_a_lost_connection_fails_what_was_written_and_what_comes_after_it(silent: Peer) -> None:
    async with connected(silent.address) as connection:
        written = [connection.request(30, timeout=LONG) for _ in range(3)]
        await silent.read(1 << 16)
        silent.close()
        error = await within(LONG, connection.lost)
        assert isinstance(error, ConnectionLost) and connection.error is error
        for future in written:
            with pytest.raises(ConnectionLost, match=silent.address):
                await future
        with pytest.raises(NotConnected):
            await connection.call(30, timeout=LONG)
        connection.send_oneway(15)
        await within(LONG, connection.writable())


async def test_what_was_not_written_yet_is_told_from_what_was(silent: Peer) -> None:
    async with connected(silent.address) as connection:
        written = connection.request(30, timeout=LONG)
        await silent.read(1 << 16)
        unwritten = connection.request(30, timeout=LONG)
        connection.abort(ConnectionLost("the test has had enough"))
        with pytest.raises(ConnectionLost, match="had enough"):
            await written
        with pytest.raises(NotConnected, match="had enough"):
            await unwritten
        assert isinstance(await within(LONG, connection.lost), RemotingError)
    assert await silent.read(1) == b""


async def test_closing_sends_what_was_written(silent: Peer) -> None:
    connection = await dial(*host_and_port(silent.address), timeout=LONG)
    connection.send_oneway(15, {"offset": "7"})
    await connection.aclose()
    await connection.aclose()
    (frame,) = FrameParser().feed(await silent.read(1 << 16))
    assert frame.is_oneway and frame.fields == {"offset": "7"}
    assert await silent.read(1) == b""


async def test_closing_does_not_wait_for_a_peer_that_reads_no_more(silent: Peer) -> None:
    connection = await dial(*host_and_port(silent.address), timeout=LONG)
    future = connection.request(30, body=bytes(FRAME_MAX - 1000), timeout=LONG)
    await within(LONG, connection.aclose(timeout=0.2))
    with pytest.raises(ConnectionLost):
        await future


async def test_a_peer_that_speaks_something_else_is_left(silent: Peer) -> None:
    async with connected(silent.address) as connection:
        future = connection.request(30, timeout=LONG)
        await silent.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(ConnectionLost, match="does not speak the remoting protocol"):
            await within(LONG, future)
        assert isinstance(await within(LONG, connection.lost), FrameError)


async def test_writers_wait_while_the_peer_does_not_read(silent: Peer) -> None:
    async with connected(silent.address) as connection:
        assert connection.may_write
        futures = []
        while connection.may_write:
            futures.append(connection.request(30, body=bytes(1 << 20), timeout=LONG))
            await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(connection.writable()) for _ in range(2)]
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        assert not waiting[1].done()
        while not connection.may_write:
            await silent.read(1 << 20)
        await within(LONG, waiting[1])
        connection.abort()
        await asyncio.wait(futures)


@pytest.mark.parametrize("cut", [1, 4, 7, 8, 50, 120])
async def test_an_answer_that_is_cut_off_is_a_lost_connection(rocketmq_old: RocketMQControl, cut: int) -> None:
    with FaultProxy(*host_and_port(rocketmq_old.address.name_servers[0])) as proxy:
        proxy.cut_at(cut, "down")
        async with connected(f"127.0.0.1:{proxy.port}") as connection:
            with pytest.raises(ConnectionLost):
                await connection.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)


async def test_answers_in_crumbs_are_read(rocketmq_old: RocketMQControl) -> None:
    with FaultProxy(*host_and_port(rocketmq_old.address.name_servers[0])) as proxy:
        proxy.slice(7)
        async with connected(f"127.0.0.1:{proxy.port}") as connection:
            frame = await connection.call(RequestCode.GET_BROKER_CLUSTER_INFO, timeout=LONG)
            assert b"broker-a" in frame.body


async def test_an_address_that_nobody_listens_on_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await dial("127.0.0.1", port, timeout=LONG)


# --- requests of the peer ---------------------------------------------------------------------------------------


async def test_a_request_of_the_peer_is_answered() -> None:
    def on_request(connection: RemotingConnection, frame: Frame) -> Answer | None:
        return Answer(0, {"asked": frame.fields["x"]}, frame.body * 2, "done") if frame.code == 307 else None

    async with pair(on_request) as (ours, theirs):
        frame = await ours.call(307, {"x": "1"}, b"b", timeout=LONG)
        assert (frame.code, frame.fields, frame.body, frame.remark) == (0, {"asked": "1"}, b"bb", "done")
        frame = await ours.call(9999, timeout=LONG)
        assert frame.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED and "9999" in (frame.remark or "")
        # Both ends may ask.
        assert (await theirs.call(5, timeout=LONG)).code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED


async def test_a_oneway_request_is_seen_and_not_answered() -> None:
    seen: list[tuple[int, bool, str]] = []

    def on_request(connection: RemotingConnection, frame: Frame) -> Answer | None:
        seen.append((frame.code, frame.is_oneway, json.dumps(frame.fields)))
        return Answer()

    async with pair(on_request) as (ours, _):
        heard = ours.last_received
        ours.send_oneway(40, {"consumerGroup": "G"})
        ours.send_oneway(4711)
        # The answer to what comes after them is the first thing that comes back.
        await ours.call(1, timeout=LONG)
        assert seen[:2] == [(40, True, '{"consumerGroup": "G"}'), (4711, True, "{}")]
        assert ours.in_flight == 0 and ours.last_received >= heard


async def test_a_request_that_fails_here_is_answered_too() -> None:
    def on_request(connection: RemotingConnection, frame: Frame) -> Answer | None:
        if frame.code == 1:
            raise KeyError("a secret")
        return Answer(body=bytes(FRAME_MAX))

    async with pair(on_request) as (ours, _):
        frame = await ours.call(1, timeout=LONG)
        assert frame.code == ResponseCode.SYSTEM_ERROR and frame.remark == "KeyError in the client"
        frame = await ours.call(2, timeout=LONG)
        assert frame.code == ResponseCode.SYSTEM_ERROR and "over the limit" in (frame.remark or "")
