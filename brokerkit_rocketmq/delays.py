"""How long the broker holds a message back: delay levels on every version, timers on 5.x.

Both may be early, never by design late: the consumer holds what remains, or sends it round again.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass

__all__ = ["DEFAULT_LEVELS", "DELAY", "TIMER", "Delays", "parse_levels"]

#: ``messageDelayLevel`` as brokers have it by default; level 1 is the first.
DEFAULT_LEVELS = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"

DELAY = "DELAY"
TIMER = "TIMER_DELIVER_MS"

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LEVEL = re.compile(r"(\d{1,9})([smhd])", re.ASCII)

#: Seconds that a level may be longer than what remains: a delay that is exactly a level loses a little on its way.
_LATE = 0.05
#: Seconds by which timers are asked for early: they are 0.03 to 1.12 s late (timerPrecisionMs is 1,000), so a message
#: comes at most 0.1 s late and less than a second early, which the consumer waits for itself.
_EARLY = 1.02
#: What the consumer waits for itself needs no help of the broker.
_SHORTEST = 1.0
#: timerMaxDelaySec is three days by default; the message must arrive while it still is.
_FARTHEST = 3 * 86400.0 - 60.0


def parse_levels(text: str) -> tuple[float, ...]:
    """Return the seconds of the levels in a ``messageDelayLevel``; raise ValueError when it is none."""
    levels = []
    for number, item in enumerate(text.split(), 1):
        match = _LEVEL.fullmatch(item)
        if match is None:
            raise ValueError(f"level {number} is no delay such as 5s, 1m, 2h or 1d")
        levels.append(int(match.group(1)) * _UNITS[match.group(2)])
    if not levels:
        raise ValueError("there is no level in it")
    return tuple(levels)


@dataclass(frozen=True, slots=True)
class Delays:
    """What one broker offers: ``levels`` in seconds, and whether it has timers."""

    levels: tuple[float, ...] = parse_levels(DEFAULT_LEVELS)
    timers: bool = False

    def of(self, due: float, now: float) -> tuple[str, str] | None:
        """Return the property that delays a message until ``due`` or earlier; None where none is wanted.

        Earlier: what comes early must be delayed again.
        """
        remaining = due - now
        if self.timers:
            if remaining <= _SHORTEST:
                return None
            return TIMER, str(round((min(due - _EARLY, now + _FARTHEST)) * 1000))
        level = self.level(remaining)
        return (DELAY, str(level)) if level else None

    def level(self, seconds: float) -> int:
        """Return the number of the longest level that is not longer than ``seconds``; 0 where all are."""
        ordered = sorted((length, number) for number, length in enumerate(self.levels, 1))
        at = bisect.bisect_right(ordered, (seconds + _LATE, len(ordered) + 1))
        return ordered[at - 1][1] if at else 0
