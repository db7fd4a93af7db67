"""What the cases are made of.

How to write a case
-------------------
A case is an ``async def`` in a module of this package whose docstring is one sentence, the promise that it checks:

    @case
    @requires(Capability.DELAYED_SEND)
    @needs("restart")
    async def test_delay_survives_restart(harness: Harness) -> None:
        \"\"\"A delayed message that was sent before a restart of the broker comes after it, on time.\"\"\"
        topic = harness.topic()
        async with harness.manager() as manager:
            sent = await manager.send(topic, b"later", delay=2.0)
            async with harness.restart():
                pass
            async with manager.consume(topic) as deliveries:
                await receive_exactly(deliveries, [sent], within=harness.timing.within(delay=2.0))

- ``@case`` is the outermost of the three (``pytest.mark.parametrize`` may stand above it).  It makes the coroutine
  a plain test function that runs on an event loop of its own, so no asyncio plugin is needed and none is disturbed;
  skips it when something is missing; gives it ``timeout`` seconds (``@case(timeout=300)``); and fails it when a
  task is left.
- ``@requires`` names capabilities: without one of them the case is skipped as "<backend> does not declare <it>".
  `undeclared` is the inverse: the case runs only where the capability is *not* declared.
- ``@needs`` names hooks of the harness (`brokerkit.testing.harness.HOOKS`); without one of them the case is skipped.
- Topics: ``harness.topic()`` (portable, with the group ``g``) or ``harness.name()`` and ``harness.declare()`` (SPI).
  They are fresh for every case and deleted after it.
- Wait only with `receive_exactly`, `receive_nothing`, `collect` and `eventually` (`brokerkit.testing.deadlines`), with
  deadlines from ``harness.timing``.  Never sleep and hope.
- "Before any I/O": ``watched = InterposedBackend(harness.backend)``, ``harness.manager(backend=watched)``, and
  ``watched.calls`` says what was called.
- Assert what a user would notice.  Use the portable API (``harness.manager()``) unless the promise is about the SPI.
- Be fair: settlement is asynchronous, redelivery and rebalance take time, and delivery is at least once after a
  fault (`receive_exactly(…, duplicates=True)`).
- Close what you open with ``async with``.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import pytest

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError
from brokerkit.message import MessageIds
from brokerkit.spi import Capability, ConsumerDriver, Inbound, Outbound, ProducerDriver, ToTopic
from brokerkit.testing.deadlines import eventually
from brokerkit.testing.harness import HOOKS, Harness

__all__ = [
    "WEIRD_STRINGS",
    "CaseInfo",
    "case",
    "cases_in",
    "collect",
    "eventually",
    "id_of",
    "needs",
    "none_ended",
    "new_id",
    "outbound",
    "receive_exactly",
    "receive_nothing",
    "requires",
    "send",
    "undeclared",
]

F = TypeVar("F", bound=Callable[..., Any])

#: Names the backends that must be reachable, separated by commas.
REQUIRE = "BROKERKIT_REQUIRE"

#: Strings that some broker, client or encoding gets wrong.
WEIRD_STRINGS: tuple[str, ...] = (
    "plain",
    " leading and trailing ",
    "tab\tnewline\nreturn\r",
    "nul\x00inside",
    "control\x01\x02\x1f\x7f",
    "quotes\"'`",
    "back\\slash/slash",
    "a=b;c,d&e|f",
    "%25 percent %s {0} ${x}",
    "ümläut ñ ß",
    "中文字符 日本語 한국어",
    "emoji 😀👨‍👩‍👧‍👦",
    "rtl \u202eabc\u202c",
    "zero\u200bwidth\ufeff",
    "combining e\u0301",
    "line\u2028separator\u2029",
    "\ufffe noncharacter",
    "null",
    "None",
    "true",
    "0",
    "-1.5e300",
    "{}",
    "[]",
    "x" * 200,
)

new_id = MessageIds()
_clock = SystemClock()


# --- decorators -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseInfo:
    """What is known of a case before it runs; the attribute ``case`` of the test function."""

    name: str
    promise: str
    requires: frozenset[Capability]
    undeclared: frozenset[Capability]
    needs: frozenset[str]
    #: Seconds, before the factor of the harness' timing.
    timeout: float


def cases_in(namespace: object) -> list[CaseInfo]:
    """Return the cases that are attributes of ``namespace``, e.g. of `brokerkit.testing.suite`, by name."""
    found = (getattr(each, "case", None) for each in vars(namespace).values())
    return sorted((info for info in found if isinstance(info, CaseInfo)), key=lambda info: info.name)


def requires(*capabilities: Capability) -> Callable[[F], F]:
    """Run the case only where the broker declares all of these."""
    return _note("_requires", frozenset(capabilities))


def undeclared(*capabilities: Capability) -> Callable[[F], F]:
    """Run the case only where the broker declares none of these."""
    return _note("_undeclared", frozenset(capabilities))


def needs(*hooks: str) -> Callable[[F], F]:
    """Run the case only where the harness has all of these hooks."""
    unknown = set(hooks) - HOOKS
    if unknown:
        raise ValueError(f"no such hooks: {sorted(unknown)}; there are {sorted(HOOKS)}")
    return _note("_needs", frozenset(hooks))


def _note(attribute: str, values: frozenset[Any]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        setattr(function, attribute, getattr(function, attribute, frozenset()) | values)
        return function

    return decorate


@overload
def case(function: Callable[..., Awaitable[None]], /) -> Callable[..., None]: ...
@overload
def case(*, timeout: float = ...) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]: ...


def case(function: Callable[..., Awaitable[None]] | None = None, /, *, timeout: float = 120.0) -> Any:
    """Make a coroutine function a case of the suite; see the module's docstring."""
    if function is None:
        return functools.partial(_case, timeout=timeout)
    return _case(function, timeout=timeout)


def _case(function: Callable[..., Awaitable[None]], *, timeout: float) -> Callable[..., None]:
    if not function.__doc__:
        raise ValueError(f"case {function.__name__} has no docstring: write its promise in one sentence")
    info = CaseInfo(
        name=function.__name__,
        promise=" ".join(function.__doc__.split()),
        requires=getattr(function, "_requires", frozenset()),
        undeclared=getattr(function, "_undeclared", frozenset()),
        needs=getattr(function, "_needs", frozenset()),
        timeout=timeout,
    )

    @functools.wraps(function)
    def run(*, harness: Harness, **arguments: Any) -> None:
        with asyncio.Runner() as runner:
            skip = runner.run(_run(info, function, harness, arguments))
        if skip is not None:
            pytest.skip(skip)

    run.case = info  # type: ignore[attr-defined]
    return run


async def _run(
    info: CaseInfo, function: Callable[..., Awaitable[None]], harness: Harness, arguments: dict[str, Any]
) -> str | None:
    reason = await _why_not(info, harness)
    if reason is not None:
        return reason
    await harness.begin(info.name, info.needs)
    seconds = info.timeout * harness.timing.factor
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            await function(harness=harness, **arguments)
    except TimeoutError:
        if limit.expired():
            raise AssertionError(f"the case did not end within {seconds:.0f} s") from None
        raise
    finally:
        await harness.end()
    await _no_task_is_left()
    return None


async def _why_not(info: CaseInfo, harness: Harness) -> str | None:
    """Return why the case cannot run here, or None."""
    for hook in sorted(info.needs):
        if not harness.offers(hook):
            return f"the harness of {harness.label} has no {hook}"
    try:
        offer = await harness.probe()
    except BrokerError as exc:
        name = harness.backend.name
        if not exc.retryable or name in os.environ.get(REQUIRE, "").replace(" ", "").split(","):
            raise
        return f"{name} is not available: {exc}"
    for capability in sorted(info.requires - offer.capabilities, key=lambda each: each.value):
        return f"{offer.backend} does not declare {capability.value}"
    for capability in sorted(info.undeclared & offer.capabilities, key=lambda each: each.value):
        return f"{offer.backend} declares {capability.value}"
    return None


async def _no_task_is_left() -> None:
    mine = asyncio.current_task()
    for _ in range(20):  # what was cancelled needs turns of the loop to end
        left = [task for task in asyncio.all_tasks() if task is not mine]
        if not left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(left)} tasks were left behind: {', '.join(sorted(map(repr, left)))}")


def none_ended(tasks: Iterable[asyncio.Task[Any]]) -> bool:
    """Return True while all ``tasks`` run; raise what ended one, which else only shows as something that never came.

    An `AssertionError` means "not yet" to `eventually`, so it is raised as the cause of another error.
    """
    for task in tasks:
        if task.done():
            raise RuntimeError(f"{task.get_name()} ended") from (None if task.cancelled() else task.exception())
    return True


# --- sending --------------------------------------------------------------------------------------------------


def outbound(topic: str, body: bytes = b"x", **fields: Any) -> Outbound:
    """Return a message for every group of ``topic`` with a new id, unless ``fields`` say otherwise."""
    return Outbound(**{"destination": ToTopic(topic), "body": body, "message_id": new_id(), **fields})


async def send(producer: ProducerDriver, *messages: Outbound) -> list[str]:
    """Send at SPI level, fail on any bad outcome, and return the ids."""
    outcomes = await producer.send(messages)
    assert list(outcomes) == [None] * len(messages), f"not all were stored: {[o for o in outcomes if o]}"
    return [message.message_id for message in messages]


# --- receiving ------------------------------------------------------------------------------------------------


def id_of(item: Any) -> str | None:
    """Return the message id of an `Inbound` or of a `Delivery`."""
    found: str | None = item.message_id if isinstance(item, Inbound) else item.message.message_id
    return found


async def _take(source: Any, limit: int, timeout: float) -> Sequence[Any]:
    if isinstance(source, ConsumerDriver):
        return await source.receive(limit, timeout)
    delivery = await source.receive(timeout)
    return () if delivery is None else (delivery,)


async def _ack(source: Any, items: Sequence[Any]) -> None:
    if isinstance(source, ConsumerDriver):
        await source.ack(items)
    else:
        for item in items:
            await item.ack()


async def collect(source: Any, count: int, *, within: float, ack: bool = True) -> list[Any]:
    """Receive ``count`` messages in the order they come; fail when fewer come ``within`` seconds.

    ``source`` is an SPI `ConsumerDriver` (items are `Inbound`) or what ``manager.consume`` gave (`Delivery`).
    """
    items: list[Any] = []
    deadline = _clock.monotonic() + within
    while len(items) < count:
        left = deadline - _clock.monotonic()
        if left <= 0:
            raise AssertionError(f"{len(items)} of {count} messages came within {within:.1f} s: {_show(items)}")
        found = await _take(source, count - len(items), min(left, 1.0))
        items.extend(found)
        if ack:
            await _ack(source, found)
    return items


async def receive_exactly(
    source: Any, ids: Collection[str], *, within: float, ack: bool = True, duplicates: bool = False
) -> list[Any]:
    """Receive until every id came; return the items in the order they came, repeats left out.

    Fail when one is missing after ``within`` seconds, when another message comes, and, unless ``duplicates``
    are allowed, when one comes twice.  To be sure that nothing follows, call `receive_nothing` afterwards.
    """
    wanted = set(ids)
    assert len(wanted) == len(ids), "the expected ids are not distinct"
    items: dict[str | None, Any] = {}
    deadline = _clock.monotonic() + within
    while len(items) < len(wanted):
        left = deadline - _clock.monotonic()
        if left <= 0:
            missing = sorted(wanted - {each for each in items if each is not None})
            raise AssertionError(f"{len(missing)} of {len(wanted)} did not come within {within:.1f} s: {missing[:10]}")
        found = await _take(source, len(wanted) - len(items), min(left, 1.0))
        for item in found:
            name = id_of(item)
            assert name in wanted, f"a message came that nobody waits for: {_show([item])}"
            assert duplicates or name not in items, f"a message came twice: {_show([item])}"
            items.setdefault(name, item)
        if ack:
            await _ack(source, found)
    return list(items.values())


async def receive_nothing(source: Any, for_: float) -> None:
    """Fail when a message comes within ``for_`` seconds."""
    deadline = _clock.monotonic() + for_
    while (left := deadline - _clock.monotonic()) > 0:
        found = await _take(source, 1, left)
        assert not found, f"a message came where none should: {_show(found)}"


def _show(items: Sequence[Any]) -> str:
    shown = []
    for item in items[:10]:
        message = item if isinstance(item, Inbound) else item.message
        shown.append(f"{message.message_id} {message.body[:40]!r}")
    return "; ".join(shown) or "none"
