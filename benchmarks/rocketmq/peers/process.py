"""A client of somebody else in a process of its own: told what to do by lines, answering in JSON lines.

A line is an encoded query (``do=send&topic=orders&body=…``), bodies in base64.  What every program knows:

- ``do=send``: ``topic``, ``body``, ``tag``, ``keys``, ``p.NAME`` for a property, ``level`` for a delay; says ``sent``
- ``do=consume``: ``topic``, ``group``, ``tag``, ``fail`` (how many attempts of each message fail); says ``consuming``,
  then ``message`` for each one.  ``do=stop`` ends it and says ``stopped``
- ``do=rate-send``: ``topic``, ``count``, ``size``, ``mode``, ``window``; says how many ``seconds`` they took
- ``do=rate-consume``: ``topic``, ``group``, ``count``; says how many seconds passed from the first one to the last

The Java program also knows ``add`` and ``flush`` (a batch), ``shard`` and ``ordered``, ``warm`` (how many messages come
before those that are measured), and says ``queues`` whenever it has got or lost some.  What fails is an ``error``.  The
end of the lines is the end of the program, in good order.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

__all__ = ["Peer", "PeerFailed", "Taken"]

#: Seconds; a loaded machine takes many of them to start a JVM or to balance a group.
LONG = 120.0


class PeerFailed(Exception):
    """The program said so, or ended, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A message as the other client shows it; None where it cannot."""

    topic: str
    body: bytes
    tag: str | None
    keys: str | None
    properties: Mapping[str, str]
    id: str
    broker: str | None
    queue: int | None
    offset: int | None
    #: Earlier deliveries, as that client counts them.
    reconsumed: int | None
    #: When it was handled, in seconds since the epoch.
    time: float

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Taken:
        """Return what one line says."""
        return cls(**{**fields, "body": b64decode(fields["body"])})


class Peer:
    """A running program; a context manager."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._name = Path(command[0]).name
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._messages: deque[Taken] = deque()
        #: The queues of the consumer, when the program last told: (broker, number).
        self.queues: frozenset[tuple[str, int]] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._answer("ready", LONG)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    # --- what it can be told ---

    def send(self, topic: str, body: bytes, **fields: object) -> dict[str, Any]:
        """Send one message and return what that client says about it; ``properties`` is a mapping."""
        self._tell(_message("send", topic, body, fields))
        return dict(self._answer("sent", LONG))

    def send_batch(self, topic: str, messages: Sequence[tuple[bytes, Mapping[str, object]]]) -> dict[str, Any]:
        """Send all of them as one batch."""
        for body, fields in messages:
            self._tell(_message("add", topic, body, fields))
            self._answer("added", LONG)
        self._tell({"do": "flush"})
        return dict(self._answer("sent", LONG))

    def consume(self, topic: str, group: str, **fields: object) -> None:
        """Start a consumer, whose messages `take` returns."""
        self._messages.clear()
        self._tell({"do": "consume", "topic": topic, "group": group, **fields})
        self._answer("consuming", LONG)

    def stop(self) -> None:
        """End the consumer in good order."""
        self._tell({"do": "stop"})
        self._answer("stopped", LONG)

    def take(self, count: int = 1, within: float = LONG) -> list[Taken]:
        """Return the next messages; `PeerFailed` when they do not come."""
        deadline = time.monotonic() + within
        while len(self._messages) < count:
            self._next(deadline, f"{count} messages, {len(self._messages)} came")
        return [self._messages.popleft() for _ in range(count)]

    def seen(self) -> list[Taken]:
        """Return what has come by now and was not taken; `queues` is up to date then."""
        while True:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                break
            self._note(line)
        return list(self._messages)

    def rate(self, what: str, **fields: object) -> dict[str, float]:
        """Return what a ``rate-…`` command says: count, seconds, cpu, and of sends how many failed."""
        self._tell({"do": f"rate-{what}", **fields})
        return {name: float(value) for name, value in self._until("seconds", 10 * LONG).items()}

    def close(self) -> None:
        """End the program in good order, or kill it."""
        if self._process.poll() is None and self._process.stdin is not None:
            try:
                self._process.stdin.close()
                self._process.wait(30.0)
            except (OSError, subprocess.TimeoutExpired):
                self.kill()
        self._end()

    def kill(self) -> None:
        """Kill the process, as a crash does."""
        self._process.kill()
        self._process.wait()
        self._end()

    # --- lines ---

    def _tell(self, fields: Mapping[str, object]) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            raise PeerFailed(f"{self._name} has been closed")
        try:
            stdin.write(urlencode(fields) + "\n")
            stdin.flush()
        except OSError as error:
            raise PeerFailed(f"{self._name} has ended:\n{self._said()}") from error

    def _answer(self, name: str, within: float) -> Any:
        return self._until(name, within)[name]

    def _until(self, name: str, within: float) -> dict[str, Any]:
        deadline = time.monotonic() + within
        while True:
            line = self._next(deadline, f"{name!r}")
            if name in line:
                return line

    def _next(self, deadline: float, what: str) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise PeerFailed(f"{self._name} did not say {what} in time:\n{self._said()}") from None
        return self._note(line)

    def _note(self, line: dict[str, Any] | None) -> dict[str, Any]:
        if line is None:
            raise PeerFailed(f"{self._name} has ended:\n{self._said()}")
        if "error" in line:
            raise PeerFailed(f"{self._name}: {line['error']}")
        if "message" in line:
            self._messages.append(Taken.read(line["message"]))
        if "queues" in line:
            self.queues = frozenset((broker, number) for broker, number in line["queues"])
        return line

    def _read(self) -> None:
        stdout = self._process.stdout
        if stdout is None:
            raise RuntimeError("the program was started without its output")
        for line in stdout:
            # Some libraries print.
            if line.startswith("{"):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def _end(self) -> None:
        self._reader.join(10.0)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    # Bytes that the dead process did not read.
                    pass


def _message(do: str, topic: str, body: bytes, fields: Mapping[str, object]) -> dict[str, object]:
    told = {name: value for name, value in fields.items() if name != "properties"}
    properties: Any = fields.get("properties", {})
    told.update({f"p.{name}": value for name, value in properties.items()})
    return {"do": do, "topic": topic, "body": b64encode(body).decode(), **told}
