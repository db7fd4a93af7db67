"""`Puller`: reads queues by long polling, one request after the other, while there is room for what they bring."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brokerkit.errors import BrokerError, BrokerUnavailable, ConfigurationError
from brokerkit_rocketmq.errors import NAME, refused, unreachable
from brokerkit_rocketmq.registrations import Subscription
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode
from brokerkit_rocketmq.remoting.errors import RemotingError
from brokerkit_rocketmq.remoting.frames import HeadTemplate
from brokerkit_rocketmq.remoting.messages import BadMessages, decode_messages

if TYPE_CHECKING:
    from brokerkit.spi import Clock
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.reader import Reader
    from brokerkit_rocketmq.remoting.connection import RemotingConnection
    from brokerkit_rocketmq.remoting.frames import Frame
    from brokerkit_rocketmq.remoting.messages import StoredMessage
    from brokerkit_rocketmq.routes import MessageQueue
    from brokerkit_rocketmq.settings import RocketMQSettings
    from brokerkit_rocketmq.sources import Source

__all__ = ["PullLimits", "Puller", "check_expression", "pull_fields"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds for which the broker holds a pull that finds nothing, as Java's client asks for.
_SUSPEND = 15.0
#: It looks at what it holds every 5 s only (``PullRequestHoldService``), and machines may be slow.
_TIMEOUT = _SUSPEND + 10.0
#: Bits of ``sysFlag``: hold the request, and filter by what the request says: so no heartbeat need have come before.
_SUSPENDED, _SUBSCRIPTION = 2, 4
#: Pauses after trouble, in seconds: doubled up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: Seconds before a pull is repeated that brought nothing and was not held.
_IDLE_PAUSE = 0.1
#: Remark of an answer that tells the offset that an administrator has set (``GetMessageStatus``, 5.x).
_RESET = "OFFSET_RESET"
#: ``RequestCode.CHECK_CLIENT_CONFIG``.
_CHECK_CLIENT_CONFIG = 46
#: Bytes of one queue that may wait here when a pull is sent.
_MOST_BYTES = 1 << 20
#: Messages of one queue from the oldest unsettled one on, besides what the application may hold: what is settled above
#: that one is remembered here, and comes again after a crash (``consumeConcurrentlyMaxSpan``).
_MOST_SPAN = 2000


@dataclass(frozen=True, slots=True)
class PullLimits:
    """How much one pull asks for, and how much of one queue may wait here before the next one."""

    #: Messages; the broker's own limit is 32 by default.
    batch: int = 32
    #: Messages that may be in the buffer when a pull is sent.
    most: int = 32
    #: The same in bytes.
    most_bytes: int = _MOST_BYTES
    #: Messages from the oldest unsettled one on, settled or not, that may have been fetched when a pull is sent.
    span: int = _MOST_SPAN
    #: Seconds between two pulls.
    interval: float = 0.0

    def allow_more(self, reader: Reader, arriving: bytes) -> bool:
        """Whether a pull may be sent before what arrives is in the buffer."""
        return (
            not self.interval
            and len(reader.buffer) + self.batch <= self.most
            and reader.buffered + len(arriving) <= self.most_bytes
            and reader.progress.span + self.batch < self.span
        )

    @classmethod
    def of(cls, settings: RocketMQSettings, prefetch: int) -> PullLimits:
        """Return what the settings allow and a consumer with this prefetch needs."""
        batch = settings.pull_batch_size
        return cls(
            batch=batch,
            # One batch waits while another one is on its way; a slow handler needs no more.
            most=min(settings.pull_threshold_messages, max(batch, prefetch // 4)),
            most_bytes=min(settings.pull_threshold_bytes, _MOST_BYTES),
            interval=settings.pull_interval / 1000,
            span=_MOST_SPAN + prefetch,
        )


def pull_fields(
    source: Source, queue: MessageQueue, offset: int, *, count: int, suspend: float = _SUSPEND
) -> dict[str, str]:
    """Return the header of a pull (``PullMessageRequestHeader``); ``suspend`` 0: it is answered at once."""
    main = queue.topic == source.native_topic
    return {
        "consumerGroup": source.native_group,
        "topic": queue.topic,
        "queueId": str(queue.queue_id),
        "queueOffset": str(offset),
        "maxMsgNums": str(count),
        "sysFlag": str(_SUBSCRIPTION | (_SUSPENDED if suspend else 0)),
        "commitOffset": "0",
        "suspendTimeoutMillis": str(int(suspend * 1000)),
        "subscription": source.expression if main else "*",
        "subVersion": "0",
        "expressionType": source.expression_type if main else "TAG",
    }


async def check_expression(client: Client, source: Source, broker: str) -> None:
    """Raise `ConfigurationError` unless ``broker`` understands what the source wants to be filtered by.

    A pull with an expression that cannot be compiled is answered with everything there is (4.9.4 and 5.5.0).
    """
    subscription = Subscription(source.native_topic, source.expression, kind=source.expression_type)
    body = {"clientId": client.client_id, "group": source.native_group, "subscriptionData": subscription.as_json()}
    frame = await client.call(broker, _CHECK_CLIENT_CONFIG, {}, json.dumps(body).encode(), slaves=True)
    if frame.code == ResponseCode.SUCCESS:
        return
    if frame.code == ResponseCode.SYSTEM_ERROR and source.expression_type in (frame.remark or ""):
        raise ConfigurationError(
            f"the broker filters by tags only: {frame.remark}; set enablePropertyFilter=true there",
            topic=source.topic,
            backend=NAME,
        )
    raise refused(frame, f"filtering by the sql {source.expression!r}", topic=source.topic)


class Puller:
    """Fills the buffers of the readers of one consumer.

    arrived: called with a reader when it has messages
    moved:   called with a reader whose next offset is not in the queue, the offset to go on from, and whether an
             administrator wants it so
    failed:  called with a queue and what keeps it from being read, and None when it is read again
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        limits: PullLimits,
        clock: Clock,
        *,
        arrived: Callable[[Reader, list[StoredMessage]], None],
        moved: Callable[[Reader, int, bool], None],
        failed: Callable[[MessageQueue, BrokerError | None], None],
    ) -> None:
        self._client = client
        self._source = source
        self._limits = limits
        self._clock = clock
        self._arrived = arrived
        self._moved = moved
        self._failed = failed

    async def run(self, reader: Reader) -> None:
        """Read until cancelled, through whatever trouble there is."""
        work = _Work(reader)
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._read(work)
            except RemotingError as exc:
                error: BrokerError = unreachable(exc)
            except BrokerError as exc:
                error = exc
            if work.fruitful:
                work.fruitful = False
                pause = _FIRST_PAUSE
            self._report(reader, error)
            # The one that was asked may be the trouble.
            work.broker_id = work.suggested = None
            await self._clock.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _report(self, reader: Reader, error: BrokerError) -> None:
        queue = reader.queue
        log.info("queue %d of %s on %s cannot be read now: %s", queue.queue_id, queue.topic, queue.broker, error)
        if not error.retryable:
            self._failed(queue, error)

    async def _read(self, work: _Work) -> None:
        reader, limits = work.reader, self._limits
        connection = await self._connect(work)
        request: asyncio.Future[Frame] | None = None
        try:
            while True:
                if request is None:
                    if reader.progress.span >= limits.span:
                        self._warn(reader)
                    await reader.room(limits.most, limits.most_bytes, limits.span)
                    if limits.interval:
                        await self._clock.sleep(limits.interval)
                    if connection.error is not None or not work.stays:
                        work.broker_id = work.suggested
                        connection = await self._connect(work)
                    request = self._pull(connection, work, reader.progress.next)
                frame = await request
                request = None
                following = self._following(frame, work)
                if frame.code == ResponseCode.SUCCESS:
                    # Before its messages are looked at, so that the broker works meanwhile.
                    if work.stays and limits.allow_more(reader, frame.body):
                        request = self._pull(connection, work, following)
                    self._take(reader, frame.body, following)
                elif frame.code == ResponseCode.PULL_OFFSET_MOVED:
                    if following == reader.progress.next and frame.remark != _RESET:
                        # A copy of the queue that has not got so far (``DefaultMessageStore``).
                        raise BrokerUnavailable(
                            f"offset {following} of {reader.queue.topic} is not there yet",
                            topic=self._source.topic,
                            backend=NAME,
                        )
                    self._moved(reader, following, frame.remark == _RESET)
                else:
                    await self._nothing(work, following)
        finally:
            if request is not None:
                request.cancel()

    def _warn(self, reader: Reader) -> None:
        queue, progress = reader.queue, reader.progress
        log.warning(
            "queue %d of %s on %s is read on when the message at offset %d is settled: %d after it are fetched",
            queue.queue_id,
            queue.topic,
            queue.broker,
            progress.low,
            progress.span,
        )

    def _pull(self, connection: RemotingConnection, work: _Work, offset: int) -> asyncio.Future[Frame]:
        work.asked = self._clock.monotonic()
        if work.head is None:
            fields = pull_fields(self._source, work.reader.queue, 0, count=self._limits.batch)
            work.head = HeadTemplate(RequestCode.PULL_MESSAGE, fields, "queueOffset")
        before, after = work.head.render(offset)
        return connection.request_rendered(before, after, b"", timeout=_TIMEOUT)

    async def _connect(self, work: _Work) -> RemotingConnection:
        broker = work.reader.queue.broker
        if work.broker_id:
            link = await self._client.link(broker, broker_id=work.broker_id)
        else:
            link = await self._client.link(broker, slaves=True)
        return await link.connected(self._client.options.timeout)

    def _following(self, frame: Frame, work: _Work) -> int:
        """Return where to go on; raise `BrokerError` when the pull was refused."""
        if frame.code == ResponseCode.TOPIC_NOT_EXIST:
            # Whether it is gone for good is for the routes to say.
            topic = work.reader.queue.topic
            self._client.routes.invalidate(topic)
            raise BrokerUnavailable(f"the broker has no topic {topic}", topic=self._source.topic, backend=NAME)
        if frame.code not in _ANSWERS:
            raise refused(frame, f"reading {work.reader.queue.topic}", topic=self._source.topic)
        if not work.fruitful:
            work.fruitful = True
            self._failed(work.reader.queue, None)
        # A master that is short of memory, or has what is asked for on disk only, names a copy to read from.
        suggested = frame.fields.get("suggestWhichBrokerId")
        work.suggested = int(suggested) or None if suggested is not None else None
        return int(frame.fields.get("nextBeginOffset", work.reader.progress.next))

    def _take(self, reader: Reader, body: bytes, following: int) -> None:
        try:
            messages = decode_messages(body)
        except BadMessages as exc:
            messages = exc.messages
            log.error("queue %d of %s holds what is no message: %s", reader.queue.queue_id, reader.queue.topic, exc)
            if not messages:
                raise BrokerUnavailable(
                    f"queue {reader.queue.queue_id} of {reader.queue.topic} cannot be read: {exc}", backend=NAME
                ) from exc
            following = messages[-1].queue_offset + 1
        reader.fill(messages, following)
        self._arrived(reader, messages)

    async def _nothing(self, work: _Work, following: int) -> None:
        reader = work.reader
        advanced = following > reader.progress.next
        if advanced:
            # What lies between is kept away by the filter.
            reader.fill([], following)
            self._arrived(reader, [])
        elif self._clock.monotonic() - work.asked < _IDLE_PAUSE:
            # A broker without long polling.
            await self._clock.sleep(_IDLE_PAUSE)


class _Work:
    """What is to be remembered of one reader between two pulls."""

    __slots__ = ("asked", "broker_id", "fruitful", "head", "reader", "suggested")

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        #: Which of the brokers of this name to ask; None: the master, or a copy when it is away.
        self.broker_id: int | None = None
        self.suggested: int | None = None
        self.asked = 0.0
        #: The header of its pulls.
        self.head: HeadTemplate | None = None
        #: Whether a pull was answered since the last trouble.
        self.fruitful = False

    @property
    def stays(self) -> bool:
        """Whether the next pull is for the same broker."""
        return self.broker_id == self.suggested


_ANSWERS = frozenset(
    {
        ResponseCode.SUCCESS,
        ResponseCode.PULL_NOT_FOUND,
        ResponseCode.PULL_RETRY_IMMEDIATELY,
        ResponseCode.PULL_OFFSET_MOVED,
    }
)
