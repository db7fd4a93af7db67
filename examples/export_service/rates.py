"""The exchange-rate service: what an export needs from somebody else, and what is down now and then."""

from __future__ import annotations

from pathlib import Path

__all__ = ["RateSource", "RatesUnavailable"]


class RatesUnavailable(Exception):
    """The exchange rates cannot be had now; later perhaps."""


class RateSource:
    """Stands for a service elsewhere: the first two times that it is asked for a task it does not answer.

    It counts in a file per task, as the next attempt may run in another process.
    """

    #: How often it fails for each task.
    FAILURES = 2

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, task_id: str) -> None:
        """Return when the rates of this task can be used; raise `RatesUnavailable` otherwise."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / task_id).open("ab") as asked:
            asked.write(b".")
            times = asked.tell()
        if times <= self.FAILURES:
            raise RatesUnavailable(f"the exchange-rate service does not answer (question {times})")
