"""``brokerkit bench``: how fast a broker sends and handles from here, through the public API."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from brokerkit.cli.broker import FAILED, ending, fail
from brokerkit.cli.output import AsJson, print_json, print_table
from brokerkit.clock import SystemClock, wait
from brokerkit.errors import BrokerError, SendTimeout
from brokerkit.manager import AsyncManager
from brokerkit.topic import Topic

__all__ = ["bench"]

_GROUP = "bench"
#: Of the messages, those that are sent one after the other; each waits for the broker.
_SINGLY = 10
#: Seconds without a handled message after which the broker counts as stuck.
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    what: str
    messages: int
    seconds: float
    per_second: float


def bench(
    url: Annotated[str, typer.Argument(metavar="URL", help="The broker, e.g. sqlite:///bench.db or memory://bench.")],
    messages: Annotated[int, typer.Option(metavar="N", min=10, max=10_000_000, help="How many messages.")] = 5_000,
    size: Annotated[int, typer.Option(metavar="BYTES", min=1, max=16 << 20, help="The size of each body.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Measure how many messages a second a broker takes and hands out.

    It works on a topic of its own, which is deleted at the end. The figures hold for one process on this
    machine and network.

    \b
    Examples:
      brokerkit bench sqlite:///bench.db
      brokerkit bench memory://bench --messages 50000
    """
    with ending(as_json=as_json):
        figures = asyncio.run(_measure(url, messages, b"x" * size))
    if as_json:
        print_json([asdict(one) for one in figures])
        return
    rows = [(one.what, f"{one.messages:,}", f"{one.seconds:.2f} s", f"{one.per_second:,.0f}") for one in figures]
    print_table(("", ">messages", ">time", ">messages/s"), rows)


async def _measure(url: str, count: int, body: bytes) -> list[_Figure]:
    clock = SystemClock()
    topic = Topic(f"brokerkit-bench-{secrets.token_hex(4)}", bytes, groups=[_GROUP])
    handled = 0
    all_handled = asyncio.Event()
    singly = max(count // _SINGLY, 1)
    async with AsyncManager(url) as manager:

        @manager.handler(topic, concurrency=50, prefetch=500)
        async def take(payload: bytes) -> None:
            nonlocal handled
            handled += 1
            if handled >= singly + count:
                all_handled.set()

        try:
            await manager.admin.declare(topic)
            began = clock.monotonic()
            for _ in range(singly):
                await manager.send(topic, body)
            one_by_one = _figure("send, one after the other", singly, clock.monotonic() - began)
            began = clock.monotonic()
            outcomes = await manager.send_many(topic, [body] * count)
            many = _figure("send_many", count, clock.monotonic() - began)
            failed = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
            if failed is not None:
                raise failed
            began = clock.monotonic()
            await manager.start()
            waiting = asyncio.ensure_future(all_handled.wait())
            before = -1
            while not await wait(clock, waiting, _PATIENCE):
                if handled == before:
                    waiting.cancel()
                    raise SendTimeout(f"only {handled} of {singly + count} messages came back within {_PATIENCE:g} s")
                before = handled
            return [one_by_one, many, _figure("handle", singly + count, clock.monotonic() - began)]
        finally:
            await manager.stop()
            await _clean_up(manager, topic)


async def _clean_up(manager: AsyncManager, topic: Topic[bytes]) -> None:
    try:
        await manager.admin.delete(topic)
    except BrokerError as error:
        fail(f"the topic {topic.name} of the measurement could not be deleted: {error}", FAILED)


def _figure(what: str, messages: int, seconds: float) -> _Figure:
    return _Figure(
        what=what, messages=messages, seconds=round(seconds, 4), per_second=round(messages / max(seconds, 1e-9), 1)
    )
