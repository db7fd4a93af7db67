"""The faults of the soak run: what strikes, whom, how long, and a diary of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brokerkit.clock import SystemClock, wait
from brokerkit.errors import BrokerError
from brokerkit.testing.faults import FaultProxy
from brokerkit.testing.processes import WorkerProcess
from soak.stage import Line, Stage

__all__ = ["WEIGHTS", "Faults", "Strike"]

#: How often each kind is in the bag that the next one is drawn from; those of the stage are added.
WEIGHTS = {"reset": 4, "cut": 3, "freeze": 4, "half-open": 2, "slow link": 4, "worker kill": 4}
_ON_LINKS = frozenset({"reset", "cut", "freeze", "half-open", "slow link"})
_BROKER = "broker"

#: Seconds from one fault to the next, that a fault lasts, and between two restarts of the broker.
_GAP = (3.0, 8.0)
_LENGTH = (1.0, 6.0)
_RESTART_GAP = 30.0
#: A half-open link lasts longer than two heartbeats, so that both sides give it up.
_HALF_OPEN = (8.0, 16.0)


@dataclass(slots=True)
class Strike:
    """One fault.  Times are wall-clock; ``ended`` is None while it lasts."""

    kind: str
    targets: tuple[str, ...]
    #: Seconds that it is meant to last, and a number from 0 to 1 that decides about its details.
    length: float
    detail: float
    began: float
    ended: float | None = None

    def __str__(self) -> str:
        lasted = "still on" if self.ended is None else f"{self.ended - self.began:.1f} s"
        whom = "" if self.targets == (_BROKER,) else f" of {', '.join(self.targets)}"
        return f"{self.kind}{whom} ({lasted})"


class Faults:
    """Strikes every few seconds, several at a time but never twice at the same target, until `stop`.

    The same ``seed`` draws the same faults, as far as the time that the machine takes for them is the same.
    """

    def __init__(self, seed: int, stage: Stage, lines: Mapping[str, Line], workers: Sequence[WorkerProcess]) -> None:
        """``lines`` by the names of the processes that use them."""
        self.diary: list[Strike] = []
        self._random = random.Random(seed)
        self._stage = stage
        self._proxies = {name: line.proxies for name, line in lines.items()}
        self._workers = {worker.name: worker for worker in workers}
        self._clock = SystemClock()
        self._bag: list[str] = []
        self._busy: set[str] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_restart = self._clock.monotonic()
        self._hurry = False
        self._failure: BrokerError | None = None

    @property
    def counts(self) -> Counter[str]:
        """How often each kind has struck."""
        return Counter(strike.kind for strike in self.diary)

    @property
    def current(self) -> list[Strike]:
        """What is on now."""
        return [strike for strike in self.diary if strike.ended is None]

    async def run(self) -> None:
        """Strike until `stop`; raise the `BrokerError` of a broker that cannot be broken or repaired."""
        while not await wait(self._clock, self._ending, self._random.uniform(*_GAP)):
            if self._failure is not None:
                raise self._failure
            self._strike()

    async def stop(self, *, hurry: bool = False) -> None:
        """End every fault and return when all is well again; with ``hurry`` a broker that is down stays down."""
        self._hurry = hurry
        if not self._ending.done():
            self._ending.set_result(None)
        if self._running:
            await asyncio.wait(self._running)
        for proxies in self._proxies.values():
            for proxy in proxies:
                proxy.heal()
        if self._failure is not None and not hurry:
            raise self._failure

    # --- choosing ---------------------------------------------------------------------------------------------

    def _strike(self) -> None:
        if not self._bag:
            weights = {**WEIGHTS, **self._stage.weights}
            self._bag = [kind for kind, weight in weights.items() for _ in range(weight)]
            self._random.shuffle(self._bag)
        for kind in self._bag:
            targets = self._targets(kind)
            if targets:
                break
        else:
            return
        self._bag.remove(kind)
        length = self._random.uniform(*(_HALF_OPEN if kind == "half-open" else _LENGTH))
        strike = Strike(kind, targets, length, self._random.random(), self._clock.time())
        self.diary.append(strike)
        self._busy.update(targets)
        task = asyncio.get_running_loop().create_task(self._last(strike), name=f"fault-{kind}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _targets(self, kind: str) -> tuple[str, ...]:
        if kind in _ON_LINKS:
            free = [name for name in self._proxies if name not in self._busy]
            # One, a few, or all: a switch that fails.
            return tuple(self._random.sample(free, self._random.choice((1, 1, 2, len(free))))) if len(free) > 1 else ()
        if kind == "worker kill":
            free = [f"process {name}" for name in self._workers if f"process {name}" not in self._busy]
            return (self._random.choice(free),) if free else ()
        if _BROKER in self._busy:
            return ()
        if kind in self._stage.restarts and self._clock.monotonic() - self._last_restart < _RESTART_GAP:
            return ()
        return (_BROKER,)

    # --- striking ---------------------------------------------------------------------------------------------

    async def _last(self, strike: Strike) -> None:
        try:
            if strike.kind in _ON_LINKS:
                await self._on_links(strike, [each for name in strike.targets for each in self._proxies[name]])
            elif strike.kind == "worker kill":
                name = strike.targets[0].removeprefix("process ")
                await asyncio.to_thread(self._workers[name].kill)
            else:
                await self._on_broker(strike)
        except BrokerError as error:
            self._failure = error
        finally:
            strike.ended = self._clock.time()
            self._busy.difference_update(strike.targets)

    async def _on_links(self, strike: Strike, proxies: Sequence[FaultProxy]) -> None:
        detail = strike.detail
        if strike.kind == "reset":
            for proxy in proxies:
                proxy.reset()
        elif strike.kind == "cut":
            # In the middle of a frame, wherever that is.
            for proxy in proxies:
                proxy.cut_at(int(detail * 50_000), on="current")
            await self._lasts(strike)
            for proxy in proxies:
                proxy.heal()
        elif strike.kind == "slow link":
            for proxy in proxies:
                proxy.delay(0.02 + 0.3 * detail, jitter=0.1)
            await self._lasts(strike)
            for proxy in proxies:
                proxy.heal()
        else:
            for proxy in proxies:
                proxy.freeze(existing_only=strike.kind == "half-open")
            await self._lasts(strike)
            for proxy in proxies:
                # Every second time what was held back, confirms among it, never arrives.
                if detail < 0.5:
                    proxy.reset()
                proxy.heal()

    async def _on_broker(self, strike: Strike) -> None:
        end = await asyncio.to_thread(self._stage.strike, strike.kind, strike.detail)
        if end is not None:
            await self._lasts(strike)
            await asyncio.to_thread(end, self._hurry)
        if strike.kind in self._stage.restarts:
            self._last_restart = self._clock.monotonic()

    async def _lasts(self, strike: Strike) -> None:
        await wait(self._clock, self._ending, strike.length)
