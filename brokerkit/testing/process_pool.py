"""The worker processes of a test together: none outlives its block, none dies unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from brokerkit.testing.processes import WorkerProcess

__all__ = ["ProcessPool"]


class ProcessPool:
    """Owns worker processes: use it in ``async with`` or ``with``; at the end all are killed.

    When the block succeeded but a process died that nobody killed and nobody supervised, `AssertionError` shows
    its output.
    """

    def __init__(self) -> None:
        self.processes: list[WorkerProcess] = []
        #: What all processes reported, in order of arrival.
        self.events: list[dict[str, Any]] = []

    def start(
        self,
        target: str | Callable[..., Any],
        *args: object,
        name: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> WorkerProcess:
        """Make a `WorkerProcess` and start it."""
        name = name or f"worker-{len(self.processes) + 1}"
        process = WorkerProcess(target, *args, name=name, environ=environ, on_event=self.events.append)
        self.processes.append(process)
        process.start()
        return process

    def close(self) -> None:
        """Kill all processes."""
        for process in self.processes:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        for process in self.processes:
            try:
                process.check()
            except AssertionError as died:
                if error is None:
                    raise
                error.add_note(str(died))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
