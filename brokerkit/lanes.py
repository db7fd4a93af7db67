"""Lanes: in an ordered group, messages of one key are handled one after the other."""

from __future__ import annotations

from collections import deque

from brokerkit.spi import Inbound

__all__ = ["Lanes"]


class Lanes:
    """One lane per key; messages without a key share one.  A lane exists while something is in it."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[Inbound]] = {}

    def enter(self, inbound: Inbound) -> bool:
        """Put ``inbound`` into its lane; return whether it is at the head and may run."""
        lane = self._lanes.get(inbound.key or "")
        if lane is None:
            self._lanes[inbound.key or ""] = deque((inbound,))
            return True
        lane.append(inbound)
        return False

    def leave(self, inbound: Inbound) -> Inbound | None:
        """Take the settled head out of its lane; return the one that may run now."""
        key = inbound.key or ""
        lane = self._lanes.get(key)
        if lane is None or not lane or lane[0] is not inbound:
            return None
        lane.popleft()
        if lane:
            return lane[0]
        del self._lanes[key]
        return None

    def clear(self) -> None:
        """Forget everything that waits."""
        self._lanes.clear()

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))
