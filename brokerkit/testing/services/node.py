"""A broker of the test's own: a subprocess with its own port, directory and log."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError, BrokerUnavailable
from brokerkit.testing.services.ports import free_port

__all__ = ["PrivateNode"]

#: Ends the process group when the pipe on stdin breaks, which it does when the test run dies in whatever way.  A
#: process of its own, because a suspended node could not do it.
_GUARD = 'read -r line || kill -9 "-$1"'

#: Bytes of the log that an error shows.
_TAIL = 4000

_PAUSE = 0.05


class PrivateNode:
    """Base of the private nodes: a subclass says how its broker is started and when it is ready.

    Override `command` and `url`; `environment`, `prepare` and `probe` where needed.  All methods block.  The node
    is its own process group: `kill` and `suspend` reach every process of it.  Address and data stay the same over
    restarts; `close` deletes the data.  When the test run dies, the node dies.
    """

    name: ClassVar[str] = "node"
    origin: ClassVar[str] = "local"
    host: ClassVar[str] = "127.0.0.1"

    #: Seconds.
    start_timeout: ClassVar[float] = 60.0
    stop_timeout: ClassVar[float] = 30.0
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, *, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self._temporary = tempfile.TemporaryDirectory(prefix=f"brokerkit-{self.name}-", ignore_cleanup_errors=True)
        #: Configuration, data and `log`; the working directory of the node.
        self.directory = Path(self._temporary.name)
        self.log = self.directory / "node.log"
        self._clock = SystemClock()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._closed = False

    # --- for the subclass -------------------------------------------------------------------------------------

    def command(self) -> Sequence[str]:
        """Return the command line; it must stay in the foreground."""
        raise NotImplementedError(f"{type(self).__name__} must say how its node is started: override command()")

    @property
    def url(self) -> str:
        """What clients connect to."""
        raise NotImplementedError(f"{type(self).__name__} must say where its node is: override url")

    def environment(self) -> Mapping[str, str]:
        """Return variables that the node gets on top of this process's."""
        return {}

    def prepare(self) -> None:
        """Write what the node reads; called before every start."""

    def probe(self) -> None:
        """Return when the node is ready, raise `OSError` or `BrokerError` while it is not."""
        with socket.create_connection((self.host, self.port), timeout=5.0):
            pass

    # --- control ----------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the node's first process runs."""
        return self._process is not None and self._exit_code() is None

    def start(self) -> None:
        """Start the node and return when it is ready.

        `BrokerUnavailable` with the end of its log when it cannot be started, ends, or is not ready in time.
        """
        if self._closed:
            raise RuntimeError(f"the {self.name} node was closed: make a new one")
        if self.alive:
            raise RuntimeError(f"the {self.name} node runs already")
        self._end_group(signal.SIGKILL)  # what a crash of the first process left behind
        self.prepare()
        try:
            self._spawn()
            self._await_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the node by its `stop_signal`; `BrokerUnavailable` when it had to be killed."""
        if not self.alive:
            self._end_group(signal.SIGKILL)
            return
        self._signal(self.stop_signal)
        self.resume()  # a suspended node gets the signal when it goes on
        if self._wait(self.stop_timeout):
            self._end_group(signal.SIGKILL)
            return
        self.kill()
        raise BrokerUnavailable(f"the {self.name} node did not stop within {self.stop_timeout:g} s{self.log_tail()}")

    def kill(self) -> None:
        """Kill all processes of the node."""
        self._end_group(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the node if it runs, and start it again."""
        self.stop()
        self.start()

    def suspend(self) -> None:
        """Freeze all processes of the node by SIGSTOP."""
        if not self.alive or self._process is None:
            raise RuntimeError(f"the {self.name} node does not run: start it first")
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a suspended node go on."""
        if self.alive:
            self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the node and delete its directory.  No-op when closed before."""
        if not self._closed:
            self._closed = True
            self.kill()
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log_tail(self) -> str:
        """Return the end of the log as the end of an error text."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _TAIL))
                text = file.read().decode(errors="replace").strip()
        except FileNotFoundError:
            text = ""
        return f"; its log ends with:\n{text}" if text else "; its log is empty"

    # --- inside -----------------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        command = list(self.command())
        with self.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    command,
                    cwd=self.directory,
                    env={**os.environ, **self.environment()},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
            except OSError as error:
                raise BrokerUnavailable(f"the {self.name} node cannot be started: {error}") from error
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in the terminal must not end the guard before the node.
            process_group=0,
        )

    def _await_ready(self) -> None:
        deadline = self._clock.monotonic() + self.start_timeout
        never = threading.Event()
        while True:
            if not self.alive:
                raise BrokerUnavailable(
                    f"the {self.name} node ended with {self._exit_code()} while it started{self.log_tail()}"
                )
            try:
                self.probe()
            except (OSError, BrokerError) as error:
                reason = error
            else:
                # Something else may have answered at this port while the node failed over it.
                if self.alive:
                    return
                continue
            if self._clock.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"the {self.name} node was not ready within {self.start_timeout:g} s: {reason}{self.log_tail()}"
                ) from reason
            never.wait(_PAUSE)

    def _exit_code(self) -> int | None:
        """Return how the first process ended, None while it runs.

        It stays a zombie until `_end_group`: its pid is the name of the group and must not go to somebody else.
        """
        if self._process is None:
            return None
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def _wait(self, timeout: float) -> bool:
        deadline = self._clock.monotonic() + timeout
        never = threading.Event()
        while self.alive:
            if self._clock.monotonic() > deadline:
                return False
            never.wait(_PAUSE)
        return True

    def _end_group(self, number: signal.Signals) -> None:
        """Signal what is left of the group, wait for the first process and dismiss the guard."""
        if self._process is None:
            return
        self._signal(number)
        self._process.wait()
        self._process = None
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            with guard.stdin, contextlib.suppress(BrokenPipeError):
                guard.stdin.write(b"done\n")
            guard.wait()
