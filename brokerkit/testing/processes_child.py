"""The inside of a worker process of a test: run the target, report, die with the parent."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import importlib
import inspect
import json
import os
import pickle
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

__all__ = ["REPORT_VARIABLE", "main", "report"]

#: Names the pipe that `report` writes to; set by the parent, inherited by the processes of the child.
REPORT_VARIABLE = "BROKERKIT_TEST_REPORT"

_STDIN = 0

#: PR_SET_PDEATHSIG of linux/prctl.h.
_PR_SET_PDEATHSIG = 1


def report(event: Mapping[str, Any]) -> None:
    """Tell the test that started this process, or a parent of it, that ``event`` happened.

    ``event`` is JSON-able, at most about 4000 bytes of it (`ValueError` beyond); ``pid`` is added.  Once this
    returned the event arrives, even if the process is killed in the next instant.  From any thread.
    """
    _write("event", {"pid": os.getpid(), **event})


def main() -> None:
    """Do what the first line on stdin orders; called by the parent's command line only."""
    _die_with_parent(int(sys.argv[2]))
    order = json.loads(_read_line())
    threading.Thread(target=_exit_at_end_of_input, name="parent-watch", daemon=True).start()
    target = _resolve(order["target"])
    arguments = pickle.loads(base64.b64decode(order["arguments"]))
    _write("started", os.getpid())
    result = target(*arguments)
    if inspect.iscoroutine(result):
        asyncio.run(result)


def _write(kind: str, payload: object) -> None:
    path = os.environ.get(REPORT_VARIABLE)
    if path is None:
        raise RuntimeError(
            "report() works in processes that brokerkit.testing.processes started: there is no pipe here"
        )
    line = json.dumps([kind, payload], separators=(",", ":")).encode() + b"\n"
    # Up to PIPE_BUF bytes are written as one piece, whoever else writes (pipe(7)): no lock, no torn line.
    if len(line) > select.PIPE_BUF:
        raise ValueError(
            f"an event of {len(line)} bytes is larger than the {select.PIPE_BUF} that a pipe keeps together"
        )
    # Not blocking to open: without a parent that reads, this is an error and not a hang.
    pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.set_blocking(pipe, True)
        os.write(pipe, line)
    finally:
        os.close(pipe)


def _resolve(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return cast("Callable[..., Any]", found)


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(_STDIN, 1 << 16)
        if not piece:
            os._exit(1)
        line += piece
    return line


def _exit_at_end_of_input() -> None:
    while os.read(_STDIN, 1 << 16):
        pass
    os._exit(1)


def _die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL at the end of the parent: the watching thread cannot act while C code is stuck."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
