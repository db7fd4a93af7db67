"""`Tools`: what the queues of one consumer share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brokerkit.errors import BrokerError
    from brokerkit.spi import Clock
    from brokerkit_rocketmq.client import Client
    from brokerkit_rocketmq.commits import Commits
    from brokerkit_rocketmq.locks import Locks
    from brokerkit_rocketmq.offsets import Offsets
    from brokerkit_rocketmq.reader import Reader
    from brokerkit_rocketmq.remoting.messages import StoredMessage
    from brokerkit_rocketmq.routes import MessageQueue
    from brokerkit_rocketmq.sources import Source

__all__ = ["Tools"]


class Tools:
    """What a holding works with."""

    def __init__(
        self,
        client: Client,
        source: Source,
        clock: Clock,
        *,
        offsets: Offsets,
        commits: Commits,
        locks: Locks | None,
        copy: Callable[[Reader, list[StoredMessage]], Awaitable[bool]],
        changed: Callable[[], None],
        failed: Callable[[MessageQueue, BrokerError | None], None],
    ) -> None:
        """
        locks:   where the queues are read under locks
        copy:    stores copies of messages of a reader for the group alone, and returns whether all are stored
        changed: called when readers came or went
        failed:  called with a queue and what keeps it from being read
        """
        self.client = client
        self.source = source
        self.clock = clock
        self.offsets = offsets
        self.commits = commits
        self.locks = locks
        self.copy = copy
        self.changed = changed
        self.failed = failed
