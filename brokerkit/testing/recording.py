"""A broker in memory that remembers what was sent and handled: the one behind `brokerkit.testing.in_memory`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from brokerkit.admin import DeadLetter, dead_letter_of
from brokerkit.clock import Clock
from brokerkit.embedded.audience import Audience
from brokerkit.embedded.backend import EmbeddedBackend
from brokerkit.embedded.connection import EmbeddedConnection
from brokerkit.embedded.consumer import EmbeddedConsumer
from brokerkit.embedded.memory import MemoryStore
from brokerkit.embedded.ready import Entry, Record, inbound
from brokerkit.embedded.settings import EmbeddedSettings
from brokerkit.embedded.store import Store
from brokerkit.embedded.url import Location
from brokerkit.envelope import attempt_of, message_of
from brokerkit.events import ErrorEvent
from brokerkit.message import Message
from brokerkit.spi import Capability, ConnectOptions, ConsumerOptions, Inbound, Outbound, ToDead, ToGroup, ToTopic

__all__ = ["Handled", "RecordingBackend"]

#: Seconds that a look for messages lasts: a store in memory wakes its consumers, and a look every second, as the
#: core takes it, would be most of the work of a virtual hour.
_LOOK = 3600.0
#: Offered in any case: what only a crash shows, which does not happen here, and what makes the topics.
_ALWAYS = frozenset({Capability.ATOMIC_SETTLE, Capability.START_MARKS, Capability.MANAGE})
#: Seconds; a lease that never ends.
_FOR_EVER = 1e10


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
    """One message that was handled by one group."""

    #: As the handler got it.
    message: Message
    group: str
    #: The handler's qualified name; None where `consume` took the message and acknowledged it.
    handler: str | None
    #: Number of the start that succeeded: 1 when it worked at once.
    attempt: int
    #: What the starts before it failed with, in their order.
    errors: tuple[BaseException, ...] = ()
    #: What the handler returned, follow-ups aside; of a result object what a reply would hold.
    result: Any = None
    #: The messages that it returned, as they were sent.
    follow_ups: tuple[Message, ...] = ()


class _RecordingStore(MemoryStore):
    def __init__(self, settings: EmbeddedSettings, clock: Clock, sent: Callable[[Message], object]) -> None:
        # With a name it keeps its messages while no connection is open.
        super().__init__(settings, clock, name="in-memory")
        self._sent = sent

    def _put(self, message: Outbound, now: float, woken: set[Audience]) -> None:
        super()._put(message, now, woken)
        if isinstance(message.destination, ToTopic):
            self._sent(_sent_message(message, message.destination))

    def letters(self) -> list[DeadLetter]:
        with self._lock:
            found = [
                (entry.record.seq, inbound(entry, topic.name, group.name, None))
                for topic in self._topics.values()
                for group in topic.groups.values()
                for entry in group.dead.values()
            ]
        return [dead_letter_of(letter) for _, letter in sorted(found, key=lambda each: each[0])]


def _sent_message(message: Outbound, destination: ToTopic) -> Message:
    return message_of(inbound(Entry(Record(message, True), None, 0.0), destination.topic, "", None))


class _RecordingConsumer(EmbeddedConsumer):
    """Sees what was started and then acknowledged, or acknowledged together with follow-ups and replies."""

    recorder: RecordingBackend
    #: As the application calls it; a broadcast group has another name in the store.
    group: str = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._starts: Counter[object] = Counter()

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Inbound]:
        return await super().receive(max_messages, max(timeout, _LOOK) if timeout >= 1.0 else timeout)

    def mark_started(self, message: Inbound) -> None:
        super().mark_started(message)
        self._starts[message.token] += 1

    async def ack(self, messages: Sequence[Inbound]) -> None:
        held = [message for message in messages if message.token in self._held]
        await super().ack(messages)
        for message in held:
            self._done(message)

    async def settle_with(self, message: Inbound, outbounds: Sequence[Outbound]) -> None:
        held = message.token in self._held
        await super().settle_with(message, outbounds)
        # A copy for a group is a retry, a deferral or a dead letter.
        if held and not any(isinstance(outbound.destination, ToGroup | ToDead) for outbound in outbounds):
            self._done(message)
        self._starts.pop(message.token, None)
        self.recorder.forget(message)

    async def release(self, messages: Sequence[Inbound]) -> None:
        await super().release(messages)
        for message in messages:
            self._starts.pop(message.token, None)
            self.recorder.forget(message)

    def _done(self, message: Inbound) -> None:
        starts = self._starts.pop(message.token, 0)
        if starts:
            self.recorder.done(message, self.group, starts)
        else:
            self.recorder.was_dropped(message)


class _RecordingConnection(EmbeddedConnection):
    consumer_class = _RecordingConsumer
    recorder: RecordingBackend

    async def open_consumer(self, options: ConsumerOptions) -> EmbeddedConsumer:
        consumer = await super().open_consumer(options)
        if isinstance(consumer, _RecordingConsumer):
            consumer.recorder, consumer.group = self.recorder, options.group
        return consumer


class RecordingBackend(EmbeddedBackend):
    """The embedded broker in memory, one store for all connections.

    handler_of: returns the name of the handler of a topic, a group and a message type
    offered:    what another broker offers; the rest is refused as it would be there
    """

    connection_class = _RecordingConnection

    def __init__(
        self,
        clock: Clock,
        handler_of: Callable[[str, str, str | None], str | None],
        offered: frozenset[Capability] | None = None,
    ) -> None:
        self.sent: list[Message] = []
        self.handled: list[Handled] = []
        self.failures: list[ErrorEvent] = []
        self._clock = clock
        self._handler_of = handler_of
        self._lacking = frozenset() if offered is None else frozenset(Capability) - offered - _ALWAYS
        self._store: _RecordingStore | None = None
        #: What the handlers of messages returned that are not acknowledged yet.
        self._returned: dict[Inbound, tuple[Any, tuple[Message, ...]]] = {}
        #: Messages that were acknowledged because they could not be kept.
        self._dropped: Counter[str | None] = Counter()

    def offers(self, store: Store, topic: str) -> frozenset[Capability]:
        return super().offers(store, topic) - self._lacking

    async def connect(self, options: ConnectOptions) -> EmbeddedConnection:
        if Capability.LEASE in self._lacking:
            # There a delivery is its consumer's until the connection ends.
            options = replace(options, section={**options.section, "lease": _FOR_EVER})
        connection = await super().connect(options)
        if isinstance(connection, _RecordingConnection):
            connection.recorder = self
        return connection

    def make_store(self, location: Location, settings: EmbeddedSettings, options: ConnectOptions) -> Store:
        if self._store is None:
            self._store = _RecordingStore(settings, self._clock, self.sent.append)
        return self._store

    @property
    def dead(self) -> list[DeadLetter]:
        """The dead letters that are there now, of all groups, oldest first."""
        return [] if self._store is None else self._store.letters()

    def failed(self, event: ErrorEvent) -> None:
        """Note what the error hook of the manager was told."""
        self.failures.append(event)
        if event.kind == "dropped" and event.message is not None:
            self._dropped[event.message.message_id] += 1

    def returned(self, delivery: Inbound, result: Any, outbounds: Sequence[Outbound]) -> None:
        """Note what the handler of a delivery returned, which is not acknowledged yet."""
        follow_ups = (
            _sent_message(outbound, outbound.destination)
            for outbound in outbounds
            if isinstance(outbound.destination, ToTopic)
        )
        self._returned[delivery] = result, tuple(follow_ups)

    def forget(self, delivery: Inbound) -> None:
        """Forget what the handler of a delivery returned: it was not handled."""
        self._returned.pop(delivery, None)

    def was_dropped(self, delivery: Inbound) -> bool:
        """Whether a delivery was acknowledged because its message was dropped; one drop counts once."""
        dropped = self._dropped[delivery.message_id] > 0
        if dropped:
            self._dropped[delivery.message_id] -= 1
        return dropped

    def done(self, delivery: Inbound, group: str, starts: int) -> None:
        """Note that a delivery was acknowledged after its handler was started ``starts`` times."""
        result, follow_ups = self._returned.pop(delivery, (None, ()))
        if self.was_dropped(delivery):
            return
        # Retries in place start again on the same delivery.
        attempt = attempt_of(delivery) + starts - 1
        self.handled.append(
            Handled(
                message=message_of(delivery, self._clock.time(), attempt),
                group=group,
                handler=self._handler_of(delivery.topic, group, delivery.type),
                attempt=attempt,
                errors=self._errors_before(delivery, group, attempt),
                result=result,
                follow_ups=follow_ups,
            )
        )

    def _errors_before(self, delivery: Inbound, group: str, attempt: int) -> tuple[BaseException, ...]:
        if attempt == 1:
            return ()
        errors = [
            event.error
            for event in self.failures
            if event.kind == "failed" and (event.topic, event.group) == (delivery.topic, group)
            if event.error is not None and event.message is not None
            if event.message.message_id == delivery.message_id
        ]
        # What came before a dead letter was redriven is another story.
        return tuple(errors[1 - attempt :])
