"""One worker process of a test: spawned, watched, killed, suspended and restarted; it does not outlive the test."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brokerkit.clock import SystemClock
from brokerkit.testing.deadlines import eventually, eventually_sync
from brokerkit.testing.processes_child import REPORT_VARIABLE, report

__all__ = ["Exit", "WorkerProcess", "report"]

_BOOTSTRAP = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from brokerkit.testing.processes_child import main
main()
"""

#: Seconds that a process may take to die from SIGKILL, or to stop from SIGSTOP.
_SIGNAL_TIMEOUT = 30.0

#: Seconds between two looks at a process where the system has no descriptor for it.
_POLL = 0.02

#: Bytes of the child's output that an error shows.
_TAIL = 4000


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of one process.  ``code`` is negative for a signal, as in `subprocess`."""

    pid: int
    code: int
    #: It returned, or the test ended it, or it was supervised and started again.
    expected: bool


class WorkerProcess:
    """A Python process that calls ``target(*args)``; a coroutine is run to its end.

    ``target`` is "module:function" or a function of a module's top level; ``args`` must be picklable.  The process
    is a new interpreter, never a fork, with this one's import path.  It, and any process below it, calls `report`
    to append to `events`.  What it prints is in `output` and in every error.  All methods may be called from any
    thread; those that are not coroutines take effect before they return.
    """

    def __init__(
        self,
        target: str | Callable[..., Any],
        *args: object,
        name: str | None = None,
        environ: Mapping[str, str] | None = None,
        on_event: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        """``environ`` is added to this process's environment.  ``on_event`` is called on the watching thread."""
        # First: what cannot be pickled fails here, before there is anything to clean up.
        self._arguments = base64.b64encode(pickle.dumps(args)).decode()
        self.target = target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
        self.name = name or self.target
        #: What the process reported, in order, over all restarts.
        self.events: list[dict[str, Any]] = []
        #: Every end so far.
        self.exits: list[Exit] = []
        self._environ = dict(environ or {})
        self._on_event = on_event
        self._clock = SystemClock()
        self._directory = tempfile.TemporaryDirectory(prefix="brokerkit-process-")
        self._path = Path(self._directory.name) / "reports"
        os.mkfifo(self._path)
        # Open for writing too: the pipe then has no end of file between two writers.
        self._pipe = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)
        self._unread = b""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._started: set[int] = set()
        self._wanted: set[int] = set()
        self._restarts_left = 0.0
        self._last_output = ""
        self._closed = False

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process; `started` says when it runs.  `RuntimeError` when it runs already or was closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError(f"process {self.name} was closed: make a new one")
            if self._process is not None:
                raise RuntimeError(
                    f"process {self.name} runs already as pid {self._process.pid}: stop or kill it first"
                )
        if self._watcher is not None:
            self._watcher.join()
        failures: list[OSError] = []
        spawned = threading.Event()
        # The kernel ends the child with the *thread* that started it, so this one stays as long as the child.
        self._watcher = threading.Thread(
            target=self._watch, args=(spawned, failures), name=f"watch-{self.name}", daemon=True
        )
        self._watcher.start()
        spawned.wait()
        if failures:
            raise failures[0]

    async def started(self, within: float = 30.0) -> None:
        """Return when the target has been imported and is about to be called; `AssertionError` when it ended before."""

        def state() -> str:
            with self._lock:
                last = self._process.pid if self._process else self.exits[-1].pid if self.exits else None
                return "started" if last in self._started else "" if self._process else "ended"

        try:
            reached = await eventually(state, within, f"process {self.name} to start")
        except AssertionError as late:
            raise AssertionError(f"{late}{self._tail()}") from None
        if reached == "ended":
            raise AssertionError(f"process {self.name} ended before it started{self._tail()}")

    def kill(self) -> None:
        """Kill by SIGKILL and wait for the end; what was reported before is in `events` then."""
        if (pid := self._send(signal.SIGKILL, wanted=True)) is not None:
            eventually_sync(lambda: self._exit_of(pid), _SIGNAL_TIMEOUT, f"process {self.name} to die from SIGKILL")

    async def stop(self, within: float = 30.0) -> int:
        """Ask for the end by SIGTERM, end supervision, wait; return the exit code.

        When it did not end ``within`` that time it is killed and `AssertionError` shows its output.
        """
        self._restarts_left = 0
        pid = self._send(signal.SIGTERM, wanted=True)
        if pid is None:
            if not self.exits:
                raise RuntimeError(f"process {self.name} was never started")
            return self.exits[-1].code
        # A suspended process gets SIGTERM when it goes on.
        self._send(signal.SIGCONT)
        try:
            ended = await eventually(lambda: self._exit_of(pid), within, f"process {self.name} to end by SIGTERM")
        except AssertionError as late:
            self.kill()
            raise AssertionError(f"{late}{self._tail()}") from None
        return ended.code

    def restart(self) -> None:
        """Kill it if it runs, and start it again."""
        restarts, self._restarts_left = self._restarts_left, 0
        self.kill()
        self._restarts_left = restarts
        self.start()

    async def ended(self, within: float = 30.0) -> int:
        """Wait until it ended and is not started again; return the exit code."""
        await eventually(lambda: not self.alive and self.exits, within, f"process {self.name} to end{self._tail()}")
        return self.exits[-1].code

    def supervise(self, *, restart: bool = True, limit: int | None = None) -> None:
        """Start the process again whenever it dies with an exit code that is not 0, ``limit`` times at most.

        A death by `kill` counts like any other; `stop` and `close` end the supervision.
        """
        with self._lock:
            self._restarts_left = 0 if not restart else float("inf") if limit is None else limit

    def suspend(self) -> None:
        """Stop it by SIGSTOP, as a machine does that hangs; nothing of it runs any more."""
        pid = self._send(signal.SIGSTOP)
        if pid is None:
            raise RuntimeError(f"process {self.name} does not run{self._tail()}")
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a suspended process go on."""
        self._send(signal.SIGCONT)

    def send_signal(self, number: signal.Signals) -> None:
        """Send any signal; a death by it is an expected one."""
        self._send(number, wanted=True)

    def close(self) -> None:
        """Kill the process and its process group, and free everything.  No-op when closed before."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._restarts_left = 0
            process = self._process
            if process is not None and process.returncode is None:
                self._wanted.add(process.pid)
                os.killpg(process.pid, signal.SIGKILL)
        if self._watcher is not None:
            self._watcher.join(_SIGNAL_TIMEOUT)
        self._drain()
        self._last_output = self.output
        os.close(self._pipe)
        self._output.close()
        self._directory.cleanup()

    # --- what it did ------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The process that runs now; None when none does."""
        with self._lock:
            return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs, or is about to be started again."""
        return self.pid is not None

    @property
    def restarts(self) -> int:
        """How often it ended and was started again."""
        return max(0, len(self.exits) - (0 if self.alive else 1))

    @property
    def output(self) -> str:
        """What the process wrote to stdout and stderr, over all restarts."""
        if self._output.closed:
            return self._last_output
        size = os.fstat(self._output.fileno()).st_size
        # Not by seek and read: the child shares the position of the file.
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")

    def check(self) -> None:
        """Raise `AssertionError` with the output when it died and nobody wanted that."""
        for end in self.exits:
            if not end.expected:
                raise AssertionError(f"process {self.name} (pid {end.pid}) died with {end.code}{self._tail()}")

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """Yield all events from the first one on, and end when the process has ended."""
        position = 0
        while True:
            alive = self.alive
            while position < len(self.events):
                yield self.events[position]
                position += 1
            if not alive:
                return
            await self._clock.sleep(0.005)

    # --- on the watching thread -------------------------------------------------------------------------------

    def _watch(self, spawned: threading.Event, failures: list[OSError]) -> None:
        try:
            process: subprocess.Popen[bytes] | None = self._spawn()
        except OSError as error:
            failures.append(error)
            return
        finally:
            spawned.set()
        while process is not None:
            code = self._follow(process)
            if process.stdin is not None:
                process.stdin.close()
            process = self._record(process, code)

    def _spawn(self) -> subprocess.Popen[bytes]:
        order = {"target": self.target, "arguments": self._arguments}
        path = [os.path.abspath(entry) for entry in sys.path]
        with self._lock:
            process = subprocess.Popen(
                [sys.executable, "-u", "-X", "faulthandler", "-c", _BOOTSTRAP, json.dumps(path), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environ, REPORT_VARIABLE: str(self._path)},
                bufsize=0,
                # Its own group: `close` reaches the processes below it, and Ctrl-C only the test.
                process_group=0,
            )
            self._process = process
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died at once: the exit code says so
                process.stdin.write(json.dumps(order).encode() + b"\n")
        return process

    def _follow(self, process: subprocess.Popen[bytes]) -> int:
        """Collect the reports until the process has ended; return its exit code."""
        poller = select.poll()
        poller.register(self._pipe, select.POLLIN)
        death = _death_descriptor(process.pid)
        if death is not None:
            poller.register(death, select.POLLIN)
        try:
            while True:
                # Under the lock: nobody may signal a pid that is being given back.
                with self._lock:
                    code = process.poll()
                # After the look: what was written before the death is there.
                self._drain()
                if code is not None:
                    return code
                poller.poll(None if death is not None else _POLL * 1000)
        finally:
            if death is not None:
                os.close(death)

    def _drain(self) -> None:
        while True:
            try:
                self._unread += os.read(self._pipe, 1 << 16)
            except BlockingIOError:
                return
            *lines, self._unread = self._unread.split(b"\n")
            for line in lines:
                kind, payload = json.loads(line)
                if kind == "started":
                    self._started.add(payload)
                else:
                    self.events.append(payload)
                    if self._on_event is not None:
                        self._on_event(payload)

    def _record(self, process: subprocess.Popen[bytes], code: int) -> subprocess.Popen[bytes] | None:
        """Record the end; return the process that took its place under supervision."""
        with self._lock:
            again = code != 0 and self._restarts_left > 0
            self.exits.append(Exit(process.pid, code, code == 0 or again or process.pid in self._wanted))
            self._process = None
            if not again:
                return None
            self._restarts_left -= 1
            return self._spawn()

    # --- signals ----------------------------------------------------------------------------------------------

    def _send(self, number: signal.Signals, *, wanted: bool = False) -> int | None:
        """Send a signal and return the pid that got it; None when no process runs."""
        with self._lock:
            process = self._process
            if process is None or process.returncode is not None:
                return None
            if wanted:
                self._wanted.add(process.pid)
            os.kill(process.pid, number)
            return process.pid

    def _exit_of(self, pid: int) -> Exit | None:
        with self._lock:
            return next((end for end in reversed(self.exits) if end.pid == pid), None)

    def _tail(self) -> str:
        text = self.output[-_TAIL:].strip()
        return f"; its output ends with:\n{text}" if text else "; it printed nothing"


def _death_descriptor(pid: int) -> int | None:
    """Return a descriptor that is readable once the process ended, where the system has such a thing."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
