"""`Admin`: declare, verify, delete, purge, and work with dead letters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from brokerkit.envelope import (
    ATTEMPT,
    DEAD_ERROR,
    DEAD_FIRST,
    DEAD_HOST,
    DEAD_LAST,
    DEAD_REASON,
    DEAD_TEXT,
    DEAD_TRACEBACK,
    EXPIRES,
    attempt_of,
    message_of,
)
from brokerkit.errors import BrokerError, CapabilityNotSupported, ConfigurationError
from brokerkit.link import Link
from brokerkit.message import Message
from brokerkit.names import TagFilter, check_group, check_topic
from brokerkit.producer import Producer
from brokerkit.settlement import Settlement
from brokerkit.spi import (
    AtomicSettle,
    Browse,
    Capability,
    Connection,
    ConsumerDriver,
    DeadLetters,
    Diagnose,
    Finding,
    GroupSpec,
    Inbound,
    Manage,
    NativeAdmin,
    Outbound,
    Purge,
    ToGroup,
    TopicSpec,
)
from brokerkit.topic import Topic

__all__ = ["Admin", "DeadLetter"]

P = TypeVar("P")
T = TypeVar("T")

#: Dead letters that are taken at once for redrive and discard.
_BATCH = 100
#: Seconds to wait for the next dead letters before none counts as left.
_LOOK = 1.0
#: Headers that explained the death, and the end of its first life, which may be past: a redriven message starts a
#: new one without them.
_OF_THE_DEAD = frozenset(
    {ATTEMPT, DEAD_REASON, DEAD_ERROR, DEAD_TEXT, DEAD_TRACEBACK, DEAD_FIRST, DEAD_LAST, DEAD_HOST, EXPIRES}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that was given up, and why.  Times are seconds since the epoch."""

    message: Message
    topic: str
    group: str
    #: exhausted, rejected, undecodable, no-handler, not-retryable, expired or worker-crash; None on foreign ones.
    reason: str | None
    error_type: str | None
    error: str | None
    #: The end of the traceback.
    traceback: str | None
    attempts: int
    first_failure: float | None
    last_failure: float | None
    host: str | None

    @property
    def id(self) -> str:
        """The id of its message; empty on a foreign one that came without."""
        return self.message.message_id or ""


class Admin:
    """Administrative calls of one manager.

    Each raises `CapabilityNotSupported` before any I/O where the connection does not offer it, and
    `TopicNotFound` for a missing topic or group.
    """

    def __init__(self, link: Callable[[], Link], producer: Callable[[], Producer]) -> None:
        self._link = link
        self._producer = producer

    # --- topology ---

    async def declare(
        self,
        topic: Topic[Any] | str,
        group: str | None = None,
        *,
        tag: str | None = None,
        ordered: bool | None = None,
        start: str | None = None,
    ) -> None:
        """Create the topic, and the group when one is given (else every group the application knows).

        Idempotent; raise `TopologyConflict` when it exists with other properties.  ``start`` is where a new group
        begins: ``latest`` (default) or ``earliest``.
        """
        link = self._link()
        name = self._enter(topic)
        if group is not None:
            link.topology.add_group(name, group, tag=tag, ordered=ordered, start=start)
        connection = await self._offering(Manage, Capability.MANAGE, name, "declare")  # type: ignore[type-abstract]
        spec = link.topology[name]
        link.check(spec)
        groups: list[GroupSpec | None] = [spec.groups[group]] if group is not None else list(spec.groups.values())
        for one in groups or [None]:
            await self._call(connection.declare(spec, one), name)

    async def verify(self, topic: Topic[Any] | str, group: str | None = None) -> None:
        """Raise `TopicNotFound` or `TopologyConflict` unless it exists as declared.  Creates nothing."""
        name = self._enter(topic)
        connection = await self._offering(Manage, Capability.MANAGE, name, "verify")  # type: ignore[type-abstract]
        spec = self._link().topology[name]
        await self._call(connection.verify(spec, self._group(spec, group)), name)

    async def delete(self, topic: Topic[Any] | str, group: str | None = None) -> None:
        """Delete the group with its messages and dead letters, or the topic with all its groups."""
        name = self._enter(topic)
        if group is not None:
            check_group(name, group)
        connection = await self._offering(Manage, Capability.MANAGE, name, "delete")  # type: ignore[type-abstract]
        await self._call(connection.delete(name, group), name)

    async def purge(self, topic: Topic[Any] | str, group: str) -> int:
        """Remove what is ready in one group; return how many.  Delayed messages and waiting retries stay."""
        name = self._enter(topic)
        connection = await self._offering(Purge, Capability.PURGE, name, "purge")  # type: ignore[type-abstract]
        return await self._call(connection.purge(name, check_group(name, group)), name)

    # --- dead letters ---

    async def dead_letters(self, topic: Topic[Any] | str, group: str, limit: int = 100) -> list[DeadLetter]:
        """Return up to ``limit`` dead letters, oldest first.  Reading disturbs nothing."""
        name = self._enter(topic)
        connection = await self._offering(Browse, Capability.BROWSE, name, "reading dead letters")  # type: ignore[type-abstract]
        found = await self._call(connection.browse(name, check_group(name, group), limit), name)
        return [dead_letter_of(inbound) for inbound in found]

    async def redrive(
        self,
        topic: Topic[Any] | str,
        group: str,
        ids: Iterable[str | DeadLetter] | None = None,
        *,
        limit: int | None = None,
    ) -> int:
        """Send dead letters back to the group that failed, as attempt 1 with their ids and no ttl; return how many.

        ``ids`` chooses: dead letters, or the ids of messages.  ``limit`` takes the oldest so many.  Without either:
        all that are there.
        """
        return await self._each_dead(topic, group, ids, limit, "redrive", self._redrive_one)

    async def discard(
        self,
        topic: Topic[Any] | str,
        group: str,
        ids: Iterable[str | DeadLetter] | None = None,
        *,
        limit: int | None = None,
    ) -> int:
        """Delete dead letters for good; return how many.  ``ids`` and ``limit`` as in `redrive`."""

        async def discard_one(driver: ConsumerDriver, inbound: Inbound) -> bool:
            await driver.ack([inbound])
            return True

        return await self._each_dead(topic, group, ids, limit, "discard", discard_one)

    async def _redrive_one(self, driver: ConsumerDriver, inbound: Inbound) -> bool:
        link, producer = self._link(), self._producer()
        settlement = Settlement(driver, producer, link.clock, producer.new_id)
        if Capability.ATOMIC_SETTLE in link.capabilities(inbound.topic) and isinstance(driver, AtomicSettle):
            settlement.use_atomic(driver)
        copy = Outbound(
            destination=ToGroup(inbound.topic, inbound.group),
            body=inbound.body,
            message_id=inbound.message_id or producer.new_id(),
            headers={key: value for key, value in inbound.headers.items() if key not in _OF_THE_DEAD},
            key=inbound.key,
            tag=inbound.tag,
            type=inbound.type,
            content_type=inbound.content_type,
            priority=inbound.priority,
            timestamp=inbound.timestamp if inbound.timestamp is not None else link.clock.time(),
            correlation_id=inbound.correlation_id,
            reply_to=inbound.reply_to,
        )
        return await settlement.forward(inbound, [copy]) is None

    async def _each_dead(
        self,
        topic: Topic[Any] | str,
        group: str,
        chosen: Iterable[str | DeadLetter] | None,
        limit: int | None,
        what: str,
        act: Callable[[ConsumerDriver, Inbound], Awaitable[bool]],
    ) -> int:
        ids = _ids_of(chosen, what)
        name = self._enter(topic)
        connection = await self._offering(DeadLetters, Capability.DEAD_LETTER, name, what)  # type: ignore[type-abstract]
        driver = await self._call(connection.take_dead(name, check_group(name, group), ids), name)
        done = 0
        # What fails now comes again behind the others; without a bound a failing one would come for ever.
        seen: set[str | None] = set()
        try:
            while limit is None or done < limit:
                wanted = _BATCH if limit is None else min(_BATCH, limit - done)
                batch = await self._call(driver.receive(wanted, _LOOK), name)
                if not batch or all(inbound.message_id in seen for inbound in batch):
                    return done
                for inbound in batch:
                    seen.add(inbound.message_id)
                    if await act(driver, inbound):
                        done += 1
                    else:
                        await driver.release([inbound])
            return done
        finally:
            await driver.aclose()

    # --- what is not portable ---

    async def native(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """Await ``call`` with the administration of the one backend in use, and return its result.

        ``await manager.admin.native(lambda rocketmq: rocketmq.lag("orders", "billing"))``: what it has is the
        backend's; RocketMQ's is `brokerkit_rocketmq.admin.RocketMQAdmin`.  Raise `CapabilityNotSupported` for a
        backend without one.
        """
        link = self._link()
        connection = await link.connection()
        if not isinstance(connection, NativeAdmin):
            raise CapabilityNotSupported(
                f"{link.backend.name} has no administration beyond the portable one", backend=link.backend.name
            )
        try:
            return await call(connection.native_admin)
        except BrokerError as error:
            error.with_context(backend=link.backend.name)
            raise

    async def diagnose(self) -> list[Finding]:
        """Return what the backend finds good, doubtful and wrong with its broker; empty where it does not look.

        Creates and changes nothing; `brokerkit doctor` shows it.
        """
        connection = await self._link().connection()
        return list(await connection.diagnose()) if isinstance(connection, Diagnose) else []

    # --- shared ---

    def _enter(self, topic: Topic[Any] | str) -> str:
        if isinstance(topic, Topic):
            self._link().topology.add_topic(topic)
            return topic.name
        self._link().topology.ensure(check_topic(topic))
        return topic

    @staticmethod
    def _group(spec: TopicSpec, group: str | None) -> GroupSpec | None:
        if group is None:
            return None
        return spec.groups.get(group) or GroupSpec(name=check_group(spec.name, group), tag=TagFilter().expression)

    async def _offering(self, protocol: type[P], capability: Capability, topic: str, call: str) -> P:
        """Return the connection as the protocol of an optional call; raise where it is not offered."""
        link = self._link()
        connection: Connection = await link.connection()
        link.require(capability, topic, call)
        if not isinstance(connection, protocol):
            raise CapabilityNotSupported(f"{call} is declared by the backend but not implemented", topic=topic)
        return connection

    async def _call(self, call: Awaitable[T], topic: str) -> T:
        try:
            return await call
        except BrokerError as error:
            error.with_context(topic=topic, backend=self._link().backend.name)
            raise
        except Exception as exc:
            raise self._link().wrap(exc, topic) from exc


def _ids_of(chosen: Iterable[str | DeadLetter] | None, call: str) -> Sequence[str] | None:
    if chosen is None:
        return None
    if isinstance(chosen, str | DeadLetter):
        # The letters of a string would be taken for ids, of which there are none.
        raise ConfigurationError(f"{call} takes a list of ids or of dead letters, not one alone")
    return [one.id if isinstance(one, DeadLetter) else one for one in chosen]


def dead_letter_of(inbound: Inbound) -> DeadLetter:
    """Return what a dead letter says."""
    headers = inbound.headers
    return DeadLetter(
        message=message_of(inbound),
        topic=inbound.topic,
        group=inbound.group,
        reason=headers.get(DEAD_REASON),
        error_type=headers.get(DEAD_ERROR),
        error=headers.get(DEAD_TEXT),
        traceback=headers.get(DEAD_TRACEBACK),
        attempts=attempt_of(inbound),
        first_failure=_instant(headers.get(DEAD_FIRST)),
        last_failure=_instant(headers.get(DEAD_LAST)),
        host=headers.get(DEAD_HOST),
    )


def _instant(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
