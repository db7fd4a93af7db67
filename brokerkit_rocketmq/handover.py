"""Where a reader of a queue goes on: after itself, after another member, after a crash.

The broker knows two numbers a queue: what is committed, and the mark, up to which messages were handed out.  What lies
between them is in somebody's hands, or was when its process died.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from brokerkit_rocketmq.marks import MOST_IN_HAND, Mark
from brokerkit_rocketmq.offsets import both
from brokerkit_rocketmq.progress import Progress

if TYPE_CHECKING:
    from brokerkit.spi import Clock
    from brokerkit_rocketmq.offsets import Offsets
    from brokerkit_rocketmq.remoting.messages import StoredMessage
    from brokerkit_rocketmq.routes import MessageQueue

__all__ = ["PATIENCE", "begin_at", "begin_at_end", "go_on", "take_over"]

log = logging.getLogger("brokerkit.rocketmq")

#: Seconds for which a member that lost a queue may still settle what it handed out, and the next one waits for it.
PATIENCE = 3.0
#: How much longer the next one waits: the former one's last commit is under way.
_SLACK = 0.5
#: Seconds between two looks at what the former one has committed.
_LOOK = 0.05


async def take_over(offsets: Offsets, queue: MessageQueue, clock: Clock, *, wait: bool) -> Progress[StoredMessage]:
    """Return where to begin in a queue that another member may have read until now.

    ``wait``: that member is alive, so what it has in its hands is given time to be settled; otherwise it would run
    twice.
    """
    deadline = clock.monotonic() + PATIENCE + _SLACK
    while True:
        committed, mark = await both(offsets, queue)
        if not wait or mark is None or mark.high <= (committed or 0) or clock.monotonic() >= deadline:
            break
        await clock.sleep(_LOOK)
    if committed is None:
        # A queue that came after the group was declared: all of it is the group's.
        committed = await offsets.first(queue)
        # Without a commit the lag of the group would be read as 0.
        await offsets.commit(queue, committed)
    if mark is None:
        await offsets.try_mark(queue, Mark(committed))
    elif mark.high > committed + MOST_IN_HAND:
        # Nobody holds so many: somebody set the offsets back.
        return await begin_at(offsets, queue, committed, commit=True)
    return Progress(committed, mark)


async def go_on(offsets: Offsets, queue: MessageQueue, past: Progress[StoredMessage]) -> Progress[StoredMessage]:
    """Return where to go on in a queue that was ours when its broker was lost.

    What was settled then and never reached the broker need not come again, unless others read the queue meanwhile, or
    it is not the same queue: the broker lost messages, or the topic was deleted and made anew, and the offsets that we
    know are those of others now.
    """
    committed, mark = await both(offsets, queue)
    if committed is None:
        committed = await offsets.first(queue)
    witness = past.witness
    same = await offsets.holds(queue, witness) if witness is not None else committed >= past.low
    if committed > past.low or not same:
        progress: Progress[StoredMessage] = Progress(committed, mark)
        progress.high = max(progress.high, past.high) if same else progress.high
        return progress
    if past.next > await offsets.end(queue):
        # The last ones are lost, or not copied yet.
        progress = Progress(past.low, mark)
        progress.high = max(progress.high, past.high)
        return progress
    if mark is not None:
        past.meet(mark)
    # This process lives, so nothing that was being tried ended it.
    past.trials.cancel_all()
    past.rewind()
    return past


async def begin_at(offsets: Offsets, queue: MessageQueue, offset: int, *, commit: bool) -> Progress[StoredMessage]:
    """Return the place that an administrator or the broker wants the queue to be read from."""
    if not commit:
        return Progress(offset)
    # First, so that it holds even if this process ends now.
    await offsets.commit(queue, offset)
    progress: Progress[StoredMessage] = Progress(offset)
    # What comes again because somebody wants it to is no suspect.
    mark = await offsets.mark(queue)
    progress.doubtful = mark.high if mark is not None else 0
    await offsets.try_mark(queue, Mark(offset))
    return progress


async def begin_at_end(offsets: Offsets, queue: MessageQueue) -> Progress[StoredMessage]:
    """Return the place behind all that is in the queue now."""
    return Progress(await offsets.end(queue))
