"""`CatchingUp`: waits until the queues of a broker hold what its log holds.

A send is confirmed when the message is in the broker's log; its queue, and with it all offsets, follows some
milliseconds later, and later under load (``ReputMessageService``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from brokerkit.errors import BrokerError
from brokerkit_rocketmq.errors import fresh, is_acl_refusal
from brokerkit_rocketmq.remoting.bodies import parse_body
from brokerkit_rocketmq.remoting.codes import RequestCode, ResponseCode

if TYPE_CHECKING:
    from brokerkit_rocketmq.client import Client

__all__ = ["CatchingUp"]

#: Seconds that a queue may stay behind the log, and between two looks at it.
_DISPATCH = 2.0
_PAUSE = 0.005
#: Seconds between two looks at a broker that cannot tell its state yet.
_YOUNG_PAUSE = 0.1


class CatchingUp:
    """Asks a broker once for all who ask at the same time.

    A 5.5.0 computes for 0.1 s until it answers, as it counts through its timer wheel (``TimerWheel.getAllNum``): the
    first use of twenty topics at once would keep it busy for seconds.
    """

    def __init__(self, client: Client, timeout: float) -> None:
        """``timeout``: seconds for each answer."""
        self._client = client
        self._timeout = timeout
        #: By broker: the look that was begun last, and the one that begins when that has ended.
        self._begun: dict[str, asyncio.Task[None]] = {}
        self._next: dict[str, asyncio.Task[None]] = {}

    async def caught_up(self, broker: str) -> None:
        """Return when what was stored before this call has its place in its queue.

        A look gives up after two seconds; one that is under way is waited for first, as it may have come too early.
        Raise `BrokerError` when the broker does not answer.
        """
        look = self._next.get(broker)
        if look is None or look.done():
            look = asyncio.get_running_loop().create_task(self._look_after(broker, self._begun.get(broker)))
            look.add_done_callback(_noted)
            self._next[broker] = look
        try:
            await asyncio.shield(look)
        except BrokerError as error:
            raise fresh(error) from error.__cause__

    async def _look_after(self, broker: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        # Who comes from now on may have stored something after the question.
        self._begun[broker] = self._next.pop(broker)
        await self._look(broker)

    async def _look(self, broker: str) -> None:
        clock = self._client.clock
        deadline = clock.monotonic() + _DISPATCH
        stored: int | None = None
        while True:
            frame = await self._client.call(broker, RequestCode.GET_BROKER_RUNTIME_INFO, timeout=self._timeout)
            if frame.code == ResponseCode.SYSTEM_ERROR and not is_acl_refusal(frame) and clock.monotonic() < deadline:
                # A 4.9.4 that was started a second ago has no figures yet: NoSuchElementException.
                await clock.sleep(_YOUNG_PAUSE)
                continue
            if frame.code != ResponseCode.SUCCESS:
                # It does not say how far it is, to us or at all: what it has in its queues now is all there is to know.
                return
            table = (parse_body(frame.body) or {}).get("table") or {}
            end, behind = int(table.get("commitLogMaxOffset", 0)), int(table.get("dispatchBehindBytes", 0))
            stored = end if stored is None else stored
            if end - behind >= stored or clock.monotonic() >= deadline:
                return
            await clock.sleep(_PAUSE)


def _noted(look: asyncio.Task[None]) -> None:
    # Whoever waited for it may be gone; nobody is left to be told then.
    if not look.cancelled():
        look.exception()
