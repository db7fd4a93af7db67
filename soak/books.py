"""The books of a soak run: the journals and the store compared, as a table and a verdict."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from soak.crew import RETENTION, STORE, is_once, number_of
from soak.faults import Strike
from soak.journal import COMPLETED, CONFIRMED, ENDED, SENT, STARTED, read

__all__ = ["Books"]

#: Seconds that two readings of the clock, one of them through the store, may differ by rounding.
_ROUNDING = 0.001
#: Messages that an evidence names, and the seconds before and after one of its instants whose faults it shows.
_NAMED, _AROUND = 10, 20.0


@dataclass
class Books:
    """What became of each message.  Tables have one entry for each number."""

    sent: int = 0
    confirmed: int = 0
    handled: int = 0
    #: How often handlers ended, all together.
    runs: int = 0
    completed: int = 0
    #: Handled more than once; of the idempotent topic: ended, and again, before a completion was recorded.
    twice_plain: int = 0
    twice_once: int = 0
    #: Most runs of one message.
    most_runs: int = 0
    #: Confirmed and not handled.
    lost: list[int] = field(default_factory=list)
    #: Started after its completion was recorded.
    again: list[int] = field(default_factory=list)
    #: Idempotent and confirmed, but no completion is recorded.
    unrecorded: list[int] = field(default_factory=list)
    #: Handled and never sent.
    unknown: list[int] = field(default_factory=list)
    #: Longest time without a confirm, and without a handler that ended, in seconds, and when it began.
    pause_confirming: tuple[float, float] = (0.0, 0.0)
    pause_handling: tuple[float, float] = (0.0, 0.0)
    #: Seconds from a confirm to the first time that the message was handled: of one in a hundred, and the longest.
    slow: float = 0.0
    slowest: float = 0.0
    began: float = 0.0
    last_confirm: float = 0.0
    #: When the last message was handled for the first time.
    last_handled: float = 0.0
    _sent_at: array[float] = field(default_factory=lambda: array("d"))
    _confirmed_at: array[float] = field(default_factory=lambda: array("d"))
    _completed_at: array[float] = field(default_factory=lambda: array("d"))

    @classmethod
    def read(cls, folder: Path) -> Books:
        """Read the journals and the store of a run whose processes have ended."""
        books = cls()
        books._read_sends(folder)
        books._read_completions(folder)
        books._read_runs(folder)
        return books

    @property
    def balanced(self) -> bool:
        """Whether nothing is lost, unknown, unrecorded or done again after it was recorded as done."""
        return not (self.lost or self.again or self.unrecorded or self.unknown)

    # --- reading ----------------------------------------------------------------------------------------------

    def _read_sends(self, folder: Path) -> None:
        size = 1 + max((number for number, _ in read(folder, SENT)), default=-1)
        self._sent_at, self._confirmed_at = _zeros(size), _zeros(size)
        for number, instant in read(folder, SENT):
            self.sent += 1
            self._sent_at[number] = instant
        instants = array("d")
        for number, instant in read(folder, CONFIRMED):
            self._confirmed_at[number] = instant
            instants.append(instant)
        self.confirmed = len(instants)
        self.began = min((instant for instant in self._sent_at if instant), default=0.0)
        self.pause_confirming, self.last_confirm = _longest_pause(self.began, instants)

    def _read_completions(self, folder: Path) -> None:
        """Take the earliest time that the journals or the store give: a kill may come between the two."""
        done = self._completed_at = _zeros(len(self._sent_at))
        for number, instant in read(folder, COMPLETED):
            if number < len(done) and (not done[number] or instant < done[number]):
                done[number] = instant
        stored = bytearray(len(done))
        path = folder / STORE
        if path.exists():
            database = sqlite3.connect(path)
            try:
                for key, expires in database.execute("SELECT key, expires FROM keys WHERE state = 2"):
                    number, instant = number_of(key), expires - RETENTION
                    if number < len(done):
                        stored[number] = 1
                        if not done[number] or instant < done[number]:
                            done[number] = instant
            finally:
                database.close()
        self.completed = sum(stored)
        self.unrecorded = [
            number
            for number, instant in enumerate(self._confirmed_at)
            if instant and is_once(number) and not stored[number]
        ]

    def _read_runs(self, folder: Path) -> None:
        known = len(self._sent_at)
        runs, first = array("H", bytes(2 * known)), _zeros(known)
        instants = array("d")
        for number, instant in read(folder, ENDED):
            instants.append(instant)
            if number < known and self._sent_at[number]:
                runs[number] = min(runs[number] + 1, 65535)
                first[number] = min(first[number] or instant, instant)
            else:
                self.unknown.append(number)
        self.runs = len(instants)
        self.most_runs = max(runs, default=0)
        self.last_handled = max(first, default=0.0)
        waits = sorted(first[n] - instant for n, instant in enumerate(self._confirmed_at) if instant and first[n])
        if waits:
            self.slow, self.slowest = waits[len(waits) * 99 // 100], waits[-1]
        self.pause_handling, _ = _longest_pause(self.began, instants)
        for number, count in enumerate(runs):
            if count:
                self.handled += 1
                if count > 1:
                    self.twice_once += is_once(number)
                    self.twice_plain += not is_once(number)
            elif self._confirmed_at[number]:
                self.lost.append(number)
        done = self._completed_at
        self.again = sorted(
            {
                number
                for number, instant in read(folder, STARTED)
                if number < known and done[number] and instant > done[number] + _ROUNDING
            }
        )

    # --- telling ----------------------------------------------------------------------------------------------

    def rows(self) -> list[tuple[str, str, str]]:
        """Return label, figure and remark of each line of the table."""
        plain = sum(1 for number, instant in enumerate(self._confirmed_at) if instant and not is_once(number))
        share = f"{100 * self.twice_plain / plain:.2f}% of its topic" if plain else ""
        rows = [
            ("sent", self.sent, ""),
            ("confirmed", self.confirmed, f"{_rate(self.confirmed, self.began, self.last_confirm)}"),
            ("sent, not confirmed", self.sent - self.confirmed, "may have been handled or not, both is right"),
            ("handled", self.handled, f"{_rate(self.handled, self.began, self.last_handled)}"),
            ("confirmed, not handled", len(self.lost), "must be 0"),
            ("handled, never sent", len(set(self.unknown)), "must be 0"),
            ("plain: handled again", self.twice_plain, f"{share}, at most {self.most_runs} runs of one message"),
            ("once: ran again, unrecorded", self.twice_once, "its completion was not recorded yet"),
            ("once: recorded completions", self.completed, ""),
            ("once: ran after its record", len(self.again), "must be 0"),
            ("once: confirmed, no record", len(self.unrecorded), "must be 0"),
        ]
        table = [(label, f"{figure:,}", remark) for label, figure, remark in rows]
        for what, (pause, since) in (("confirm", self.pause_confirming), ("handled message", self.pause_handling)):
            table.append((f"longest without a {what}", f"{pause:.1f} s", f"from second {since - self.began:.1f} on"))
        table.append(("longest from confirm to handling", f"{self.slowest:.1f} s", f"99% within {self.slow:.1f} s"))
        return table

    def evidence(self, diary: Iterable[Strike]) -> list[str]:
        """Return lines about each message that should not be as it is, and the faults around it."""
        strikes = list(diary)
        lines = []
        for what, numbers in (
            ("confirmed and not handled", self.lost),
            ("ran after its recorded completion", self.again),
            ("confirmed and no completion recorded", self.unrecorded),
        ):
            if numbers:
                lines.append(f"{what}: {len(numbers):,}, the first of them:")
            for number in numbers[:_NAMED]:
                lines.append(f"  {self._story(number)}")
                lines += [f"    {line}" for line in self._around(number, strikes)]
        return lines

    def _story(self, number: int) -> str:
        steps = (("sent", self._sent_at), ("confirmed", self._confirmed_at), ("completed", self._completed_at))
        times = ", ".join(f"{step} at {at[number] - self.began:.3f} s" for step, at in steps if at[number])
        return f"{number} ({'once' if is_once(number) else 'plain'}): {times}"

    def _around(self, number: int, strikes: Iterable[Strike]) -> list[str]:
        instants = [instant for instant in (self._sent_at[number], self._confirmed_at[number]) if instant]
        first, last = min(instants) - _AROUND, max(instants) + _AROUND
        return [
            f"{strike.began - self.began:8.1f} s  {strike}"
            for strike in strikes
            if strike.began <= last and (strike.ended or last) >= first
        ]


def _zeros(size: int) -> array[float]:
    return array("d", bytes(8 * size))


def _longest_pause(begin: float, instants: array[float]) -> tuple[tuple[float, float], float]:
    """Return the longest pause and when it began, and the last instant."""
    longest, since, before = 0.0, begin, begin
    for instant in sorted(instants):
        if instant - before > longest:
            longest, since = instant - before, before
        before = instant
    return (longest, since), before


def _rate(count: int, begin: float, end: float) -> str:
    return f"{count / (end - begin):,.0f} a second" if end > begin else ""
