"""What runs in a child of `brokerkit.process_executor.ProcessExecutor`.

A job is a frame of pickle(needs_main, call), where call is pickle(function, arguments); an answer is a frame of
pickle(`Answer`).  The first answer says that the child is ready.  The main thread runs the jobs, because handlers
may need to (asyncio, signals); another one reads, and ends the process as soon as the parent is gone.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import runpy
import signal
import sys
import threading
import traceback
import types
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import Any

__all__ = ["PROTOCOL", "Answer", "MainModule", "main"]

PROTOCOL = 5

#: Seconds.  What the exit hooks of an idle process may take once the parent is gone.
_EXIT_TIMEOUT = 3.0
#: Packages whose frames lead to the function of a job.
_LEADS_THERE = ("brokerkit", "asyncio")


@dataclass(frozen=True, slots=True)
class MainModule:
    """How the child finds what the parent calls ``__main__``: by module name, else by path."""

    name: str | None
    path: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """How a job ended: with a pickled result, or with an exception."""

    result: bytes | None = None
    #: The exception where it can be pickled and unpickled.
    exception: bytes | None = None
    type_name: str = ""
    text: str = ""
    traceback: str = ""


def main(descriptor: int) -> None:
    """Serve the parent at the other end of ``descriptor`` until it closes it."""
    connection: Connection[Any, Any] = Connection(descriptor)
    _outlive_signals()
    # A process that a job forks (e.g. with multiprocessing) must be an ordinary one: it can be terminated, at once,
    # and does not hold the connection, by whose end the parent sees that this process died.
    os.register_at_fork(
        before=_obey_signals, after_in_parent=_outlive_signals, after_in_child=lambda: _leave(connection)
    )
    jobs: SimpleQueue[bytes | None] = SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(connection, jobs, busy), name="brokerkit-parent", daemon=True).start()
    connection.send_bytes(pickle.dumps(Answer(), PROTOCOL))
    while (frame := jobs.get()) is not None:
        busy.set()
        answer = pickle.dumps(_run(frame), PROTOCOL)
        _flush()
        busy.clear()
        try:
            connection.send_bytes(answer)
        except OSError:
            return


def _outlive_signals() -> None:
    # Ctrl-C and service managers signal the children as well, but the parent drains first, then closes the
    # connection.  Handlers, not SIG_IGN: programs that a job starts would inherit that.
    _handle_signals(lambda number, frame: None)


def _obey_signals() -> None:
    _handle_signals(signal.SIG_DFL)


def _handle_signals(handler: Any) -> None:
    try:
        signal.signal(signal.SIGINT, handler)
        signal.signal(signal.SIGTERM, handler)
    except ValueError:  # only the main thread may; a job may fork in another one
        pass


def _leave(connection: Connection[Any, Any]) -> None:
    _obey_signals()  # the thread that forked is the main thread now
    try:
        connection.close()
    except OSError:
        pass


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # the job closed or replaced it
            pass


def _read(connection: Connection[Any, Any], jobs: SimpleQueue[bytes | None], busy: threading.Event) -> None:
    try:
        while True:
            jobs.put(connection.recv_bytes())
    except (EOFError, OSError):
        # The parent is gone or wants this process gone; a job that still runs has nobody who waits for it.
        if not busy.is_set():
            jobs.put(None)
            threading.Event().wait(_EXIT_TIMEOUT)
        os._exit(1)


def _run(frame: bytes) -> Answer:
    try:
        main_module, call = pickle.loads(frame)
        if main_module is not None:
            _load_main(main_module)
        fn, args = pickle.loads(call)
        result = fn(*args)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        return Answer(result=pickle.dumps(result, PROTOCOL))
    except BaseException as exc:
        return _failure(exc)


def _failure(exc: BaseException) -> Answer:
    exc.__traceback__ = _from_the_function_on(exc.__traceback__)
    try:
        pickled: bytes | None = pickle.dumps(exc, PROTOCOL)
        # Exceptions whose constructor takes other arguments than they keep are pickled, and fail at the other end.
        if pickled is not None and type(pickle.loads(pickled)) is not type(exc):
            pickled = None
    except Exception:
        pickled = None
    try:
        text = str(exc)
    except Exception:
        text = "(its text cannot be made)"
    return Answer(
        exception=pickled,
        type_name=f"{type(exc).__module__}.{type(exc).__qualname__}".removeprefix("builtins."),
        text=text,
        traceback="".join(traceback.format_exception(exc)),
    )


def _from_the_function_on(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames here and those of `asyncio.run`, unless there is nothing else."""
    inner = trace
    while inner is not None and str(inner.tb_frame.f_globals.get("__name__")).partition(".")[0] in _LEADS_THERE:
        inner = inner.tb_next
    return inner or trace


def _load_main(main_module: MainModule) -> None:
    # As multiprocessing does it: under a name other than __main__, so that guarded code does not run, and under
    # one that the parent knows too (multiprocessing makes it an alias), so that results can be unpickled there.
    if sys.modules["__main__"].__name__ == "__mp_main__":
        return
    module = types.ModuleType("__mp_main__")
    if main_module.name is not None:
        content = runpy.run_module(main_module.name, run_name="__mp_main__", alter_sys=True)
    else:
        content = runpy.run_path(str(main_module.path), run_name="__mp_main__")
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
