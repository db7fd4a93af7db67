"""`Supervisor`: keeps worker processes running, passes signals on to them, and restarts them after a change.

A child learns two pipes from its order: the one it reads ends when the supervisor is gone, however it ended; the
one it writes tells the supervisor, as lines of JSON, which files it was made of and how long its stop may take.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from brokerkit.clock import Clock, SystemClock

__all__ = ["CONFIGURATION", "FORCED", "Command", "Supervisor"]

#: Exit code of a child that no restart would help.
CONFIGURATION = 2
#: Exit code of the supervisor when a child had to be killed.
FORCED = 1

#: Seconds before the first restart of a dead child; doubled up to the second as long as it does not live.
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0
#: Seconds after which a child counts as having lived.
_LIVED = 30.0
#: Seconds between two looks at children and files.
_LOOK = 0.25
#: Seconds beyond its own stop timeout before a child is killed.
_GRACE = 10.0
#: Seconds that children have after the second signal.
_NOW = 6.0

#: Makes the command line of a child from its number and the two descriptors that it inherits.
Command = Callable[[int, int, int], Sequence[str]]


@dataclass(slots=True)
class _Child:
    number: int
    process: subprocess.Popen[bytes]
    #: Ends when we are gone.
    lifeline: int
    reports: int
    since: float
    unread: bytes = b""
    #: It will report no more: it is about to end.
    silent: bool = False
    #: It was told to stop; a second time would mean now.
    asked: bool = False
    stop_timeout: float = 30.0


@dataclass(slots=True)
class _Slot:
    """The place of one child, with what outlives it."""

    number: int
    child: _Child | None = None
    pause: float = _FIRST_PAUSE
    restart_at: float | None = None
    files: dict[str, tuple[int, int] | None] = field(default_factory=dict)


class Supervisor:
    """Runs ``count`` children until it is told to stop; must run in the main thread.

    command: makes the command line of one child
    reload:  restart the children, each with a drain, when a file that they were made of changes
    say:     gets one line for each thing that a person wants to know
    """

    def __init__(
        self,
        command: Command,
        count: int,
        *,
        reload: bool = False,
        say: Callable[[str], object] = lambda line: None,
        clock: Clock | None = None,
    ) -> None:
        self._command = command
        self._slots = [_Slot(number) for number in range(1, count + 1)]
        self._reload = reload
        self._say = say
        self._clock = clock or SystemClock()
        self._signals = 0
        #: Whether any child ever loaded the application.
        self._loaded = False
        #: Whether the handlers of any child ever ran.
        self._ran = False
        self._hopeless = False

    def run(self) -> int:
        """Return the exit code: 0 after an orderly stop, 2 when the first child could not be configured."""
        with self._listening() as wakeup:
            try:
                while not self._signals:
                    self._keep()
                    self._look(wakeup)
                    if self._hopeless:
                        return CONFIGURATION
                return self._stop(wakeup)
            finally:
                self._kill()

    # --- children -------------------------------------------------------------------------------------------------

    def _start(self, slot: _Slot) -> None:
        theirs, lifeline = os.pipe()
        reports, told = os.pipe()
        os.set_blocking(reports, False)
        try:
            process = subprocess.Popen(
                self._command(slot.number, theirs, told),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs, told),
                # A group of its own: Ctrl-C of the terminal comes to us, and once to the children, from us.
                process_group=0,
            )
        finally:
            os.close(theirs)
            os.close(told)
        slot.child = _Child(slot.number, process, lifeline, reports, self._clock.monotonic())
        slot.restart_at = None

    def _keep(self) -> None:
        """Start what is due, restart what changed."""
        if self._reload and (changed := self._changed()):
            self._say(f"{', '.join(changed)} changed: restarting")
            self._restart()
            return
        now = self._clock.monotonic()
        # One child tells whether the application can be loaded; the others would only repeat it.
        for slot in self._slots if self._loaded else self._slots[:1]:
            if slot.child is None and (slot.restart_at is None or now >= slot.restart_at):
                self._start(slot)

    def _ask(self) -> None:
        for child in self._children():
            if not child.asked:
                child.asked = True
                child.process.send_signal(signal.SIGTERM)

    def _restart(self) -> None:
        self._ask()
        deadline = self._clock.monotonic() + self._patience()
        while any(slot.child for slot in self._slots):
            self._look(None, stopping=True)
            if self._signals:
                return
            if self._clock.monotonic() > deadline:
                self._kill()
        for slot in self._slots:
            slot.restart_at = None
            slot.pause = _FIRST_PAUSE
            # What a child that does not load is made of is not known yet: the files of the last one count.
            slot.files = {path: _stamp(path) for path in slot.files}

    def _look(self, wakeup: int | None, *, stopping: bool = False) -> None:
        """Wait a moment for signals, reports and ends of children; take note of them."""
        pipes = {child.reports: child for child in self._children() if not child.silent}
        waiting = [*pipes, *([wakeup] if wakeup is not None else [])]
        ready, _, _ = select.select(waiting, [], [], _LOOK)
        for descriptor in ready:
            child = pipes.get(descriptor)
            if child is not None:
                self._hear(child)
            else:
                os.read(descriptor, 1024)
        for slot in self._slots:
            if slot.child is not None and slot.child.process.poll() is not None:
                self._bury(slot, stopping=stopping)

    def _hear(self, child: _Child) -> None:
        while not child.silent:
            try:
                heard = os.read(child.reports, 1 << 16)
            except BlockingIOError:
                break
            child.unread += heard
            child.silent = not heard
        *lines, child.unread = child.unread.split(b"\n")
        for line in lines:
            report: dict[str, Any] = json.loads(line)
            self._loaded = self._loaded or bool(report.get("loaded"))
            self._ran = self._ran or bool(report.get("ran"))
            child.stop_timeout = float(report.get("stop_timeout", child.stop_timeout))
            slot = self._slots[child.number - 1]
            # The stamp of a known file stays: a change between two reports must be seen.
            slot.files = {path: slot.files.get(path) or _stamp(path) for path in report.get("files", ())}

    def _bury(self, slot: _Slot, *, stopping: bool) -> None:
        child = slot.child
        if child is None:
            return
        self._hear(child)
        os.close(child.lifeline)
        os.close(child.reports)
        slot.child = None
        if stopping or self._signals:
            return
        code = child.process.returncode
        lived = self._clock.monotonic() - child.since
        if code == CONFIGURATION and self._reload and slot.files:
            self._say("waiting for a change of its files")
            slot.restart_at = math.inf
            return
        if code == CONFIGURATION and not self._ran:
            self._hopeless = True
            return
        slot.pause = _FIRST_PAUSE if lived >= _LIVED else slot.pause
        slot.restart_at = self._clock.monotonic() + slot.pause
        self._say(f"process {slot.number} (pid {child.process.pid}) {_end(code)}: restarting in {slot.pause:g} s")
        slot.pause = min(slot.pause * 2, _LAST_PAUSE)

    def _children(self) -> list[_Child]:
        return [slot.child for slot in self._slots if slot.child is not None]

    # --- the end --------------------------------------------------------------------------------------------------

    def _stop(self, wakeup: int) -> int:
        """Drain the children; the second signal ends them now."""
        self._ask()
        if self._children():
            self._say(f"stopping {_processes(len(self._children()))}; once more stops without waiting")
        deadline = self._clock.monotonic() + self._patience()
        passed_on = 1
        while self._children():
            self._look(wakeup, stopping=True)
            if self._signals > passed_on:
                passed_on = self._signals
                for child in self._children():
                    # Another number: of two that are equal, and come before it runs, a process hears one.
                    child.process.send_signal(signal.SIGINT)
                deadline = min(deadline, self._clock.monotonic() + _NOW)
            if self._clock.monotonic() > deadline:
                self._say(f"{_processes(len(self._children()))} did not stop in time: killed")
                self._kill()
                return FORCED
        return 0

    def _patience(self) -> float:
        return max((child.stop_timeout for child in self._children()), default=0.0) + _GRACE

    def _kill(self) -> None:
        for slot in self._slots:
            if slot.child is not None:
                slot.child.process.kill()
                slot.child.process.wait()
                self._bury(slot, stopping=True)

    @contextmanager
    def _listening(self) -> Iterator[int]:
        """Count SIGTERM, SIGINT and SIGHUP, and give a descriptor that becomes readable with each signal."""
        wakeup, written = os.pipe()
        for descriptor in (wakeup, written):
            os.set_blocking(descriptor, False)

        def count(number: int, frame: object) -> None:
            self._signals += 1

        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # The terminal was closed; under nohup that is ignored.
            numbers.append(signal.SIGHUP)
        before = [signal.signal(number, count) for number in numbers]
        # Without a handler of Python's own SIGCHLD would wake nobody.
        child_before = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        wakeup_before = signal.set_wakeup_fd(written)
        try:
            yield wakeup
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in zip((*numbers, signal.SIGCHLD), (*before, child_before), strict=True):
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            os.close(wakeup)
            os.close(written)

    # --- changes --------------------------------------------------------------------------------------------------

    def _changed(self) -> list[str]:
        """Return the names of the files that changed since they were loaded."""
        changed = {}
        for slot in self._slots:
            for path, stamp in slot.files.items():
                now = _stamp(path)
                # Editors take a file away and put another in its place: gone means not yet.
                if now is not None and now != stamp:
                    changed[path] = os.path.relpath(path)
        return sorted(changed.values())


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _processes(count: int) -> str:
    return f"{count} process{'es' if count != 1 else ''}"


def _end(code: int) -> str:
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"ended with exit code {code}"
