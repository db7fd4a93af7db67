"""The books of a fault test: what was sent, confirmed, handled and given up on, and what that leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Self

__all__ = ["Ledger"]

#: Ids that a text names before it says how many more there are.
_NAMED = 10


class Ledger:
    """Records message ids; may be written to from any thread.

    *Lost* is what was confirmed and neither handled nor a dead letter.  *Doubled* is what was handled more than
    once.  *Unconfirmed* was sent without a confirmation: it may have been handled or not, and both is right.
    """

    def __init__(self, name: str = "ledger") -> None:
        self.name = name
        self._lock = threading.Lock()
        self._sent: set[str] = set()
        self._confirmed: set[str] = set()
        self._handled: dict[str, list[int]] = {}
        self._dead: dict[str, str] = {}

    # --- writing ----------------------------------------------------------------------------------------------

    def sent(self, message_id: str) -> None:
        """A send of this message began."""
        with self._lock:
            self._sent.add(message_id)

    def confirmed(self, message_id: str) -> None:
        """A send of this message returned."""
        with self._lock:
            self._sent.add(message_id)
            self._confirmed.add(message_id)

    def handled(self, message_id: str, attempt: int = 1) -> None:
        """A handler got through with this message, on this attempt."""
        with self._lock:
            self._handled.setdefault(message_id, []).append(attempt)

    def dead(self, message_id: str, reason: str = "") -> None:
        """The message is a dead letter."""
        with self._lock:
            self._dead[message_id] = reason

    def record(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Write what worker processes reported: each ``{"ledger": VERB, "id": …}`` with an ``attempt`` or ``reason``.

        ``VERB`` is sent, confirmed, handled or dead.  Events without "ledger" are passed over.
        """
        for event in events:
            match event:
                case {"ledger": "sent", "id": str(message_id)}:
                    self.sent(message_id)
                case {"ledger": "confirmed", "id": str(message_id)}:
                    self.confirmed(message_id)
                case {"ledger": "handled", "id": str(message_id)}:
                    self.handled(message_id, event.get("attempt", 1))
                case {"ledger": "dead", "id": str(message_id)}:
                    self.dead(message_id, event.get("reason", ""))
                case {"ledger": _}:
                    raise ValueError(f"an event for the ledger needs a known verb and an id, not {dict(event)!r}")

    def merge(self, other: Ledger) -> Self:
        """Add everything that ``other`` recorded; return self."""
        with other._lock:
            sent, confirmed = set(other._sent), set(other._confirmed)
            handled = {message_id: list(attempts) for message_id, attempts in other._handled.items()}
            dead = dict(other._dead)
        with self._lock:
            self._sent |= sent
            self._confirmed |= confirmed
            for message_id, attempts in handled.items():
                self._handled.setdefault(message_id, []).extend(attempts)
            self._dead.update(dead)
        return self

    # --- reading ----------------------------------------------------------------------------------------------

    @property
    def sent_ids(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._sent)

    @property
    def confirmed_ids(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._confirmed)

    @property
    def handled_ids(self) -> dict[str, tuple[int, ...]]:
        """The attempts on which each message was handled, in order."""
        with self._lock:
            return {message_id: tuple(attempts) for message_id, attempts in self._handled.items()}

    @property
    def dead_ids(self) -> dict[str, str]:
        """The reason of each dead letter."""
        with self._lock:
            return dict(self._dead)

    @property
    def lost(self) -> frozenset[str]:
        """Confirmed, but neither handled nor dead."""
        with self._lock:
            return frozenset(self._confirmed - self._handled.keys() - self._dead.keys())

    @property
    def doubled(self) -> dict[str, int]:
        """How often each message was handled that was handled more than once."""
        with self._lock:
            return {message_id: len(attempts) for message_id, attempts in self._handled.items() if len(attempts) > 1}

    @property
    def unconfirmed(self) -> frozenset[str]:
        """Sent, but no send of it returned."""
        with self._lock:
            return frozenset(self._sent - self._confirmed)

    @property
    def unknown(self) -> frozenset[str]:
        """Handled or dead, but never sent."""
        with self._lock:
            return frozenset((self._handled.keys() | self._dead.keys()) - self._sent)

    @property
    def settled(self) -> bool:
        """Whether nothing is lost; what a fault test waits for."""
        return not self.lost

    def assert_nothing_lost(self) -> None:
        """Raise `AssertionError` with the whole ledger when a confirmed message is neither handled nor dead."""
        if lost := self.lost:
            raise AssertionError(f"{len(lost)} confirmed messages were lost\n{self}")

    def assert_nothing_doubled(self) -> None:
        """Raise `AssertionError` with the whole ledger when a message was handled more than once."""
        if doubled := self.doubled:
            raise AssertionError(f"{len(doubled)} messages were handled more than once\n{self}")

    def assert_nothing_unknown(self) -> None:
        """Raise `AssertionError` with the whole ledger when something was handled that nobody sent."""
        if unknown := self.unknown:
            raise AssertionError(f"{len(unknown)} messages were handled or dead that nobody sent\n{self}")

    def __str__(self) -> str:
        """Return the ledger in lines, for the end of a fault test."""
        doubled, handled = self.doubled, self.handled_ids
        runs = sum(len(attempts) for attempts in handled.values())
        rows = [
            ("sent", len(self.sent_ids), ""),
            ("confirmed", len(self.confirmed_ids), ""),
            ("unconfirmed", len(self.unconfirmed), _named(self.unconfirmed)),
            ("handled", len(handled), f"in {runs} runs" if runs != len(handled) else ""),
            ("dead", len(self.dead_ids), _named(f"{i} ({why})" if why else i for i, why in self.dead_ids.items())),
            ("lost", len(self.lost), _named(self.lost)),
            ("doubled", len(doubled), _named(f"{i} x{count}" for i, count in doubled.items())),
        ]
        if unknown := self.unknown:
            rows.append(("unknown", len(unknown), _named(unknown)))
        lines = (f"  {label:<12}{count:>9,}  {detail}".rstrip() for label, count, detail in rows)
        return "\n".join((f"{self.name}:", *lines))


def _named(ids: Iterable[str]) -> str:
    names = sorted(ids)
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
