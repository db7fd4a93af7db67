"""Clients of a test server, closed at the end of a block."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from brokerkit.clock import SystemClock
from brokerkit.testing.services.rocketmq import RocketMQControl
from brokerkit_rocketmq.addresses import parse_address
from brokerkit_rocketmq.client import Client, ClientOptions
from brokerkit_rocketmq.dialing import DialOptions
from brokerkit_rocketmq.links import LinkOptions
from brokerkit_rocketmq.registrations import Registration, Subscription
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.frames import Frame
from brokerkit_rocketmq.remoting.names import retry_topic

__all__ = ["LONG", "QUICK", "a_client", "a_name", "membership", "options_for", "send"]

#: Seconds; a machine that runs other tests too is slow.
LONG = 30.0

#: Links that notice and come back soon.
QUICK = LinkOptions(heartbeat=1.0, first_pause=0.01, longest_pause=0.2)


def a_name(prefix: str = "t") -> str:
    """Return a name that nobody else has."""
    return f"{prefix}{secrets.token_hex(5)}"


def options_for(
    server: RocketMQControl, *, links: LinkOptions = QUICK, address_map: Mapping[str, str] | None = None
) -> ClientOptions:
    """Return options for all NameServers of a server."""
    return ClientOptions(
        name_servers=tuple(parse_address(address) for address in server.address.name_servers),
        dial=DialOptions(timeout=LONG, address_map=address_map or {}),
        links=links,
        timeout=LONG,
        heartbeat_interval=5.0,
        route_interval=5.0,
    )


@asynccontextmanager
async def a_client(
    server: RocketMQControl, *, links: LinkOptions = QUICK, address_map: Mapping[str, str] | None = None
) -> AsyncIterator[Client]:
    """Open a client with links that notice and come back soon."""
    client = Client(options_for(server, links=links, address_map=address_map), SystemClock())
    try:
        await client.open()
        yield client
    finally:
        await client.aclose()


def membership(group: str, topic: str, expression: str = "*") -> Registration:
    """Return the registration of a member that takes a topic and its own retries."""
    return Registration(
        group=group, subscriptions=(Subscription(topic, expression, 1), Subscription(retry_topic(group)))
    )


async def send(client: Client, topic: str, body: bytes = b"x", queue: int = 0, broker: str = "broker-a") -> Frame:
    """Store one message, also where other tests keep the broker busy."""
    fields = {
        "a": "brokerkit", "b": topic, "c": "", "d": "1", "e": str(queue), "f": "0", "g": "1700000000000", "h": "0",
        "i": "", "j": "0", "k": "false", "l": "16", "m": "false",
    }  # fmt: skip
    frame = await client.call(broker, RequestCode.SEND_MESSAGE_V2, fields, body)
    while frame.code == ResponseCode.SYSTEM_BUSY:
        await client.clock.sleep(0.05)
        frame = await client.call(broker, RequestCode.SEND_MESSAGE_V2, fields, body)
    if frame.code != ResponseCode.SUCCESS:
        raise AssertionError(f"{frame.code}: {frame.remark}")
    return frame
