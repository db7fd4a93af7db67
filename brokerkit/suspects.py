"""Messages that were under way when a process crashed (guarantee 4).

One of them may be the poison that caused the crash, so they run one at a time.  Where the backend counts starts that a
crash ended, a suspect simply runs alone: START_MARKS counts all starts, so that the count is exact and few are
suspects; `Trials` counts the starts of suspects, each recorded just before it.  Elsewhere a message that was
merely prefetched looks like one that was started; the suspect is then never run itself: its stamped copy (attempt + 1)
goes to its own group, the original is acknowledged, and the copy runs when it arrives.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from brokerkit.spi import Inbound, Timer

if TYPE_CHECKING:
    from brokerkit.spi import Clock

__all__ = ["Suspects"]

#: Seconds after which the next suspect gets its turn although the last one was not settled here.
_PATIENCE = 5.0
#: The same with `Trials`: what is tried at the same time is not counted as well, but one that hangs must not keep all
#: others from being tried for ever.
_TRIAL_PATIENCE = 60.0
#: The same for a copy that did not arrive here: most likely another process of the group has it.  Where the group
#: is long it waits for its place, and no patience would be enough.
_ARRIVAL_PATIENCE = 0.25
#: Ids of messages that this process gave back unstarted; when they come again they are no suspects.
_REMEMBERED = 10_000


class Suspects:
    """The suspects of one subscription."""

    def __init__(
        self,
        clock: Clock,
        run: Callable[[Inbound], None],
        stamp: Callable[[Inbound], Awaitable[bool]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """``run`` dispatches a delivery; ``stamp`` replaces one by its stamped copy and says whether it did."""
        self._clock = clock
        self._run = run
        self._stamp = stamp
        self._spawn = spawn
        #: Whether the driver has `Trials`.
        self.trials = False
        self._waiting: deque[Inbound] = deque()
        self._given_back: OrderedDict[str, None] = OrderedDict()
        #: The suspect that runs alone now.
        self.running: Inbound | None = None
        #: The id of the copy whose turn it is when it arrives.
        self._awaited: str | None = None
        #: The awaited copy while its original is not settled: a broker may deliver before it confirms.
        self._early: Inbound | None = None
        self._stamping = False
        self._timer: Timer | None = None

    def is_suspect(self, inbound: Inbound) -> bool:
        """Return whether a process may have died of ``inbound``."""
        if inbound.started is not None:
            return inbound.started or inbound.crashes > 0
        return bool(inbound.redelivered) and inbound.message_id not in self._given_back

    def gave_back(self, inbound: Inbound) -> None:
        """Note that this process returns ``inbound`` unstarted."""
        if inbound.message_id is not None and inbound.started is None:
            self._given_back[inbound.message_id] = None
            if len(self._given_back) > _REMEMBERED:
                self._given_back.popitem(last=False)

    def admit(self, inbound: Inbound) -> None:
        """Take a suspect; it gets its turn later."""
        self._waiting.append(inbound)
        self._next()

    def arrived(self, inbound: Inbound) -> bool:
        """Note that a stamped copy was received; return whether it may run now.

        If the process died of it before its original was settled, both would come again.
        """
        if inbound.message_id is not None and inbound.message_id == self._awaited:
            if self._stamping:
                self._early = inbound
                return False
            self._turn_to(inbound)
        return True

    def _turn_to(self, copy: Inbound) -> None:
        self._awaited = self._early = None
        self.running = copy
        self._disarm()

    def settled(self, inbound: Inbound) -> None:
        """Note that the settlement of ``inbound`` reached the broker; the next suspect gets its turn."""
        if inbound is self.running:
            self.running = None
            self._disarm()
            self._next()

    def take_back(self) -> list[Inbound]:
        """Return the suspects that wait, and forget them; the one that runs keeps its turn."""
        waiting = list(self._waiting)
        if self._early is not None:
            waiting.append(self._early)
        self._waiting.clear()
        self._awaited = self._early = None
        if self.running is None:
            self._disarm()
        return waiting

    def forget(self, inbound: Inbound) -> None:
        """Note that ``inbound`` was taken back before it was started."""
        if inbound is self.running:
            self.running = None
            self._disarm()

    def clear(self) -> None:
        """Forget everything: none of it can be settled any more."""
        self.take_back()
        self.running = None
        self._disarm()

    def _next(self) -> None:
        if self.running is not None or self._awaited is not None or not self._waiting:
            return
        inbound = self._waiting.popleft()
        if inbound.started is None:
            self._awaited = inbound.message_id or ""
            self._spawn(self._send_copy(inbound))
            return
        self.running = inbound
        self._timer = self._clock.call_later(_TRIAL_PATIENCE if self.trials else _PATIENCE, self._give_up)
        self._run(inbound)

    async def _send_copy(self, inbound: Inbound) -> None:
        stamped = False
        self._stamping = True
        try:
            stamped = await self._stamp(inbound)
        finally:
            self._stamping = False
            # Everything may have been taken back before this was known.
            if self._awaited == (inbound.message_id or ""):
                early = self._early
                if early is not None:
                    self._turn_to(early)
                    self._run(early)
                elif stamped:
                    self._timer = self._clock.call_later(_ARRIVAL_PATIENCE, self._give_up)
                else:
                    self._give_up()

    def _give_up(self) -> None:
        self.running = self._awaited = None
        self._next()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
