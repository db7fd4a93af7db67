r"""Between the messages of the SPI and RocketMQ's: which field travels where.

RocketMQ has a body, 32 bits of flag, and properties, texts by name.  Some names mean something to it:

==================  =============================================================================================
``UNIQ_KEY``        the message id
``KEYS``            the key, by which the broker finds messages, and further ones from ``native=``
``TAGS``            the tag; of a message to an inbox, its address
``CORRELATION_ID``  the correlation id
``__SHARDINGKEY``   the key, on topics with an order: the message group of gRPC clients
``RETRY_TOPIC``     the topic, of a message in a retry or dead-letter topic
``DELAY``           delay level; on 5.x ``TIMER_DELIVER_MS`` instead
==================  =============================================================================================

Headers are properties of their own names, and these hold the rest:

==================  =============================================================================================
``bk-key``          the key, where ``KEYS`` is not the same text
``bk-tag``          the tag of a message to an inbox
``bk-type``         the type; likewise ``bk-content-type``, ``bk-reply-to``, ``bk-prio``
``bk-due``          not before, in epoch seconds
``bk-time``         the timestamp; the one that RocketMQ stores has milliseconds, and is one for a whole batch
``bk-empty``        the body is empty, and the zero byte that is sent stands for it: 5.x takes no empty ones, and a
                    Java member of 4.9 never gets past one (``ProcessQueue.putMessage`` reads the length of null)
``bk-hidden``       JSON: fields and headers that RocketMQ would interpret or drop: names of its own, empty values,
                    texts with its separators
``bk-packed``       headers, compressed: of a retry or a dead letter that would have too many bytes of properties
==================  =============================================================================================

``bk-foreign`` and ``bk-stored`` do not travel: they are how what the SPI has no place for gets from a received message
into its retry and its dead letter: the flag and some properties of a foreign sender, and that a body which cannot be
decompressed here is still compressed.
"""

from __future__ import annotations

from brokerkit.errors import ConfigurationError, MessageTooLarge
from brokerkit.spi import Clock, Inbound, Outbound, ToGroup, ToInbox, ToTopic
from brokerkit_rocketmq.delays import DELAY, Delays, parse_levels
from brokerkit_rocketmq.errors import NAME
from brokerkit_rocketmq.layouts import Layouts
from brokerkit_rocketmq.names import Names
from brokerkit_rocketmq.native import NativeOptions, native_options
from brokerkit_rocketmq.property_limits import MOST_NEW, fitting
from brokerkit_rocketmq.property_text import (
    CONTENT_TYPE,
    CORRELATION,
    DUE,
    EMPTY,
    FOREIGN,
    KEY,
    KEYS,
    MESSAGE_ID,
    NOTHING,
    ORIGIN_ID,
    ORIGIN_TOPIC,
    PRIORITY,
    REPLY_TO,
    RETRY_TOPIC,
    SHARDING,
    STORED,
    TAG,
    TAGS,
    TIME,
    TYPE,
    Pairs,
    join,
    join_fields,
    mark,
    number,
    plain_text,
    read_rest,
    restore,
    written_attempt,
)
from brokerkit_rocketmq.remoting.compression import COMPRESSED, CompressionError, compress
from brokerkit_rocketmq.remoting.messages import StoredMessage
from brokerkit_rocketmq.settings import RocketMQSettings

__all__ = ["MAX_RECONSUME", "Codec", "WireMessage"]

#: Larger than any count: the broker must never turn a copy of ours into a dead letter.
MAX_RECONSUME = 2_000_000_000


class WireMessage:
    """A message as the headers and the body of a send request want it."""

    __slots__ = (
        "batchable",
        "body",
        "born",
        "delayed",
        "flag",
        "oneway",
        "properties",
        "reconsume_times",
        "size",
        "sys_flag",
        "topic",
    )

    #: The same for all.
    max_reconsume_times = MAX_RECONSUME

    def __init__(self, topic: str, body: bytes, properties: str, size: int, born: int) -> None:
        #: The native topic.
        self.topic = topic
        self.body = body
        self.properties = properties
        #: Bytes of body and properties.
        self.size = size
        #: Milliseconds since the epoch.
        self.born = born
        self.flag = 0
        self.sys_flag = 0
        self.reconsume_times = 0
        #: Whether the broker holds it back for a time.
        self.delayed = False
        #: Whether it may be a member of a batch.
        self.batchable = True
        #: Whether no answer is waited for.
        self.oneway = False


class Codec:
    """Encodes and decodes for one connection.  ``clock`` has the ``time`` of brokerkit's clocks."""

    def __init__(self, names: Names, settings: RocketMQSettings, clock: Clock) -> None:
        self._names = names
        self._clock = clock
        self._largest = settings.max_message_size
        over = settings.compress_over
        self._plain_below = self._largest if over is None else min(over, self._largest)
        self._timers = settings.timers == "auto"
        self._levels = Delays()
        self._timed = Delays(timers=True)
        self._layouts = Layouts()
        if settings.delay_levels is not None:
            self.use_levels(parse_levels(settings.delay_levels))

    def use_levels(self, levels: tuple[float, ...]) -> None:
        """Delay by these levels, in seconds, from now on: what the broker's messageDelayLevel says."""
        self._levels = Delays(levels)

    # --- on the way out ---

    def encode(self, message: Outbound, *, five: bool, topic: str | None = None) -> WireMessage:
        """Return the message for a broker of 5.x (``five``) or of 4.9; ``topic``: its native topic, if known.

        Raise `MessageTooLarge` that names the limit, `ConfigurationError` for options that RocketMQ has not and for
        names that it does not take.
        """
        destination, body = message.destination, message.body
        if (
            type(destination) is ToTopic
            and not message.headers
            and message.native is None
            and message.due is None
            and 0 < len(body) <= self._plain_below
        ):
            # Most messages are so plain, and this takes half the time.
            text = plain_text(message)
            if text is not None:
                size = len(text) if text.isascii() else len(text.encode())
                if size <= MOST_NEW:
                    native = topic or self._names.topic(destination.topic)
                    return WireMessage(native, body, text, size + len(body), self._born(message))
        return self._encode_any(message, five)

    def _born(self, message: Outbound) -> int:
        stamp = message.timestamp
        return int((stamp if stamp > 0 else self._clock.time()) * 1000)

    def _encode_any(self, message: Outbound, five: bool) -> WireMessage:
        options = native_options(message.native) if message.native else None
        headers = message.headers
        topic, again, pairs = self._address(message)
        _add_fields(pairs, message, options)
        delayed = False
        if message.due is not None:
            pairs.append((DUE, repr(message.due)))
            delays = self._timed if five and self._timers else self._levels
            delay = delays.of(message.due, self._clock.time())
            if delay is not None:
                pairs.append(delay)
                delayed = True
        flag = 0
        if options is not None:
            flag = options.flag
            pairs += options.properties.items()
            if options.delay_level is not None:
                if message.due is not None:
                    raise ConfigurationError("native delay_level and a delay contradict each other", backend=NAME)
                pairs.append((DELAY, str(options.delay_level)))
                delayed = True
        body, sys_flag = message.body, 0
        if not body:
            body = NOTHING
            pairs.append((EMPTY, "1"))
        elif STORED in headers:
            sys_flag = _stored_flags(headers[STORED])
        elif len(body) > self._plain_below:
            body, sys_flag = self._shrink(body, again)
        if FOREIGN in headers:
            flag = restore(pairs, headers[FOREIGN], flag)
        text = join(pairs, headers) if headers else join_fields(pairs)
        size = len(text) if text.isascii() else len(text.encode())
        if size > MOST_NEW:
            text, size = fitting(text, size, pairs, headers, again)
        wire = WireMessage(topic, body, text, size + len(body), self._born(message))
        wire.flag = flag
        wire.sys_flag = sys_flag
        wire.delayed = delayed
        if again:
            # RocketMQ counts the deliveries before.
            wire.reconsume_times = max((written_attempt(headers) or 1) - 1, 0)
        if again or delayed or sys_flag or not body:
            wire.batchable = False
        if options is not None and options.oneway:
            wire.oneway = True
        return wire

    def _address(self, message: Outbound) -> tuple[str, bool, Pairs]:
        """Return the native topic, whether it is a copy of what was received, and the first properties."""
        destination = message.destination
        pairs: Pairs = [(MESSAGE_ID, message.message_id)]
        if isinstance(destination, ToTopic):
            if message.tag is not None:
                pairs.append((TAGS, message.tag))
            return self._names.topic(destination.topic), False, pairs
        if isinstance(destination, ToInbox):
            pairs.append((TAGS, destination.address))
            if message.tag is not None:
                pairs.append((TAG, message.tag))
            return self._names.inbox, False, pairs
        topic, group = destination.topic, destination.group
        origin = self._names.topic(topic)
        pairs.append((RETRY_TOPIC, origin))
        if message.tag is not None:
            pairs.append((TAGS, message.tag))
        if isinstance(destination, ToGroup):
            return self._names.retry(topic, group), True, pairs
        pairs.append((ORIGIN_TOPIC, origin))
        return self._names.dead(topic, group), True, pairs

    def _shrink(self, body: bytes, again: bool) -> tuple[bytes, int]:
        """Return the body, compressed where that is wanted and helps, and its flags; raise `MessageTooLarge`."""
        if not again and len(body) > self._largest:
            raise MessageTooLarge(f"the body has {len(body)} bytes, max_message_size is {self._largest}", backend=NAME)
        # A copy of what somebody sent compressed may be too large as it is, hence also below `compress_over`.
        smaller = compress(body)
        return (smaller, COMPRESSED) if len(smaller) < len(body) else (body, 0)

    # --- on the way in ---

    def decode(self, stored: StoredMessage, topic: str, group: str) -> Inbound:
        """Return the message; ``topic`` and ``group`` are the application's names.  Token and redelivered are not set.

        Never raises for what a foreign sender wrote.  A body that cannot be decoded is the stored bytes, with
        `Inbound.problem`.
        """
        if not stored.flag and not stored.sys_flag & COMPRESSED and stored.problem is None:
            plain = self._decode_plain(stored, topic, group)
            if plain is not None:
                return plain
        found = stored.own_properties()
        pop = found.pop
        problem = stored.problem
        try:
            body = stored.body if problem is None else stored.raw_body
        except CompressionError as exc:
            body, problem = stored.raw_body, str(exc)
        message_id = pop(MESSAGE_ID, None)
        origin_id = pop(ORIGIN_ID, None)
        keys = pop(KEYS, None)
        inbound = Inbound(
            topic=topic,
            group=group,
            body=body,
            message_id=message_id or origin_id or stored.offset_id,
            key=pop(KEY, keys),
            tag=pop(TAGS, None),
            type=pop(TYPE, None),
            content_type=pop(CONTENT_TYPE, None),
            correlation_id=pop(CORRELATION, None),
            reply_to=pop(REPLY_TO, None),
            native_attempt=stored.reconsume_times + 1 if stored.reconsume_times > 0 else 1,
            native=stored,
        )
        stamp = pop(TIME, None)
        written = None if stamp is None else number(stamp)
        if written is not None:
            inbound.timestamp = written
        elif stored.born_timestamp > 0:
            inbound.timestamp = stored.born_timestamp / 1000
        if stored.topic == self._names.inbox:
            # There it is an address.
            inbound.tag = pop(TAG, None)
        if found or stored.flag:
            read_rest(inbound, found, stored.flag)
        if problem is not None:
            mark(inbound, stored, problem)
        return inbound

    def _decode_plain(self, stored: StoredMessage, topic: str, group: str) -> Inbound | None:
        """Return what `decode` would, in a third of the time, where the properties are laid out as others before."""
        if stored.topic == self._names.inbox:
            return None
        layouts = self._layouts
        text = str(stored.raw_properties, "utf-8", "replace")
        for layout in layouts.tried:
            values = layout.match(text)
            if values is not None:
                break
        else:
            layouts.learn(stored.properties)
            return None
        if layout is not layouts.tried[0]:
            layouts.prefer(layout)
        message_id, key, tag, kind, content_type, correlation_id, reply_to, stamp = values.group(*layout.fields)
        headers = {name: values[place] for name, place in layout.headers} if layout.headers else {}
        written = None if stamp is None else number(stamp)
        if written is None and stored.born_timestamp > 0:
            written = stored.born_timestamp / 1000
        attempt = stored.reconsume_times + 1 if stored.reconsume_times > 0 else 1
        # By position, in the order of its fields: names would take twice as long.
        return Inbound(
            topic, group, stored.raw_body, message_id or stored.offset_id, headers, None, key, tag, kind, content_type,
            0, written, correlation_id, reply_to, None, None, attempt, None, None, stored,
        )  # fmt: skip


def _add_fields(pairs: Pairs, message: Outbound, options: NativeOptions | None) -> None:
    if message.timestamp > 0:
        pairs.append((TIME, repr(message.timestamp)))
    if message.content_type is not None:
        pairs.append((CONTENT_TYPE, message.content_type))
    words = message.key
    if options is not None and options.keys:
        words = " ".join(options.keys)
        if message.key is not None:
            words = f"{message.key} {words}"
            pairs.append((KEY, message.key))
    if words is not None:
        pairs.append((KEYS, words))
        if message.ordered and message.key is not None:
            pairs.append((SHARDING, message.key))
    if message.type is not None:
        pairs.append((TYPE, message.type))
    if message.correlation_id is not None:
        pairs.append((CORRELATION, message.correlation_id))
    if message.reply_to is not None:
        pairs.append((REPLY_TO, message.reply_to))
    if message.priority:
        pairs.append((PRIORITY, str(message.priority)))


def _stored_flags(text: str) -> int:
    """Return the flags of a body that could not be decompressed here, and goes on as it is."""
    return int(text) if text.isdecimal() and len(text) < 6 else 0
