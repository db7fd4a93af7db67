"""`Strand`: messages for any queue of a topic, or for one of its queues in their order, and the answers to them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from brokerkit.errors import AccessRefused, BrokerError, SendRefused, TopicNotFound
from brokerkit.spi import Clock
from brokerkit_rocketmq.batching import MOST_MESSAGES, Parcel, pack
from brokerkit_rocketmq.calls import Entry
from brokerkit_rocketmq.errors import NAME, fresh, is_stored, refused, unanswered
from brokerkit_rocketmq.remoting.codes import ResponseCode
from brokerkit_rocketmq.remoting.errors import Oversized, RemotingError
from brokerkit_rocketmq.remoting.names import RETRY_PREFIX

if TYPE_CHECKING:
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.mapping import Codec
    from brokerkit_rocketmq.outlets import Outlet, Outlets
    from brokerkit_rocketmq.queue_choice import Fixed, Rotation
    from brokerkit_rocketmq.remoting.frames import Frame
    from brokerkit_rocketmq.routes import MessageQueue, Route

__all__ = ["Sending", "Strand"]

#: The broker has too much to do at the moment.
_BUSY = frozenset({ResponseCode.SYSTEM_BUSY, ResponseCode.FLOW_CONTROL})
#: It takes no messages, another one may (``DefaultMQProducer.retryResponseCodes``).
_AWAY = frozenset({ResponseCode.SERVICE_NOT_AVAILABLE, ResponseCode.NO_PERMISSION, ResponseCode.GO_AWAY})
#: Requests under way to one broker behind which messages wait for company.  Messages that come one by one, each when
#: another one is answered, would else leave one by one for ever, and brokers and we work for each request.
_BEHIND = 8
#: What a batch is refused with for the sake of one message: 4.9.x answers 13 and 5.x also 1.
_BAD_MESSAGE = frozenset({ResponseCode.SYSTEM_ERROR, ResponseCode.MESSAGE_ILLEGAL})


@dataclass(frozen=True, slots=True)
class Sending:
    """What all strands of a producer share."""

    client: Client
    codec: Codec
    outlets: Outlets
    clock: Clock
    #: The producer group that the brokers are told.
    group: str
    #: Bytes of a batch.
    most_bytes: int
    #: Makes a topic that does not exist, or raises `BrokerError`; called with its native name.
    missing: Callable[[str], Awaitable[None]] | None = None

    async def route(self, topic: str, *, refresh: bool = False) -> Route:
        """Return the route of a topic, which is made where it is missing and that is allowed; raise `BrokerError`."""
        routes = self.client.routes
        try:
            return await routes.route(topic, refresh=refresh)
        except TopicNotFound:
            if self.missing is None:
                raise
        await self.missing(topic)
        return await routes.route(topic)


class Strand:
    """Writes what there is room for; the rest waits here, and leaves when there is room or when its time is up.

    ``ordered``: one request at a time, so that messages are stored in the order in which they were added.  What
    a failed request leaves behind of its calls fails with it, or the caller could not put it in its place again.
    """

    def __init__(
        self, topic: str, choice: Rotation | Fixed, sending: Sending, *, ordered: bool = False, oneway: bool = False
    ) -> None:
        self.choice = choice
        self.waiting: deque[Entry] = deque()
        #: Requests without an answer, and those that are looked into before they are tried again.
        self.in_flight = 0
        #: Called when one of them is over.
        self.on_over: Callable[[], None] | None = None
        self._topic = topic
        self._sending = sending
        #: The group that sends.  For a retry it is the group itself: the ACL of 4.9 looks at the sender's permission
        #: for its own retry topic (PlainAccessValidator), and who handles has that one.
        self._sender = topic.removeprefix(RETRY_PREFIX) if topic.startswith(RETRY_PREFIX) else sending.group
        self._ordered = ordered
        self._oneway = oneway
        #: What was refused in company or by an old route, and is tried once more before all else, one by one.
        self._again: deque[Entry] = deque()
        #: Tasks that read the route again.
        self._checks: set[asyncio.Task[None]] = set()
        self._closed = False
        #: Whether the last one was sent together with others, and whether it may have been.
        self._in_company = False
        self._batchable = True
        #: Requests without an answer by broker, and the messages in them.
        self._requests: dict[Outlet, int] = {}
        self._messages = 0

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not (self.in_flight or self.waiting or self._again)

    @property
    def is_quiet(self) -> bool:
        """Whether messages seem to come one after the other: waiting for company would only take time."""
        return not self._in_company and self.idle

    # --- going out ---

    def flush(self) -> None:
        """Go on as far as possible."""
        sending = self._sending
        most = min(MOST_MESSAGES, self.choice.share_of(len(self.waiting) + self._messages))
        while (self.waiting or self._again) and not (self._ordered and self.in_flight) and not self._closed:
            place = self.choice.next(sending.clock.monotonic(), self._crowded(most))
            if place is None:
                sending.outlets.wait(self)
                return
            queue, outlet = place
            encode = partial(sending.codec.encode, five=outlet.five, topic=self._topic)
            if self._again:
                parcel = pack(self._again, encode, most_messages=1, most_bytes=0, second=True)
            else:
                parcel = pack(self.waiting, encode, most_messages=most, most_bytes=sending.most_bytes)
            if parcel is not None:
                self._post(parcel, queue, outlet)

    def _crowded(self, most: int) -> Collection[Outlet]:
        """Return the brokers whose next answer is worth waiting for: by then there may be ``most`` messages."""
        if self._ordered or self._again or not self._batchable or len(self.waiting) >= most:
            return ()
        return [outlet for outlet, requests in self._requests.items() if requests >= _BEHIND]

    def _post(self, parcel: Parcel, queue: MessageQueue, outlet: Outlet) -> None:
        sending = self._sending
        connection = outlet.connection
        if connection is None:
            raise RuntimeError(f"{outlet.name} was chosen without a connection")
        self._in_company = parcel.is_batch
        self._batchable = parcel.wire.batchable
        fields = parcel.fields(self._sender, queue.queue_id)
        if self._oneway:
            try:
                connection.send_oneway(parcel.code, fields, parcel.body)
            except Oversized as exc:
                parcel.failed(unanswered(exc, connection.peer))
            else:
                parcel.stored()
            return
        outlet.took(len(parcel.entries), len(parcel.body))
        self._requests[outlet] = self._requests.get(outlet, 0) + 1
        self._messages += len(parcel.entries)
        self.in_flight += 1
        timeout = max(0.0, parcel.deadline - sending.clock.monotonic())
        # Where nothing else seems to come: the next turn of the loop would be a tenth of its round trip.
        alone = connection.in_flight == 0
        answered = partial(self._answered, parcel, outlet)
        connection.ask(parcel.code, fields, parcel.body, answered, timeout=timeout, at_once=alone)
        parcel.mark_written()

    # --- answers ---

    def _answered(self, parcel: Parcel, outlet: Outlet, answer: Frame | RemotingError) -> None:
        outlet.returned(len(parcel.entries), len(parcel.body))
        self._messages -= len(parcel.entries)
        left = self._requests.pop(outlet) - 1
        if left:
            self._requests[outlet] = left
        if isinstance(answer, RemotingError):
            self._lost(parcel, outlet, answer)
        elif answer.code == ResponseCode.SUCCESS:
            outlet.well()
            parcel.stored()
        else:
            self._refused(parcel, outlet, answer)
        self._over()

    def _over(self) -> None:
        self.in_flight -= 1
        if self.waiting or self._again:
            self.flush()
        if self.on_over is not None:
            self.on_over()
        self._sending.outlets.stir()

    def _lost(self, parcel: Parcel, outlet: Outlet, exc: RemotingError) -> None:
        if not isinstance(exc, Oversized):
            outlet.avoid()
            self._sending.client.routes.invalidate(self._topic)
        self._fail(parcel, unanswered(exc, outlet.name))

    def _refused(self, parcel: Parcel, outlet: Outlet, frame: Frame) -> None:
        code = frame.code
        error = refused(frame, f"a send to {self._topic!r}", send=True)
        if code == ResponseCode.TOPIC_NOT_EXIST and not parcel.second:
            self._check(parcel)
            return
        if parcel.is_batch and code in _BAD_MESSAGE and not isinstance(error, AccessRefused):
            self._again.extendleft(reversed(parcel.entries))
            return
        if is_stored(code):
            outlet.well()
        elif code in _BUSY:
            outlet.busy()
        elif code in _AWAY and error.retryable:
            outlet.avoid()
            self._sending.client.routes.invalidate(self._topic)
        self._fail(parcel, error)

    def _fail(self, parcel: Parcel, error: BrokerError) -> None:
        calls = {call for _, call, _ in parcel.entries}
        parcel.failed(error)
        if not self._ordered or not error.retryable:
            return
        for entries in (self._again, self.waiting):
            left = [entry for entry in entries if entry[1] not in calls]
            if len(left) < len(entries):
                for _, call, index in entries:
                    if call in calls:
                        call.settle(index, _left_behind(error))
                entries.clear()
                entries.extend(left)

    # --- a topic that the broker does not know ---

    def _check(self, parcel: Parcel) -> None:
        # Counted as under way: nothing overtakes it.
        self.in_flight += 1
        task = asyncio.get_running_loop().create_task(self._read_again(parcel), name=f"brokerkit-route-{self._topic}")
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _read_again(self, parcel: Parcel) -> None:
        """Send it once more if there is such a topic now, maybe on other brokers."""
        try:
            await self._sending.route(self._topic, refresh=True)
        except BrokerError as error:
            self._fail(parcel, error)
        else:
            self._again.extendleft(reversed(parcel.entries))
        self._over()

    # --- giving up ---

    def unreachable(self, outlet: Outlet, error: BrokerError) -> None:
        """A connection could not be made: give up what only that broker could have taken."""
        outlets = self.choice.outlets
        if outlet in outlets and not any(one.is_open or one.is_connecting for one in outlets):
            self.fail_waiting(error)
        else:
            self.flush()

    def fail_waiting(self, error: BrokerError) -> None:
        """Give up all that is not under way."""
        for entries in (self._again, self.waiting):
            while entries:
                _, call, index = entries.popleft()
                call.settle(index, fresh(error))

    def withdraw(self) -> list[Entry]:
        """Return what is not under way, in its order; it does not leave from here any more."""
        entries = [*self._again, *self.waiting]
        self._again.clear()
        self.waiting.clear()
        return entries

    def drop_expired(self) -> None:
        """Forget what waited and is given up."""
        for entries in (self._again, self.waiting):
            while entries and entries[0][1].done.done():
                entries.popleft()

    def close(self) -> list[asyncio.Task[None]]:
        """Send nothing more, and look at no more answers; return the tasks that were cancelled."""
        self._closed = True
        self._sending.outlets.leave(self)
        checks = list(self._checks)
        for task in checks:
            task.cancel()
        return checks


def _left_behind(error: BrokerError) -> BrokerError:
    return SendRefused(f"not sent, to keep the order: the message before it failed: {error.message}", backend=NAME)
