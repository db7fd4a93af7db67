"""Which queue a message goes to: the next one that has room, or the one that its key says."""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from brokerkit_rocketmq.outlets import Outlet, Outlets

if TYPE_CHECKING:
    from brokerkit_rocketmq.routes import MessageQueue, Route

__all__ = ["Fixed", "Rotation", "queue_of_key", "settled_queues"]

#: Messages that are worth a request of their own when there is company.
_LEAST_SHARE = 2


class Rotation:
    """The queues of a topic whose messages may go to any of them, one after the other.

    Neighbours are on different brokers.  Brokers that failed lately come last.
    """

    __slots__ = ("_last", "_places", "outlets")

    def __init__(self, queues: Iterable[MessageQueue], outlets: Outlets) -> None:
        self._places = [
            (queue, outlets.get(queue.broker)) for queue in sorted(queues, key=lambda one: (one.queue_id, one.broker))
        ]
        #: Processes that send little would all begin at the same queue.
        self._last = random.randrange(len(self._places)) if self._places else -1
        self.outlets = tuple({outlet.name: outlet for _, outlet in self._places}.values())

    def share_of(self, count: int) -> int:
        """Return how many of ``count`` messages one request takes, so that all consumers get some of them."""
        return max(_LEAST_SHARE, -(-count // max(1, len(self._places))))

    def next(self, now: float, crowded: Collection[Outlet] = ()) -> tuple[MessageQueue, Outlet] | None:
        """Return the queue that takes the next request, on a broker that has room for it; None: wait for one.

        Brokers that are ``crowded`` have none.  Connections that are missing are begun.
        """
        avoided = [outlet for outlet in self.outlets if outlet.avoided_until > now]
        candidates: Sequence[Outlet] = self.outlets
        if len(avoided) == len(self.outlets):
            # The one whose trouble is the oldest.
            candidates = [min(avoided, key=lambda outlet: outlet.avoided_until)]
        elif avoided:
            candidates = [outlet for outlet in self.outlets if outlet.avoided_until <= now]
        fit = []
        for outlet in candidates:
            if not outlet.is_open:
                outlet.connect()
            elif outlet not in crowded and outlet.has_room(now):
                fit.append(outlet)
        if not fit:
            return None
        places = self._places
        place = self._last
        while True:
            place = (place + 1) % len(places)
            if places[place][1] in fit:
                self._last = place
                return places[place]


class Fixed:
    """The one queue that keeps an order: no other takes its place."""

    __slots__ = ("outlets", "queue")

    def __init__(self, queue: MessageQueue, outlets: Outlets) -> None:
        self.queue = queue
        self.outlets = (outlets.get(queue.broker),)

    def share_of(self, count: int) -> int:
        """Return how many of ``count`` messages one request takes: as many as it can."""
        return count

    def next(self, now: float, crowded: Collection[Outlet] = ()) -> tuple[MessageQueue, Outlet] | None:
        """Return the queue if its broker has room now; None: wait.  A connection that is missing is begun."""
        (outlet,) = self.outlets
        if not outlet.is_open:
            outlet.connect()
        elif outlet.has_room(now):
            return self.queue, outlet
        return None


def queue_of_key(key: str | None, count: int) -> int:
    """Return which of ``count`` queues, in their order, all messages with ``key`` go to; without one it is the first.

    Every sender must compute the same, so it is CRC-32 of the key's UTF-8 and not a hash of this process.
    """
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % count if key is not None and count > 1 else 0


def settled_queues(known: Sequence[MessageQueue], route: Route) -> tuple[MessageQueue, ...]:
    """Return the queues of an ordered topic, in their order, after its route was read again.

    Those of a broker that the route does not name at all stay: it is away, and comes back.  If its keys moved to
    others meanwhile, their messages would be handled out of order.
    """
    away = (queue for queue in known if queue.broker not in route.brokers)
    return tuple(sorted({*route.writable, *away}))
