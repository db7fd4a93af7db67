"""`PendingRequests`: who waits for which answer, and until when."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from brokerkit_rocketmq.remoting.errors import RemotingError, RequestTimeout
from brokerkit_rocketmq.remoting.frames import Frame

__all__ = ["OnAnswer", "PendingRequests"]

log = logging.getLogger("brokerkit.rocketmq")

#: Is told what came of a request: the answer, whatever response code it has, or why there is none.
OnAnswer = Callable[[Frame | RemotingError], None]

#: Seconds between two looks at the deadlines, at least.
_SWEEP = 0.02


class PendingRequests:
    """The requests of one connection that are not answered, by the numbers that pair them with their answers.

    Answers are told at once, failures in a turn of the loop of their own: who is told of one may write, close or give
    up right then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: str) -> None:
        """``peer``: who is asked, for messages."""
        self._loop = loop
        self._peer = peer
        #: Who is told, and when it is overdue in loop time.
        self._requests: dict[int, tuple[OnAnswer, float]] = {}
        self._sweep_at = float("inf")
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, opaque: int, answered: OnAnswer, timeout: float) -> None:
        """Expect the answer to the request ``opaque`` for ``timeout`` seconds."""
        deadline = self._loop.time() + timeout
        self._requests[opaque] = (answered, deadline)
        if deadline < self._sweep_at:
            self._sweep_later(deadline)

    def answer(self, frame: Frame) -> None:
        """Tell an answer to whoever waits for it; what nobody waits for any more came too late."""
        request = self._requests.pop(frame.opaque, None)
        if request is None:
            return
        try:
            request[0](frame)
        except Exception:
            # A fault of whoever asked, whose own deadline ends it: the others get their answers.
            log.exception("an answer of %s could not be taken", self._peer)

    def fail(self, answered: OnAnswer, error: RemotingError) -> None:
        """Tell that there is no answer."""
        self._loop.call_soon(answered, error)

    def fail_all(self, error_of: Callable[[int], RemotingError]) -> None:
        """Tell all who wait that there is no answer; ``error_of`` makes the error of each request by its number."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        requests, self._requests = self._requests, {}
        for opaque, (answered, _) in requests.items():
            self.fail(answered, error_of(opaque))

    def _sweep_later(self, deadline: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweep_at = deadline
        self._sweeper = self._loop.call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        """Fail what is overdue, and look again when the next deadline is due: about once in a timeout."""
        self._sweeper = None
        self._sweep_at = float("inf")
        now = self._loop.time()
        overdue = [opaque for opaque, (_, deadline) in self._requests.items() if deadline <= now]
        for opaque in overdue:
            answered, _ = self._requests.pop(opaque)
            self.fail(answered, RequestTimeout(f"no answer from {self._peer} in time"))
        if self._requests:
            next_deadline = min(deadline for _, deadline in self._requests.values())
            self._sweep_later(max(next_deadline, now + _SWEEP))
