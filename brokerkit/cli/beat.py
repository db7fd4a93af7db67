"""`Beat`: writes the state file of a running worker about once a second."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from brokerkit.blocking import Manager
from brokerkit.cli.targets import AnyManager
from brokerkit.clock import Clock
from brokerkit.state_files import StateFile, WorkerState, process_started
from brokerkit.worker import Worker

__all__ = ["Beat"]

log = logging.getLogger("brokerkit.cli")

#: Seconds between two looks at the worker, and looks between two writes of the file.
_LOOK = 0.25
_LOOKS = 4


class Beat:
    """A thread of its own: a held-up event loop must not stop the news that it is held up.

    on_look: called with every look, and with whether the handlers run
    """

    def __init__(
        self,
        manager: AnyManager,
        file: StateFile,
        *,
        worker_id: str,
        unnamed: bool = False,
        target: str,
        broker: str,
        clock: Clock,
        on_look: Callable[[bool], object],
    ) -> None:
        self._aio = manager.aio if isinstance(manager, Manager) else manager
        self._file = file
        self._id = worker_id
        self._unnamed = unnamed
        self._target = target
        self._broker = broker
        self._clock = clock
        self._on_look = on_look
        self._groups = tuple(sorted({(spec.topic, spec.group or "") for spec in self._aio.specs}))
        self._started = clock.time()
        self._process_started = process_started(os.getpid())
        #: When each message in work was first seen there, by handler and message.
        self._seen: dict[tuple[str, int], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="brokerkit-beat", daemon=True)
        self._writable = True

    @property
    def in_flight(self) -> int:
        """How many messages are in work."""
        worker = self._aio._worker
        try:
            return worker.in_flight if worker is not None else 0
        except RuntimeError:
            # The worker changed while it was read.
            return 1

    def hurry(self) -> None:
        """End the drain that is under way, or the one that comes."""
        worker = self._aio._worker
        if worker is not None:
            worker.hurry()

    def __enter__(self) -> Self:
        self._file.remove_replaced(self._state(None))
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        try:
            self._file.remove()
        except OSError as failure:
            log.warning("the state file %s could not be removed: %s", self._file.path, failure.strerror)

    def _run(self) -> None:
        looks = 0
        while not self._over.wait(_LOOK):
            looks += 1
            self._on_look(self._aio._worker is not None)
            if looks % _LOOKS == 0:
                self._write()

    def _write(self) -> None:
        try:
            state = self._state(self._aio._worker)
        except RuntimeError:
            # The worker changed while it was read; the next look comes soon.
            return
        try:
            self._file.write(state)
            self._writable = True
        except OSError as failure:
            if self._writable:
                log.warning(
                    "the state file %s cannot be written (%s): `status` and `doctor` do not see this worker",
                    self._file.path,
                    failure.strerror or failure,
                )
            self._writable = False

    def _state(self, worker: Worker | None) -> WorkerState:
        now = self._clock.monotonic()
        groups, longest, seen = self._groups, dict[str, float](), dict[tuple[str, int], float]()
        if worker is not None:
            groups = worker.groups or groups
            for name, key in worker.at_work():
                since = seen[name, key] = self._seen.get((name, key), now)
                longest[name] = max(longest.get(name, 0.0), now - since)
        self._seen = seen
        return WorkerState(
            id=self._id,
            unnamed=self._unnamed,
            pid=os.getpid(),
            process_started=self._process_started,
            target=self._target,
            directory=os.getcwd(),
            broker=self._broker,
            groups=groups,
            in_flight=worker.in_flight if worker is not None else 0,
            stuck={name: round(seconds, 1) for name, seconds in (worker.stuck() if worker is not None else {}).items()},
            longest={name: round(seconds, 1) for name, seconds in longest.items()},
            started=self._started,
            beat=self._clock.time(),
        )
