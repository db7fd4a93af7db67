"""Child processes for handlers that must not share the process: they can be killed, and may crash.

Children are spawned (never forked: a fork copies locks that other threads hold), one job at a time each, and live
until `ProcessExecutor.close`.  Each busy child has a thread here that waits for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from brokerkit.clock import Clock, SystemClock, Timer
from brokerkit.errors import BrokerError, Closed, ConfigurationError, PayloadError
from brokerkit.executors import ThreadExecutor
from brokerkit.process_child import PROTOCOL, Answer, MainModule

__all__ = ["ChildTraceback", "HandlerFailure", "ProcessExecutor", "WorkerCrashed"]

#: Seconds.  A child that is not ready by then is given up.
_START_TIMEOUT = 60.0
#: Seconds.  What a child may take to end once its connection is closed or it was killed.
_END_TIMEOUT = 5.0

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from brokerkit.process_child import main; main(int(sys.argv[1]))"
)


class WorkerCrashed(BrokerError):
    """The process that ran the handler died; the text has its exit code or signal."""

    default_retryable = True


class HandlerFailure(BrokerError):
    """Stands for an exception of a handler in a child process that cannot be pickled.

    ``type_name`` is its class with module, ``text`` its text, ``traceback`` how it was printed.
    """

    default_retryable = True

    def __init__(self, message: str, *, type_name: str = "", text: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.text = text
        self.traceback = traceback

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message,), dict(self.__dict__))


class ChildTraceback(Exception):
    """The cause of an exception that came from a child: its traceback there, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class ProcessExecutor:
    """Runs functions in up to ``processes`` child processes, which start when they are needed.  POSIX only."""

    def __init__(self, processes: int, *, clock: Clock | None = None) -> None:
        if sys.platform == "win32":
            raise ConfigurationError("executor='process' is not available on Windows; use executor='thread'")
        if processes < 1:
            raise ConfigurationError(f"the process executor: processes is {processes}; it must be at least 1")
        self._clock: Clock = clock or SystemClock()
        self._threads = ThreadExecutor(processes, "brokerkit-process")
        self._idle: deque[_Child] = deque()
        self._jobs: set[_Job] = set()
        self._closed = False

    def check(self, fn: Callable[..., Any]) -> None:
        """Raise `ConfigurationError` that says what to do unless a child process can find ``fn``."""
        name = getattr(fn, "__qualname__", None) or repr(fn)
        try:
            pickled = pickle.dumps(fn, PROTOCOL)
        except Exception as exc:  # pickle raises whatever the object's own methods do
            raise ConfigurationError(
                f"handler {name} cannot run with executor='process', because a child process cannot find it: {exc}. "
                "Define it with def at the top level of a module (no lambda, no nested function, no decorator that "
                "hides it), or use executor='thread'"
            ) from exc
        if b"__main__" in pickled and _main_module() is None:
            raise ConfigurationError(
                f"handler {name} cannot run with executor='process': it was defined interactively, so a child "
                "process has no file to import it from. Put it in a module, or use executor='thread'"
            )

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], timeout: float | None) -> asyncio.Future[Any]:
        """Run ``fn(*args)`` in a child, an ``async def`` by `asyncio.run`; return the future of its result.

        The future fails with what ``fn`` raised (a BaseException), the child's traceback as text in its cause, or
        with `HandlerFailure` in its place; with TimeoutError once ``fn`` ran for ``timeout`` seconds, when the
        child and the processes that it started were killed; with `WorkerCrashed` when the child died.  Cancelling
        the future kills the child if it runs the job.  Raise `PayloadError` when the arguments cannot be pickled,
        `Closed` after `close`.
        """
        if self._closed:
            raise Closed("the process executor is closed")
        try:
            call = pickle.dumps((fn, args), PROTOCOL)
        except Exception as exc:  # pickle raises whatever the object's own methods do
            raise PayloadError(f"the arguments of a handler cannot be sent to its child process: {exc}") from exc
        frame = pickle.dumps((_main_module() if b"__main__" in call else None, call), PROTOCOL)
        job = _Job(frame, timeout, self._clock, asyncio.get_running_loop())
        self._jobs.add(job)
        future = self._threads.submit(self._run, job)
        future.add_done_callback(lambda done: self._settle(job, done))
        return future

    @property
    def outstanding(self) -> int:
        """How many jobs of the running event loop have not handed their result to it."""
        return self._threads.outstanding

    def running(self) -> int:
        """Return how many jobs are under way in children."""
        return self._threads.running()

    def close(self, wait: bool, timeout: float | None = None) -> None:
        """End the children; `submit` raises `Closed` from now on.  Idempotent.

        With ``wait`` this call blocks until the jobs made so far are over, at most ``timeout`` seconds; the timeouts
        of jobs do not end them meanwhile when it blocks their event loop.  Then, and at once without ``wait``,
        children that still run a job are killed: their futures fail with `WorkerCrashed`.  Idle children get a few
        seconds for their exit hooks, all at the same time; for an event loop there is `aclose`.
        """
        self._closed = True
        if not (wait and self._threads.close(True, timeout)):
            self._threads.close(False)
            for job in tuple(self._jobs):
                job.kill()
            self._threads.close(True, _END_TIMEOUT)
        idle = []
        while self._idle:
            idle.append(self._idle.pop())
        for child in idle:
            child.hang_up()
        now = SystemClock().monotonic  # processes end in real time, whatever the time of the application
        deadline = now() + _END_TIMEOUT
        for child in idle:
            child.end(max(0.0, deadline - now()))

    async def aclose(self, timeout: float | None = None) -> None:
        """Do what `close` with ``wait`` does while the event loop goes on.  ``timeout`` 0 kills at once.

        Cancelling this call does not end the closing.
        """
        self._closed = True
        await asyncio.to_thread(self.close, True, timeout)

    def _settle(self, job: _Job, future: asyncio.Future[Any]) -> None:
        self._jobs.discard(job)
        job.disarm()
        if future.cancelled():
            job.kill()

    def _run(self, job: _Job) -> Any:
        """Run the job in a child; in a thread."""
        if job.killed:
            raise WorkerCrashed("the job was given up before it started")
        child = self._take()
        if not job.begin(child):
            child.end()
            raise WorkerCrashed("the job was given up before it started")
        try:
            answer = child.ask(job.frame)
        except (EOFError, OSError) as exc:
            how = child.end()
            if job.timed_out:
                text = f"the handler ran longer than its timeout of {job.timeout:g} s; its process was killed"
                raise TimeoutError(text) from None
            why = " because the job was cancelled or the executor closed" if job.killed else ""
            raise WorkerCrashed(f"the process that ran the handler died: {how}{why}") from exc
        if not job.finish():  # killed after it had answered
            child.end()
        else:
            self._idle.append(child)
        return _open_answer(answer)

    def _take(self) -> _Child:
        while self._idle:
            try:
                child = self._idle.pop()
            except IndexError:
                break
            if child.alive():
                return child
            child.end()
        return _Child()


class _Job:
    """One call, seen from the loop (timer, kill) and from the thread that waits for the child."""

    def __init__(self, frame: bytes, timeout: float | None, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self.frame = frame
        self.timeout = timeout
        self.timed_out = False
        self.killed = False
        self._clock = clock
        self._loop = loop
        self._child: _Child | None = None
        self._timer: Timer | None = None
        self._over = False

    def begin(self, child: _Child) -> bool:
        """Note the child that is about to run the job; return False when nobody wants the job any more."""
        self._child = child
        if self.killed:
            self._child = None
            return False
        if self.timeout is not None:
            self._loop.call_soon_threadsafe(self._arm)
        return True

    def finish(self) -> bool:
        """Note that the child answered; return whether it may be used again."""
        self._child = None
        return not (self.killed or self.timed_out)

    def kill(self) -> None:
        """Kill the child if it runs the job, and do not start the job if it waits."""
        self.killed = True
        child = self._child
        if child is not None:
            child.kill()

    def disarm(self) -> None:
        """No longer limit the time."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if not self._over and self.timeout is not None:
            self._timer = self._clock.call_later(self.timeout, self._expire)

    def _expire(self) -> None:
        # The flag before the look at the child, as in `kill`: `finish` does it the other way round, so that a child
        # that is about to be killed is never used again.
        self.timed_out = True
        child = self._child
        if child is not None:
            child.kill()


class _Child:
    """One child process.  Used by one thread at a time; `kill` may come from any."""

    def __init__(self) -> None:
        """Start the process and wait until it is ready; raise `WorkerCrashed` when it does not come up."""
        ours, theirs = socket.socketpair()
        with theirs:
            # Out of the terminal's process group: Ctrl-C must not reach it, and a kill takes along what it started.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _BOOTSTRAP,
                    str(theirs.fileno()),
                    json.dumps([part for part in sys.path if isinstance(part, str)]),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        try:
            if not self._connection.poll(_START_TIMEOUT):
                self.kill()
            self._connection.recv_bytes()
        except (EOFError, OSError) as exc:
            how = self.end()
            raise WorkerCrashed(f"a process for handlers did not start: {how}; its standard error says why") from exc

    def ask(self, frame: bytes) -> Answer:
        """Run one job; raise EOFError or OSError when the process died."""
        self._connection.send_bytes(frame)
        answer: Answer = pickle.loads(self._connection.recv_bytes())
        return answer

    def alive(self) -> bool:
        """Return whether the process has not ended, as far as can be known."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill the process and those that it started."""
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def hang_up(self) -> None:
        """Let the process end when it is idle.  Idempotent."""
        self._connection.close()

    def end(self, timeout: float = _END_TIMEOUT) -> str:
        """Let the process end, after ``timeout`` seconds by force; return how it ended."""
        self.hang_up()
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"


def _main_module() -> MainModule | None:
    """Return how a child can import what is ``__main__`` here; None when it cannot."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return MainModule(spec.name, None)
    path = getattr(main, "__file__", None)
    return MainModule(None, os.path.abspath(path)) if path and os.path.exists(path) else None


def _open_answer(answer: Answer) -> Any:
    if answer.result is not None:
        return pickle.loads(answer.result)
    exc: BaseException | None = None
    if answer.exception is not None:
        try:
            exc = pickle.loads(answer.exception)
        except Exception:  # its class cannot be imported here; the text below stands for it
            exc = None
    if exc is None:
        text = f"the handler failed in its process: {answer.type_name}: {answer.text}"
        exc = HandlerFailure(text, type_name=answer.type_name, text=answer.text, traceback=answer.traceback)
    raise exc from ChildTraceback(answer.traceback)
